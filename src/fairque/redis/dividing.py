"""What is about users of several partitions is divided among them, and their answers are put together again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from typing import Any, Protocol, TypeVar

from fairque.errors import QueueUnavailable
from fairque.redis.missing import is_missing, note_missing
from fairque.redis.places import raise_moved

__all__ = ["Share", "at_once", "divided", "in_order", "of_those_there"]

K = TypeVar("K")
T = TypeVar("T")
R = TypeVar("R")

Share = tuple[list[int], list[T]]
"""Positions in what was divided, and what stood there."""


class Numbered(Protocol):
    """One partition, that knows which."""

    @property
    def number(self) -> int: ...


P = TypeVar("P", bound=Numbered)


def divided(items: Iterable[T], whose: Callable[[T], K]) -> dict[K, Share[T]]:
    """By where each belongs, in their order."""
    shares: dict[K, Share[T]] = {}
    for at, item in enumerate(items):
        places, some = shares.setdefault(whose(item), ([], []))
        places.append(at)
        some.append(item)
    return shares


async def in_order(shares: dict[K, Share[T]], ask: Callable[[K, list[T]], Awaitable[Sequence[R]]]) -> list[R]:
    """Each share's answers, one for each of its items, at the places of these. All are asked at once.

    Where some fail, the first error is raised once all have answered.
    """
    asked = [_asked(ask, whose, some) for whose, (_, some) in shares.items()]
    found: dict[int, R] = {}
    for (places, _), answers in zip(shares.values(), await at_once(asked), strict=True):
        found.update(zip(places, answers, strict=True))
    return [found[at] for at in sorted(found)]


async def _asked(ask: Callable[[K, list[T]], Awaitable[Sequence[R]]], whose: K, some: list[T]) -> Sequence[R]:
    return await ask(whose, some)


async def at_once(calls: Iterable[Coroutine[Any, Any, R]]) -> list[R]:
    """What all return. Nothing goes on behind the error of one: all have ended when it is raised.

    Users who live elsewhere come before other errors: what is asked of their partitions may be done.
    """
    answers = await asyncio.gather(*calls, return_exceptions=True)
    raise_moved(answers)
    found: list[R] = []
    for answer in answers:
        if isinstance(answer, BaseException):
            raise answer
        found.append(answer)
    return found


async def of_those_there(parts: Iterable[P], ask: Callable[[P], Awaitable[R]]) -> list[R]:
    """The same of those partitions that can be asked; the others are noted as missing."""
    return [answer for found in await at_once(_if_there(part, ask) for part in parts) for answer in found]


async def _if_there(part: P, ask: Callable[[P], Awaitable[R]]) -> tuple[R, ...]:
    if is_missing(part.number):
        return ()
    try:
        return (await ask(part),)
    except QueueUnavailable:
        note_missing((part.number,))
        return ()
