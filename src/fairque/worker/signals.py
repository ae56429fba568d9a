"""`Signals`: what the parts of a worker tell each other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import anyio

__all__ = ["Signals"]


class Signals:
    """Kept by one worker, from before it runs: it may be told to stop at any time.

    Attributes:
        until_idle: Whether it stops by itself when nothing is left to do.
        stopping: Whether it claims nothing more.
        retiring: Whether it stops, and what runs may go on until `stop`.
        serving: Set once Redis has answered its first claim.
        is_woken: Whether `wake` was called since the last `sleep` or `clear`.
    """

    def __init__(self) -> None:
        self.until_idle = False
        self.stopping = False
        self.retiring = False
        self.serving = asyncio.Event()
        self.is_woken = False
        self._sleeper: asyncio.Future[None] | None = None
        self._stop = asyncio.Event()
        self._turned = asyncio.Event()

    def wake(self) -> None:
        """There is something to look at: a message, an outcome, the end. Called for each task."""
        self.is_woken = True
        if self._sleeper is not None:
            _end(self._sleeper)

    def clear(self) -> None:
        """What was told so far is known."""
        self.is_woken = False

    async def sleep(self, seconds: float) -> bool:
        """Until `wake`, for that long at most. For one at a time. Returns whether it was woken."""
        if not self.is_woken:
            loop = asyncio.get_running_loop()
            self._sleeper = loop.create_future()
            timer = loop.call_later(seconds, _end, self._sleeper)
            try:
                await self._sleeper
            finally:
                timer.cancel()
                self._sleeper = None
        woken, self.is_woken = self.is_woken, False
        return woken

    def stop(self) -> None:
        self.stopping, self.retiring = True, False
        self._stop.set()
        self.wake()

    def retire(self) -> None:
        if not self.stopping:
            self.stop()
            self.retiring = True

    async def wait_for_stop(self) -> None:
        await self._stop.wait()

    def turned(self) -> None:
        """The loop that talks to Redis has looked at everything: those who wait for it to end do so as well."""
        if self.stopping:
            self._turned.set()

    async def wait_until(self, condition: Callable[[], bool], seconds: float) -> bool:
        """While the worker stops: whether it came true in that time. Looked at after each turn."""
        with anyio.move_on_after(seconds):
            while not condition():
                self._turned.clear()
                await self._turned.wait()
        return condition()


def _end(sleeper: asyncio.Future[None]) -> None:
    if not sleeper.done():
        sleeper.set_result(None)
