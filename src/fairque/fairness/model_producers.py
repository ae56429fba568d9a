"""What producers and operators of the model do to tasks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from fairque.errors import BatchClosed, DependencyError, QueueFull
from fairque.fairness.model_conditions import ANSWER_MS, Answer, ModelConditions, Stands, answer_of
from fairque.fairness.model_task import ModelTask
from fairque.models import TaskState

__all__ = ["ModelProducers"]


class ModelProducers(ModelConditions):
    """Tasks are put in, brought back and erased."""

    # Enqueue

    def enqueue(self, now_us: int, tasks: Iterable[ModelTask]) -> list[Answer]:
        """A batch of one call. False: a task with this id lives. Of one with a condition, what became of it and the id.

        Raises `DependencyError` when one waits for what is not known, or for itself, `TaskExists`, `BatchClosed` when a
        batch takes no more tasks, and `QueueFull` when it does not fit into the quota of one of its users; then nothing
        was changed.
        """
        self.workers.look(now_us)
        batch = list(tasks)
        self._check(_added(batch, self._judge(now_us, batch)))
        stands = self._make_room(now_us, batch)
        new = _added(batch, stands)
        left = [self._withdraw(task) for at, task in enumerate(batch) if stands[at] == "replaces"]
        for key, task in new.items():
            if ended := self.ended.pop(key, None):
                task.uses |= ended.uses  # let go with it
        self.tasks |= new  # whoever waits for one of these ids waits for this task, wherever it is in the batch
        for task in new.values():
            self._add(now_us, task)
        self._count_in_batches(now_us, new.values(), left)
        for task in new.values():
            if task.state is TaskState.CANCELED:
                self._end(task, TaskState.CANCELED)
        self._pass_on(now_us)
        self.limits.pass_on(now_us)
        answers = [answer_of(task, stands[at], self.answers) for at, task in enumerate(batch)]
        kept = zip(batch, answers, strict=True)
        self.answers |= {task.call: (answer, now_us // 1000 + ANSWER_MS) for task, answer in kept if task.call}
        return answers

    def _check(self, new: dict[tuple[str, str], ModelTask]) -> None:
        for task in new.values():
            batch = task.ends.batch if task.ends else ""
            if batch and not self.batches.takes_more((task.user_id, batch), task.adder):
                raise BatchClosed(f"batch {batch!r} takes no more tasks")
        if any(task.needs for task in new.values()) and (refusal := self.links.refusal(new)):
            raise DependencyError(refusal)

    def _add(self, now_us: int, task: ModelTask) -> None:
        waits = self.links.unfinished(task)
        if waits is None:  # what it waits for did not finish, and so it ends
            task.state = TaskState.CANCELED
            return
        task.needs = waits
        if task.call or task.expires_in_ms < math.inf:
            task.put_in_ms = now_us // 1000
        if task.expires_in_ms < math.inf:
            task.expires_ms = now_us // 1000 + task.expires_in_ms
            self.expiry.note(task)
        if waits:
            self._defer(now_us, task)
        else:
            self._begin(now_us, task)
        self._hold(now_us, task)

    def _count_in_batches(self, now_us: int, new: Iterable[ModelTask], left: Iterable[tuple[str, str] | None]) -> None:
        """What was replaced may have been the last one of a batch."""
        for task in new:
            if task.ends and task.ends.batch:
                self.batches.add(now_us, (task.user_id, task.ends.batch), task.task_id)
        for key in left:
            if key is not None:
                self.batches.complete_if_over(now_us, key)

    # Quotas

    def _make_room(self, now_us: int, batch: Sequence[ModelTask]) -> dict[int, Stands]:
        """Quotas: the first tasks in line are dropped, or the whole call is refused. How each stands then.

        What was dropped has ended: its callbacks may take an id that this call asks for.
        """
        has_dropped = False
        while True:
            stands = self._judge(now_us, batch)
            adding = [task.user_id for at, task in enumerate(batch) if stands[at] in ("new", "replaces")]
            over = {user_id: self._excess(user_id, batch, stands) for user_id in adding}
            full = [user_id for user_id, excess in over.items() if excess > 0]
            for user_id in over:
                if not has_dropped:
                    self._check_bytes(user_id, self._asked_bytes(user_id, batch, stands))
                if user_id in full and not self._may_drop(user_id, batch, stands):
                    raise QueueFull("the backlog of a user is full", 0)
            has_dropped = True
            if not full:
                self._call_back(now_us)
                return self._judge(now_us, batch)
            self._drop_first(full[0], over[full[0]])

    def _excess(self, user_id: str, batch: Sequence[ModelTask], stands: dict[int, Stands]) -> int:
        new = sum(task.user_id == user_id and stands[at] == "new" for at, task in enumerate(batch))
        return self._beyond_quota(user_id, new)

    def _asked_bytes(self, user_id: str, batch: Sequence[ModelTask], stands: dict[int, Stands]) -> int:
        """Of one that takes the place of another one, what it has more."""
        asked = 0
        for at, task in enumerate(batch):
            if task.user_id == user_id and stands[at] == "new":
                asked += task.bytes
            elif task.user_id == user_id and stands[at] == "replaces":
                asked += max(0, task.bytes - self.tasks[task.key].bytes)
        return asked

    def _beyond_quota(self, user_id: str, new: int) -> int:
        most = self.policies.of(user_id).max_queued
        return self.queued(user_id) + new - most if new and most is not None else 0

    def _may_drop(self, user_id: str, batch: Sequence[ModelTask], stands: dict[int, Stands]) -> bool:
        """All that is asked for would fit beside what waits outside of the lanes, which is not dropped."""
        policy = self.policies.of(user_id)
        mine = [(task, stands[at]) for at, task in enumerate(batch) if task.user_id == user_id]
        kept = [task for task, how in mine if how == "kept"]
        named = {task.task_id for task, how in mine if how in ("new", "living", "replaces")}
        own = {task.task_id for task, how in mine if how == "retried"}  # the first of those that are told twice
        apart = self.queued(user_id) - self.waiting(user_id)
        asked = len(named - own) + len(kept)
        return policy.overflow == "drop_oldest" and policy.max_queued is not None and apart + asked <= policy.max_queued

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
        task.put_in_ms = now_us // 1000
        self._place(now_us, task)
        if task.ends and task.ends.batch:
            self.batches.note_requeue((user_id, task.ends.batch), task_id)
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
        left = {key for task in (*mine, *dead) if (key := self._drop_ends(task))}
        for task in mine:
            if task.state is not TaskState.STARTED:
                self._erase(task)
        self.batches.purge(user_id, left)
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
        task.has_key = False
        del self.tasks[task.key]

    def _forget(self, user_id: str) -> None:
        """Nothing is left of the user but its results."""
        for known in (self.policies.own, self.policies.marks, self.tallies, self.admission.seen):
            known.pop(user_id, None)
        self.bytes.forget(user_id)
        for ended in self.ended.values():  # what is left goes with `erase_results`
            ended.result_bytes = 0 if ended.user_id == user_id else ended.result_bytes
        self.choice.reserved.drop(user_id)
        self.choice.forget(user_id)
        self.choice.set_group(user_id, None)
        self.choice.set_weight(user_id, None)
        self.forget_reserved()

    def erase_results(self, user_id: str) -> None:
        for key in [key for key, task in self.ended.items() if task.user_id == user_id]:
            erased = self.ended.pop(key)
            self.bytes.expire(user_id, erased.known_until_ms, erased.bytes)
        self.batches.erase_ended(user_id)
        for window in [window for window in self.windows if window[0] == user_id]:
            del self.windows[window]


def _added(batch: Sequence[ModelTask], stands: dict[int, Stands]) -> dict[tuple[str, str], ModelTask]:
    return {task.key: task for at, task in enumerate(batch) if stands[at] in ("new", "replaces")}
