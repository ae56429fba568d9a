"""The scripts and their model side by side: each call goes to both, and everything that can be seen is compared."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence, Set
from typing import Any, NamedTuple

import msgspec
from msgspec.structs import replace

from fairque.errors import BatchClosed, DependencyError, QueueFull, QuotaExceeded, TaskExists
from fairque.fairness import model_queue
from fairque.fairness.choice import encoded_path
from fairque.fairness.freedom import Freedom
from fairque.fairness.model_batch import ModelBatch
from fairque.fairness.model_queue import Ending, ModelQueue, ModelTask
from fairque.fairness.model_task import LaneKey, ModelCallback
from fairque.limit import Limit
from fairque.models import ANY_USER, Attempt, FailureKind, TaskState, UserGroup
from fairque.policy import Policy, Rate
from fairque.queue.cancel_all import checked_matches
from fairque.redis.arguments import Accuse
from fairque.redis.assignment import assignments_of
from fairque.redis.delivery import Delivery, Outcome, Placed
from fairque.redis.keys import decode_user, encode_user
from fairque.redis.store_batches import NewBatch
from fairque.tasks.message import Record, encode_record
from tests.support.core import STEP_MS, Key
from tests.support.mirror_view import (
    agree,
    assignment_name,
    changed,
    check_bytes,
    check_kinds,
    check_trees,
    ended,
    expected,
    policy_name,
    room_in,
    seen,
    state_of,
    told_ms,
)
from tests.support.order import Order, named, new_callbacks, packed_size
from tests.support.timed import TimedCore

_EXPIRING = ("metrics:", "run-times", "keeper:")
_SOMETIMES_EXPIRING = ("user:", "group:", "left")
"""Those of groups while nobody of them is ready, of a user but for a weight that was counted while it is."""


REFUSALS = (QuotaExceeded, QueueFull, DependencyError, TaskExists, BatchClosed)
BATCH_NONCE = bytes(8)
NO_BYTES = b"max_bytes"
MOST_DEATHS = 2
MOST = 1000
"""Steps that are larger than anything here."""


class Held(NamedTuple):
    """One delivery, as the scripts and as the model gave it out."""

    real: Delivery
    model: model_queue.ModelDelivery
    worker: str

    @property
    def is_out(self) -> bool:
        """Not settled yet, and not stolen."""
        return self.model.task.delivery == self.model.fence


class Followed(Freedom):
    """What one claim did of what it may do, as its reply and what it left in Redis tell. Raises where it may not.

    Args:
        before: What is out, by the model: the tasks that a reply can only have from a steal.
        in_turn: Users with open batches, in the order in which they are looked at; or tasks, as they are canceled.
    """

    def __init__(
        self,
        dump: dict[str, Key],
        deliveries: Sequence[Delivery] = (),
        before: Set[tuple[str, str]] = frozenset(),
        want: int = 0,
        in_turn: Sequence[str] = (),
        worker: str = "",
        *,
        is_refused: bool = False,
    ) -> None:
        self._dump = dump
        self._is_refused = is_refused
        self._worker = worker
        self._in_turn = in_turn
        self._stolen = [(of.user_id, of.id) for of in deliveries if (of.user_id, of.id) in before]
        self._want = want

    def _members(self, name: str) -> dict[str, float]:
        return dict(self._dump[name].scores) if name in self._dump else {}

    def promotes(self, user_id: str, due: Sequence[ModelTask]) -> int:
        left = self._members(f"scheduled:{encode_user(user_id)}")
        went = [task.task_id not in left for task in due]
        return self._first_ones(went, min(self._want, len(due)))

    def steals(self, silent: Sequence[ModelTask], most: int) -> Sequence[ModelTask]:
        by_key = {task.key: task for task in silent}
        assert set(self._stolen) <= by_key.keys(), f"{self._stolen} are stolen, silent are {list(by_key)}"
        assert len(self._stolen) <= most
        return [by_key[key] for key in self._stolen]

    def asks_for_room(self, waiting: Sequence[LaneKey]) -> LaneKey | None:
        room = room_in(self._dump)
        if room is None or room.worker != self._worker or room.lane is None or room.since_ms != self._now_ms():
            return None
        assert room.lane in waiting, f"{room.lane} waits for nothing"
        return room.lane

    def unparks(self, users: Sequence[str]) -> int:
        left, now_ms = self._members("parked"), self._now_ms()
        went = [left.get(policy_name(user_id), math.inf) > now_ms for user_id in users]
        return self._first_ones(went, min(1, len(users)))

    def notes(self, users: frozenset[str], before: int, now_ms: int) -> int:
        """Once in a second is often enough."""
        noted = int(self._members("assignments").get(assignment_name(users), now_ms))
        assert max(before, now_ms - 1000) <= noted <= now_ms
        return noted

    def ends(self, silent: Sequence[frozenset[str]]) -> Sequence[frozenset[str]]:
        noted = self._members("assignments")
        return [users for users in silent if assignment_name(users) not in noted]

    def releases(self, users: frozenset[str], left: Set[str]) -> Set[str]:
        key = self._dump.get(f"assignment:{assignment_name(users)}")
        kept = {decode_user(user) for user in key.content} if key else set()
        return {user_id for user_id in left if user_id not in kept}

    def counts(self) -> bool:
        return "state" not in self._dump or "recount" not in dict(self._dump["state"].pairs)

    def abandons(self, due: Sequence[ModelBatch]) -> Sequence[ModelBatch]:
        """Once in a lease is often enough."""
        went = [of for of in due if of.batch_id not in self._members(f"batches:{encode_user(of.user_id)}")]
        return sorted(went, key=lambda of: self._in_turn.index(encode_user(of.user_id)))

    def cancels(self, task_ids: Set[str]) -> Sequence[str]:
        assert task_ids == set(self._in_turn)
        return self._in_turn

    def size(self, kind: str, task: ModelTask) -> int:
        key = self._dump.get(f"{kind}:{encode_user(task.user_id)}:{task.task_id}")
        return sum(map(len, key.content)) if key else 0

    def fits(self, task: ModelTask) -> bool:
        errors = self._dump.get(f"errors:{encode_user(task.user_id)}:{task.task_id}")
        return errors is None or NO_BYTES not in errors.content[-1]

    def is_refused(self) -> bool:
        return self._is_refused

    def _now_ms(self) -> int:
        return told_ms(self._dump)

    def _first_ones(self, went: list[bool], least: int) -> int:
        many = sum(went)
        assert went == [at < many for at in range(len(went))], f"some went in front of others: {went}"
        assert many >= least, f"only {many} of {len(went)} went, at least {least} should"
        return many


class Mirror:
    """Does everything twice. Raises AssertionError where the scripts and the model part ways."""

    def __init__(self, core: TimedCore, *, by_time: bool = False) -> None:
        self.core = core
        self.by_time = by_time
        self.model = ModelQueue(STEP_MS)
        core.on_tick = self.model.let_time_pass
        self.held: list[Held] = []
        self.said: dict[int, tuple[Outcome, Ending]] = {}  # outcomes are repeated as they were given
        self.refused = 0
        self._stream_ids: dict[int, bytes] = {}

    # Tasks

    async def enqueue(self, orders: Sequence[Order], nonce: bytes) -> None:
        created = await self._answer(
            self.core.enqueue_all([order.new_task(nonce, at) for at, order in enumerate(orders)])
        )
        now_us = self.core.now_us()
        tasks = [order.model_task(nonce, at) for at, order in enumerate(orders)]
        self._agree("created", _plainly(created), lambda: self.model.enqueue(now_us, tasks))

    async def _answer(self, call: Awaitable[Any]) -> Any:
        try:
            return await call
        except REFUSALS as exc:
            self.refused += 1
            return type(exc)

    def _agree(self, what: str, found: Any, of_model: Callable[[], Any], **followed: Any) -> None:
        dump = self.core.dump()
        self.model.freedom = Followed(dump, is_refused=found is QuotaExceeded, **followed)
        try:
            expected = of_model()
        except REFUSALS as exc:
            expected = type(exc)
        agree(what, found, expected)
        self.compare(dump)

    async def claim(
        self,
        worker: str,
        want: int,
        lease_ms: int,
        groups: Sequence[UserGroup] = ANY_USER,
        *,
        steal: bool = True,
        holds: int = 0,
        suspects: int = 0,
    ) -> list[Held]:
        self.core.rest()
        in_turn = self._texts("ZRANGE", ":batches", 0, -1)
        how: Any = {"lease_ms": lease_ms, "groups": groups, "steal": steal, "holds": holds, "suspects": suspects}
        how["max_deliveries"] = MOST_DEATHS
        claim = await self.core.claim(want, worker=worker, wait=True, by_time=self.by_time, **how)
        now_us, dump = self.core.now_us(), self.core.dump()
        out = {task.key for task in self.model.out()}
        self.model.freedom = Followed(dump, claim.deliveries, out, want, in_turn, worker)
        made = self.model.claim(now_us, worker, want, by_time=self.by_time, **how)
        agree("deliveries", [_told(of) for of in claim.deliveries], [_modelled(of) for of in made])
        taken = [Held(*pair, worker) for pair in zip(claim.deliveries, made, strict=True)]
        for held in taken:
            known = self._stream_ids.setdefault(held.model.fence.stream_id, held.real.stream_id)
            agree("place in the stream", held.real.stream_id, known)
        self.held += taken
        looks = self._looks(dump, worker, **how) if steal else [[]]
        is_apart = any(of.model.is_alone for of in taken) or self._becomes_empty(worker, holds)
        self._compare_sleep(claim.sleep, worker, looks, is_short=len(taken) < want, is_apart=is_apart)
        self.compare(dump)
        return taken

    def _becomes_empty(self, worker: str, holds: int) -> bool:
        return holds > 0 and self.model.suspects.awaiting(self.core.now_us() // 1000, worker) is not None

    def _compare_sleep(
        self, sleep: float | None, worker: str, looks: list[list[float]], *, is_short: bool, is_apart: bool
    ) -> None:
        """When lanes are looked at is for the scripts to know: at one of these sets of moments."""
        now_us = self.core.now_us()
        if is_apart or not is_short:
            self.model.moments.hand_on(worker)
        if not (is_apart or is_short):
            assert sleep == 0
            return
        moment_ms = self.model.sleep_until_ms(now_us, worker)
        if sleep == 0 and (self._is_hunting() or "weighing" in self.core.state()):
            return
        lefts = [min([moment_ms, *of]) - now_us // 1000 for of in looks]
        agree_about_sleep(sleep, [None if left_ms == math.inf else left_ms for left_ms in lefts])

    def _looks(
        self,
        dump: dict[str, Key],
        worker: str,
        *,
        lease_ms: int,
        groups: Sequence[UserGroup],
        holds: int,
        suspects: int,
        **_: Any,
    ) -> list[list[float]]:
        """When lanes are looked at. Those of named users are known apart; that they are gone is seen at the look.

        While others are out that may have killed their worker, nobody looks. Whether somebody waits for a worker that
        runs nothing else is known to the scripts: that is looked at sooner.
        """
        now_ms = self.core.now_us() // 1000
        if suspects:
            return [[now_ms + lease_ms]]
        if (opens_ms := self.model.suspects.open_at_ms(now_ms, self.model.policies.slots)) > now_ms:
            return [[opens_ms]]
        if self._becomes_empty(worker, holds) and (room := self.model.suspects.room):
            return [[room.ends_ms]]
        keys = [f"leases@{assignment.name}" for assignment in assignments_of(groups)] if all(groups) else ["leases"]
        looks = [at for name in keys if name in dump for _, at in dump[name].scores]
        if not looks:
            return [[]]
        silent_ms = float(self.core.state()["silent_at"])
        rounded = math.ceil(min(looks) / lease_ms) * lease_ms
        if min(looks) <= now_ms:
            return [[min(looks), silent_ms]]
        is_any_suspect = any(task.tried for task in self.model.out())
        return [[rounded, silent_ms], *([[min(looks), silent_ms]] if is_any_suspect else [])]

    def _is_hunting(self) -> bool:
        """Somebody fell silent, and not all lanes have been looked at."""
        return 0 < float(self.core.state().get("hunt", 0)) <= self.core.now_us() // 1000

    @staticmethod
    def left_by(held: Held, ending: Ending) -> int:
        """How many bytes more there are by it."""
        _, words = _as_said(held, ending)
        own = held.model.task.own_bytes if ending.kind == "finished" else 0
        return words.record_bytes + words.error_bytes - own

    async def settle(self, asked: Sequence[Held], ending: Ending) -> list[bool]:
        """What one worker has to tell, the first one's. An outcome that was given before is given again.

        Only the last outcome of a task is remembered as done: how an older one is answered, if it comes again, is open.
        """
        picked = [of for of in asked if of.worker == asked[0].worker]
        is_repeated = [id(of.real) in self.said or of in picked[:at] for at, of in enumerate(picked)]
        said = [self.said.setdefault(id(of.real), _as_said(of, ending)) for of in picked]
        told = await self.core.store.settle(picked[0].worker if picked else "", [outcome for outcome, _ in said])
        answers = [answer is True for answer in told]
        self.model.freedom = Followed(dump := self.core.dump())
        expected = self.model.settle_all(self.core.now_us(), [words for _, words in said])
        is_open = [again and not answer for again, answer in zip(is_repeated, expected, strict=True)]
        agree("settled", _without(answers, is_open), _without(expected, is_open))
        self.compare(dump)
        return answers

    def renew(self, worker: str, picked: Sequence[Held], slots: int = 0) -> None:
        """How many slots all workers have is for the scripts to know."""
        lost = self.core.renew(worker, [of.real for of in picked], concurrency=slots)
        self.model.admission.set_slots(int(self.core.state().get("slots", 0)))
        expected = self.model.renew(self.core.now_us(), worker, [of.model for of in picked])
        agree("lost", lost, [of.real for of in picked if any(of.model is model for model in expected)])
        self.compare()

    async def receive(self, held: Held) -> None:
        told = await self.core.store.receive(held.worker, held.real)
        agree("received", told is True, self.model.receive(self.core.now_us(), held.worker, held.model))
        self.compare()

    async def accuse(self, held: Held) -> None:
        of = held.real
        place = of.lane.decode(), of.user.decode(), of.id, of.stream_id.decode(), of.attempt
        await self.core.store.call(Accuse(held.worker, *place))
        self.model.accuse(held.worker, held.model)
        self.compare()

    async def leave(self, worker: str, groups: Sequence[UserGroup] = ANY_USER) -> None:
        await self.core.store.leave(worker, groups)
        self.model.freedom = Followed(dump := self.core.dump())
        self.model.policies.slots = int(self.core.state().get("slots", 0))
        self.model.leave(self.core.now_us(), worker, groups)
        self.compare(dump)

    async def cancel(self, user_id: str, task_id: str) -> None:
        answer = await self.core.store.cancel(user_id, task_id, "why")
        self._agree("canceled", answer, lambda: self.model.cancel(self.core.now_us(), user_id, task_id, "why"))

    async def cancel_all(self, user_id: str, name: str, state: TaskState | None, older_ms: int) -> None:
        """All in one place at once, one place after the other, until there is no more."""
        places, _ = checked_matches("anybody", None, state, None, "")
        before_ms, found = 0, 1
        while found:
            found = 0
            for place in places:
                canceled, before_ms = await self._cancel_where(user_id, place, name, older_ms, before_ms)
                found += canceled

    async def _cancel_where(
        self, user_id: str, place: str, name: str, older_ms: int, before_ms: int
    ) -> tuple[int, int]:
        in_turn = self._texts("SMEMBERS", f":deferred:{encode_user(user_id)}")
        of_place = user_id, place
        rest, canceled, told_ms = await self.core.store.cancel_step(
            *of_place, "", MOST, name, older_ms, before_ms, "why"
        )
        now_us = self.core.now_us()
        agree("older than", (rest, told_ms), (None, before_ms or now_us // 1000 - older_ms))
        which: Any = {"name": name, "before_ms": told_ms, "reason": "why"}
        self._agree("canceled", canceled, lambda: self.model.cancel_where(now_us, *of_place, **which), in_turn=in_turn)
        return canceled, told_ms

    async def open_batch(
        self,
        user_id: str,
        batch_id: str,
        ttl_ms: int,
        on_complete: tuple[ModelCallback, ...],
        on_success: tuple[ModelCallback, ...],
    ) -> None:
        told = new_callbacks(on_complete, BATCH_NONCE), new_callbacks(on_success, BATCH_NONCE)
        answer = await self._answer(self.core.store.open_batch(NewBatch(user_id, batch_id, ttl_ms, *told)))
        batch = ModelBatch(user_id, batch_id, ttl_ms, named(on_complete, BATCH_NONCE), named(on_success, BATCH_NONCE))
        batch.complete_bytes, batch.success_bytes = map(packed_size, told)
        self._agree("opened", answer, lambda: self.model.open_batch(self.core.now_us(), batch))

    async def close_batch(self, user_id: str, batch_id: str) -> None:
        answer = await self.core.store.close_batch(user_id, batch_id)
        self._agree("closed", answer, lambda: self.model.close_batch(self.core.now_us(), user_id, batch_id))

    async def cancel_batch(self, user_id: str, batch_id: str) -> None:
        in_turn = self._texts("SMEMBERS", f":batch-tasks:{encode_user(user_id)}:{batch_id}")
        answer = await self.core.store.cancel_batch(user_id, batch_id, "why")
        now_us = self.core.now_us()
        canceled: Any = lambda: self.model.cancel_batch(now_us, user_id, batch_id, "why")  # noqa: E731
        self._agree("canceled", answer, canceled, in_turn=in_turn)

    def _texts(self, *command: str | int) -> list[str]:
        return [member.decode() for member in self.core.execute(*command)]

    async def set_priority(self, user_id: str, task_id: str, priority: int) -> None:
        answer = await self.core.store.change(user_id, task_id, priority=priority)
        self._agree("changed", answer, lambda: self.model.set_priority(self.core.now_us(), user_id, task_id, priority))

    async def reschedule(self, user_id: str, task_id: str, delay_ms: int) -> None:
        answer = await self.core.store.change(user_id, task_id, start=f"now+{delay_ms}")
        self._agree("changed", answer, lambda: self.model.reschedule(self.core.now_us(), user_id, task_id, delay_ms))

    async def requeue(self, user_id: str, *task_ids: str) -> None:
        answer = await self._answer(self.core.store.requeue(user_id, task_ids))
        self._agree("requeued", answer, lambda: self.model.requeue(self.core.now_us(), user_id, task_ids))

    async def discard(self, user_id: str, *task_ids: str) -> None:
        answer = await self.core.store.discard(user_id, task_ids)
        self._agree("discarded", answer, lambda: self.model.discard(self.core.now_us(), user_id, task_ids))

    async def purge(self, user_id: str) -> None:
        """At once, and its results as well."""
        queued, scheduled, deferred, dead, told, _, _, more = await self.core.store.purge_step(user_id, MOST)
        found = queued, scheduled, deferred, dead, told, more
        self._agree("purged", found, lambda: self.model.purge(self.core.now_us(), user_id))
        await self.core.store.erase_results(user_id)
        self.model.erase_results(user_id)
        self.compare()

    # Policies and limits

    async def set_policy(self, user_id: str, **fields: Any) -> None:
        """None forgets a field."""
        await self.core.store.set_policy(policy_name(user_id), *changed(fields))
        self.model.set_policy(self.core.now_us(), user_id, **fields)
        self.compare()

    async def clear_policy(self, user_id: str) -> None:
        await self.core.store.set_policy(policy_name(user_id), {}, ["*"])
        self.model.set_policy(self.core.now_us(), user_id, **dict.fromkeys(Policy.__struct_fields__))
        self.compare()

    async def set_group(self, group: str, weight: float | None) -> None:
        await self.core.store.set_policy(f"@{encoded_path(group)}", *changed({"weight": weight}))
        self.model.choice.set_group_weight(group, weight)
        self.model.forget_reserved()
        self.compare()

    async def set_limit(self, record: str, max_running: int | None, rate: Rate | None) -> None:
        says = Limit("key", max_running=max_running, rate=rate)
        await self.core.store.set_limits([(record, says if says.says_how_much else None)], declared=False)
        self.model.set_limit(self.core.now_us(), record, max_running, rate)
        self.compare()

    async def pause_task(self, record: str, *, is_paused: bool) -> None:
        await self.core.store.set_paused(record, is_paused)
        self.model.pause_task(self.core.now_us(), record, is_paused=is_paused)
        self.compare()

    # What is visible

    def compare(self, dump: dict[str, Key] | None = None) -> None:
        dump = dump or self.core.dump()
        self._follow_what_was_forgotten(dump)
        if "weighing" not in state_of(dump):
            self.model.bytes.counting.clear()
        check_bytes(dump, self.model)
        check_kinds(dump)
        found = seen(dump, self.model)
        agree("keys", found, expected(self.model))
        check_trees(dump, self.model)
        kept = {f"result:{encode_user(user_id)}:{task_id}" for user_id, task_id in self.model.kept()}
        ending = ended(self.model)
        for name in found:
            if name in dump and not name.startswith(_SOMETIMES_EXPIRING):
                expires = name.startswith(_EXPIRING) or (name in ending and name not in kept)
                assert dump[name].expires == expires, f"when {name} expires"
        for line in self.model.choice.lines.values():
            line.look_again()

    def _follow_what_was_forgotten(self, dump: dict[str, Key]) -> None:
        """An own tag that the lowest had passed at some time of the call."""
        for path, line in self.model.choice.lines.items():
            name = f"left:{path}" if path else "left"
            left = dict(dump[name].pairs) if name in dump else {}
            for member in line.kept.keys() - left.keys():
                if line.kept[member] <= line.passed:
                    del line.kept[member]


def agree_about_sleep(sleep: float | None, lefts_ms: list[float | None]) -> None:
    if sleep is None or None in lefts_ms:
        assert sleep in lefts_ms, f"sleeps for {sleep}, something is due in {lefts_ms} ms"
        return
    too_long = [round(sleep * 1000, 6) - max(0, left_ms) for left_ms in lefts_ms if left_ms is not None]
    is_right = any(0 <= ms < 1 for ms in too_long)
    assert is_right, f"a worker sleeps until something is due and no longer, this one {too_long} ms"


def _without(answers: Sequence[bool], is_open: list[bool]) -> list[bool | None]:
    return [None if skip else answer for answer, skip in zip(answers, is_open, strict=True)]


def _as_said(held: Held, ending: Ending) -> tuple[Outcome, Ending]:
    """As a worker and as the model tell it. `record_bytes`: those of what the task returns or says."""
    record, error = _left_by(held.real, ending.kind, ending.record_bytes)
    outcome = Outcome(
        held.real,
        ending.kind,
        ttl_ms=int(ending.ttl_ms),
        delay_ms=ending.delay_ms,
        record=record,
        error=b"why" if ending.kind == "canceled" else error,
        run_ms=ending.run_ms,
        charge=ending.charge,
    )
    return outcome, ending._replace(delivery=held.model, record_bytes=len(record), error_bytes=len(error))


def _left_by(of: Delivery, kind: str, size: int) -> tuple[bytes, bytes]:
    """The record, and the error."""
    name, text = f"{of.stream_id!r}/{of.attempt}", "x" * size
    error = msgspec.msgpack.encode(Attempt(of.attempt, 1.0, FailureKind.ERROR, "ValueError", name, text, "w"))
    first = Record("t", of.attempt, of.queued_ms, of.started_ms, 1.5, name)
    if kind == "finished":
        record = replace(first, value=msgspec.Raw(msgspec.msgpack.encode(text)))
        return encode_record(of.body, TaskState.FINISHED, record), b""
    if kind == "failed":
        record = replace(first, kind=FailureKind.ERROR, type_name="ValueError", message=name, traceback=text)
        return encode_record(of.body, TaskState.FAILED, record), error
    return b"", error if kind == "retry" else b""


def _plainly(created: Any) -> Any:
    if not isinstance(created, list):
        return created
    return [tuple(answer) if isinstance(answer, Placed) else answer for answer in created]


def _told(of: Delivery) -> tuple[object, ...]:
    history = of.failures, of.lost, of.returned, of.returned_since_ms, of.canceling, of.deaths, of.alone_ms
    return of.user_id, of.id, of.lane.decode(), of.attempt, history


def _modelled(of: model_queue.ModelDelivery) -> tuple[object, ...]:
    return of.task.user_id, of.task.task_id, of.task.lane, of.fence.attempt, of.history
