"""The model of a queue: lanes, states, deliveries, leases and virtual time in pure Python.

The scripts are held against it: tests do the same to both and compare after each step.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from fairque.errors import QueueFull
from fairque.fairness.choice import FairChoice, SortedSet, encoded
from fairque.fairness.model_lanes import ModelClaim, ModelLanes, lanes_of_groups
from fairque.fairness.model_limits import NameLimits
from fairque.fairness.model_moments import Moments
from fairque.fairness.model_policies import Admission, Policies
from fairque.fairness.model_task import Ending, Kind, ModelDelivery, ModelTask, UserCounts
from fairque.models import ANY_USER, EVERYONE, TaskState, UserGroup
from fairque.policy import Policy, Rate

__all__ = ["Ending", "Kind", "ModelDelivery", "ModelQueue", "ModelTask", "UserCounts"]

PRIORITY_STEP_MS = 300_000
PROMOTED_USERS, PROMOTED_TASKS = 20, 200
PROMOTED_SPARE = 10  # tasks of one user, beyond what a claim wants
WITHIN_MS = 2**-11  # between two tasks that are due in the same millisecond


class ModelQueue(ModelLanes):
    """Lanes, states, deliveries, attempts and leases around a `FairChoice`, with policies and limits.

    Times given are microseconds on one clock that never goes back; `_ms` are milliseconds on the same clock.
    """

    def __init__(self, priority_step_ms: int = PRIORITY_STEP_MS) -> None:
        super().__init__()
        self.choice = FairChoice()
        self.policies = Policies()
        self.admission = Admission(self.choice, self.policies, self.running, self._head_cost)
        self.limits = NameLimits(
            self._let_in,
            self._take_out,
            self._can_run,
            lambda: [holding.task for lane in self.lanes.values() for holding in lane.stream.values()],
            self._retire,
        )
        self.admission.on_held_back = self.limits.take_back
        self.admission.on_reviewed = self.limits.came_back
        self.moments = Moments()
        self.ended: dict[tuple[str, str], ModelTask] = {}
        self.due: SortedSet[str] = SortedSet(encoded)  # user → ms of its earliest scheduled task
        self.scheduled: dict[str, SortedSet[str]] = {}
        self.tallies: dict[str, UserCounts] = {}
        self._step_us = priority_step_ms * 1000
        self.arrival = 0

    # Policies

    def set_policy(self, now_us: int, user_id: str, **fields: Any) -> None:
        """Change what governs a user, or ``"*"``: the fields of a `Policy`, None forgets."""
        if user_id == EVERYONE:
            self._set_default(now_us, fields)
            return
        reserved = self.policies.of(user_id).min_running or 0
        self.policies.change(user_id, **fields)
        if (self.policies.of(user_id).min_running or 0) < reserved:
            self.choice.forgive(user_id)
        own = self.policies.own.get(user_id)
        self.choice.set_weight(user_id, own.weight if own else None)
        self.choice.set_group(user_id, own.group if own else None)
        self.admission.review(now_us, user_id)
        self.forget_reserved()
        self.limits.pass_on(now_us)

    def _set_default(self, now_us: int, fields: dict[str, Any]) -> None:
        before = self.policies.default
        self.policies.change(EVERYONE, **fields)
        self.choice.default_weight = self.policies.default.weight or 1.0
        if Policy() != before or Policy() != self.policies.default:
            self.admission.change_default(now_us)
            self.forget_reserved()

    def forget_reserved(self) -> None:
        """Without any policy nobody is, whatever a default that was taken back said."""
        policies = self.policies
        if not (policies.own or policies.default != Policy() or self.choice.group_weights() or self.admission.is_swept):
            for user_id in list(self.choice.reserved):
                self.choice.reserved.drop(user_id)

    def set_limit(self, now_us: int, name: str, max_running: int | None = None, rate: Rate | None = None) -> None:
        """Of the tasks of this name, over all users; without limits, none is left."""
        self.limits.set(now_us, name, max_running, rate)

    # Enqueue

    def enqueue(self, now_us: int, tasks: Iterable[ModelTask]) -> list[bool]:
        """A batch of one call. False: a task with this id lives.

        Raises `QueueFull` when it does not fit into the quota of one of its users; then nothing was changed.
        """
        batch = list(tasks)
        self._make_room(batch)
        seen: set[tuple[str, str]] = set()
        created = []
        for task in batch:
            created.append(task.key not in seen and self._add(now_us, task))
            seen.add(task.key)
        self.limits.pass_on(now_us)
        return created

    def _make_room(self, batch: Sequence[ModelTask]) -> None:
        """Quotas: the first tasks in line are dropped, or the whole call is refused."""
        of_users: dict[str, dict[str, ModelTask]] = {}
        for task in batch:
            if self.policies.of(task.user_id).max_queued is not None:
                of_users.setdefault(task.user_id, {}).setdefault(task.task_id, task)
        for user_id, asked in of_users.items():
            if self._excess(user_id, asked) > 0 and not self._may_drop(user_id, asked):
                raise QueueFull(f"the backlog of user {user_id!r} is full", 0)
        for user_id, asked in of_users.items():
            while (excess := self._excess(user_id, asked)) > 0:
                self._drop_first(user_id, excess)

    def _excess(self, user_id: str, asked: dict[str, ModelTask]) -> int:
        most = self.policies.of(user_id).max_queued
        new = sum(self._known(task) is None for task in asked.values())
        return self.queued(user_id) + new - most if new and most is not None else 0

    def _may_drop(self, user_id: str, asked: dict[str, ModelTask]) -> bool:
        """All that is asked for would fit beside what waits outside of the lanes, which is not dropped."""
        policy = self.policies.of(user_id)
        named = sum(
            known is None or known.nonce != asked[known.task_id].nonce for known in map(self._known, asked.values())
        )
        apart = self.queued(user_id) - self.waiting(user_id)
        return policy.overflow == "drop_oldest" and policy.max_queued is not None and apart + named <= policy.max_queued

    def _drop_first(self, user_id: str, most: int) -> None:
        """What is urgent stays longest."""
        for lane in reversed(self._lanes_of(user_id)):
            while lane.backlog and most > 0:
                task = self.tasks[user_id, lane.backlog.pop()[0]]
                most -= 1
                self._end(task, TaskState.CANCELED)
            self._forget_if_empty(lane)
        self._retire(user_id)

    def _known(self, task: ModelTask) -> ModelTask | None:
        """One that stands in the way: it lives, or this very call stored it before."""
        known = self.tasks.get(task.key) or self.ended.get(task.key)
        return known if known and (known.nonce == task.nonce or not known.state.ended) else None

    def _add(self, now_us: int, task: ModelTask) -> bool:
        if (known := self._known(task)) is not None:
            return known.nonce == task.nonce
        self.ended.pop(task.key, None)
        self.tasks[task.key] = task
        if task.start_ms > now_us // 1000:
            self._schedule(now_us, task, task.start_ms)
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
        self.admission.admit(now_us, task.user_id, task.cost)

    def _can_run(self, now_us: int, user_id: str) -> bool:
        """As far as policies go."""
        is_paused = self.policies.all_paused_until() > now_us // 1000
        return not is_paused and self.admission.gate(now_us, user_id) is None

    def _let_in(self, now_us: int, user_id: str, task_id: str) -> ModelTask:
        task = self.tasks[user_id, task_id]
        self._place(now_us, task)
        return task

    def _take_out(self, task: ModelTask) -> None:
        self._lane(task).backlog.drop(task.task_id)
        self._forget_if_empty(self._lane(task))

    def _retire(self, user_id: str) -> None:
        if not self.waiting(user_id):
            self.admission.retire(user_id)

    def _schedule(self, now_us: int, task: ModelTask, at_ms: float) -> None:
        task.state = TaskState.SCHEDULED
        waiting = self.scheduled.setdefault(task.user_id, SortedSet(str))
        before = max((at for at in waiting.scores.values() if at_ms <= at < at_ms + 1), default=None)
        waiting.put(task.task_id, at_ms if before is None else min(before + WITHIN_MS, at_ms + 1 - WITHIN_MS))
        self.admission.seen[task.user_id] = now_us // 1000
        self.due.put(task.user_id, min(at_ms, self.due.scores.get(task.user_id, math.inf)))

    # Claim

    def claim(
        self,
        now_us: int,
        worker: str,
        want: int,
        *,
        lease_ms: int,
        groups: Sequence[UserGroup] = ANY_USER,
        steal: bool = True,
    ) -> list[ModelDelivery]:
        """Promote what is due, steal from silent workers, then serve the groups in their order."""
        claim = ModelClaim(worker, want, lease_ms, now_us)
        self._promote(now_us, want)
        self.admission.sweep(now_us)
        self.forget_reserved()
        self.admission.unpark(now_us)
        self.limits.tick(now_us)
        if steal:
            self._steal(claim, groups, others_wait=bool(self.choice.line.ready))
        self._serve_all(claim, groups)
        return claim.deliveries

    def _serve_all(self, claim: ModelClaim, groups: Sequence[UserGroup]) -> None:
        """Whose task has to wait for its name rests until all others had their turn."""
        resting: set[str] = set()
        served_groups = groups if self.policies.all_paused_until() <= claim.now_ms else ()
        while True:
            for group in served_groups:
                while claim.missing and (user_id := self.choice.lowest(group, resting)) is not None:
                    if not self._serve(claim, user_id):
                        resting.add(user_id)
            are_let_in = self.limits.pass_on(claim.now_us)
            if not (claim.missing and (resting or are_let_in)):
                return
            resting.clear()

    def _promote(self, now_us: int, want: int) -> None:
        """By turns of users: who has more that is due comes after those that wait for their first."""
        now_ms = now_us // 1000
        users = self.due.up_to(now_ms, PROMOTED_USERS)
        for user_id in users:
            waiting = self.scheduled[user_id]
            for task_id in waiting.up_to(
                now_ms + 1 - WITHIN_MS, min(want + PROMOTED_SPARE, PROMOTED_TASKS // len(users))
            ):
                waiting.drop(task_id)
                self._place(now_us, self.tasks[user_id, task_id])
            if waiting:
                self.due.put(user_id, max(now_ms, math.floor(waiting.lowest_score())))
            else:
                self.due.drop(user_id)
                del self.scheduled[user_id]

    def _serve(self, claim: ModelClaim, user_id: str) -> bool:
        """The user whose turn it is, if nothing closed its gate since it became ready. False: it started nothing."""
        if (at := self.admission.gate(claim.now_us, user_id)) is not None:
            self.admission.hold_back(claim.now_us, user_id, at)
            return False
        task = self._next_task(user_id)
        is_held = self.limits.must_wait(claim.now_us, task)
        if is_held:
            self.limits.hold(claim.now_us, task)
            self._forget_if_empty(self._lane(task))
        else:
            self._deliver(claim, task)
            was_offered = task.is_offered and task.name in self.limits.limits
            self.limits.start(claim.now_us, task)
            self.policies.note_start(claim.now_us, user_id)
            self.choice.serve(user_id, 0.0 if task.paid else task.cost)
            self.admission.favour(user_id)
            task.paid = False
            if not was_offered:
                self.limits.take_back(claim.now_us, user_id)
        if not self.waiting(user_id):
            self.choice.leave(user_id)
        elif (at := self.admission.gate(claim.now_us, user_id)) is not None:
            self.admission.hold_back(claim.now_us, user_id, at)
        return not is_held

    # Settle

    def settle(
        self, now_us: int, delivery: ModelDelivery, kind: Kind, *, delay_ms: int = 0, charge: float = 0.0
    ) -> bool:
        """False: refused, another worker has the task. A delivery that was settled before is answered as done."""
        [answer] = self.settle_all(now_us, [Ending(delivery, kind, delay_ms, charge)])
        return answer

    def settle_all(self, now_us: int, endings: Iterable[Ending]) -> list[bool]:
        """A batch of one call: what ended makes room for others when all of it is done."""
        answers = []
        reviewed: dict[str, bool] = {}  # users → their breaker opened
        for ending in endings:
            task = ending.delivery.task
            if task.delivery != ending.delivery.fence:
                answers.append(self._was_settled(ending.delivery))
                continue
            answers.append(True)
            is_opened = self._account(now_us, ending)
            if self.policies.ends_matter(task.user_id):
                reviewed[task.user_id] = is_opened or reviewed.get(task.user_id, False)
            self._settle(now_us, ending)
        for user_id, is_opened in reviewed.items():
            self.admission.freed(now_us, user_id, is_opened=is_opened)
        self.limits.pass_on(now_us)
        return answers

    def _was_settled(self, delivery: ModelDelivery) -> bool:
        known = self.tasks.get(delivery.task.key) or self.ended.get(delivery.task.key)
        return known is delivery.task and known.last == delivery.fence

    def _account(self, now_us: int, ending: Ending) -> bool:
        """What it cost, and whether the breaker opens. What was released has not run."""
        task = ending.delivery.task
        if ending.kind == "released":
            return False
        if ending.charge:
            self.choice.adjust(task.user_id, ending.charge)
        self._tally(task.user_id).cost += task.cost + ending.charge
        return self.policies.note_end(now_us, task.user_id, is_success=ending.kind == "finished")

    def _settle(self, now_us: int, ending: Ending) -> None:
        (task, fence, _), kind = ending.delivery, ending.kind
        self.limits.stop(task)
        task.delivery, task.last = None, fence
        lane = self._lane(task)
        del lane.stream[fence.stream_id]
        self._forget_if_empty(lane)
        if kind in ("finished", "failed"):
            self._end(task, TaskState(kind))
        else:
            self._put_back(now_us, task, kind, ending.delay_ms)

    def _end(self, task: ModelTask, state: TaskState) -> None:
        task.state = state
        self.limits.end_offer(task)
        self.ended[task.key] = self.tasks.pop(task.key)
        tally = self._tally(task.user_id)
        setattr(tally, state.value, getattr(tally, state.value) + 1)

    def _tally(self, user_id: str) -> UserCounts:
        return self.tallies.setdefault(user_id, UserCounts())

    def _put_back(self, now_us: int, task: ModelTask, kind: Kind, delay_ms: int) -> None:
        if kind == "retry":
            self._tally(task.user_id).retried += 1
            task.failures += 1
            task.lost = 0
        else:
            task.attempt -= 1
            if delay_ms:  # no worker knew it: what it took is charged, and so is what comes
                task.returned += 1
                task.returned_since_ms = task.returned_since_ms or now_us // 1000
            else:
                task.paid = True
        if delay_ms:
            self._schedule(now_us, task, now_us // 1000 + delay_ms)
        else:
            self._place(now_us, task)

    # What is visible

    def queued(self, user_id: str) -> int:
        """For whatever: their turn, their time, their name."""
        scheduled = self.scheduled.get(user_id, ())
        return self.waiting(user_id) + len(scheduled) + self.limits.waiting(user_id)

    def next_event_ms(self, groups: Sequence[UserGroup] = ANY_USER, *, steal: bool = True) -> float | None:
        """When a worker of these groups should look again if nobody calls it: a task is due, or a lease is over."""
        at_ms = self._next_moment_ms()
        if steal:
            at_ms = min(at_ms, self._next_look_ms(groups))
        if self.admission.is_swept:
            return 0
        return at_ms if at_ms < math.inf else None

    def _next_moment_ms(self) -> float:
        return min(of.lowest_score() for of in (self.due, self.admission.parked, self.limits.held))

    def _next_look_ms(self, groups: Sequence[UserGroup]) -> float:
        looks = self.leases.scores
        if all(groups):
            return min(looks.get(key, math.inf) for key in lanes_of_groups(groups))
        return self.leases.lowest_score()

    def sleep_until_ms(
        self, now_us: int, worker: str, groups: Sequence[UserGroup] = ANY_USER, *, steal: bool = True
    ) -> float | None:
        """The same when there are others: of those that are idle, two keep the moments of all."""
        at_ms = self.moments.keep(now_us // 1000, worker, self._next_moment_ms())
        if steal:
            at_ms = min(at_ms, self._next_look_ms(groups))
        if self.admission.is_swept:
            return 0
        return at_ms if at_ms < math.inf else None
