"""The scripts that know schedules, and their replies as values."""

from __future__ import annotations

import logging
import math
import os
import random
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import msgspec

from fairque.errors import QueueUnavailable, StoreError
from fairque.redis import arguments
from fairque.redis.arguments import Values
from fairque.redis.delivery import NewCallback
from fairque.redis.dividing import at_once, divided, in_order
from fairque.redis.keys import decode_user, encode_user
from fairque.redis.replies import refusal
from fairque.redis.store import Store
from fairque.redis.store_batches import packed_callbacks
from fairque.schedule.spec import ScheduledTask, ScheduleRun, ScheduleState, Spec, moment_of
from fairque.tasks.message import new_nonce

__all__ = [
    "KEEP",
    "OUTCOMES",
    "Declared",
    "Due",
    "Move",
    "Ripe",
    "ScheduleStore",
    "StoredSchedule",
    "Write",
    "decode_spec",
    "encode_spec",
]

logger = logging.getLogger("fairque.scheduler")
KEEP = "keep"
OUTCOMES = frozenset({"fired", "passed", "skipped", "full", "stale"})
_encode = msgspec.msgpack.Encoder().encode
_spec_decoder = msgspec.msgpack.Decoder(Spec)


class Due(NamedTuple):
    """A schedule that is due at `ms` for its slot `slot`."""

    schedule_id: str
    ms: int
    user_id: str
    name: str
    spec: bytes
    anchor_ms: int
    body: bytes
    priority: int
    delay: str
    revision: str
    slot: int
    expires: str = ""
    callbacks: bytes = b""

    def __repr__(self) -> str:  # without the arguments
        return f"<Due {self.schedule_id!r} of {self.user_id!r}>"


class Ripe(NamedTuple):
    """What is due, and when to look again; -1: when that is told. `broken` were set aside. `is_expiring`: tasks have
    expired.
    """

    now_ms: int
    look_at_ms: int
    due: list[Due]
    broken: list[str]
    is_expiring: bool

    @property
    def next_look_ms(self) -> float:
        """When the scheduler looks again by itself."""
        return self.look_at_ms if self.look_at_ms >= 0 else math.inf


class StoredSchedule(NamedTuple):
    """A schedule as it lies in Redis, for those who change it. `due` is it as if it were due now; not in pages."""

    now_ms: int
    schedule: ScheduledTask
    spec: Spec
    anchor_ms: int
    slot: int | None
    due: Due | None
    revision: str
    declared: str
    older: str


class Move(NamedTuple):
    """What is to happen to a schedule that is due; see fire.lua."""

    due: Due
    task_id: str
    body: bytes
    callbacks: tuple[NewCallback, ...]
    next_ms: int | None
    next_slot: int | None
    missed: int
    kind: Literal["fire", "pass", "now"]
    overlap: str
    max_runs: int | None

    def __repr__(self) -> str:  # without the arguments
        return f"<Move {self.kind} of {self.due!r}>"


class Declared(NamedTuple):
    """What code says of a schedule. `definition`: a fingerprint."""

    schedule_id: str
    definition: str
    user_id: str


class Write(NamedTuple):
    """What is to be written of a schedule. `read`: the revision that was read; '' for a new one. `next_ms` None: it
    does not fire, ``"keep"``: when it did before. A field that is None goes.
    """

    schedule_id: str
    user_id: str
    read: str
    next_ms: int | str | None
    fields: Mapping[str, Any]

    def __repr__(self) -> str:  # without the arguments
        return f"<Write of {self.schedule_id!r} of {self.user_id!r}>"


