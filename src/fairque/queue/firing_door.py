"""`FiringDoor`: where the headers are decided of a task that a schedule makes: nobody calls then."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import NamedTuple

import msgspec

from fairque.errors import WrongType
from fairque.redis.connector import Connector
from fairque.tasks.headers import MAX_HEADER_BYTES, checked_headers, header_bytes
from fairque.tasks.message import Firing

__all__ = ["Decided", "FiredTask", "FiringDoor", "FiringHeaders"]

logger = logging.getLogger("fairque.scheduler")


class FiredTask(msgspec.Struct, frozen=True, kw_only=True):
    """A task that a schedule is about to make, for `firing_headers` of a `TaskQueue`. Where its slot turns out to be
    skipped, or fired by another scheduler, it is not made.

    Attributes:
        queue_name: Of its queue.
        server: Where that is, as `EnqueueCall.server`.
        user_id: Whose it is.
        task_id: Its id.
        name: That of the task.
        firing: The schedule and the moment that was planned.
        headers: As the schedule keeps them. What becomes other in them becomes so in those of its callbacks.
    """

    queue_name: str
    server: tuple[str, int | None] | None
    user_id: str
    task_id: str
    name: str
    firing: Firing
    headers: Mapping[str, str]


FiringHeaders = Callable[[FiredTask], Mapping[str, str]]


class Decided(NamedTuple):
    """The headers of a task, and what is other in them than its schedule keeps."""

    headers: dict[str, str]
    taken: frozenset[str] = frozenset()
    given: Mapping[str, str] = {}

    @classmethod
    def of(cls, kept: Mapping[str, str], headers: dict[str, str]) -> Decided:
        given = {name: text for name, text in headers.items() if kept.get(name) != text}
        return cls(headers, frozenset(kept.keys() - headers.keys()), given)

    def changed(self, kept: Mapping[str, str]) -> Mapping[str, str]:
        """The same change of the headers of a callback, where there is room for it."""
        made = {name: text for name, text in kept.items() if name not in self.taken} | dict(self.given)
        return made if header_bytes(made) <= MAX_HEADER_BYTES else kept


class FiringDoor:
    """
    Args:
        decide: Told of each task, returns its headers. What it raises is logged, and the task has those that its
            schedule keeps: nobody is there who could be told.
        queue_name: Of the queue.
        connector: Knows where that is.

    Raises:
        WrongType: `decide` is no function.
    """

    def __init__(self, decide: FiringHeaders, queue_name: str, connector: Connector) -> None:
        if not callable(decide):
            raise WrongType(f"firing_headers must be a function of a FiredTask, not {decide!r}")
        self._decide = decide
        self._queue_name = queue_name
        self._connector = connector

    def decide(self, user_id: str, task_id: str, name: str, firing: Firing, kept: dict[str, str]) -> Decided:
        made = FiredTask(
            queue_name=self._queue_name,
            server=self._connector.server,
            user_id=user_id,
            task_id=task_id,
            name=name,
            firing=firing,
            headers=kept,
        )
        try:
            return Decided.of(kept, checked_headers(self._decide(made)))
        except Exception:
            logger.exception(
                "schedule %r: the headers of a task could not be decided, and stay as they were",
                firing.schedule_id,
                extra={"schedule_id": firing.schedule_id, "user_id": user_id},
            )
            return Decided(kept)
