"""`Group`: tasks that one body serves, in one slot. Each runs as any other does, within its middlewares and with an
outcome of its own; where it would call its body, it waits here until all have come that will.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import Context, copy_context
from types import TracebackType
from typing import Any, Generic, NamedTuple, TypeVar

__all__ = ["Group", "Served"]

Run = TypeVar("Run")
Take = Callable[["Served"], None]


class Served(NamedTuple):
    """What a body has for one of them: a value, or an error that it returned for that one or raised for all."""

    value: Any = None
    error: BaseException | None = None
    traceback: TracebackType | None = None

    @classmethod
    def of(cls, value: Any) -> Served:
        return cls(error=value, traceback=value.__traceback__) if isinstance(value, Exception) else cls(value)

    def get(self) -> Any:
        if self.error is not None:
            raise self.error.with_traceback(self.traceback)  # without what it passed on its way through the others
        return self.value


class Group(Generic[Run]):
    """
    Args:
        runs: In the order of their arguments.
        serve: Begins their body, in the context of the first; it is cancelled when nobody waits for it any more.

    Attributes:
        size: How many there were.
        body: Runs them, once it has begun.
    """

    __slots__ = ("__weakref__", "_left", "_serve", "_waiting", "body", "size")

    def __init__(
        self, runs: list[Run], serve: Callable[[list[Run], Context | None], asyncio.Task[list[Served]]]
    ) -> None:
        self.size = len(runs)
        self.body: asyncio.Task[list[Served]] | None = None
        self._serve = serve
        self._left = dict.fromkeys(runs)  # that have no outcome yet
        self._waiting: dict[Run, tuple[Take, Context | None]] = {}

    @property
    def left(self) -> int:
        """How many of them have no outcome yet."""
        return len(self._left)

    def awaits(self, run: Run) -> bool:
        """False: the body has begun, with it or without it."""
        return self.body is None and run in self._left

    def enter(self, run: Run, take: Take, context: Context | None = None) -> None:
        """It has come. `take` is given what the body has for it."""
        self._waiting[run] = take, context
        self._begin_when_all_are_there()

    async def serve(self, run: Run) -> Any:
        """The value of the body for this one; raises what it has raised, or returned as an error."""
        future: asyncio.Future[Served] = asyncio.get_running_loop().create_future()
        self.enter(run, lambda served: None if future.done() else future.set_result(served), copy_context())
        try:
            return (await future).get()
        finally:
            self._waiting.pop(run, None)

    def leave(self, run: Run) -> None:
        """It has its outcome."""
        del self._left[run]
        if self.body is None:
            self._waiting.pop(run, None)
            self._begin_when_all_are_there()
        elif not self._left:
            self.body.cancel()

    def _begin_when_all_are_there(self) -> None:
        if not self._waiting or len(self._waiting) < len(self._left):
            return
        runs = [run for run in self._left if run in self._waiting]
        takers = [self._waiting[run][0] for run in runs]
        self.body = self._serve(runs, self._waiting[runs[0]][1])
        self.body.add_done_callback(lambda body: _hand_out(body, takers))
        self._waiting.clear()


def _hand_out(body: asyncio.Task[list[Served]], takers: list[Take]) -> None:
    canceled = body.cancelled()  # before its first step
    all_served = [Served(error=asyncio.CancelledError())] * len(takers) if canceled else body.result()
    for take, served in zip(takers, all_served, strict=True):
        take(served)
