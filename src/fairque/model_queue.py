"""The model of a queue: lanes, states, deliveries, leases and virtual time in pure Python.

The scripts are held against it: tests do the same to both and compare after each step.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from fairque.fairness import EVERYONE, FairChoice, Group, SortedSet, encoded
from fairque.models import Priority, TaskState

__all__ = ["Delivery", "Kind", "ModelQueue", "ModelTask"]

LaneName = Literal["critical", "normal"]
Kind = Literal["finished", "failed", "retry", "released"]
LaneKey = tuple[LaneName, str]

PRIORITY_STEP_MS = 300_000
PROMOTED_USERS, PROMOTED_TASKS = 20, 200
LOOKS = 20
LOOK_SHARE = 0.4  # of a lease, between two looks at a lane
LANES: tuple[LaneName, ...] = ("critical", "normal")


class Fence(NamedTuple):
    """Identifies a delivery; whoever presents an outdated one is refused."""

    stream_id: int
    attempt: int


@dataclass(slots=True, eq=False)
class ModelTask:
    """A task from its enqueue to its end. The fields in the second half belong to the queue."""

    user_id: str
    task_id: str
    priority: int = Priority.NORMAL
    cost: float = 1.0
    nonce: bytes = b""  # names the call that enqueued it
    start_ms: float = 0.0  # not before

    state: TaskState = TaskState.QUEUED
    score: int | None = None  # its place in the lane, kept through retries
    attempt: int = 0
    failures: int = 0
    lost: int = 0
    returned: int = 0
    returned_since_ms: int = 0
    paid: bool = False  # the next delivery is not charged
    delivery: Fence | None = None
    last: Fence | None = None  # the delivery that was settled last

    @property
    def lane(self) -> LaneName:
        return "critical" if self.priority == Priority.CRITICAL else "normal"

    @property
    def key(self) -> tuple[str, str]:
        return self.user_id, self.task_id


class Delivery(NamedTuple):
    """One task as it was handed to one worker."""

    task: ModelTask
    fence: Fence
    history: tuple[int, int, int, int]  # failures, lost, returned, returned since


@dataclass(slots=True, eq=False)
class Holding:
    """An entry of a stream: who has the task, and when it was last heard of."""

    task: ModelTask
    worker: str
    touched_ms: int


@dataclass(slots=True, eq=False)
class Lane:
    """What waits and what is out. A task is in exactly one of both."""

    name: LaneName
    user_id: str
    backlog: SortedSet[str] = field(default_factory=lambda: SortedSet(str))
    stream: dict[int, Holding] = field(default_factory=dict)  # by ascending stream id
    cursor: int = 0  # where the next look at silent workers goes on


@dataclass(slots=True, eq=False)
class Tally:
    """How many deliveries ended how."""

    finished: int = 0
    failed: int = 0
    retried: int = 0


@dataclass(slots=True)
class _Claim:
    worker: str
    want: int
    lease_ms: int
    now_ms: int
    deliveries: list[Delivery] = field(default_factory=list)

    @property
    def missing(self) -> int:
        return self.want - len(self.deliveries)


def _lane_key(key: LaneKey) -> str:
    return f"{key[0]}:{encoded(key[1])}"


def _lanes_of_groups(groups: Sequence[Group]) -> list[LaneKey]:
    users = dict.fromkeys(user_id for group in groups for user_id in group)
    return [(lane, user_id) for user_id in users for lane in LANES]


class ModelQueue:
    """Lanes, states, deliveries, attempts and leases around a `FairChoice`.

    Times given are microseconds on one clock that never goes back; `_ms` are milliseconds on the same clock.
    """

    def __init__(self, priority_step_ms: int = PRIORITY_STEP_MS) -> None:
        self.choice = FairChoice()
        self.tasks: dict[tuple[str, str], ModelTask] = {}  # those that have not ended
        self.ended: dict[tuple[str, str], ModelTask] = {}
        self.lanes: dict[LaneKey, Lane] = {}
        self.due: SortedSet[str] = SortedSet(encoded)  # user → ms of its earliest scheduled task
        self.scheduled: dict[str, SortedSet[str]] = {}
        self.leases: SortedSet[LaneKey] = SortedSet(_lane_key)  # lane → ms of the next look
        self.tallies: dict[str, Tally] = {}
        self._step_us = priority_step_ms * 1000
        self.arrival = 0
        self._stream_id = 0

    # Enqueue

    def enqueue(self, now_us: int, tasks: Iterable[ModelTask]) -> list[bool]:
        """A batch of one call: users in order of first appearance. False: a task with this id lives."""
        batch = list(tasks)
        order = {user_id: at for at, user_id in enumerate(dict.fromkeys(task.user_id for task in batch))}
        seen: set[tuple[str, str]] = set()
        created = {}
        for at in sorted(range(len(batch)), key=lambda at: order[batch[at].user_id]):
            created[at] = batch[at].key not in seen and self._add(now_us, batch[at])
            seen.add(batch[at].key)
        return [created[at] for at in range(len(batch))]

    def _add(self, now_us: int, task: ModelTask) -> bool:
        known = self.tasks.get(task.key) or self.ended.get(task.key)
        if known is not None and (known.nonce == task.nonce or not known.state.ended):
            return known.nonce == task.nonce
        self.ended.pop(task.key, None)
        self.tasks[task.key] = task
        if task.start_ms > now_us // 1000:
            self._schedule(task, task.start_ms)
        else:
            self._place(now_us, task)
        return True

    def _place(self, now_us: int, task: ModelTask) -> None:
        if task.score is None:
            self.arrival = max(now_us, self.arrival + 1)
            head_start = 0 if task.lane == "critical" else (task.priority - 1) * self._step_us
            task.score = self.arrival - head_start
        task.state = TaskState.QUEUED
        self._lane(task).backlog.put(task.task_id, task.score)
        self.choice.join(task.user_id, task.cost)

    def _schedule(self, task: ModelTask, at_ms: float) -> None:
        task.state = TaskState.SCHEDULED
        waiting = self.scheduled.setdefault(task.user_id, SortedSet(str))
        waiting.put(task.task_id, at_ms)
        self._note_due(task.user_id, waiting)

    def _note_due(self, user_id: str, waiting: SortedSet[str]) -> None:
        first = waiting.lowest()
        if first is None:
            self.due.drop(user_id)
            del self.scheduled[user_id]
        else:
            self.due.put(user_id, waiting.scores[first])

    def _lane(self, task: ModelTask) -> Lane:
        key = task.lane, task.user_id
        if key not in self.lanes:
            self.lanes[key] = Lane(*key)
        return self.lanes[key]

    def _forget_if_empty(self, lane: Lane) -> None:
        if not lane.stream:
            self.leases.drop((lane.name, lane.user_id))
            lane.cursor = 0
            if not lane.backlog:
                self.lanes.pop((lane.name, lane.user_id), None)

    # Claim

    def claim(
        self,
        now_us: int,
        worker: str,
        want: int,
        *,
        lease_ms: int,
        groups: Sequence[Group] = EVERYONE,
        steal: bool = True,
    ) -> list[Delivery]:
        """Promote what is due, steal from silent workers, then serve the groups in their order."""
        claim = _Claim(worker, want, lease_ms, now_us // 1000)
        self._promote(now_us)
        for key in self._lanes_to_look_at(claim.now_ms, groups) if steal else ():
            if claim.missing:
                self._steal(claim, self.lanes[key])
        for group in groups:
            while claim.missing and (user_id := self.choice.lowest(group)) is not None:
                self._serve(claim, user_id)
        return claim.deliveries

    def _promote(self, now_us: int) -> None:
        room = PROMOTED_TASKS
        for user_id in self.due.up_to(now_us // 1000, PROMOTED_USERS):
            waiting = self.scheduled[user_id]
            for task_id in waiting.up_to(now_us // 1000, room):
                waiting.drop(task_id)
                room -= 1
                self._place(now_us, self.tasks[user_id, task_id])
            self._note_due(user_id, waiting)

    def _lanes_to_look_at(self, now_ms: int, groups: Sequence[Group]) -> list[LaneKey]:
        if not all(groups):
            return self.leases.up_to(now_ms, LOOKS)
        looks = self.leases.scores
        return [key for key in _lanes_of_groups(groups) if looks.get(key, now_ms + 1) <= now_ms][:LOOKS]

    def _steal(self, claim: _Claim, lane: Lane) -> None:
        """One look, as XAUTOCLAIM does it: from the cursor on, and at no more than ten entries for each one wanted."""
        pending = [stream_id for stream_id in lane.stream if stream_id >= lane.cursor]
        seen, budget = 0, claim.missing * 10
        while seen < min(len(pending), budget) and claim.missing:
            holding = lane.stream[pending[seen]]
            if claim.now_ms - holding.touched_ms >= claim.lease_ms:
                self._take_over(claim, holding, pending[seen])
            seen += 1
        lane.cursor = pending[seen] if seen < len(pending) else 0
        if not lane.cursor:
            self.leases.put((lane.name, lane.user_id), claim.now_ms + math.ceil(claim.lease_ms * LOOK_SHARE))

    def _take_over(self, claim: _Claim, holding: Holding, stream_id: int) -> None:
        holding.task.lost += 1
        holding.task.attempt += 1
        holding.worker, holding.touched_ms = claim.worker, claim.now_ms
        self._hand_out(claim, holding.task, stream_id)

    def _serve(self, claim: _Claim, user_id: str) -> None:
        task = self._next_task(user_id)
        lane = self._lane(task)
        if not lane.stream:
            self.leases.put((lane.name, user_id), claim.now_ms + claim.lease_ms)
        self._stream_id += 1
        lane.stream[self._stream_id] = Holding(task, claim.worker, claim.now_ms)
        task.state = TaskState.STARTED
        task.attempt += 1
        self._hand_out(claim, task, self._stream_id)
        self.choice.serve(user_id, 0.0 if task.paid else task.cost)
        task.paid = False
        if not self.waiting(user_id):
            self.choice.leave(user_id)

    def _next_task(self, user_id: str) -> ModelTask:
        critical = self.lanes.get(("critical", user_id))
        lane = critical if critical and critical.backlog else self.lanes["normal", user_id]
        return self.tasks[user_id, lane.backlog.pop()[0]]

    def _hand_out(self, claim: _Claim, task: ModelTask, stream_id: int) -> None:
        task.delivery = Fence(stream_id, task.attempt)
        history = task.failures, task.lost, task.returned, task.returned_since_ms
        claim.deliveries.append(Delivery(task, task.delivery, history))

    # Settle and renew

    def settle(self, now_us: int, delivery: Delivery, kind: Kind, *, delay_ms: int = 0) -> bool:
        """False: refused, another worker has the task. A delivery that was settled before is answered as done."""
        task = delivery.task
        if task.delivery != delivery.fence:
            known = self.tasks.get(task.key) or self.ended.get(task.key)
            return known is task and task.last == delivery.fence
        task.delivery, task.last = None, delivery.fence
        lane = self._lane(task)
        del lane.stream[delivery.fence.stream_id]
        self._forget_if_empty(lane)
        if kind in ("finished", "failed"):
            self._end(task, TaskState(kind))
        else:
            self._put_back(now_us, task, kind, delay_ms)
        return True

    def _end(self, task: ModelTask, state: TaskState) -> None:
        task.state = state
        self.ended[task.key] = self.tasks.pop(task.key)
        tally = self.tallies.setdefault(task.user_id, Tally())
        if state is TaskState.FINISHED:
            tally.finished += 1
        else:
            tally.failed += 1

    def _put_back(self, now_us: int, task: ModelTask, kind: Kind, delay_ms: int) -> None:
        if kind == "retry":
            self.tallies.setdefault(task.user_id, Tally()).retried += 1
            task.failures += 1
            task.lost = 0
        else:
            task.attempt -= 1
            task.paid = True
            if delay_ms:
                task.returned += 1
                task.returned_since_ms = task.returned_since_ms or now_us // 1000
        if delay_ms:
            self._schedule(task, now_us // 1000 + delay_ms)
        else:
            self._place(now_us, task)

    def renew(self, now_us: int, worker: str, deliveries: Iterable[Delivery]) -> list[Delivery]:
        """Keeps deliveries alive. Returns those that are no longer the worker's own."""
        lost = []
        for delivery in deliveries:
            task = delivery.task
            if task.delivery != delivery.fence:
                lost.append(delivery)
                continue
            holding = self._lane(task).stream[delivery.fence.stream_id]
            holding.worker, holding.touched_ms = worker, now_us // 1000
        return lost

    # What is visible

    def waiting(self, user_id: str) -> int:
        return sum(len(lane.backlog) for lane in self._lanes_of(user_id))

    def running(self, user_id: str) -> int:
        return sum(len(lane.stream) for lane in self._lanes_of(user_id))

    def _lanes_of(self, user_id: str) -> list[Lane]:
        return [self.lanes[name, user_id] for name in LANES if (name, user_id) in self.lanes]

    def next_event_ms(self, groups: Sequence[Group] = EVERYONE, *, steal: bool = True) -> float | None:
        """When a worker of these groups should look again if nobody calls it: a task is due, or a lease is over."""
        first = self.due.lowest()
        times = [] if first is None else [self.due.scores[first]]
        looks = self.leases.scores if steal else {}
        if all(groups):
            times += [looks[key] for key in _lanes_of_groups(groups) if key in looks]
        elif looks and (lane := self.leases.lowest()) is not None:
            times.append(looks[lane])
        return min(times, default=None)
