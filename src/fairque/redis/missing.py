"""Which partitions did not answer, for whoever put something together of what several of them said.

A read of the whole queue goes on without those that are away. Whoever hands out what came of it has them noted
meanwhile: so each kind of read tells them in the same way, however many calls it makes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

__all__ = ["Missing", "is_missing", "note_missing", "noting_missing"]


class _Noted(NamedTuple):
    numbers: set[int]
    is_brief: bool


_noted: ContextVar[_Noted | None] = ContextVar("fairque_missing", default=None)


class Missing:
    """Partitions that did not answer a read of some block."""

    def __init__(self, numbers: set[int]) -> None:
        self._numbers = numbers

    @property
    def numbers(self) -> tuple[int, ...]:
        """In order; none where all that was asked did answer."""
        return tuple(sorted(self._numbers))


@contextmanager
def noting_missing(*, is_brief: bool = True) -> Iterator[Missing]:
    """Have those noted that do not answer in the block, and in tasks that it waits for.

    `is_brief`: what comes of the block is of one moment. Who did not answer once is not waited for again in it.
    """
    around, noted = _noted.get(), _Noted(set(), is_brief)
    token = _noted.set(noted)
    try:
        yield Missing(noted.numbers)
    finally:
        _noted.reset(token)
        if around is not None:
            around.numbers.update(noted.numbers)


def note_missing(partitions: Iterable[int]) -> None:
    """They were asked in vain."""
    if (noted := _noted.get()) is not None:
        noted.numbers.update(partitions)


def is_missing(partition: int) -> bool:
    """Whether it was asked in vain a moment ago, and its answer is left out already."""
    noted = _noted.get()
    return noted is not None and noted.is_brief and partition in noted.numbers
