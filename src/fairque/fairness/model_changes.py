"""What can be changed of a task of the model that waits: when it may start, and its priority."""

from __future__ import annotations

from fairque.fairness.model_cancels import ModelCancels
from fairque.fairness.model_task import ModelTask
from fairque.models import TaskState

__all__ = ["ModelChanges"]


class ModelChanges(ModelCancels):
    """Tasks are promoted, put off, and get another priority."""

    def set_priority(self, now_us: int, user_id: str, task_id: str, priority: int) -> str | None:
        """``changed``, ``same``, ``started``, ``ended``, or None when it is not known."""
        return self._change(now_us, user_id, task_id, priority=priority)

    def reschedule(self, now_us: int, user_id: str, task_id: str, delay_ms: int) -> str | None:
        """From now on; 0 promotes it. Returns what `set_priority` does."""
        return self._change(now_us, user_id, task_id, at_ms=now_us // 1000 + delay_ms)

    def _change(
        self, now_us: int, user_id: str, task_id: str, *, priority: int = 0, at_ms: int | None = None
    ) -> str | None:
        self.workers.look(now_us)
        if (user_id, task_id) in self.ended:
            return "ended"
        task = self.tasks.get((user_id, task_id))
        if task is None:
            return None
        if task.state is TaskState.STARTED:
            return "started"
        has_changed = self._prefer(task, priority) if at_ms is None else self._move(now_us, task, at_ms)
        self.limits.pass_on(now_us)
        return "changed" if has_changed else "same"

    def _prefer(self, task: ModelTask, priority: int) -> bool:
        """Its place will be the one of a task that was put in with that."""
        if priority == task.priority:
            return False
        before, came = self._lane(task), None if task.score is None else task.score + self._head_start(task)
        task.priority = priority
        if came is not None:
            task.score = came - self._head_start(task)
            if task.held:
                self.limits.lines.move(task)
            elif task.state is TaskState.QUEUED:
                before.backlog.drop(task.task_id)
                self._lane(task).backlog.put(task.task_id, task.score)
        self._forget_if_empty(before)
        return True

    def _move(self, now_us: int, task: ModelTask, at_ms: int) -> bool:
        """In line it keeps its place for later. One that waits for others has its moment behind that."""
        now_ms = now_us // 1000
        if task.state is TaskState.DEFERRED:
            if at_ms <= now_ms and not task.delay_ms and task.start_ms <= now_ms:
                return False
            task.start_ms, task.delay_ms = at_ms, 0
        elif at_ms > now_ms:
            self._remove(task)
            self.limits.end_offer(task)
            self._schedule(now_us, task, at_ms)
        elif task.state is TaskState.SCHEDULED:
            self._remove(task)
            self._place(now_us, task)
        else:
            return False
        return True
