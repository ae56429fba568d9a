"""Tasks of the model are canceled: one, those of a batch, or all that match."""

from __future__ import annotations

from collections.abc import Sequence

from fairque.fairness.model_producers import ModelProducers
from fairque.fairness.model_task import LANES, ModelTask
from fairque.models import BatchState, TaskState

__all__ = ["ModelCancels"]


class ModelCancels(ModelProducers):
    """What waits ends. What runs is told."""

    def cancel(self, now_us: int, user_id: str, task_id: str, reason: str = "") -> str | None:
        """``done``, ``canceling``, ``ended``, or None when it is not known."""
        self.workers.look(now_us)
        key = user_id, task_id
        if key in self.ended:
            return "ended"
        if key not in self.tasks:
            return None
        return "done" if self._cancel_all(now_us, [self.tasks[key]], reason) else "canceling"

    def cancel_batch(self, now_us: int, user_id: str, batch_id: str, reason: str = "") -> tuple[int, int] | None:
        """All of its tasks that have not ended: how many are canceled, and how many run and are told.

        None: it is not known.
        """
        self.workers.look(now_us)
        key = user_id, batch_id
        if key not in self.batches.of:
            return None
        self.batches.end_adding(now_us, key, BatchState.CANCELED)
        tasks = [self.tasks[user_id, task_id] for task_id in self.freedom.cancels(self.batches.of[key].pending)]
        canceled = self._cancel_all(now_us, tasks, reason)
        return canceled, len(tasks) - canceled

    def cancel_where(
        self, now_us: int, user_id: str, place: str, *, name: str = "", before_ms: float, reason: str = ""
    ) -> int:
        """One step of many: those in one place that match, and were put in before. Returns how many."""
        self.workers.look(now_us)
        tasks = [
            task
            for task in self._tasks_in(user_id, place)
            if name in ("", task.name) and task.came_before(before_ms) and not task.canceling
        ]
        self._cancel_all(now_us, tasks, reason)
        return len(tasks)

    def _cancel_all(self, now_us: int, tasks: Sequence[ModelTask], reason: str) -> int:
        """Returns how many have ended by it."""
        waiting = [task for task in tasks if task.state is not TaskState.STARTED]
        for task in tasks:
            if task.state is TaskState.STARTED:
                task.canceling = task.canceling or reason or "?"
        for task in waiting:
            self._remove(task)
            self._end(task, TaskState.CANCELED)
        self._pass_on(now_us)
        self.limits.pass_on(now_us)
        return len(waiting)

    def _tasks_in(self, user_id: str, place: str) -> list[ModelTask]:
        """In the order of that place."""
        if place == "deferred":
            mine = {key[1] for key in self.links.deferred if key[0] == user_id}
            return [self.tasks[user_id, task_id] for task_id in self.freedom.cancels(mine)]
        if place.endswith("-stream"):
            lanes = [lane for lane in self._lanes_of(user_id) if place.startswith(lane.name)]
            return [holding.task for lane in lanes for holding in lane.stream.values()]
        if place in LANES:
            lanes = [lane for lane in self._lanes_of(user_id) if place == lane.name]
            return [self.tasks[user_id, task_id] for lane in lanes for task_id in lane.backlog]
        waiting = (self.scheduled if place == "scheduled" else self.limits.lines.of_user).get(user_id, ())
        return [self.tasks[user_id, task_id] for task_id in waiting]
