"""Asks several partitions at once. One that does not answer keeps nobody waiting who asked the others."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from fairque.errors import QueueUnavailable
from fairque.redis.arguments import Arguments
from fairque.redis.missing import is_missing, note_missing
from fairque.redis.places import Places, raise_moved

__all__ = ["Answers", "Part", "first_answer", "look", "tell"]

PAUSE = 0.05
"""Seconds until a second try, for a connection that was cut."""


class Part(Protocol):
    """One partition, for calls of scripts."""

    @property
    def timeout(self) -> float: ...
    @property
    def places(self) -> Places: ...
    async def call(self, arguments: Arguments, values: Sequence[bytes] = (), patience: float | None = None) -> Any: ...


class Answers(NamedTuple):
    """What was replied, in the order of the partitions, and which of them did not answer; these are noted."""

    replies: list[Any]
    missing: tuple[int, ...]


async def look(parts: Sequence[Part], asked: Mapping[int, Arguments], patience: float | None = None) -> Answers:
    """Read. Who does not answer at a second try, or within the timeout, is missing, as is who is so already, see
    `is_missing`; `patience` is for all of them together being away.

    Raises `QueueUnavailable` where nobody answers, and whatever else one of them raises.
    """
    away_before = [at for at in asked if is_missing(at)]
    if len(away_before) < len(asked):
        asked = {at: arguments for at, arguments in asked.items() if at not in away_before}
    else:
        away_before = []
    replies, missing = await _looked(parts, asked, patience)
    note_missing(missing)
    return Answers(replies, tuple(sorted((*missing, *away_before))))


async def first_answer(parts: Sequence[Part], arguments: Arguments, patience: float | None = None) -> Any:
    """Of what all of them know: whoever is away, nothing is left out."""
    replies, _ = await _looked(parts, dict.fromkeys(range(len(parts)), arguments), patience)
    return replies[0]


async def _looked(
    parts: Sequence[Part], asked: Mapping[int, Arguments], patience: float | None
) -> tuple[list[Any], list[int]]:
    answers = await _gathered(_tried_twice(parts[at], arguments) for at, arguments in asked.items())
    if all(isinstance(answer, QueueUnavailable) for answer in answers):
        answers = await _gathered(parts[at].call(arguments, (), patience) for at, arguments in asked.items())
    raise_moved(answers)
    away = [answer for answer in answers if isinstance(answer, QueueUnavailable)]
    if away and len(away) == len(answers):
        raise away[0]
    replies, missing = [], []
    for at, answer in zip(asked, answers, strict=True):
        if isinstance(answer, QueueUnavailable):
            missing.append(at)
        elif isinstance(answer, BaseException):
            raise answer
        else:
            replies.append(answer)
    return replies, missing


async def _tried_twice(part: Part, arguments: Arguments) -> Any:
    try:
        async with asyncio.timeout(part.timeout):
            try:
                return await part.call(arguments, (), 0.0)
            except QueueUnavailable:
                await asyncio.sleep(PAUSE)
            return await part.call(arguments, (), 0.0)
    except TimeoutError:
        raise QueueUnavailable("no answer in time") from None


async def tell(parts: Sequence[Part], asked: Mapping[int, Arguments], patience: float | None = None) -> list[Any]:
    """Write, or read what must not be missed. All are told, whoever is away.

    Raises `QueueUnavailable` that names those who are: the call may be made again.
    """
    answers = await _gathered(parts[at].call(arguments, (), patience) for at, arguments in asked.items())
    raise_moved(answers)
    away = [at for at, answer in zip(asked, answers, strict=True) if isinstance(answer, QueueUnavailable)]
    for answer in answers:
        if isinstance(answer, BaseException) and not isinstance(answer, QueueUnavailable):
            raise answer
    if away:
        error = next(answer for answer in answers if isinstance(answer, QueueUnavailable))
        named = ", ".join(map(str, away[:8])) + (", …" if len(away) > 8 else "")
        noun = "partition" if len(away) == 1 else "partitions"
        raise QueueUnavailable(f"{noun} {named} of {len(parts)}: {error}; call again for these") from error
    return answers


async def _gathered(calls: Iterable[Any]) -> list[Any]:
    return await asyncio.gather(*calls, return_exceptions=True)
