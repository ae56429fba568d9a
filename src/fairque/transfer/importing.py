"""`import_records`: a user made of records, which nobody serves before the last of them is there.

A step is one script: its records are there, or none. The marker of the user counts them, so that an import that was
broken off, wherever, goes on by being begun again with the same records.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from typing import Any

import msgspec

from fairque.errors import BadExport, InvalidInput, QueueUnavailable
from fairque.everybody import check_user
from fairque.limit import Limit
from fairque.policy import PolicyChange, changes_of, policy_in, rate_of
from fairque.redis.keys import LAYOUT, encode_user
from fairque.redis.places import UserElsewhere, root_of
from fairque.redis.store import Store
from fairque.redis.store_transfer import KNOWN, ImportedKey
from fairque.transfer.bounds import check_record
from fairque.transfer.kinds import KINDS
from fairque.transfer.moving import InGroup, carry_import
from fairque.transfer.record import VERSION, Digest, End, Header, Record, decode
from fairque.transfer.whole import Whole

__all__ = ["Imported", "import_records"]

AT_ONCE = 200
STEP_BYTES = 1 << 19
PART_BYTES = 16
"""What each part costs beside its contents: a call may have a million words."""
MOST_TRIES = 8
"""The group of the user may be moved at the same time."""
_RULES = ("policy", "limit")
"""Which are set by calls of their own."""
_OF_QUEUE = frozenset(("frozen", "assignments"))
"""What a user has that nothing was done for."""


_EXPORT_ID = re.compile(r"[0-9a-f]{32}")


class Imported(msgspec.Struct, frozen=True, kw_only=True):
    """What an import brought: whose, and how many records."""

    user_id: str
    records: int


async def import_records(store: Store, records: AsyncIterable[bytes] | Iterable[bytes]) -> Imported:
    """See `TaskQueue.import_user`."""
    digest, took, importer, end = Digest(), 0, None, None
    async for data in _each(records):
        record = decode(data)
        if end is not None:
            raise BadExport("something follows behind the end of an export")
        if isinstance(record, End):
            end = record
            continue
        digest.add(bytes(data))
        took += 1
        if isinstance(record, Header):
            if importer is not None:
                raise BadExport("a second export begins within the first")
            importer = _Import(store, await _home(store, record), record)
        elif importer is None:
            raise BadExport("an export begins with a header")
        else:
            await importer.take(record)
    if end is None or importer is None:
        raise BadExport("the export is broken off: its end is missing")
    if (end.records, end.digest) != (took, digest.value):
        raise BadExport(f"the export is not whole: {took} records, not {end.records}, or one of them was changed")
    await importer.finish()
    return Imported(user_id=importer.user_id, records=took)


async def _each(records: AsyncIterable[bytes] | Iterable[bytes]) -> AsyncIterator[bytes]:
    if isinstance(records, AsyncIterable):
        async for record in records:
            yield record
    else:
        for record in records:
            yield record


async def _home(store: Store, header: Header) -> Store:
    """Where it lives, once it is certain that it can be taken there. Raises `BadExport`."""
    await store.agree()
    _check_header(store, header)
    return await store.home_of(encode_user(header.user_id))


def _check_header(store: Store, header: Header) -> None:
    """Whether it can be taken here. Raises `BadExport`."""
    if header.version != VERSION:
        raise BadExport(f"the export has version {header.version}, this version of fairque reads {VERSION}")
    if header.layout != LAYOUT:
        raise BadExport(
            f"the export has data of layout {header.layout}, this version of fairque writes layout {LAYOUT}"
        )
    try:
        check_user("user_id", header.user_id)
    except InvalidInput as exc:
        raise BadExport(f"the export is of no user: {exc}") from None
    if not _EXPORT_ID.fullmatch(header.export_id):
        raise BadExport(f"the export has no id that this version of fairque gives: {header.export_id[:80]!r}")
    here = store.sealer.realm if store.sealer is not None else ""
    if header.realm != here:
        where = f"sealed for {header.realm!r}" if header.realm else "not sealed"
        wanted = f"for {here!r}" if here else "as they are"
        raise BadExport(
            f"the contents of the export are {where}, this queue reads them {wanted}: take a queue of that realm"
        )
    step = store.settings.priority_step_ms
    if header.priority_step_ms != step:
        raise BadExport(
            f"the export has a priority_step of {header.priority_step_ms / 1000:g} s, this queue of {step / 1000:g} s"
        )
    if not 0 <= header.ahead < float("inf"):
        raise BadExport(f"the export is ahead by {header.ahead}")


class _Import:
    def __init__(self, root: Store, store: Store, header: Header) -> None:
        self._root = root
        self._store = store
        self._header = header
        self.user_id = header.user_id
        self._whole: Whole | None = None
        self._there: int | None = None  # records that the queue has; None before the first step
        self._taken = 0
        self._waiting: list[Record] = []
        self._bytes = 0
        self._policy: dict[str, Any] = {}
        self._limits: list[tuple[str, Limit, bool]] = []

    async def take(self, record: Record) -> None:
        check_record(record, self.user_id)
        if self._whole is None:
            self._whole = Whole(await self._store.now_ms())
        self._whole.add(record)
        if record.kind in _RULES:
            self._note_rule(record)
        self._waiting.append(record)
        self._bytes += record.size + PART_BYTES * len(record.parts)
        if len(self._waiting) >= AT_ONCE or self._bytes > STEP_BYTES:
            await self._write()

    async def finish(self) -> None:
        """All is there, and fits together."""
        if self._whole is None:
            raise BadExport("the export has no records")
        self._whole.check()
        await self._write()
        for declared in (False, True):
            limits = [(name, limit) for name, limit, by_code in self._limits if by_code is declared]
            if limits:
                await self._store.set_limits(limits, declared=declared)
        for _ in range(MOST_TRIES):
            with contextlib.suppress(UserElsewhere, InGroup):  # its group, by now
                return await self._settle()
        raise QueueUnavailable(f"the group of user {self.user_id!r} is moved elsewhere each time by others: call again")

    async def _settle(self) -> None:
        """Where its group lives, and is in that from its end on."""
        group, home = self._policy.get("group"), self._store
        if group is not None:
            home = await self._root.home_of(root_of(group))
        own = {name: value for name, value in self._policy.items() if name != "group" or home is self._store}
        if own:
            await self._store.set_policy(encode_user(self.user_id), own)
        if home is not self._store:
            change = PolicyChange({"group": group})
            await carry_import(self._root, self.user_id, self._header.export_id, self._store, home, change)
        elif not await self._store.thaw(self.user_id, self._header.export_id, self._header.ahead):
            raise BadExport(f"the import of user {self.user_id!r} was given up meanwhile")

    def _note_rule(self, record: Record) -> None:
        try:
            if record.kind == "policy":
                given = msgspec.structs.asdict(policy_in(record.parts[0]))
                self._policy = changes_of({name: value for name, value in given.items() if value is not None})[0]
            else:
                self._limits += _limits_in(record, self.user_id)
        except (msgspec.MsgspecError, InvalidInput, ValueError, TypeError, KeyError, AttributeError) as exc:
            raise BadExport(f"record {record.kind} {record.name[:80]!r} cannot be read: {exc}") from None

    async def _write(self) -> None:
        """What waits, as far as it is not there from an earlier try."""
        if self._there is None:
            self._there = await self._begin()
        step, first = self._waiting, self._taken
        self._taken += len(step)
        self._waiting, self._bytes = [], 0
        if step and self._taken > self._there:
            self._there = await self._store.import_keys(
                self.user_id, self._header.export_id, first, [_key_of(record) for record in step]
            )

    async def _begin(self) -> int:
        """The user stands still from now on, and has nothing but what an earlier try has brought."""
        token = self._header.export_id
        frozen = await self._store.freeze(self.user_id, token, "import")
        if frozen.at == 0:
            known = [
                kind async for page in self._store.names_of(self.user_id) for kind, _ in page if kind not in _OF_QUEUE
            ]
            if known or await self._store.schedules_of(self.user_id) or await self._store.limits_of(self.user_id):
                await self._store.thaw(self.user_id, token)
                raise InvalidInput(f"user {self.user_id!r} {KNOWN}")
        return frozen.at


def _key_of(record: Record) -> ImportedKey:
    kind = KINDS[record.kind]
    redis_type = "none" if record.kind in _RULES else kind.redis_type
    return ImportedKey(record.kind, record.name, redis_type, record.expires_ms, record.parts)


def _limits_in(record: Record, user_id: str) -> list[tuple[str, Limit, bool]]:
    """What was set by hand, and what code declared: the name of the record, the limit, whether code did."""
    fields = dict(zip(record.parts[::2], record.parts[1::2], strict=True))
    found: list[tuple[str, Limit, bool]] = []
    for source in (b"hand", b"code"):
        if source not in fields:
            continue
        most, interval_us, burst = fields[source].decode().split(" ")
        rate = rate_of(int(interval_us), int(burst)) if interval_us != "-" else None
        limit = Limit("key", max_running=int(most) if most != "-" else None, rate=rate)
        found.append((f"{encode_user(user_id)}{record.name}", limit, source == b"code"))
    return found