class ScheduleStore:
    """One method per script. Each may be repeated after a cut reply."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._homes: dict[str, ScheduleStore] = {}
        self._has_asked_all = False

    async def check_permissions(self) -> None:
        """Raises `NotPermitted` where schedules could not be fired."""
        await self._store.check_roles("scheduler")

    async def ripe(self, most: int, ahead_ms: int = 0, scheduler: str = "") -> Ripe:
        """`scheduler` is one that takes turns with others; see schedule_keepers.lua."""
        now_ms, look_at_ms, broken, is_expiring, *rows = await self._store.call(
            arguments.Ripe(scheduler, most, ahead_ms)
        )
        names = [name.decode(errors="replace") for name in broken]
        return Ripe(now_ms, look_at_ms, [_due(row) for row in rows], names, bool(is_expiring))

    async def expire(self) -> bool:
        """End tasks whose time to begin is over. True: there are more."""
        settings = self._store.settings
        return bool(await self._store.call(arguments.Expire(settings.dead_letter_ttl_ms, settings.priority_step_ms)))

    async def leave(self, scheduler: str) -> None:
        await self._store.call(arguments.LeaveSchedules(scheduler))

    async def fire(self, moves: Sequence[Move]) -> list[str]:
        """Per move: one of `OUTCOMES`, or what went wrong with it alone."""
        if await self._store.is_divided():
            return await self._store.following(lambda: self._fire_apart(moves))
        settings, values = self._store.settings, Values()
        fire = arguments.Fire(
            new_nonce().hex(),
            settings.priority_step_ms,
            settings.dead_letter_ttl_ms,
            settings.dead_letter_ttl_ms,
            [_firing(move, values) for move in moves],
        )
        return [answer.decode() for answer in await self._store.call(fire, values)]

    async def _fire_apart(self, moves: Sequence[Move]) -> list[str]:
        return await in_order(divided(moves, self._home), lambda home, some: home.fire(some))

    async def write(self, *writes: Write) -> str:
        """done; or exists, missing or changed, and nothing was written. Raises `QuotaExceeded`.

        In a queue with partitions that is so for those of each of them, which are written one after the other.
        """
        return await self._write(writes, os.urandom(8).hex())

    async def _write(self, writes: Sequence[Write], revision: str) -> str:
        if await self._store.is_divided():
            return await self._store.following(lambda: self._write_apart(writes, revision))
        values = Values()
        written = [_written(write, values) for write in writes]
        schedule = arguments.Schedule(revision, self._store.settings.dead_letter_ttl_ms, written)
        answer: bytes | list[Any] = await self._store.call(schedule, values)
        if isinstance(answer, list):
            raise refusal(answer)
        return answer.decode()

    async def _write_apart(self, writes: Sequence[Write], revision: str) -> str:
        answers = [await home._write(some, revision) for home, (_, some) in divided(writes, self._home).items()]
        return next((answer for answer in answers if answer != "done"), "done")

    async def are_apart(self, user_id: str, other_id: str) -> bool:
        """Whether what is the one's cannot become the other's in one step: they live in different partitions."""
        if user_id == other_id or not await self._store.is_divided():
            return False
        homes = [await self._store.home_of(encode_user(each)) for each in (user_id, other_id)]
        return homes[0] is not homes[1]

    def _home(self, of: Declared | Move | Write) -> ScheduleStore:
        """Of the partition where its user lives."""
        user_id = of.due.user_id if isinstance(of, Move) else of.user_id
        part = self._store.part_of(encode_user(user_id))
        return self._homes.setdefault(part.keys.prefix, ScheduleStore(part))

    async def remove(self, schedule_id: str) -> bool:
        return bool(await self._store.call(arguments.Unschedule(new_nonce().hex(), [schedule_id])))

    async def get(self, schedule_id: str) -> StoredSchedule | None:
        """Raises `StoreError` for one that cannot be read."""
        return (await self.look([schedule_id]))[1].get(schedule_id)

    async def look(self, schedule_ids: Sequence[str]) -> tuple[int, dict[str, StoredSchedule]]:
        """The server's time in ms, and those that are there. Raises `StoreError` for one that cannot be read."""
        now_ms, _, *rows = await self._store.call(arguments.Schedules(schedule_ids, "", "", 1))
        return now_ms, {row[0].decode(): _known(now_ms, *row) for row in rows}

    async def page(self, user_id: str | None, after: str, most: int) -> tuple[list[StoredSchedule], str]:
        """Those that can be read, and where the next page begins; '' after the last."""
        user = "" if user_id is None else encode_user(user_id)
        now_ms, then, *rows = await self._store.call(arguments.Schedules([], user, after, most))
        return [known for row in rows if (known := _readable(now_ms, row)) is not None], then.decode()

    async def declare(self, declarations: Sequence[Declared], ttl_ms: int) -> tuple[list[str], list[str]]:
        """Per declaration: same, absent, differs, older or taken; and the ids that nobody declares any more."""
        if await self._store.is_divided():
            return await self._declare_apart(declarations, ttl_ms)
        told = [arguments.Declaration(each.schedule_id, each.definition) for each in declarations]
        verdicts, orphans = await self._store.call(arguments.Declare(ttl_ms, told))
        return [each.decode() for each in verdicts], [each.decode() for each in orphans]

    async def _declare_apart(self, declarations: Sequence[Declared], ttl_ms: int) -> tuple[list[str], list[str]]:
        """Where no user of a declared one lives, there may be some that nobody declares any more: the first time all
        are asked for these, later one more each time. Where a partition does not answer, nothing is to be done now.
        """
        orphans: list[str] = []

        async def told(home: ScheduleStore, some: list[Declared]) -> list[str]:
            try:
                verdicts, found = await home.declare(some, ttl_ms)
            except QueueUnavailable as exc:
                logger.warning("cannot declare %d schedules, trying again: %s", len(some), exc)
                return ["same"] * len(some)
            orphans.extend(found)
            return verdicts

        others = self._homes_beside({each.user_id for each in declarations})
        some = random.sample(others, min(1, len(others))) if self._has_asked_all else others
        verdicts, *_ = await at_once(
            [in_order(divided(declarations, self._home), told), *(told(home, []) for home in some)]
        )
        self._has_asked_all = True
        return verdicts, orphans

    def _homes_beside(self, users: set[str]) -> list[ScheduleStore]:
        theirs = {self._store.part_of(encode_user(user)).keys.prefix for user in users}
        return [ScheduleStore(part) for part in self._store.parts if part.keys.prefix not in theirs]


