"""`move`: a user carried to another partition of its queue while that works.

    freeze    where it lives, for as long as its mover gives signs of life
    arrive    where it goes, without an end
    manifest  which keys it has, so that they can be erased without looking for them
    import    all of it, deliveries last, page by page; it counts for no total there
    depart    where it lived: from now on it lives there, and everybody is told so
    thaw      where it lives now: it counts, and is served
    forward   where its name leads to, should that be neither
    erase     what it has left

A policy that is to change with the move is carried as it is to be: the user has the old one where it was, until
`depart`, and the new one where it lives from then on, whoever goes on with it.

A mover that dies before `depart` leaves a user that goes on by itself where it was, and half of it where it was to go,
which is erased; behind it, whoever comes goes on with the rest: `finish_moves`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator

import msgspec

from fairque.backoff import Backoff
from fairque.errors import FairqueError, InvalidInput, QueueUnavailable, UserFrozen
from fairque.policy import PolicyChange, stored_in
from fairque.redis.keys import decode_user, encode_user
from fairque.redis.partitions import partition_of
from fairque.redis.places import MovedUser, UserElsewhere, root_of
from fairque.redis.store import Store
from fairque.redis.store_transfer import ImportedKey
from fairque.transfer.fields import has_shared_place, lane_of, moved_fields
from fairque.transfer.kinds import LANES, MOVED_KINDS, Kind
from fairque.transfer.walk import Walk

__all__ = ["InGroup", "Moved", "carry_import", "check_partition", "finish_moves", "move"]

MOST_HOPS = 100
STEP_BYTES = 1 << 19
STEP_RECORDS = 200
PART_BYTES = 16
NAMES = 1000
ERASED = 300
"""Keys and members of one step."""
ADOPTED = 10
STAYS = frozenset(("assignments", "frozen", "manifest", "damaged"))
"""What workers say of users, and what is of the move itself."""
BY_OTHERS = frozenset(("running", "let-in", "kept", "held-users"))
"""What goes with the tasks that are in it."""
LAST = ("held", "offers")
_LONGEST_PAUSE = 1.0


class InGroup(InvalidInput):
    """A user would leave the others of its group."""


class Moved(msgspec.Struct, frozen=True, kw_only=True):
    """Where a user lives by now.

    Attributes:
        user_id: Who.
        partition: The number of the partition, from 0.
        records: In how many pages it was carried; 0: it was there already.
    """

    user_id: str
    partition: int
    records: int


class _HasPlace(QueueUnavailable):
    """What runs of the user counts where it is, for all users of that partition."""


async def move(store: Store, user_id: str, partition: int, change: PolicyChange | None = None) -> Moved:
    """See `TaskQueue.move`. `change`: of the policy, with the move; not where the user lives there already."""
    await check_partition(store, partition)
    backoff, until = Backoff(), time.monotonic() + store.patience
    while True:
        try:
            return await _moved(store, user_id, partition, change)
        except (UserFrozen, UserElsewhere, _HasPlace):  # others have it, or it has what is to end before
            if (left := until - time.monotonic()) <= 0:
                raise
            await asyncio.sleep(min(left, backoff.next(_LONGEST_PAUSE)))


async def carry_import(
    store: Store, user_id: str, token: str, source: Store, target: Store, change: PolicyChange
) -> None:
    """An import that is whole but for its end, which this is: from then on it lives in the other partition. Begun again
    with the same records, it goes on, should whoever is at it die.
    """
    at, to = store.parts.index(source), store.parts.index(target)
    await _erase(target, encode_user(user_id), token)  # what an earlier try has brought
    await _Move(store, user_id, at, to, change, token).run()


async def check_partition(store: Store, partition: int) -> None:
    """Raises `InvalidInput` where there is no such partition."""
    if not await store.is_divided():
        raise InvalidInput("only in a queue with partitions can a user be moved: TaskQueue(partitions=...) makes one")
    count = len(store.parts)
    if not 0 <= partition < count:
        raise InvalidInput(f"there is no partition {partition}: this queue has those from 0 to {count - 1}")


async def _moved(store: Store, user_id: str, partition: int, change: PolicyChange | None) -> Moved:
    source = await _home(store, encode_user(user_id))
    if source == partition:
        return Moved(user_id=user_id, partition=partition, records=0)
    records = await _Move(store, user_id, source, partition, change).run()
    return Moved(user_id=user_id, partition=partition, records=records)


async def _home(store: Store, user: str) -> int:
    """Where it lives for certain, asked from partition to partition."""
    places = store.places
    for _ in range(MOST_HOPS):
        at = places.of(user)
        known = await store.parts[at].moving(user)
        if not known.moved:
            return at
        if not places.learn(MovedUser(user, *map(int, known.moved.split()))):
            break
    raise UserElsewhere((MovedUser(user, places.of(user), 0),))  # it is on its way


class _Move:
    """`imported`: the token of an import that is carried."""

    def __init__(
        self, store: Store, user_id: str, source: int, target: int, change: PolicyChange | None, imported: str = ""
    ) -> None:
        self._store = store
        self._change = change
        self._user_id, self._user = user_id, encode_user(user_id)
        self._at, self._to = source, target
        self._source, self._target = store.parts[source], store.parts[target]
        self._token = imported or os.urandom(16).hex()
        self._walk = Walk(self._source, user_id, self._token, "import" if imported else "move")
        self._taken = 0
        self._waiting: list[ImportedKey] = []
        self._bytes = 0

    async def run(self) -> int:
        frozen = await self._walk.begin()
        try:
            await self._carry(frozen.passport)
            epoch = _epoch_in(frozen.passport)
            await self._leave(epoch)
        except BaseException:
            await self._give_up()
            raise
        await _arrive(self._store, self._user, self._at, self._to, epoch, self._token)
        return self._taken

    async def _carry(self, passport: bytes) -> None:
        recounts = bool(msgspec.msgpack.decode(passport)["recount"])
        names = await self._names()
        policy = await self._policy_to_be(names)
        await self._refuse_grouped(policy)
        while (before := await self._target.arrive(self._user, self._token, self._at, passport)) is not None:
            if before.token:  # who brought it did not bring all: the user lives here, and stands still by this move
                await _erase(self._target, self._user, before.token)
            else:
                await finish(self._store, self._to, self._user)
        for kind in MOVED_KINDS.values():
            if not (recounts and kind.name in ("bytes", "bytes-expiring", "xcom-bytes")):
                async for record in self._records(kind, names):
                    await self._put(record)
            if kind.name == "policy" and policy:
                await self._put(ImportedKey(kind.name, "", kind.redis_type, -1, [policy]))
        await self._write()

    async def _names(self) -> dict[str, list[str]]:
        """By kind. They are noted where it lives, in the order of kinds: the last goes first."""
        found: defaultdict[str, set[str]] = defaultdict(set)
        keys: defaultdict[str, set[str]] = defaultdict(set)
        async for page in self._source.all_names_of(self._user):
            for key, kind, name in page:
                if kind not in STAYS and kind not in BY_OTHERS and not (kind in LAST and name):
                    found[kind].add(name)
                    keys[kind].add(key)
            await self._walk.stay()
        found["schedule"] = set(await self._source.schedules_of(self._user_id))
        keys["schedule"] = {f"schedule:{name}" for name in found["schedule"]}
        await self._note(list(_in_order(keys)))
        return {kind: sorted(names) for kind, names in found.items()}

    async def _note(self, keys: list[str]) -> None:
        for at in range(0, max(1, len(keys)), NAMES):
            await self._walk.stay()
            if not await self._source.note_manifest(self._user, self._token, at, keys[at : at + NAMES]):
                raise _lapsed(self._user_id)

    async def _policy_to_be(self, names: dict[str, list[str]]) -> bytes:
        """Where it lives next; b"": none."""
        packed = b""
        async for _, page in self._walk.pages("policy", "string", names.pop("policy", ())):
            packed = page.parts[0]
        return self._change.applied_to(packed) if self._change is not None else packed

    async def _refuse_grouped(self, policy: bytes) -> None:
        """But for who follows its group, or joins one."""
        group = stored_in(policy).get("group")
        if group and await self._store.home_of(root_of(group)) is not self._target:
            raise InGroup(f"user {self._user_id!r} is in a group, which lives together: move_group() moves it")

    # What goes along

    async def _records(self, kind: Kind, names: dict[str, list[str]]) -> AsyncIterator[ImportedKey]:
        async for name, page in self._walk.pages(kind.name, kind.redis_type, names.get(kind.name, ())):
            parts = moved_fields(kind.name, page.parts) if kind.redis_type == "hash" else page.parts
            if kind.name == "task" and has_shared_place(page.parts):
                raise _HasPlace(
                    f"task {name!r} of user {self._user_id!r} runs, and has a place of a limit that all users share: "
                    "the user can be moved when that has ended"
                )
            if parts:
                yield ImportedKey(kind.name, name, kind.redis_type, page.expires_ms, parts)
        if kind.name in LANES:
            async for record in self._held(kind):
                yield record

    async def _held(self, lane: Kind) -> AsyncIterator[ImportedKey]:
        """What is held for a limit waits in its lane."""
        async for _, page in self._walk.pages("held", "zset", ("",)):
            ids = [id_.decode() for id_ in page.parts[::2]]
            rows: list[bytes] = []
            async for name, task in self._walk.pages("task", "hash", ids):
                to, score = lane_of(task.parts)
                if to == lane.name.encode() and score:
                    rows += (name.encode(), score)
            if rows:
                yield ImportedKey(lane.name, "", "zset", -1, rows)

    async def _put(self, record: ImportedKey) -> None:
        self._waiting.append(record)
        self._bytes += sum(map(len, record.parts)) + PART_BYTES * len(record.parts)
        if len(self._waiting) >= STEP_RECORDS or self._bytes > STEP_BYTES:
            await self._write()

    async def _write(self) -> None:
        if self._waiting:
            await self._walk.stay()
            await self._target.import_keys(self._user_id, self._token, self._taken, self._waiting)
            self._taken += len(self._waiting)
            self._waiting, self._bytes = [], 0

    # Its end

    async def _leave(self, epoch: int) -> None:
        """From here on it lives there."""
        there = await self._target.moving(self._user)
        if there.token != self._token:
            raise _lapsed(self._user_id)
        if not await self._source.depart(self._user, self._token, self._to, epoch, there.totals):
            raise _lapsed(self._user_id)
        self._store.places.learn(MovedUser(self._user, self._to, epoch))

    async def _give_up(self) -> None:
        """Unless it has left after all, as a reply was lost: then the rest is done by whoever finds it."""
        with contextlib.suppress(FairqueError):
            if (await self._source.moving(self._user)).record:
                return
            await self._walk.end()
            await _erase(self._target, self._user, self._token)


def _lapsed(user_id: str) -> QueueUnavailable:
    return QueueUnavailable(f"user {user_id!r} went on, as its move stood still for too long: begin it anew")


def _epoch_in(passport: bytes) -> int:
    return int(msgspec.msgpack.decode(passport)["epoch"])


def _in_order(keys: dict[str, set[str]]) -> Iterator[str]:
    """What has to go before others can, last."""
    for kind in (*(kind for kind in keys if kind not in MOVED_KINDS and kind not in LAST), *MOVED_KINDS, *LAST):
        yield from sorted(keys.get(kind, ()))


# What is left to do once it lives elsewhere


async def _arrive(store: Store, user: str, source: int, target: int, epoch: int, token: str) -> None:
    """May be done again at any time."""
    await store.parts[target].thaw(decode_user(user.encode()), token)
    home = partition_of(user, len(store.parts))
    if home not in (source, target):
        await store.parts[home].forward(MovedUser(user, target, epoch))
    await _erase(store.parts[source], user, token)


async def _erase(part: Store, user: str, token: str) -> None:
    while await part.erase(user, token, ERASED) > 0:
        pass


async def finish_moves(store: Store, partition: int) -> int:
    """Go on with moves from or to a partition whose movers fell silent. Returns how many there were."""
    adopted = await store.parts[partition].adopt(ADOPTED)
    for each in adopted:
        if each.is_departing:
            await _go_on(store, partition, each.user, each.record)
        else:
            await _look_behind(store, partition, each.user, int(each.record), each.token)
    return len(adopted)


async def finish(store: Store, partition: int, user: str) -> None:
    """Go on with one move from there, whoever is at it as well."""
    if record := (await store.parts[partition].moving(user)).record:
        await _go_on(store, partition, user, record)


async def _go_on(store: Store, source: int, user: str, record: str) -> None:
    target, epoch, token = record.split(" ")
    await _arrive(store, user, source, int(target), int(epoch), token)


async def _look_behind(store: Store, target: int, user: str, source: int, token: str) -> None:
    """One that arrives: it has left, or is still carried, or does not come."""
    known = await store.parts[source].moving(user)
    if known.record.endswith(f" {token}"):
        await _go_on(store, source, user, known.record)
    elif known.token != token or known.why == "import":  # which does not end by itself, and is begun again
        await _erase(store.parts[target], user, token)
