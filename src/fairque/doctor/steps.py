"""Things in steps of so many."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

__all__ = ["batched"]

T = TypeVar("T")


def batched(values: Sequence[T], most: int) -> Iterator[Sequence[T]]:
    """As `itertools.batched`, which Python 3.11 does not have."""
    for at in range(0, len(values), most):
        yield values[at : at + most]
