"""`RoundRobin`: what waits in a process for its turn, of many users."""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

__all__ = ["RoundRobin"]

T = TypeVar("T")


class RoundRobin(Generic[T]):
    """Hands out one of each user in turn, and what one user put in in its order: whoever puts in very much delays only
    itself.
    """

    def __init__(self) -> None:
        self._lines: dict[str, deque[T]] = {}
        self._turns: deque[str] = deque()

    def __bool__(self) -> bool:
        return bool(self._turns)

    def put(self, whose: str, item: T) -> None:
        line = self._lines.get(whose)
        if line is None:
            line = self._lines[whose] = deque()
            self._turns.append(whose)
        line.append(item)

    def take(self, most: int) -> list[T]:
        taken: list[T] = []
        while self._turns and len(taken) < most:
            whose = self._turns.popleft()
            line = self._lines[whose]
            taken.append(line.popleft())
            if line:
                self._turns.append(whose)
            else:
                del self._lines[whose]
        return taken