def encode_spec(spec: Spec) -> bytes:
    return _encode(spec)


def decode_spec(data: bytes) -> Spec:
    try:
        return _spec_decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
        raise StoreError(f"its times cannot be decoded: {exc}") from None


def _as_bytes(value: Any) -> bytes:
    if value is None or isinstance(value, bytes):
        return value or b""
    return str(value).encode()


def _written(write: Write, values: Values) -> arguments.WrittenSchedule:
    fields = [arguments.Field(name, values.put(_as_bytes(value))) for name, value in write.fields.items()]
    then = "" if write.next_ms is None else write.next_ms
    return arguments.WrittenSchedule(write.schedule_id, encode_user(write.user_id), write.read, then, fields)


def _firing(move: Move, values: Values) -> arguments.Firing:
    due = move.due
    return arguments.Firing(
        user=encode_user(due.user_id),
        id=move.task_id,
        priority=due.priority,
        when=due.delay,
        body=values.put(move.body),
        rules=arguments.Rules(due.expires) if due.expires else None,
        schedule_id=due.schedule_id,
        expected_ms=due.ms,
        revision=due.revision,
        next_ms=move.next_ms,
        next_slot=move.next_slot,
        missed=move.missed,
        kind=move.kind,
        overlap=move.overlap,
        max_runs=move.max_runs,
        callbacks=packed_callbacks(move.callbacks, values),
    )


