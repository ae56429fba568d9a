"""The scripts that move places of limits between the partitions of a queue: lua/lib/loans.lua has how."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from fairque.errors import InvalidInput
from fairque.redis import arguments
from fairque.redis.dividing import of_those_there
from fairque.redis.keys import glob
from fairque.redis.rulebook import rulebook_in
from fairque.redis.store_checks import CheckScripts

__all__ = ["Exchanged", "LoanScripts", "Tells", "tells_in"]

Tells = dict[int, list[arguments.Told]]
"""What partitions are told, by their numbers."""


class Exchanged(NamedTuple):
    """What there is to be said by one partition: at which us of its clock, what it asks homes, by their numbers, and
    what it tells others as a home.
    """

    at_us: float
    asks: dict[int, list[arguments.Ask]]
    tells: Tells


class LoanScripts(CheckScripts):
    """The part of a `Store` that is about places between partitions. Each call is of one of them."""

    async def exchange(self, most: int) -> Exchanged:
        """Of at most so many keys."""
        at_us, asks, tells = await self.call(arguments.Exchange(most))
        of_homes: defaultdict[int, list[arguments.Ask]] = defaultdict(list)
        for row in asks:
            of_homes[row[0]].append(msgspec.convert(_plain(row), arguments.Ask, strict=False))
        return Exchanged(float(at_us), of_homes, tells_in(tells))

    async def lend(self, partition: int, at_us: float, asks: list[arguments.Ask]) -> Tells:
        """A home hears what a partition asks for. What comes of it is to be told."""
        return tells_in(await self.call(arguments.Lend(partition, at_us, asks)))

    async def accept(self, tells: list[arguments.Told]) -> bool:
        """A partition is told. Whether it has more to ask at once."""
        return bool(await self.call(arguments.Accept(tells)))

    async def forfeit(self, partition: int) -> int:
        """What another partition, which is gone, has borrowed of the homes in this queue. Returns how many places.

        Homes that are gone as well forget nothing. Raises `InvalidInput` for one that there is not, that is the first
        or answers, and `QueueUnavailable` where the first does not.
        """
        if not await self.is_divided():
            raise InvalidInput("a queue without partitions lends no places")
        parts = self.parts
        if not 0 < partition < len(parts):
            told = f"partition must be one of 1 to {len(parts) - 1}, not {partition}"
            raise InvalidInput(f"{told}: the first numbers what governs all users, and has to be there")
        if await of_those_there([parts[partition]], lambda part: part.call(arguments.Heads(()), patience=0.0)):
            raise InvalidInput(f"partition {partition} answers: what it has comes back by itself")
        others = [part for at, part in enumerate(parts) if at != partition]
        await others[0].call(arguments.Forfeit(partition, [], -1))
        book = rulebook_in(await others[0].call(arguments.Rulebook(-1)))
        # workers bring it to the rest
        await of_those_there(others[1:], lambda part: part.call(book.follow, [book.policy]))
        return sum(await of_those_there(others, lambda part: part._forfeit_here(parts, partition)))

    async def _forfeit_here(self, parts: Sequence[LoanScripts], partition: int) -> int:
        places, prefix = 0, f"{self.keys.prefix}loans:"
        async for found in self._scan(b"SCAN", pattern=f"{glob(prefix)}*"):
            keys = [key.decode().removeprefix(prefix) for key in found]
            _, many, tells = await self.call(arguments.Forfeit(partition, keys))
            places += many
            told = {parts[at]: each for at, each in tells_in(tells).items() if at != partition}
            await of_those_there(told, _accepting(told))
        return places


def _accepting(told: Mapping[LoanScripts, list[arguments.Told]]) -> Callable[[LoanScripts], Awaitable[bool]]:
    """Has each partition hear what it is told."""
    return lambda part: part.accept(told[part])


def tells_in(reply: list[Any]) -> Tells:
    """As lend.lua returns it."""
    return {
        partition: [msgspec.convert(_plain(row), arguments.Told, strict=False) for row in rows]
        for partition, rows in reply
    }


def _plain(row: list[Any]) -> list[Any]:
    return [value.decode() if isinstance(value, bytes) else value for value in row]
