"""The model of a queue: lanes, states, deliveries, leases and virtual time in pure Python.

The scripts are held against it: tests do the same to both and compare after each step.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

from fairque.errors import DependencyError, QueueFull
from fairque.fairness.choice import FairChoice, SortedSet, encoded
from fairque.fairness.model_lanes import ModelClaim, ModelLanes
from fairque.fairness.model_limits import NameLimits
from fairque.fairness.model_links import Links
from fairque.fairness.model_moments import Moments
from fairque.fairness.model_policies import Admission, Policies
from fairque.fairness.model_run_times import RunTimes
from fairque.fairness.model_task import Ending, Kind, ModelDelivery, ModelTask, UserCounts
from fairque.fairness.model_workers import Workers, assignments_of
from fairque.models import ANY_USER, EVERYONE, TaskState, UserGroup
from fairque.policy import Policy, Rate

__all__ = ["Ending", "Kind", "ModelDelivery", "ModelQueue", "ModelTask", "UserCounts"]

PRIORITY_STEP_MS = 300_000
WITHIN_MS = 2**-11  # between two tasks that are due in the same millisecond


class ModelQueue(ModelLanes):
    """Lanes, states, deliveries, attempts and leases around a `FairChoice`, with policies and limits.

    Times given are microseconds on one clock that never goes back; `_ms` are milliseconds on the same clock.

    Attributes:
        ended: Tasks of which a result is known, by user and id; a dead letter is one that failed.
        due: Users → the ms of their first scheduled task, or of their last turn where they have more that is due.
        arrival: The moment the last task came, in whole microseconds that always grow.
    """

    def __init__(self, priority_step_ms: int = PRIORITY_STEP_MS) -> None:
        super().__init__()
        self.choice = FairChoice()
        self.policies = Policies()
        self.admission = Admission(self.choice, self.policies, self.running, self._head_cost)
        self.limits = NameLimits(self._let_in, self._take_out, self._can_run, self.out)
        self.admission.on_held_back = self.limits.take_back
        self.admission.on_reviewed = self.limits.came_back
        self.links = Links(self._standing)
        self.moments = Moments()
        self.run_times = RunTimes()
        self.workers = Workers(self.choice)
        self.ended: dict[tuple[str, str], ModelTask] = {}
        self.due: SortedSet[str] = SortedSet(encoded)
        self.scheduled: dict[str, SortedSet[str]] = {}
        self.tallies: dict[str, UserCounts] = {}
        self.totals = UserCounts()
        self._step_us = priority_step_ms * 1000
        self._announced: deque[tuple[str, str]] = deque()
        self.arrival = 0

    # Policies

    def set_policy(self, now_us: int, user_id: str, **fields: Any) -> None:
        """Change what governs a user, or ``"*"``: the fields of a `Policy`, None forgets."""
        self.workers.look(now_us)
        if user_id == EVERYONE:
            self._set_default(now_us, fields)
            return
        reserved = self.policies.of(user_id).min_running or 0
        self.policies.change(user_id, **fields)
        own = self.policies.own.get(user_id)
        self.choice.set_group(user_id, own.group if own else None)
        if (self.policies.of(user_id).min_running or 0) < reserved:
            self.choice.forgive(user_id)
        self.choice.set_weight(user_id, own.weight if own else None)
        self.admission.review(now_us, user_id)
        self.forget_reserved()
        self.limits.pass_on(now_us)

    def _set_default(self, now_us: int, fields: dict[str, Any]) -> None:
        before = self.policies.default
        self.policies.change(EVERYONE, **fields)
        self.choice.default_weight = self.policies.default.weight or 1.0
        if Policy() != before or Policy() != self.policies.default:
            is_reweighted = self.policies.default.weight != before.weight
            self.admission.change_default(now_us, is_reweighted=is_reweighted)
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

        Raises `DependencyError` when one waits for what is not known, or for itself, and `QueueFull` when it does not
        fit into the quota of one of its users; then nothing was changed.
        """
        self.workers.look(now_us)
        batch = list(tasks)
        self._check_links(batch)
        self._make_room(batch)
        known = [self._known(task) for task in batch]
        new = self._new(batch)
        for key in new:
            self.ended.pop(key, None)
        self.tasks |= new  # whoever waits for one of these ids waits for this task, wherever it is in the batch
        for task in new.values():
            self._add(now_us, task)
        for task in new.values():
            if task.state is TaskState.CANCELED:
                self._end(task, TaskState.CANCELED)
        self._pass_on(now_us)
        first = {task.key: at for at, task in reversed(list(enumerate(batch)))}
        return [
            first[task.key] == at and (before is None or before.nonce == task.nonce)
            for at, (task, before) in enumerate(zip(batch, known, strict=True))
        ]

    def _new(self, batch: Sequence[ModelTask]) -> dict[tuple[str, str], ModelTask]:
        new: dict[tuple[str, str], ModelTask] = {}
        for task in batch:
            if self._known(task) is None:
                new.setdefault(task.key, task)
        return new

    def _check_links(self, batch: Sequence[ModelTask]) -> None:
        new = self._new(batch)
        if any(task.needs for task in new.values()) and (refusal := self.links.refusal(new)):
            raise DependencyError(refusal)

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
        new = sum(self._known(task) is None for task in asked.values())
        return self._beyond_quota(user_id, new)

    def _beyond_quota(self, user_id: str, new: int) -> int:
        most = self.policies.of(user_id).max_queued
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

    def _retire(self, user_id: str) -> None:
        if not self.waiting(user_id):
            self.admission.retire(user_id)

    def _known(self, task: ModelTask) -> ModelTask | None:
        """One that stands in the way: it lives, or this very call stored it before."""
        known = self.tasks.get(task.key) or self.ended.get(task.key)
        return known if known and (known.nonce == task.nonce or not known.state.ended) else None

    def _add(self, now_us: int, task: ModelTask) -> None:
        waits = self.links.unfinished(task)
        if waits is None:  # what it waits for did not finish, and so it ends
            task.state = TaskState.CANCELED
            return
        task.needs = waits
        if waits:
            self._defer(now_us, task)
        else:
            self._begin(now_us, task)

    def _defer(self, now_us: int, task: ModelTask) -> None:
        task.state, task.came = TaskState.DEFERRED, self._next_arrival(now_us)
        self.links.deferred[task.key] = task
        self.admission.seen[task.user_id] = now_us // 1000

    def _begin(self, now_us: int, task: ModelTask) -> None:
        """It waits for nothing but its time and its turn."""
        if task.start_ms > now_us // 1000:
            self._schedule(now_us, task, task.start_ms)
        else:
            self._place(now_us, task)

    def _next_arrival(self, now_us: int) -> int:
        self.arrival = max(now_us, self.arrival + 1)
        return self.arrival

    def _place(self, now_us: int, task: ModelTask) -> None:
        if task.score is None:
            head_start = 0 if task.lane == "critical" else (task.priority - 1) * self._step_us
            task.score = self._next_arrival(now_us) - head_start
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
        by_time: bool = False,
    ) -> list[ModelDelivery]:
        """Promote what is due, steal from silent workers, then serve the groups in their order.

        `by_time`: a service is charged the time that it takes, which is known at its end, and until then what tasks of
        its name took lately.
        """
        claim = ModelClaim(worker, want, lease_ms, now_us, by_time)
        self.workers.look(now_us)
        for users in assignments_of(groups):
            self.workers.note(now_us, worker, users, self.freedom)
        self._promote(now_us)
        self.admission.sweep(now_us, self.freedom)
        self.choice.end_return()
        self.forget_reserved()
        self.admission.unpark(now_us, self.freedom)
        self.limits.tick(now_us, self.freedom)
        if steal:
            self._steal(claim, groups, others_wait=bool(self.choice.line.ready))
        self._serve_all(claim, groups)
        return claim.deliveries

    def _promote(self, now_us: int) -> None:
        """Who has more that is due comes after those that wait for their first."""
        now_ms = now_us // 1000
        for user_id in self.due.up_to(now_ms, len(self.due)):
            waiting = self.scheduled[user_id]
            due = [self.tasks[user_id, task_id] for task_id in waiting.up_to(now_ms + 1 - WITHIN_MS, len(waiting))]
            promoted = due[: self.freedom.promotes(user_id, due)]
            for task in promoted:
                waiting.drop(task.task_id)
                self._place(now_us, task)
            if not waiting:
                self._forget_due(user_id)
            elif promoted or not due:
                self.due.put(user_id, max(now_ms, math.floor(waiting.lowest_score())))

    def _forget_due(self, user_id: str) -> None:
        self.due.drop(user_id)
        del self.scheduled[user_id]

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

    def _serve(self, claim: ModelClaim, user_id: str) -> bool:
        """The user whose turn it is, if nothing closed its gate since it became ready. False: it started nothing."""
        if (at := self.admission.gate(claim.now_us, user_id)) is not None:
            self.admission.hold_back(claim.now_us, user_id, at)
            return False
        self.choice.weigh(user_id)
        task = self._next_task(user_id)
        is_held = self.limits.must_wait(claim.now_us, task)
        if is_held:
            self.limits.hold(claim.now_us, task)
            self._forget_if_empty(self._lane(task))
        else:
            self._start(claim, task)
        if not self.waiting(user_id):
            self.choice.leave(user_id)
        elif (at := self.admission.gate(claim.now_us, user_id)) is not None:
            self.admission.hold_back(claim.now_us, user_id, at)
        return not is_held

    def _start(self, claim: ModelClaim, task: ModelTask) -> None:
        self._deliver(claim, task)
        was_offered = task.is_offered and task.name in self.limits.limits
        self.limits.start(claim.now_us, task)
        self.policies.note_start(claim.now_us, task.user_id)
        self.choice.serve(task.user_id, self._price(claim, task))
        self.admission.favour(task.user_id)
        if not was_offered:
            self.limits.take_back(claim.now_us, task.user_id)

    def _price(self, claim: ModelClaim, task: ModelTask) -> float:
        """What a service is charged at its start."""
        if task.paid:
            task.paid = False
            return 0.0
        if not claim.by_time:
            return task.cost
        task.charged = task.cost * self.run_times.expected(task.name)
        return task.charged

    def leave(self, now_us: int, worker: str, groups: Sequence[UserGroup] = ANY_USER) -> None:
        """A worker says goodbye."""
        self.workers.leave(now_us, worker, groups, self.freedom)
        self.moments.hand_on(worker)

    # Settle

    def settle(
        self, now_us: int, delivery: ModelDelivery, kind: Kind, *, delay_ms: int = 0, charge: float = 0.0
    ) -> bool:
        """False: refused, another worker has the task. A delivery that was settled before is answered as done."""
        [answer] = self.settle_all(now_us, [Ending(delivery, kind, delay_ms, charge)])
        return answer

    def settle_all(self, now_us: int, endings: Iterable[Ending]) -> list[bool]:
        """A batch of one call: what ended makes room for others when all of it is done."""
        self.workers.look(now_us)
        answers = []
        reviewed: dict[str, bool] = {}  # users → their breaker opened
        for told in endings:
            task = told.delivery.task
            if task.delivery != told.delivery.fence:
                answers.append(self._was_settled(told.delivery))
                continue
            answers.append(True)
            is_canceled = task.canceling and told.kind in ("retry", "released")
            ending = told._replace(kind="canceled") if is_canceled else told
            is_opened = self._account(now_us, ending)
            if self.policies.ends_matter(task.user_id):
                reviewed[task.user_id] = is_opened or reviewed.get(task.user_id, False)
            self._settle(now_us, ending)
        self._pass_on(now_us)
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
        self._tally(task.user_id).cost += self._correct(task, ending)
        if ending.kind == "canceled":
            return False
        return self.policies.note_end(now_us, task.user_id, is_success=ending.kind == "finished")

    def _correct(self, task: ModelTask, ending: Ending) -> float:
        """What it cost in the end; what was charged at its start follows that."""
        total, before = task.cost + ending.charge, task.cost
        if task.charged is not None:
            before, ran = task.charged, ending.run_ms > 0
            # What did not run costs what it was thought to: nobody is served for nothing.
            total = (task.cost * ending.run_ms / 1000 if ran else before) + ending.charge
            if ran:
                self.run_times.learn(task.name, ending.run_ms / 1000)
            if ending.kind == "retry":
                task.charged = None
        if total != before:
            self.choice.adjust(task.user_id, total - before)
        return total

    def _settle(self, now_us: int, ending: Ending) -> None:
        (task, fence, _), kind = ending.delivery, ending.kind
        self.limits.stop(task)
        task.delivery = None
        lane = self._lane(task)
        del lane.stream[fence.stream_id]
        self._forget_if_empty(lane)
        if kind in ("finished", "failed", "canceled"):
            task.errors += kind == "failed"
            self._end(task, TaskState(kind))
        else:
            self._put_back(now_us, task, kind, ending.delay_ms)
        task.last = fence

    def _put_back(self, now_us: int, task: ModelTask, kind: Kind, delay_ms: int) -> None:
        if kind == "retry":
            self._count(task.user_id, "retried")
            task.failures += 1
            task.errors += 1
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

    # Ends

    def _end(self, task: ModelTask, state: TaskState) -> None:
        task.state, task.last = state, None
        self.limits.end_offer(task)
        self.links.deferred.pop(task.key, None)
        self.ended[task.key] = self.tasks.pop(task.key)
        self._announced.append(task.key)
        self._count(task.user_id, state.value)

    def _count(self, user_id: str, what: str) -> None:
        for tally in (self._tally(user_id), self.totals):
            setattr(tally, what, getattr(tally, what) + 1)

    def _tally(self, user_id: str) -> UserCounts:
        return self.tallies.setdefault(user_id, UserCounts())

    def _standing(self, key: tuple[str, str]) -> TaskState | None:
        known = self.tasks.get(key) or self.ended.get(key)
        return known.state if known else None

    def _pass_on(self, now_us: int) -> None:
        """Those that wait for what has ended go on, or end as well, one end after the other."""
        while self._announced:
            key = self._announced.popleft()
            state = self._standing(key)
            if state is not None and state.ended:
                for task in self.links.dependents(key):
                    self._inform(now_us, task, key[1], state)

    def _inform(self, now_us: int, task: ModelTask, need: str, state: TaskState) -> None:
        if state is TaskState.FINISHED or task.on_failure == "run":
            task.needs.discard(need)
            if not task.needs:
                del self.links.deferred[task.key]
                self._begin(now_us, task)
        elif task.on_failure == "cancel":
            self._end(task, TaskState.CANCELED)

    # What producers and operators do to tasks

    def cancel(self, now_us: int, user_id: str, task_id: str, reason: str = "") -> str | None:
        """``done``, ``canceling``, ``ended``, or None when it is not known."""
        self.workers.look(now_us)
        key = user_id, task_id
        if key in self.ended:
            return "ended"
        task = self.tasks.get(key)
        if task is None:
            return None
        if task.state is TaskState.STARTED:
            task.canceling = task.canceling or reason or "?"
            return "canceling"
        self._remove(task)
        self._end(task, TaskState.CANCELED)
        self._pass_on(now_us)
        return "done"

    def _remove(self, task: ModelTask) -> None:
        """From wherever it waits."""
        if task.state is TaskState.SCHEDULED:
            waiting = self.scheduled[task.user_id]
            waiting.drop(task.task_id)
            if waiting:
                first = math.floor(waiting.lowest_score())
                self.due.put(task.user_id, max(first, self.due.scores[task.user_id]))
            else:
                self._forget_due(task.user_id)
        elif task.state is TaskState.QUEUED:
            if task.is_held:
                self.limits.unhold(task)
            else:
                self._take_out(task)
            self._retire(task.user_id)

    def requeue(self, now_us: int, user_id: str, task_ids: Iterable[str]) -> list[bool]:
        """Dead letters, all or nothing: raises `QueueFull` when they do not fit into the quota."""
        self.workers.look(now_us)
        ids = list(task_ids)
        letters = {task_id for task_id in ids if self._letter(user_id, task_id)}
        if self._beyond_quota(user_id, len(letters)) > 0:
            raise QueueFull(f"the backlog of user {user_id!r} is full", 0)
        return [self._requeue(now_us, user_id, task_id) for task_id in ids]

    def _letter(self, user_id: str, task_id: str) -> ModelTask | None:
        task = self.ended.get((user_id, task_id))
        return task if task and task.state is TaskState.FAILED else None

    def _requeue(self, now_us: int, user_id: str, task_id: str) -> bool:
        task = self._letter(user_id, task_id)
        if task is None:
            return False
        self.tasks[task.key] = self.ended.pop(task.key)
        task.begin_anew()
        self._place(now_us, task)
        return True

    def discard(self, user_id: str, task_ids: Iterable[str]) -> list[bool]:
        """Gives dead letters up."""
        found = []
        for task_id in task_ids:
            found.append(self._letter(user_id, task_id) is not None)
            if found[-1]:
                del self.ended[user_id, task_id]
        return found

    def purge(self, user_id: str) -> tuple[int, ...]:
        """Erases what a user has, and tells what it was: waiting, scheduled, deferred, dead, told to stop.

        The last is 1 while something of it runs. Results are erased by another call.
        """
        mine = [task for task in self.tasks.values() if task.user_id == user_id]
        erased = {state: [task for task in mine if task.state is state] for state in TaskState}
        dead = [task for task in self.ended.values() if task.user_id == user_id and task.state is TaskState.FAILED]
        for task in mine:
            if task.state is not TaskState.STARTED:
                self._erase(task)
        for task in dead:
            del self.ended[task.key]
        told = [task for task in erased[TaskState.STARTED] if not task.canceling]
        for task in told:
            task.canceling = "purge"
        self._retire(user_id)
        if not erased[TaskState.STARTED]:
            self._forget(user_id)
        waiting = [TaskState.QUEUED, TaskState.SCHEDULED, TaskState.DEFERRED]
        counts = [len(erased[state]) for state in waiting]
        return *counts, len(dead), len(told), int(bool(erased[TaskState.STARTED]))

    def _erase(self, task: ModelTask) -> None:
        """Nobody is told: those that wait for it are of the same user."""
        self._remove(task)
        self.limits.end_offer(task)
        self.links.deferred.pop(task.key, None)
        del self.tasks[task.key]

    def _forget(self, user_id: str) -> None:
        """Nothing is left of the user but its results."""
        for known in (self.policies.own, self.policies.marks, self.tallies, self.admission.seen):
            known.pop(user_id, None)
        self.choice.reserved.drop(user_id)
        self.choice.forget(user_id)
        self.choice.set_group(user_id, None)
        self.choice.set_weight(user_id, None)
        self.forget_reserved()

    def erase_results(self, user_id: str) -> None:
        for key in [key for key, task in self.ended.items() if task.user_id == user_id]:
            del self.ended[key]

    # What is visible

    def queued(self, user_id: str) -> int:
        """For whatever: their turn, their time, their name, others."""
        scheduled = self.scheduled.get(user_id, ())
        return self.waiting(user_id) + len(scheduled) + self.limits.waiting(user_id) + self.links.waiting(user_id)

    def next_event_ms(self, groups: Sequence[UserGroup] = ANY_USER, *, steal: bool = True) -> float | None:
        """When a worker of these groups should look again if nobody calls it: a task is due, or a lease is over."""
        at_ms = self._next_moment_ms()
        if steal:
            leases = (holding.touched_ms + holding.lease_ms for _, holding in self._holdings(groups))
            at_ms = min([at_ms, *leases])
        if self.admission.is_swept:
            return 0
        return at_ms if at_ms < math.inf else None

    def _next_moment_ms(self) -> float:
        return min(of.lowest_score() for of in (self.due, self.admission.parked, self.limits.held))

    def sleep_until_ms(self, now_us: int, worker: str) -> float:
        """The same, but for leases, when there are others: of those that are idle, two keep the moments of all."""
        at_ms = self.moments.keep(now_us // 1000, worker, self._next_moment_ms())
        return 0 if self.admission.is_swept or self.limits.is_counting() else at_ms
