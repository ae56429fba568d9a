"""Idle workers in the model: who of them sleeps until the next moment, and who sleeps on."""

from __future__ import annotations

import math

__all__ = ["Moments"]

SECOND_MS = 50  # how much later a second worker looks


class Moments:
    """One worker keeps the next moment, a second one follows. No worker of the model hears messages.

    Attributes:
        keeper: The worker, if any.
        at_ms: The moment that it knows.
        second: The one that follows.
    """

    def __init__(self) -> None:
        self.keeper: str | None = None
        self.at_ms = -math.inf
        self.second: str | None = None

    def _is_kept(self, now_ms: int) -> bool:
        return self.keeper is not None and now_ms <= self.at_ms + SECOND_MS

    def keep(self, now_ms: int, worker: str, at_ms: float) -> float:
        """A worker goes to sleep. Returns until when."""
        if at_ms == math.inf:
            if self._is_kept(now_ms) and self.keeper == worker:
                self.keeper = None
            return at_ms
        if self._is_kept(now_ms) and self.at_ms <= at_ms and self.keeper != worker:
            if self.second not in (None, worker):
                return math.inf
            self.second = worker
            return at_ms + SECOND_MS
        if not self._is_kept(now_ms) or at_ms < self.at_ms or self.second == worker:
            self.second = None
        self.keeper, self.at_ms = worker, at_ms
        return at_ms

    def hand_on(self, worker: str) -> None:
        """A worker has no time for it any more, or too late."""
        if self.keeper == worker:
            self.keeper = None
        elif self.second == worker:
            self.second = None
