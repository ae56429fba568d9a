"""The scripts that name what pages and screens look at."""

from __future__ import annotations

from typing import Any, NamedTuple

from fairque.errors import InvalidInput
from fairque.redis import arguments
from fairque.redis.dividing import of_those_there
from fairque.redis.keys import encode_user, glob
from fairque.redis.requester import pack
from fairque.redis.store_checks import CheckScripts

__all__ = ["NamedPage", "SightScripts"]


class NamedPage(NamedTuple):
    """Users as they are named in Redis. `after`: ms and name behind which the next page begins; None: it was the last.

    `known`: how many users there are.
    """

    known: int
    names: list[str]
    after: tuple[int, str] | None


class SightScripts(CheckScripts):
    """The part of a `Store` that names users. All names are as they are in Redis."""

    async def active_names(self, most: int) -> list[str]:
        """Users with something to serve, those with the lowest and the highest tags, then those with running tasks."""
        names: list[bytes] = await self.call(arguments.Active(most))
        return [name.decode() for name in names]

    async def holders(self, most: int, lanes: int) -> tuple[list[str], bool]:
        """The users with the most running tasks, of so many lanes that are looked at, and whether there are others."""
        is_part, *found = await self.call(arguments.Holders(most, lanes))
        return [name.decode() for name in found], bool(is_part)

    async def user_names(self, most: int, after: tuple[int, str] | None = None) -> NamedPage:
        """The most recently active first."""
        known, *flat = await self.call(arguments.UserNames(*(after or (0, "")), most))
        names = [name.decode() for name in flat[::2]]
        is_full = len(names) == most
        return NamedPage(known, names, (int(float(flat[-1])), names[-1]) if is_full else None)

    async def users_beginning(self, prefix: str, cursor: int, count: int) -> tuple[int, list[str]]:
        """A step through all users, of about so many: where the next one begins, 0 at the end, and those that match.

        It goes through the partitions one after the other: the cursor of one, times their number, plus which one it is.
        """
        if await self.is_divided(store=False):
            parts = self.parts
            within, at = divmod(cursor, len(parts))
            found = await of_those_there([parts[at]], lambda part: part.users_beginning(prefix, within, count))
            then, names = found[0] if found else (0, [])
            return then * len(parts) + at if then else (at + 1) % len(parts), names
        if cursor >= 2**64:
            raise InvalidInput(f"after must be that of the page before: a server knows no cursor {cursor}")
        pattern = glob(prefix) + "*"
        scan = pack((b"ZSCAN", self.keys.prefix + "users", cursor, b"MATCH", pattern, b"COUNT", count))
        then, found = await self._insist(scan)
        return int(then), [name.decode() for name in found[::2]]

    async def failing_users(self, letters: int) -> list[str]:
        """Those of the latest dead letters, of so many."""
        if await self.is_divided(store=False):
            each = max(1, letters // len(self.parts))
            found = await of_those_there(self.parts, lambda part: part.failing_users(each))
            return [name for names in found for name in names]
        members: list[bytes] = await self._insist(pack((b"ZREVRANGE", self.keys.prefix + "dead", 0, letters - 1)))
        return list(dict.fromkeys(member.partition(b":")[0].decode() for member in members))

    async def running(self, worker: str, most: int, lanes: int) -> tuple[int, bool, list[list[Any]]]:
        """Ms since the epoch, whether there may be more, and per task what running.lua tells."""
        now_ms, is_part, *flat = await self.call(arguments.Running(worker, most, lanes))
        return now_ms, bool(is_part), [flat[at : at + 6] for at in range(0, len(flat), 6)]

    async def graph(self, user_id: str, task_id: str, most: int) -> tuple[bool, list[Any], list[Any]]:
        """Whether there is more, tasks and links as graph.lua tells them."""
        is_part, tasks, links = await self.call(arguments.Graph(encode_user(user_id), task_id, most))
        return bool(is_part), tasks, links

    async def letters_between(self, user_id: str | None, kind: str, first_ms: int, last_ms: int) -> int:
        """Dead letters of a kind of error that came at the first moment, at the last one, or between."""
        if await self.is_divided(store=False):
            homes = self.parts if user_id is None else (await self.home_of(encode_user(user_id)),)
            counts = await of_those_there(homes, lambda part: part.letters_between(user_id, kind, first_ms, last_ms))
            return sum(counts)
        key = f"{self.keys.prefix}dead-of:{encode_user(user_id) if user_id is not None else '*'}:{kind}"
        count: int = await self._insist(pack((b"ZCOUNT", key, first_ms, last_ms)))
        return count
