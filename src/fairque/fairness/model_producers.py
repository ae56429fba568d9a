"""What producers and operators of the model do to tasks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from fairque.errors import DependencyError, QueueFull
from fairque.fairness.model_backlog import ModelBacklog
from fairque.fairness.model_task import ModelTask
from fairque.models import TaskState

__all__ = ["ModelProducers"]


class ModelProducers(ModelBacklog):
    """Tasks are put in, canceled, brought back and erased."""

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
        for key, task in new.items():
            if ended := self.ended.pop(key, None):
                task.uses |= ended.uses  # let go with it
        self.tasks |= new  # whoever waits for one of these ids waits for this task, wherever it is in the batch
        for task in new.values():
            self._add(now_us, task)
        for task in new.values():
            if task.state is TaskState.CANCELED:
                self._end(task, TaskState.CANCELED)
        self._pass_on(now_us)
        self.limits.pass_on(now_us)
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
        if task.expires_in_ms < math.inf:
            task.expires_ms = now_us // 1000 + task.expires_in_ms
            self.expiry.note(task)
        if waits:
            self._defer(now_us, task)
        else:
            self._begin(now_us, task)

    # Quotas

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

    # What is done to tasks that are there

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
        self.limits.pass_on(now_us)
        return "done"

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

    def discard(self, now_us: int, user_id: str, task_ids: Iterable[str]) -> list[bool]:
        """Gives dead letters up: nobody waits for them any more."""
        self.workers.look(now_us)
        found = []
        for task_id in task_ids:
            found.append(self._letter(user_id, task_id) is not None)
            if found[-1]:
                del self.ended[user_id, task_id]
                self._announced.append(((user_id, task_id), TaskState.CANCELED))
        self._pass_on(now_us)
        self.limits.pass_on(now_us)
        return found

    def purge(self, now_us: int, user_id: str) -> tuple[int, ...]:
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
        self.limits.pass_on(now_us)
        if not erased[TaskState.STARTED]:
            self._forget(user_id)
        waiting = [TaskState.QUEUED, TaskState.SCHEDULED, TaskState.DEFERRED]
        counts = [len(erased[state]) for state in waiting]
        return *counts, len(dead), len(told), int(bool(erased[TaskState.STARTED]))

    def _erase(self, task: ModelTask) -> None:
        """Nobody is told: those that wait for it are of the same user."""
        self._remove(task)
        self.limits.end_offer(task)
        self.expiry.forget(task)
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
