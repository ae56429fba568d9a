"""`Group`: tasks that one body serves, in one slot. Each has an outcome of its own."""

from __future__ import annotations

import asyncio

__all__ = ["Group"]


class Group:
    """Attributes:
    size: How many there were.
    left: How many of them have no outcome yet.
    body: Runs them, once it has begun.
    timer: Of their timeout.
    """

    __slots__ = ("body", "left", "size", "timer")

    def __init__(self, size: int) -> None:
        self.size = self.left = size
        self.body: asyncio.Task[None] | None = None
        self.timer: asyncio.TimerHandle | None = None

    def close_one(self) -> None:
        """One of them has its outcome. With the last one, nobody waits for the body any more."""
        self.left -= 1
        if self.left:
            return
        if self.timer is not None:
            self.timer.cancel()
        if self.body is not None and self.body is not asyncio.current_task():
            self.body.cancel()
