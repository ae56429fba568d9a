"""`ScriptCaller`: runs scripts over one connection, and repeats a call for as long as it may."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from typing import Any

from fairque.errors import QueueUnavailable, StoreError
from fairque.redis.connector import Connector, NoScript
from fairque.redis.keys import Keys
from fairque.redis.requester import Requester, pack
from fairque.redis.scripts import load

__all__ = ["ScriptCaller"]


class ScriptCaller:
    """The scripts of one queue over one connection.

    Every script is idempotent by the ids in its arguments, so each call may be repeated after a cut reply.

    Args:
        connector: Where the server is.
        keys: The names of the queue.
        patience: Seconds during which a call is repeated when Redis is not available; 0: tried once.
    """

    def __init__(self, connector: Connector, keys: Keys, *, patience: float = 0.0) -> None:
        self.keys = keys
        self.patience = patience
        self._requester = Requester(connector)

    async def close(self) -> None:
        await self._requester.close()

    async def call(self, name: str, args: Sequence[Any]) -> Any:
        """A script, for the parts that know its arguments and its reply themselves."""
        return await self._call(name, args)

    async def _call(self, name: str, args: Sequence[Any], patience: float | None = None) -> Any:
        script = load(name)
        command = pack((b"EVALSHA", script.sha, b"1", self.keys.state, *args))
        try:
            return await self._insist(command, patience)
        except NoScript:
            await self._insist(pack((b"SCRIPT", b"LOAD", script.source)), patience)
            try:
                return await self._insist(command, patience)
            except NoScript:
                raise StoreError(f"the server forgot script {name!r} right after it was loaded") from None

    async def _insist(self, command: bytes, patience: float | None = None) -> Any:
        """Repeat until it is answered, for as long as the store's own patience lasts if no other is given."""
        began = time.monotonic()
        try:
            return await self._requester.request(command, patience)
        except QueueUnavailable as exc:
            left = (self.patience if patience is None else patience) - (time.monotonic() - began)
            if left <= 0:
                raise
            return await self._repeat(command, left, exc)

    async def _repeat(self, command: bytes, seconds: float, error: QueueUnavailable) -> Any:
        delay = 0.02
        try:
            async with asyncio.timeout(seconds):
                while True:
                    await asyncio.sleep(delay * (0.5 + random.random()))
                    delay = min(1.0, delay * 2)
                    try:
                        return await self._requester.request(command)
                    except QueueUnavailable as exc:
                        error = exc
        except TimeoutError:
            raise error from None
