"""Where the tasks of the model wait."""

from __future__ import annotations

import math

from fairque.fairness.choice import FairChoice, SortedSet, encoded
from fairque.fairness.model_expiry import Expiry
from fairque.fairness.model_lanes import ModelLanes
from fairque.fairness.model_limits import KeyLimits
from fairque.fairness.model_links import Links
from fairque.fairness.model_moments import Moments
from fairque.fairness.model_policies import Admission, Policies
from fairque.fairness.model_run_times import RunTimes
from fairque.fairness.model_task import ModelTask, UserCounts
from fairque.fairness.model_workers import Workers
from fairque.models import TaskState
from fairque.policy import Policy

__all__ = ["PRIORITY_STEP_MS", "ModelBacklog"]

PRIORITY_STEP_MS = 300_000
WITHIN_MS = 2**-11  # between two tasks that are due in the same millisecond


class ModelBacklog(ModelLanes):
    """Lanes, what is for later, and what waits for others, around a `FairChoice` with policies and limits.

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
        self.limits = KeyLimits(self.tasks, self._place, self._take_out, self._can_run, self.out, self._retire)
        self.admission.on_held_back = self.limits.take_back
        self.admission.on_reviewed = self.limits.came_back
        self.links = Links(self._standing)
        self.moments = Moments()
        self.expiry = Expiry()
        self.run_times = RunTimes()
        self.workers = Workers(self.choice, self.admission.favour)
        self.ended: dict[tuple[str, str], ModelTask] = {}
        self.due: SortedSet[str] = SortedSet(encoded)
        self.scheduled: dict[str, SortedSet[str]] = {}
        self.tallies: dict[str, UserCounts] = {}
        self.totals = UserCounts()
        self._step_us = priority_step_ms * 1000
        self.arrival = 0

    # Where tasks wait

    def _begin(self, now_us: int, task: ModelTask) -> None:
        """It waits for nothing but its time and its turn."""
        at_ms = now_us // 1000 + task.delay_ms if task.delay_ms else task.start_ms
        if at_ms > now_us // 1000:
            self._schedule(now_us, task, at_ms)
        else:
            self._place(now_us, task)

    def _defer(self, now_us: int, task: ModelTask) -> None:
        task.state, task.came, task.came_us = TaskState.DEFERRED, self._next_arrival(now_us), None
        task.put_in_ms = now_us // 1000
        self.links.deferred[task.key] = task
        self.admission.seen[task.user_id] = now_us // 1000

    def _schedule(self, now_us: int, task: ModelTask, at_ms: float) -> None:
        task.state, task.came_us = TaskState.SCHEDULED, None
        task.put_in_ms = now_us // 1000 if task.put_in_ms is None else task.put_in_ms
        waiting = self.scheduled.setdefault(task.user_id, SortedSet(str))
        before = max((at for at in waiting.scores.values() if at_ms <= at < at_ms + 1), default=None)
        waiting.put(task.task_id, at_ms if before is None else min(before + WITHIN_MS, at_ms + 1 - WITHIN_MS))
        self.admission.seen[task.user_id] = now_us // 1000
        self.due.put(task.user_id, min(at_ms, self.due.scores.get(task.user_id, math.inf)))

    def _forget_due(self, user_id: str) -> None:
        self.due.drop(user_id)
        del self.scheduled[user_id]

    def _next_arrival(self, now_us: int) -> int:
        self.arrival = max(now_us, self.arrival + 1)
        return self.arrival

    def _place(self, now_us: int, task: ModelTask) -> None:
        if task.score is None:
            came_us = self._next_arrival(now_us) if task.came_us is None else task.came_us
            task.score = came_us - self._head_start(task)
            task.put_in_ms = came_us // 1000 if task.put_in_ms is None else task.put_in_ms
        task.came_us = None
        task.state = TaskState.QUEUED
        self._lane(task).backlog.put(task.task_id, task.score)
        self.admission.admit(now_us, task.user_id, task.cost)

    def _head_start(self, task: ModelTask) -> int:
        return 0 if task.lane == "critical" else (task.priority - 1) * self._step_us

    def _can_run(self, now_us: int, user_id: str) -> bool:
        """As far as policies go."""
        is_paused = self.policies.all_paused_until() > now_us // 1000
        is_served = self.choice.is_served(user_id)
        return is_served and not is_paused and self.admission.gate(now_us, user_id) is None

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
            if task.held:
                self.limits.unhold(task)
            else:
                self._take_out(task)
            self._retire(task.user_id)

    def _retire(self, user_id: str) -> None:
        if not self.waiting(user_id):
            self.admission.retire(user_id)

    def queued(self, user_id: str) -> int:
        """For whatever: their turn, their time, their name, others."""
        scheduled = self.scheduled.get(user_id, ())
        return self.waiting(user_id) + len(scheduled) + self.limits.waiting(user_id) + self.links.waiting(user_id)

    # What is known of tasks

    def _standing(self, key: tuple[str, str]) -> TaskState | None:
        known = self.tasks.get(key) or self.ended.get(key)
        return known.state if known else None

    # Policies

    def forget_reserved(self) -> None:
        """Without any policy nobody is, whatever a default that was taken back said."""
        policies = self.policies
        if not (policies.own or policies.default != Policy() or self.choice.group_weights() or self.admission.is_swept):
            for user_id in list(self.choice.reserved):
                self.choice.reserved.drop(user_id)
