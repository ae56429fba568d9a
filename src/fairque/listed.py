"""`Listed` and `ListedByName`: what is told of a whole queue, and of which of its partitions it is not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

__all__ = ["Listed", "ListedByName"]

T = TypeVar("T")


class Listed(list[T]):
    """A list that may lack what is in some partitions of the queue.

    Attributes:
        missing: Partitions that did not answer, by number. Empty: nothing is left out.
    """

    def __init__(self, items: Iterable[T] = (), missing: Iterable[int] = ()) -> None:
        super().__init__(items)
        self.missing: tuple[int, ...] = tuple(missing)


class ListedByName(dict[str, T]):
    """The same by name.

    Attributes:
        missing: See `Listed`.
    """

    def __init__(self, items: Mapping[str, T] | None = None, missing: Iterable[int] = ()) -> None:
        super().__init__(items or {})
        self.missing: tuple[int, ...] = tuple(missing)
