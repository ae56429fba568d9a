"""`ScheduleLoop`: fires what is due, and sleeps until the next is."""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections.abc import Sequence

import anyio
import anyio.to_thread

from fairque.backoff import Backoff
from fairque.codec.codec import Sealer
from fairque.counted import counted
from fairque.errors import FairqueError, InvalidInput, QueueUnavailable, UnknownKey
from fairque.queue.firing_door import FiringDoor
from fairque.queue.queue import TaskQueue
from fairque.redis.store_schedules import OUTCOMES, Due, Move, Ripe, ScheduleStore, Write, decode_spec
from fairque.schedule.timetable import Timetable
from fairque.scheduler.declarations import Declarations
from fairque.scheduler.firing import run_of, task_id_for
from fairque.scheduler.misfire import jittered, plan

__all__ = ["ScheduleLoop"]

logger = logging.getLogger("fairque.scheduler")
BATCH = 50
MOST_CANCELING = 10
DECLARE_SECONDS = 60.0
SAFETY_SECONDS = (22.0, 30.0)
"""Where nobody calls `look`, a look without a reason comes after between so many. All at once, they would be much for
the server, and late."""
GOODBYE_SECONDS = 1.0
LATE_MS = 5_000
NEXT_TRY_MS = 10_000
MOST_FIRED = 10_000


