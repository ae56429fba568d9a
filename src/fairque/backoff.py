"""`Backoff`: the pauses between two tries while Redis is not available."""

from __future__ import annotations

import random

__all__ = ["LONGEST", "Backoff"]

SHORTEST = 0.075
LONGEST = 3.0


class Backoff:
    """Each pause is about twice as long as the one before, at random, so that processes do not all come at once.

    Whatever is tried again by itself keeps one until a try succeeds.
    """

    def __init__(self) -> None:
        self._pause = SHORTEST

    def next(self, longest: float = LONGEST) -> float:
        """Seconds to wait before the next try, at most `longest`."""
        pause = min(self._pause, longest)
        self._pause = min(LONGEST, pause * 2)
        return pause * random.uniform(0.5, 1)

    def reset(self) -> None:
        """A try succeeded."""
        self._pause = SHORTEST
