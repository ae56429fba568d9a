"""`export`: everything that a user has, as records. The user stands still meanwhile.

What runs is told as queued: elsewhere it begins anew, with the attempts that it had. The places of what waits come
last, what is held for a limit among its lane.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator, Sequence

from fairque.errors import InvalidInput
from fairque.redis.keys import LAYOUT, encode_user
from fairque.redis.store import Store
from fairque.transfer.fields import LEFT_BEHIND, as_carried, lane_of
from fairque.transfer.kinds import KINDS, Kind
from fairque.transfer.record import VERSION, Digest, End, Header, Record, encode
from fairque.transfer.walk import Walk

__all__ = ["export"]

_LANES = ("critical", "normal")
_ELSEWHERE = ("held", *(f"{lane}-stream" for lane in _LANES))
"""Where tasks are that go to a lane."""


async def export(store: Store, user_id: str) -> AsyncGenerator[bytes]:
    """See `TaskQueue.export_user`."""
    store = await store.home_of(encode_user(user_id))
    exporter = _Export(store, user_id)
    digest, count = Digest(), 0
    frozen = await exporter.walk.begin()
    try:
        async for record in exporter.records(frozen.ahead):
            data = encode(record)
            digest.add(data)
            count += 1
            yield data
        yield encode(End(count, digest.value))
    finally:
        await exporter.walk.end()


class _Export:
    def __init__(self, store: Store, user_id: str) -> None:
        self._store = store
        self._user_id = user_id
        self._user = encode_user(user_id)
        self._with_message: set[str] = set()
        self.token = os.urandom(16).hex()
        self.walk = Walk(store, user_id, self.token, "export")

    async def records(self, ahead: float) -> AsyncIterator[Header | Record]:
        names = await self._names()
        if not any(names.get(kind) for kind in (*KINDS, *_ELSEWHERE)):
            raise InvalidInput(f"nothing is known of user {self._user_id!r}")
        yield await self._header(ahead)
        for kind in KINDS.values():
            pages = self._placed(kind.name, names) if kind.name in _LANES else self._of_kind(kind, names)
            async for record in pages:
                yield record

    async def _header(self, ahead: float) -> Header:
        store = self._store
        return Header(
            version=VERSION,
            layout=LAYOUT,
            export_id=self.token,
            queue=store.backend.name,
            user_id=self._user_id,
            realm=store.sealer.realm if store.sealer is not None else "",
            priority_step_ms=store.settings.priority_step_ms,
            ahead=ahead,
            made_ms=await store.now_ms(),
        )

    async def _names(self) -> dict[str, list[str]]:
        """By kind."""
        found: defaultdict[str, set[str]] = defaultdict(set)
        async for page in self._store.names_of(self._user_id):
            for kind, name in page:
                found[kind].add(name)
            await self.walk.stay()
        found["schedule"] = set(await self._store.schedules_of(self._user_id))
        found["limit"] = set(await self._store.limits_of(self._user_id))
        return {kind: sorted(names) for kind, names in found.items()}

    async def _of_kind(self, kind: Kind, names: dict[str, list[str]]) -> AsyncIterator[Record]:
        async for name, page in self.walk.pages(kind.name, kind.redis_type, names.get(kind.name, ())):
            if parts := self._carried(kind.name, name, page.parts):
                yield Record(kind.name, name, page.expires_ms, parts)

    def _carried(self, kind: str, name: str, parts: list[bytes]) -> list[bytes]:
        if kind == "body":
            self._with_message.add(name)
        if kind in LEFT_BEHIND:
            return as_carried(kind, parts)
        if kind in ("dead", "lapsing", "expiring", "scheduled"):
            return [part for pair in self._known(_pairs(parts)) for part in pair]
        return [id_ for (id_,) in self._known((part,) for part in parts)] if kind == "deferred" else parts

    def _known(self, rows: Iterable[tuple[bytes, ...]]) -> Iterator[tuple[bytes, ...]]:
        """Of which the messages are there: dead letters that are over stay in their list for a while."""
        return (row for row in rows if row[0].decode(errors="replace") in self._with_message)

    async def _placed(self, lane: str, names: dict[str, list[str]]) -> AsyncIterator[Record]:
        """Its lane is read first: what is held by the time has left that, and not the other way round."""
        seen: set[bytes] = set()
        async for _, page in self.walk.pages(lane, "zset", names.get(lane, ())):
            rows = [row for row in self._known(_pairs(page.parts)) if row[0] not in seen]
            seen.update(row[0] for row in rows)
            if rows:
                yield Record(lane, "", -1, [part for row in rows for part in row])
        async for ids in self._ids_elsewhere():
            rows = [row async for row in self._going_to(lane, [id_ for id_ in ids if id_ not in seen])]
            seen.update(row[0] for row in rows)
            if rows:
                yield Record(lane, "", -1, [part for row in rows for part in row])

    async def _ids_elsewhere(self) -> AsyncIterator[list[bytes]]:
        async for _, page in self.walk.pages("held", "zset", ("",)):
            yield page.parts[::2]
        for lane in _LANES:
            async for _, page in self.walk.pages(f"{lane}-stream", "stream", ("",)):
                yield _ids_in(page.parts)

    async def _going_to(self, lane: str, ids: Sequence[bytes]) -> AsyncIterator[tuple[bytes, bytes]]:
        """Of these, those of a lane, and their scores."""
        known = [name for id_ in ids if (name := id_.decode(errors="replace")) in self._with_message]
        async for name, page in self.walk.pages("task", "hash", known):
            to, score = lane_of(page.parts)
            if to == lane.encode() and score:
                yield name.encode(), score


def _pairs(parts: Sequence[bytes]) -> Iterator[tuple[bytes, bytes]]:
    return zip(parts[::2], parts[1::2], strict=True)


def _ids_in(parts: Sequence[bytes]) -> list[bytes]:
    """Of the entries of a stream of deliveries, whose words are ``id`` and the task."""
    found: list[bytes] = []
    at = 0
    while at < len(parts):
        words = int(parts[at + 1])
        found.append(parts[at + 3])
        at += 2 + words
    return found
