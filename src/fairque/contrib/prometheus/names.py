"""`Names`: which names of tasks have a label of their own."""

from __future__ import annotations

from collections.abc import Iterable

from fairque.tasks.registry import registry

__all__ = ["OTHER", "Names"]

OTHER = "other"


class Names:
    """Names come from whoever puts tasks in, who could make up any number of them. So a label is the name of a function
    that this process has, or one that was asked for.

    Args:
        given: Names without a function, as a `TaskHandler` serves them.
        most: Of all; the rest is `OTHER`.
    """

    def __init__(self, given: Iterable[str], most: int) -> None:
        self._given = frozenset(given)
        self._most = most
        self._admitted: set[str] = set()

    def label(self, name: str) -> str:
        if name in self._admitted:
            return name
        if (name in registry or name in self._given) and len(self._admitted) < self._most:
            self._admitted.add(name)
            return name
        return OTHER
