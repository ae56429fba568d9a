"""`RoundRobin`: what waits in a process for its turn, of many users."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Generic, TypeVar

__all__ = ["RoundRobin"]

T = TypeVar("T")


class RoundRobin(Generic[T]):
    """Hands out one of each user in turn, and what one user put in in its order: whoever puts in very much delays only
    itself.
    """

    def __init__(self) -> None:
        self._lines: OrderedDict[str, deque[T]] = OrderedDict()  # in the order of their turns; none is empty

    def __bool__(self) -> bool:
        return bool(self._lines)

    def put(self, whose: str, item: T) -> None:
        self._lines.setdefault(whose, deque()).append(item)

    def put_back(self, whose: str, item: T) -> None:
        """It was taken, and is to be the next one."""
        self._lines.setdefault(whose, deque()).appendleft(item)
        self._lines.move_to_end(whose, last=False)

    def take(self, most: int) -> list[T]:
        taken: list[T] = []
        while self._lines and len(taken) < most:
            whose, line = next(iter(self._lines.items()))
            taken.append(line.popleft())
            if line:
                self._lines.move_to_end(whose)
            else:
                del self._lines[whose]
        return taken

    def drop(self, is_over: Callable[[T], bool]) -> None:
        """What is over waits no longer."""
        kept = [(whose, deque(item for item in line if not is_over(item))) for whose, line in self._lines.items()]
        self._lines = OrderedDict((whose, line) for whose, line in kept if line)
