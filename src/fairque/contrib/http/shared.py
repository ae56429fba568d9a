"""`Shared`: what many ask for is read once."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from fairque.errors import FairqueError

__all__ = ["FRESH_SECONDS", "Shared"]

logger = logging.getLogger("fairque.http")
T = TypeVar("T")
FRESH_SECONDS = 1.0


class Shared(Generic[T]):
    """However many ask, and however often: one reads at a time, and what it has found, or why it could not, is good for
    a second. Who asks and leaves disturbs nobody.

    Args:
        what: Is read, for the log.
        read: Bounded in time by itself.
    """

    def __init__(self, what: str, read: Callable[[], Awaitable[T]]) -> None:
        self._what = what
        self._read = read
        self._reading: asyncio.Task[T] | None = None
        self._read_at = 0.0

    async def get(self) -> T:
        """Raises what `read` raised."""
        if self._reading is None or self._is_over(self._reading):
            self._reading = asyncio.create_task(self._note(), name="fairque-http-read")
            self._reading.add_done_callback(_look_at_error)
        reading = self._reading
        await asyncio.wait([reading])
        return reading.result()

    def _is_over(self, reading: asyncio.Task[T]) -> bool:
        if reading.get_loop() is not asyncio.get_running_loop():
            return True
        return reading.done() and time.monotonic() - self._read_at > FRESH_SECONDS

    async def _note(self) -> T:
        try:
            return await self._read()
        except FairqueError as exc:
            logger.warning("cannot look at %s: %s", self._what, exc)
            raise
        finally:
            self._read_at = time.monotonic()


def _look_at_error(reading: asyncio.Task[T]) -> None:
    """Nobody may be left who asked, and then asyncio would say that nobody looked."""
    if not reading.cancelled():
        reading.exception()
