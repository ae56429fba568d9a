"""`Pace`: how much one call carries, and when the next one may be made, by how the calls before it went."""

from __future__ import annotations

import time

from fairque.backoff import Backoff

__all__ = ["Pace"]


class Pace:
    """While calls fail they come ever more rarely and carry ever less: it may be their size that keeps them from
    getting through.

    Args:
        most: What a call carries when all is well.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.is_failing = False
        self._usual = most
        self._backoff = Backoff()
        self._next_at = 0.0

    @property
    def left(self) -> float:
        """Seconds until the next call may be made."""
        return max(0.0, self._next_at - time.monotonic()) if self.is_failing else 0.0

    def failed(self) -> None:
        self.is_failing = True
        self.most = max(1, self.most // 2)
        self._next_at = time.monotonic() + self._backoff.next()

    def went_well(self) -> None:
        if self.is_failing:
            self.is_failing = False
            self._backoff.reset()
        if self.most < self._usual:
            self.most = min(self._usual, self.most * 2)
