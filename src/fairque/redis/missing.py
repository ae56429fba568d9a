"""Which partitions did not answer, for whoever put something together of what several of them said.

A read of the whole queue goes on without those that are away. Whoever hands out what came of it has them noted
meanwhile: so each kind of read tells them in the same way, however many calls it makes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["Missing", "note_missing", "noting_missing"]

_noted: ContextVar[set[int] | None] = ContextVar("fairque_missing", default=None)


class Missing:
    """Partitions that did not answer a read of some block."""

    def __init__(self, numbers: set[int]) -> None:
        self._numbers = numbers

    @property
    def numbers(self) -> tuple[int, ...]:
        """In order; none where all that was asked did answer."""
        return tuple(sorted(self._numbers))


@contextmanager
def noting_missing() -> Iterator[Missing]:
    """Have those noted that do not answer in the block, and in tasks that it waits for."""
    around, numbers = _noted.get(), set[int]()
    token = _noted.set(numbers)
    try:
        yield Missing(numbers)
    finally:
        _noted.reset(token)
        if around is not None:
            around.update(numbers)


def note_missing(partitions: Iterable[int]) -> None:
    """They were asked in vain."""
    if (numbers := _noted.get()) is not None:
        numbers.update(partitions)
