"""`Database`: transactions of an engine, blocking or async, that go on while a coroutine waits for something else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, Concatenate, ParamSpec, TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.ext.asyncio import AsyncEngine

from fairque import WrongType

__all__ = ["Database", "Transaction"]

P = ParamSpec("P")
T = TypeVar("T")


class Transaction:
    """Calls functions with its connection. What none of them commits is undone at the end."""

    def __init__(self, call: Callable[..., Awaitable[Any]]) -> None:
        self._call = call

    async def call(self, function: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What the function returns. Raises what it raises."""
        returned: T = await self._call(function, *args, **kwargs)
        return returned


class Database:
    """What a relay knows of an engine.

    Args:
        engine: Blocking calls of an `Engine` are made in a thread.

    Raises:
        WrongType: It is no engine.
    """

    def __init__(self, engine: Engine | AsyncEngine) -> None:
        if not isinstance(engine, (Engine, AsyncEngine)):
            raise WrongType(f"engine must be an Engine or an AsyncEngine of SQLAlchemy, not {engine!r}")
        self._engine = engine

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        """On a connection of its own."""
        if isinstance(self._engine, AsyncEngine):
            async with self._engine.connect() as connection:
                yield Transaction(connection.run_sync)
        else:
            async with _in_thread(self._engine) as transaction:
                yield transaction

    def __repr__(self) -> str:
        return repr(self._engine.url)


@asynccontextmanager
async def _in_thread(engine: Engine) -> AsyncIterator[Transaction]:
    """All calls go to one thread, as some databases want it; the last one closes, behind a call that was cancelled."""
    loop = asyncio.get_running_loop()
    thread = ThreadPoolExecutor(1, thread_name_prefix="fairque-outbox")
    opened: list[Connection] = []

    async def call(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return await loop.run_in_executor(thread, lambda: function(opened[0], *args, **kwargs))

    def close() -> None:
        for connection in opened:
            connection.close()

    try:
        await loop.run_in_executor(thread, lambda: opened.append(engine.connect()))
        yield Transaction(call)
    finally:
        closing = loop.run_in_executor(thread, close)
        thread.shutdown(wait=False)
        await asyncio.shield(closing)
