"""`FiringDoor`: where the headers are decided of a task that a schedule makes: nobody calls then."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

import msgspec

from fairque.tasks.headers import checked_headers
from fairque.tasks.message import Firing

__all__ = ["FiredTask", "FiringDoor", "FiringHeaders"]

logger = logging.getLogger("fairque.scheduler")


class FiredTask(msgspec.Struct, frozen=True, kw_only=True):
    """A task that a schedule is about to make, for `firing_headers` of a `TaskQueue`. Where its slot turns out to be
    skipped, or fired by another scheduler, it is not made.

    Attributes:
        queue_name: Of its queue.
        user_id: Whose it is.
        task_id: Its id.
        name: That of the task.
        firing: The schedule and the moment that was planned.
        headers: As the schedule keeps them.
    """

    queue_name: str
    user_id: str
    task_id: str
    name: str
    firing: Firing
    headers: Mapping[str, str]


FiringHeaders = Callable[[FiredTask], Mapping[str, str]]


class FiringDoor:
    """
    Args:
        decide: Told of each task, returns its headers. What it raises is logged, and the task has those that its
            schedule keeps: nobody is there who could be told.
        queue_name: Of the queue.
    """

    def __init__(self, decide: FiringHeaders, queue_name: str) -> None:
        self._decide = decide
        self._queue_name = queue_name

    def headers(self, user_id: str, task_id: str, name: str, firing: Firing, kept: dict[str, str]) -> dict[str, str]:
        made = FiredTask(
            queue_name=self._queue_name, user_id=user_id, task_id=task_id, name=name, firing=firing, headers=kept
        )
        try:
            return checked_headers(self._decide(made))
        except Exception:
            logger.exception(
                "schedule %r: the headers of a task could not be decided, and stay as they were",
                firing.schedule_id,
                extra={"schedule_id": firing.schedule_id, "user_id": user_id},
            )
            return kept
