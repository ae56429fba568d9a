"""`Explanation`: why a task waits, what is ahead of it, and when it may start."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from fairque.counted import unanswered
from fairque.models import TaskState

__all__ = ["Certainty", "Explanation", "Reason", "Waiting", "span"]


class Reason(StrEnum):
    """Why a task does not run now."""

    TURN = "turn"  # others are ahead of it
    PAUSED = "paused"  # its user is, or all tasks of its name are
    USER_LIMIT = "user-limit"  # its user runs as many as it may
    RATE = "rate"  # its user started as many as it may
    BREAKER = "breaker"  # its user's tasks kept failing
    LIMIT = "limit"  # as many tasks of one of its keys run, or were started, as may
    SCHEDULED = "scheduled"  # its time has not come
    DEFERRED = "deferred"  # it waits for other tasks
    BLOCKED = "blocked"  # it waits, in the end, for one that failed, which has to be requeued or discarded
    NO_WORKER = "no-worker"  # no worker serves this user
    UNKNOWN_TASK = "unknown-task"  # no worker that serves it knows its function
    SLOTS = "slots"  # every slot of those that serve it runs a task that waits for the result of another
    NOTHING = "nothing"  # nothing waits


class Certainty(StrEnum):
    """How much an estimate is worth."""

    GOOD = "good"  # the queue has been busy, and its speed is measured
    ROUGH = "rough"  # little was measured, or something else than its turn holds it back
    NONE = "none"  # there is no estimate


class Waiting(msgspec.Struct, frozen=True):
    """One thing that holds a task back. `until` is in seconds since the epoch, where that is known."""

    reason: Reason
    text: str
    until: float | None = None


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """Where a task is, and why. `str()` of it is a few lines for people.

    `ahead_own` and `ahead_others` are tasks that will be served before it, of all partitions but those that are
    `missing`, as they did not answer; `starts_in` is in seconds. `share` is what
    its user gets of the queue while everybody who is ready now stays so, from 0 to 1. `bytes` is what its user has in
    Redis, and `max_bytes` its limit; both None where there is none. `dependencies` are tasks that it waits for, at most
    100, and `dependency_states` what each of them came to so far; None: nothing is known. `blocked_by` are dead letters
    for which it waits in the end, at most 5. `expires_in` are the seconds within which it must begin, or never will.
    `parent` is the task that put it in, or the task or batch whose callback it is.
    """

    user_id: str
    task_id: str | None
    state: TaskState | None
    waiting: tuple[Waiting, ...] = ()
    dependencies: tuple[str, ...] = ()
    dependency_states: dict[str, TaskState | None] = {}
    blocked_by: tuple[str, ...] = ()
    backlog: int = 0
    running: int = 0
    weight: float = 1.0
    share: float | None = None
    ahead_own: int = 0
    ahead_others: int = 0
    starts_in: float | None = None
    expires_in: float | None = None
    certainty: Certainty = Certainty.NONE
    worker: str | None = None
    bytes: int | None = None
    max_bytes: int | None = None
    parent: str | None = None
    missing: tuple[int, ...] = ()

    def __str__(self) -> str:
        what = f"task {self.task_id!r} of user {self.user_id!r}" if self.task_id else f"user {self.user_id!r}"
        lines = [f"{what}: {self.state or 'nothing waits'}" + (f" on {self.worker}" if self.worker else "")]
        if self.parent:
            lines.append(f"put in by {self.parent!r}")
        lines += [f"- {held.text}" for held in self.waiting]
        if self.waiting and self.state:
            left_out = f" ({unanswered(self.missing)})" if self.missing else ""
            lines.append(f"ahead of it: {self.ahead_own} of its own user, {self.ahead_others} of others{left_out}")
        if self.starts_in is not None:
            lines.append(f"starts in about {span(self.starts_in)} ({self.certainty})")
        if self.expires_in is not None:
            lines.append(f"expires in {span(self.expires_in)}")
        if self.max_bytes is not None:
            lines.append(f"its user has {self.bytes or 0:,} of at most {self.max_bytes:,} bytes")
        return "\n".join(lines)


def span(seconds: float) -> str:
    """In a unit that suits."""
    size, unit = next((each for each in ((86_400, "d"), (3600, "h"), (60, "min")) if seconds >= 2 * each[0]), (1, "s"))
    return f"{round(seconds / size, 1 if size > 1 else 3):.12g} {unit}"