class ScheduleLoop:
    """Ticks for one `TaskScheduler`, and ends tasks that have expired.

    Of all the loops of a queue, one looks at each moment at which a schedule is due, and a second one a little later,
    should that one be gone; the others look when they are told to. Who is who is decided in Redis, at each look.

    Args:
        queue: An open queue.
        store: Its schedules, or those of one partition.
        declarations: What the code of this process declares; None: others see to that.
        channel: Where changes of those schedules are told.
        name: Of the scheduler.
        is_watched: Whether somebody calls `look` where nobody else looks at the schedules; else it looks now and then.
    """

    def __init__(
        self,
        queue: TaskQueue,
        store: ScheduleStore,
        declarations: Declarations | None,
        channel: str,
        name: str,
        *,
        is_watched: bool,
    ) -> None:
        self._queue = queue
        self._store = store
        self._declarations = declarations
        self._channel = channel
        self._name = name
        self._is_watched = is_watched
        self._attention = asyncio.Event()
        self._stopping = False

    async def run(self) -> None:
        await self._check_permissions()
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(self._listen, self._channel)
                await self._loop()
                group.cancel_scope.cancel()
        finally:
            with anyio.move_on_after(GOODBYE_SECONDS, shield=True):
                await self._leave()

    def stop(self) -> None:
        self._stopping = True
        self._attention.set()

    def look(self, partition: int = 0) -> None:  # noqa: ARG002
        """There may be something to do, or nobody else to do it."""
        self._attention.set()

    async def fire_due(self, ahead_ms: int) -> int:
        made = 0
        for _ in range(MOST_FIRED):
            ripe = self._told(await self._store.ripe(1, ahead_ms))
            has_more = 0 <= ripe.look_at_ms <= ripe.now_ms + ahead_ms  # behind what is damaged
            if not (ripe.due or ripe.broken or has_more):
                return made
            made += [outcome for _, outcome in await self._fire(ripe)].count("fired")
        raise InvalidInput(f"more than {MOST_FIRED} firings within {ahead_ms / 1000:g} seconds: look ahead less far")

    async def _check_permissions(self) -> None:
        """Outages are waited out. Raises `NotPermitted`: what fires nothing must not look as if it did."""
        backoff = Backoff()
        while not self._stopping:
            try:
                await self._store.check_permissions()
                return
            except FairqueError as exc:
                if self._queue.connector.is_closed:
                    return
                if not isinstance(exc, QueueUnavailable):
                    raise
                logger.warning("cannot begin to fire schedules, trying again: %s", exc)
                with anyio.move_on_after(backoff.next()):
                    await self._attention.wait()

    async def _loop(self) -> None:
        backoff = Backoff()
        declare_at = 0.0 if self._declarations is not None else math.inf
        while not self._stopping:
            self._attention.clear()
            try:
                if self._declarations is not None and time.monotonic() >= declare_at:
                    await self._declarations.declare()
                    declare_at = time.monotonic() + DECLARE_SECONDS
                sleep = await self._tick()
                backoff.reset()
            except FairqueError as exc:
                if self._queue.connector.is_closed:
                    return
                logger.warning("cannot fire schedules, trying again: %s", exc)
                sleep = backoff.next()
            if sleep > 0 and not self._stopping:
                longest = math.inf if self._is_watched else random.uniform(*SAFETY_SECONDS)
                with anyio.move_on_after(min(sleep, longest, max(0.0, declare_at - time.monotonic()))):
                    await self._attention.wait()

    async def _tick(self) -> float:
        """Fire what is due, if that is this one's turn; returns the seconds until it looks again."""
        ripe = self._told(await self._store.ripe(BATCH, scheduler=self._name))
        began = time.monotonic()
        has_more = ripe.is_expiring and await self._store.expire()
        look_at_ms = min([ripe.next_look_ms, *(_next_look(each, ripe) for each in await self._fire(ripe))])
        if has_more or ripe.broken or len(ripe.due) == BATCH:
            return 0.0
        return max(0.001, (look_at_ms - ripe.now_ms + 1) / 1000 - (time.monotonic() - began))

    def _told(self, ripe: Ripe) -> Ripe:
        for schedule_id in ripe.broken:
            logger.error(
                "schedule %r fires no more: what Redis has of it cannot be read",
                schedule_id,
                extra={"schedule_id": schedule_id},
            )
        return ripe

    async def _leave(self) -> None:
        if self._queue.connector.is_closed:
            return
        try:
            await self._store.leave(self._name)
        except FairqueError as exc:
            logger.warning("could not leave the schedules to others at once: %s", exc)

    async def _fire(self, ripe: Ripe) -> list[tuple[Move, str]]:
        """What became of each that is due and can be read."""
        due, now_ms = ripe.due, ripe.now_ms
        if not due:
            return []
        planned = await self._planned(due, now_ms)
        moves = [move for move in planned if isinstance(move, Move)]
        for each, error in zip(due, planned, strict=True):
            if isinstance(error, FairqueError) and not isinstance(
                error, UnknownKey
            ):  # one that cannot be read must not keep the others waiting
                logger.error("schedule %r is paused: %s", each.schedule_id, error, extra=_fields(each))
                await self._store.write(Write(each.schedule_id, each.user_id, each.revision, None, {"state": "paused"}))
        outcomes = await self.send(moves) if moves else []
        for move, outcome in zip(moves, outcomes, strict=True):
            name = move.due.schedule_id
            if outcome not in OUTCOMES:
                logger.error("schedule %r does not fire, trying again: %s", name, outcome, extra=_fields(move.due))
            elif outcome in ("skipped", "full"):
                reason = (
                    "a task of it has not ended"
                    if outcome == "skipped"
                    else "the backlog of its user is full, or its bytes"
                )
                logger.warning("schedule %r: slot skipped, %s", name, reason, extra=_fields(move.due))
            elif move.missed and outcome != "stale":
                missed = counted(move.missed, "slot was", "slots were")
                logger.warning("schedule %r: %s missed", name, missed, extra=_fields(move.due))
        sealed = [each for each, error in zip(due, planned, strict=True) if isinstance(error, UnknownKey)]
        if sealed:
            await self._leave_to_others(sealed, now_ms)
        return list(zip(moves, outcomes, strict=True))

    async def _planned(self, due: list[Due], now_ms: int) -> list[Move | FairqueError]:
        sealer, door = self._queue.sealer, self._queue.firing_door
        if not _is_late(due, now_ms):
            return _moves(sealer, door, due, now_ms)
        # In a thread: what was missed in a long downtime takes a while to count.
        return await anyio.to_thread.run_sync(_moves, sealer, door, due, now_ms)

    async def _leave_to_others(self, sealed: list[Due], now_ms: int) -> None:
        """Their slots stay. Where nobody has the key, they must not stand in front of all others'."""
        writes = []
        for due in sealed:
            logger.warning("schedule %r waits for a scheduler that has its key", due.schedule_id, extra=_fields(due))
            later_ms = max(now_ms, due.ms) + NEXT_TRY_MS
            writes.append(Write(due.schedule_id, due.user_id, due.revision, later_ms, {}))
        if await self._store.write(*writes) != "done":  # somebody else has changed one of them
            for write in writes:
                await self._store.write(write)
        await self._leave()

    async def send(self, moves: Sequence[Move]) -> list[str]:
        return [outcome for call in _calls(moves) for outcome in await self._store.fire(call)]

    async def _listen(self, channel: str) -> None:
        """Without messages, a look now and then still finds what others change."""
        backoff = Backoff()
        while True:
            try:
                await self._queue.listener.subscribe(channel, self._on_message)
                break
            except FairqueError as exc:
                logger.warning("cannot listen for schedules, trying again: %s", exc)
                await anyio.sleep(backoff.next())
        self.look()  # what changed before it listened
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await self._queue.listener.unsubscribe(channel, self._on_message)

    def _on_message(self, names: bytes | None) -> None:
        """`names` are those who are to look; without any, all are."""
        if not names or self._name.encode() in names.split():
            self.look()


