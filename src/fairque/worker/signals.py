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
        serving: Set once Redis has answered its first claim.
    """

    def __init__(self) -> None:
        self.until_idle = False
        self.stopping = False
        self.serving = asyncio.Event()
        self._woken = asyncio.Event()
        self.wake = self._woken.set
        """There is something to look at: a message, a free slot, the end. Called for each task."""

    @property
    def is_woken(self) -> bool:
        return self._woken.is_set()

    def clear(self) -> None:
        """What was told so far is known."""
        self._woken.clear()

    def stop(self) -> None:
        self.stopping = True
        self.wake()

    def reported(self) -> None:
        """Outcomes are in Redis: those who wait for the last one look again."""
        if self.until_idle or self.stopping:
            self.wake()

    async def sleep(self, seconds: float | None = None) -> None:
        """Until `wake`, for that long at most."""
        with anyio.move_on_after(seconds):
            await self._woken.wait()
        self.clear()

    async def wait_until(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Whether it came true in that time."""
        with anyio.move_on_after(seconds):
            while not condition():
                await self.sleep()
        return condition()
