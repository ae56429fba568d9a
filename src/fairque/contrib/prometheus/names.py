"""`Names`: which names of tasks have a label of their own."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain, islice

from fairque.tasks.registry import registry

__all__ = ["OTHER", "Names"]

OTHER = "other"


class Names:
    """Names come from whoever puts tasks in, who could make up any number of them. So a label is the name of a function
    that this process has, or one that was asked for; and which ones is decided by the code, not by what comes first.

    Args:
        given: Names without a function, as a `TaskHandler` serves them.
        most: Of all; the rest is `OTHER`.
    """

    def __init__(self, given: Iterable[str], most: int) -> None:
        self._given = tuple(dict.fromkeys(given))
        self._most = most
        self._functions = -1
        self._known: frozenset[str] = frozenset()

    def label(self, name: str) -> str:
        if name in self._known:
            return name
        if len(registry) != self._functions:
            self._functions = len(registry)
            self._known = frozenset(islice(dict.fromkeys(chain(self._given, registry)), self._most))
        return name if name in self._known else OTHER
