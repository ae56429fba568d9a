"""The scripts that move places of limits between the partitions of a queue: lua/lib/loans.lua has how."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, NamedTuple

import msgspec

from fairque.redis import arguments
from fairque.redis.script_caller import ScriptCaller

__all__ = ["Exchanged", "LoanScripts", "Tells"]

Tells = dict[int, list[arguments.Told]]
"""What partitions are told, by their numbers."""


class Exchanged(NamedTuple):
    """What there is to be said by one partition: at which us of its clock, what it asks homes, by their numbers, and
    what it tells others as a home.
    """

    at_us: float
    asks: dict[int, list[arguments.Ask]]
    tells: Tells


class LoanScripts(ScriptCaller):
    """The part of a `Store` that is about places between partitions. Each call is of one of them."""

    async def exchange(self, most: int) -> Exchanged:
        """Of at most so many keys."""
        at_us, asks, tells = await self.call(arguments.Exchange(most))
        of_homes: defaultdict[int, list[arguments.Ask]] = defaultdict(list)
        for row in asks:
            of_homes[row[0]].append(msgspec.convert(_plain(row), arguments.Ask, strict=False))
        return Exchanged(float(at_us), of_homes, _tells_in(tells))

    async def lend(self, partition: int, at_us: float, asks: list[arguments.Ask]) -> Tells:
        """A home hears what a partition asks for. What comes of it is to be told."""
        return _tells_in(await self.call(arguments.Lend(partition, at_us, asks)))

    async def accept(self, tells: list[arguments.Told]) -> bool:
        """A partition is told. Whether it has more to ask at once."""
        return bool(await self.call(arguments.Accept(tells)))


def _tells_in(reply: list[Any]) -> Tells:
    return {
        partition: [msgspec.convert(_plain(row), arguments.Told, strict=False) for row in rows]
        for partition, rows in reply
    }


def _plain(row: list[Any]) -> list[Any]:
    return [value.decode() if isinstance(value, bytes) else value for value in row]