def _due(row: list[Any]) -> Due:
    schedule_id, ms, user, name, spec, anchor, body, priority, delay, revision, slot, expires, callbacks = row
    return Due(
        schedule_id.decode(),
        ms,
        decode_user(user),
        (name or b"").decode(),
        spec,
        int(anchor),
        body,
        int(priority),
        (delay or b"").decode(),
        revision.decode(),
        int(slot),
        (expires or b"").decode(),
        callbacks or b"",
    )


def _readable(now_ms: int, row: list[Any]) -> StoredSchedule | None:
    """One that is damaged must not keep the others from being listed."""
    try:
        return _known(now_ms, *row)
    except StoreError as exc:
        logger.warning("%s", exc)
        return None


def _known(now_ms: int, name: bytes, score: bytes, flat: list[bytes]) -> StoredSchedule:
    """Raises `StoreError`."""
    try:
        return _stored(now_ms, name, score, flat)
    except (StoreError, LookupError, ValueError) as exc:
        raise StoreError(f"schedule {name.decode(errors='replace')!r} in Redis cannot be read: {exc}") from None


def _stored(now_ms: int, name: bytes, score: bytes, flat: list[bytes]) -> StoredSchedule:
    raw = dict(zip(flat[::2], flat[1::2], strict=True))
    body, packed, callbacks = raw.pop(b"body", None), raw.pop(b"spec"), raw.pop(b"callbacks", None)
    spec = decode_spec(packed)
    fields = {field.decode(): value.decode() for field, value in raw.items()}
    slot = int(fields["slot"]) if "slot" in fields else None
    due = None
    if body is not None:
        row = [name, now_ms, raw[b"user"], raw.get(b"name"), packed, raw[b"anchor"], body, raw[b"priority"]]
        due = _due([*row, raw.get(b"delay"), raw[b"revision"], slot or now_ms, raw.get(b"expires"), callbacks])
    return StoredSchedule(
        now_ms,
        _schedule(name.decode(), spec, fields, score),
        spec,
        int(fields["anchor"]),
        slot,
        due,
        fields["revision"],
        fields.get("declared", ""),
        fields.get("older", ""),
    )


def _schedule(schedule_id: str, spec: Spec, fields: dict[str, str], score: bytes) -> ScheduledTask:
    def moment(field: str) -> Any:
        return moment_of(int(fields[field])) if field in fields else None

    return ScheduledTask(
        schedule_id=schedule_id,
        user_id=decode_user(fields["user"].encode()),
        name=fields.get("name", ""),
        state=ScheduleState(fields["state"]),
        cron=spec.cron,
        timezone=spec.timezone,
        every=spec.every_ms / 1000 if spec.every_ms is not None else None,
        at=moment_of(spec.at_ms) if spec.at_ms is not None else None,
        jitter=spec.jitter_ms / 1000,
        start=moment_of(spec.start_ms) if spec.start_ms is not None else None,
        end=moment_of(spec.end_ms) if spec.end_ms is not None else None,
        max_runs=spec.max_runs,
        misfire=spec.misfire,
        misfire_limit=spec.misfire_limit,
        misfire_grace=spec.misfire_grace_ms / 1000,
        overlap=spec.overlap,
        declared="declared" in fields,
        orphaned="orphaned" in fields,
        created_at=moment("created"),
        runs=int(fields.get("runs", 0)),
        skipped=int(fields.get("skipped", 0)),
        misfired=int(fields.get("misfired", 0)),
        next_run=moment_of(int(float(score))) if score else None,
        last_run=moment("last_run"),
        last_task_id=fields.get("last_task"),
        recent=tuple(_run(schedule_id, run) for run in fields.get("recent", "").split()),
    )


def _run(schedule_id: str, run: str) -> ScheduleRun:
    ms, outcome, missed, id_end = run.split(",", 3)
    return ScheduleRun(moment_of(int(ms)), _RUNS[outcome], int(missed), schedule_id + id_end if id_end else None)


_RUNS: dict[str, Any] = {
    "fired": "fired",
    "now": "by-hand",
    "skipped": "skipped",
    "full": "full",
    "passed": "missed",
}
