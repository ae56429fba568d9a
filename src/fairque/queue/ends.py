"""What the end of a task means to who waits for it."""

from __future__ import annotations

from fairque.errors import TaskCanceled, TaskFailed, UnknownTask
from fairque.models import TaskState
from fairque.tasks.message import Record

__all__ = ["check_finished", "failed", "unknown"]


def check_finished(state: TaskState, record: Record) -> None:
    """Raises `TaskCanceled` and `TaskFailed`."""
    if state is TaskState.CANCELED:
        raise TaskCanceled(record.message, record.root or None)
    if state is not TaskState.FINISHED:
        raise failed(record)


def failed(record: Record) -> TaskFailed:
    """The error."""
    return TaskFailed(record.kind or "error", record.type_name, record.message, record.traceback)


def unknown(user_id: str, task_id: str) -> UnknownTask:
    """The error."""
    return UnknownTask(f"no task {task_id!r} of user {user_id!r}: it was never enqueued, or its result has expired")
