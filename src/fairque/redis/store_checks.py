"""The scripts that a check calls, and the walk through all keys of a queue."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any, NamedTuple

from fairque.errors import QueueUnavailable
from fairque.redis import arguments
from fairque.redis.keys import KEYS_OF_ALL, glob, queue_of, tag_of
from fairque.redis.replies import fields_in
from fairque.redis.requester import pack
from fairque.redis.script_caller import ScriptCaller
from fairque.tasks.message import new_nonce

__all__ = ["CheckScripts", "Counted", "Item", "Span"]

PAGE = 1000
MOST_PAGES = 20
DAMAGED_MS = 604_800_000
_TOTALS = ("critical", "normal", "started", "scheduled", "deferred", "announcements", "in_hand")
_WALKS = {"zset": b"ZSCAN", "set": b"SSCAN", "hash": b"HSCAN"}

Item = tuple[Any, ...]
"""See lib/doctor.lua."""
Span = tuple[str, int, int]
"""Held tasks of a user, by the ranks of the first and the last."""


class Counted(NamedTuple):
    """Totals as the queue tells them and as they were counted, at one `version` of its state."""

    version: str
    told: dict[str, str]
    counted: dict[str, int]
    newcomers: list[str]
    held: list[int]


class CheckScripts(ScriptCaller):
    """The part of a `Store` that looks whether a queue contradicts itself."""

    async def check(self, items: Sequence[Item], *, repair: bool = False) -> list[list[list[bytes]]]:
        """Per item what is wrong: kind, key, detail, and what was done about it."""
        told = self.settings.dead_letter_ttl_ms, self.settings.priority_step_ms, items
        make = arguments.Repair(*told, new_nonce().hex()) if repair else arguments.Check(*told)
        found: list[list[list[bytes]]] = await self.call(make)
        return found

    async def count(self, since_ms: int, users: Sequence[str], held: Iterable[Span] = ()) -> Counted | None:
        """`held`: what is held and to be counted as well. None: a key has a wrong type."""
        spans = [arguments.HeldSpan(*span) for span in held]
        reply = await self.call(arguments.Totals(since_ms, users, spans))
        if reply is None:
            return None
        version, told, counted, newcomers, cards = reply
        return Counted(
            version.decode(),
            dict(zip(_TOTALS, (total.decode() for total in told), strict=True)),
            dict(zip(_TOTALS, counted, strict=True)),
            [name.decode() for name in newcomers],
            cards,
        )

    async def now_ms(self) -> int:
        seconds, fraction = await self._insist(pack((b"TIME",)))
        return int(seconds) * 1000 + int(fraction) // 1000

    async def kind_of(self, name: str) -> str:
        """The type of a key without its prefix, by a plain command: for keys without which no script runs."""
        kind: bytes = await self._insist(pack((b"TYPE", self.keys.prefix + name)))
        return kind.decode()

    async def content_of(self, name: str) -> bytes | None:
        """Of a key without its prefix that holds a string."""
        content: bytes | None = await self._insist(pack((b"GET", self.keys.prefix + name)))
        return content

    async def set_aside(self, name: str) -> str:
        """The same, as `set_aside` of lib/check_keys.lua."""
        aside = f"damaged:{name}"
        await self._insist(pack((b"RENAME", self.keys.prefix + name, self.keys.prefix + aside)))
        await self._insist(pack((b"PEXPIRE", self.keys.prefix + aside, DAMAGED_MS)))
        return f"set aside as {aside}"

    async def lost_settings(self) -> list[str]:
        """Tags under which a queue with partitions says no longer how many it has. Who is away is passed over."""
        lost: list[str] = []
        async with self._at_copy() as copy:
            for each in (self, copy):
                with contextlib.suppress(QueueUnavailable):
                    if not await each._insist(pack((b"EXISTS", each.keys.settings)), 0.0):
                        lost.append(tag_of(each.keys.settings.encode()))
        return lost

    async def agree_with_partitions(self) -> bool:
        """Take the settings over from a partition, which is looked for among all keys of this node: for a queue that
        has lost its own, and their copy. False: there is none here.
        """
        name = self.backend.name
        async for page in self._scan(b"SCAN", pattern=f"{KEYS_OF_ALL}{glob(name)}/*}}:settings"):
            for key in page:
                if queue_of(key) == name and (stored := fields_in(await self._insist(pack((b"HGETALL", key))))):
                    self.backend.adopt(stored)
                    return True
        return False

    async def is_known(self) -> bool:
        """Whether anybody has ever written into the queue: what was damaged since may lack one of the two."""
        return self.backend.agreed or bool(await self._insist(pack((b"EXISTS", self.keys.state, self.keys.settings))))

    async def some_queues(self) -> list[str]:
        """Names of queues, in order: of those with one of the first keys that the server goes through, at this node."""
        found: set[str] = set()
        pages = 0
        async for page in self._scan(b"SCAN", pattern=f"{KEYS_OF_ALL}*"):
            found |= {queue_of(key) for key in page}
            pages += 1
            if pages == MOST_PAGES:
                break
        return sorted(found)

    async def key_names(self) -> AsyncIterator[list[str]]:
        """All keys of the queue without their prefix, in pages; some may come twice."""
        prefix = self.keys.prefix
        async for found in self._scan(b"SCAN", pattern=glob(prefix) + "*"):
            yield [key.decode(errors="surrogateescape").removeprefix(prefix) for key in found]

    async def small_members(self, keys: Sequence[tuple[str, str]], most: int) -> list[list[bytes] | None]:
        """Of keys and their types; None where there are more than can be told at once."""
        walked = [arguments.WalkedKey(*key) for key in keys]
        found: list[list[bytes] | None] = await self.call(arguments.Members(most, walked))
        return found

    async def members(self, name: str, kind: str) -> AsyncIterator[list[bytes]]:
        """Of a large key, in pages; of a stream the ids of entries and tasks in turn."""
        key = self.keys.prefix + name
        if kind == "stream":
            async for page in self._entries(key):
                yield page
            return
        step = 1 if kind == "set" else 2
        async for found in self._scan(_WALKS[kind], key):
            yield found[::step]

    async def _entries(self, key: str) -> AsyncIterator[list[bytes]]:
        start = b"-"
        while page := await self._insist(pack((b"XRANGE", key, start, b"+", b"COUNT", PAGE))):
            yield [part for stream_id, fields in page for part in (stream_id, fields[1])]
            start = b"(" + page[-1][0]

    async def _scan(self, *command: bytes | str, pattern: str = "*") -> AsyncIterator[list[bytes]]:
        cursor = b"0"
        while True:
            cursor, found = await self._insist(pack((*command, cursor, b"MATCH", pattern, b"COUNT", PAGE)))
            yield found
            if cursor == b"0":
                return
