"""Children: tasks that a running task puts in."""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple

from fairque.checks import MAX_ID_BYTES, check_id
from fairque.errors import InvalidInput
from fairque.tasks.task import Task

__all__ = ["Parent", "check_child", "check_step", "child_id"]


class Parent(NamedTuple):
    """The task that puts others in. `cancels`: they are canceled with it."""

    task_id: str
    cancels: bool


def child_id(parent_id: str, key: str, room: int = 0) -> str:
    """The same each time, so that a parent that runs again makes no second child. `room`: bytes that may follow it.

    Raises `InvalidInput`.
    """
    task_id = f"{parent_id}/{check_id('key', key)}"
    if len(task_id.encode()) <= MAX_ID_BYTES - room:
        return task_id
    return hashlib.sha256(task_id.encode()).hexdigest()


def check_child(task: Task[Any], user_id: str) -> None:
    """Of a parent of this user. Raises `InvalidInput`."""
    check_step(task, user_id)
    if task.task_options.task_id is not None:
        raise InvalidInput(f"{task!r} has a task_id: that of a child is made from its parent's and key=")


def check_step(task: Task[Any], user_id: str) -> None:
    """The same for a task of a pipeline, whose `task_id` is its name in there."""
    if task.task_options.user_id not in (None, user_id):
        raise InvalidInput(f"{task!r} is of user {task.task_options.user_id!r}: a child is of the user of its parent")