def _calls(moves: Sequence[Move]) -> list[list[Move]]:
    """Each may cancel 50 tasks, and have as many call back: what many of them do at once would keep the server from
    everybody else.
    """
    calls: list[list[Move]] = [[]]
    for move in moves:
        if sum(map(_weight, calls[-1])) >= MOST_CANCELING:
            calls.append([])
        calls[-1].append(move)
    return calls


def _weight(move: Move) -> int:
    return 1 + len(move.callbacks) if move.overlap == "cancel_running" else 0


def _next_look(fired: tuple[Move, str], ripe: Ripe) -> float:
    """At once, where somebody else changed it, or it could not fire."""
    move, outcome = fired
    if outcome == "stale" or outcome not in OUTCOMES:
        return ripe.now_ms
    return move.next_ms if move.next_ms is not None else ripe.next_look_ms


def _fields(due: Due) -> dict[str, object]:
    """For ``extra`` of a log line."""
    return {"schedule_id": due.schedule_id, "user_id": due.user_id}


def _is_late(due: list[Due], now_ms: int) -> bool:
    return now_ms - due[0].ms > LATE_MS


def _moves(sealer: Sealer | None, door: FiringDoor | None, due: list[Due], now_ms: int) -> list[Move | FairqueError]:
    planned: list[Move | FairqueError] = []
    for each in due:
        try:
            planned.append(_move(sealer, door, each, now_ms))
        except FairqueError as exc:
            planned.append(exc)
    return planned


def _move(sealer: Sealer | None, door: FiringDoor | None, due: Due, now_ms: int) -> Move:
    """What happens next to a schedule that is due. One that is due in the future is fired as if it were then."""
    spec = decode_spec(due.spec)
    slot, missed, next_slot = plan(spec, Timetable(spec, due.anchor_ms), due.slot, due.ms, max(now_ms, due.ms))
    # Not before this one: where the jitter is longer than the interval, the next slot's moment may have passed already,
    # and would look like one that was missed.
    next_ms = max(due.ms, jittered(due.schedule_id, spec, next_slot)) if next_slot is not None else None
    fired = due.slot if slot is None else slot
    task_id = task_id_for(due.schedule_id, fired)
    body, callbacks = (b"", ()) if slot is None else run_of(sealer, door, due, spec, task_id, fired)
    return Move(
        due,
        task_id,
        body,
        callbacks,
        next_ms,
        next_slot,
        missed,
        "pass" if slot is None else "fire",
        spec.overlap,
        spec.max_runs,
    )
