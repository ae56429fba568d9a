"""`Backoff`: the pauses between two tries while Redis is not available."""

from __future__ import annotations

import random

__all__ = ["Backoff"]

SHORTEST = 0.05
LONGEST = 2.0


class Backoff:
    """Each pause is about twice as long as the one before, at random, so that processes do not all come at once."""

    def __init__(self) -> None:
        self._pause = SHORTEST

    def next(self) -> float:
        """Seconds to wait before the next try."""
        pause = self._pause
        self._pause = min(LONGEST, pause * 2)
        return pause * (0.5 + random.random())

    def reset(self) -> None:
        """A try succeeded."""
        self._pause = SHORTEST
