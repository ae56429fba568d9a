"""Values that fairque hands out: priorities, states, and what is known of tasks, users, workers and the queue."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import IntEnum, StrEnum
from typing import Generic, TypeVar

import msgspec

from fairque.metrics import Metrics
from fairque.policy import Policy

__all__ = [
    "ANY_USER",
    "SILENT_AFTER",
    "Attempt",
    "BatchProgress",
    "BatchState",
    "Enqueued",
    "FailureKind",
    "Priority",
    "QueueHealth",
    "QueueStats",
    "RunningTask",
    "RunningTasks",
    "Streamed",
    "TaskInfo",
    "TaskMoment",
    "TaskState",
    "UserGroup",
    "UserInfo",
    "WorkerInfo",
]

T_co = TypeVar("T_co", covariant=True)
SILENT_AFTER = 35.0
"""Seconds without a sign of life from when on a worker counts as silent: two of an idle one were lost."""
UserGroup = Sequence[str]
"""Users that a worker serves with equal right; empty: everyone."""
ANY_USER: tuple[UserGroup, ...] = ((),)
"""One group, of everyone: served is whose turn it is."""


class Priority(IntEnum):
    """1 to 5 share the normal lane of a user, a level being worth a head start; 6 has a lane of its own."""

    VERY_LOW = 1
    LOW = 2
    NORMAL = 3
    HIGH = 4
    VERY_HIGH = 5
    CRITICAL = 6


class TaskState(StrEnum):
    """Where a task is in its life; the last three are ends."""

    DEFERRED = "deferred"
    SCHEDULED = "scheduled"
    QUEUED = "queued"
    STARTED = "started"
    FINISHED = "finished"
    FAILED = "failed"
    CANCELED = "canceled"

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen to it."""
        return self in (TaskState.FINISHED, TaskState.FAILED, TaskState.CANCELED)


class Enqueued(StrEnum):
    """What became of a task that was put in."""

    CREATED = "created"
    REPLACED = "replaced"  # it took the place of one that waited
    KEPT = "kept"  # another one lives, and stays as it is
    DROPPED = "dropped"  # another one was put in within the window of its throttle


class FailureKind(StrEnum):
    """Why an attempt failed."""

    ERROR = "error"  # the function raised
    TIMEOUT = "timeout"  # it ran longer than its timeout
    LOST = "lost"  # workers died that ran nothing else, `max_deliveries` times
    BAD_ARGUMENTS = "bad-arguments"  # the arguments do not fit the function of this worker
    UNKNOWN_TASK = "unknown-task"  # no worker knew the name for as long as `unknown_task_patience`
    BAD_MESSAGE = "bad-message"  # the body in Redis is corrupt, foreign or too large
    QUOTA = "quota"  # its result does not fit into the `max_bytes` of its user, or what it yields into that or 16 MiB


class Streamed(msgspec.Struct, Generic[T_co], frozen=True):
    """The result of a task that is a generator. What it yielded is read by `TaskHandle.stream`.

    Attributes:
        chunks: How many its last run yielded.
    """

    chunks: int


class Attempt(msgspec.Struct, frozen=True, array_like=True):
    """How one attempt failed. `at` is in seconds since the epoch, on the server's clock."""

    attempt: int
    at: float
    kind: FailureKind
    type_name: str
    message: str
    traceback: str
    worker: str


class TaskMoment(msgspec.Struct, frozen=True):
    """Something that happened to a task, or is going to, at a moment in seconds since the epoch.

    `what` is ``"enqueued"``, ``"queued"`` (it came to its place in line), ``"due"``, ``"expires"``, ``"started"``,
    ``"attempt failed"``, or how it ended: ``"finished"``, ``"failed"`` or ``"canceled"``. `error` is that of an attempt
    that failed.
    """

    at: float
    what: str
    attempt: int | None = None
    error: Attempt | None = None


class TaskInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a task. Times are seconds since the epoch on the server's clock, None where not reached yet.

    `dependencies` are the ids that it was given; `dependency_states` says of those on which it still depends, at most
    100, what became of them (None: nothing is known). `dependents` are those that depend on it and have not ended, at
    most 1,000. `progress` and `message` are what the task last said; of a canceled one, `message` is the reason.
    `due_at` is when a scheduled one may start. `limits` are the keys of its limits beside that of its name; `held_by`
    is the key of the limit for which it waits now. `headers` are told until it has ended, and of a failed one for as
    long as it is kept. `expires_at` is by when its first attempt must have begun. `unique` says for how long no other
    task stands beside it, see `Unique`: ``"started"``, ``"ended"``, ``"after"`` or, while it is debounced,
    ``"debounce"``. `snoozed` is how often it has put itself off, while it has not ended. `parent` is the task that put
    it in, or the task or batch whose callback it is; `children` are those that it put in itself, at most 1,000, until
    it has ended. `enqueued_at` is when it was put in, or requeued, until it has ended; `queued_at` when it last came
    to its place in line. `chunks` is how many its last run that yielded has yielded so far.
    """

    user_id: str
    task_id: str
    name: str
    state: TaskState
    priority: Priority | None = None
    attempt: int = 0
    due_at: float | None = None
    queued_at: float | None = None
    started_at: float | None = None
    ended_at: float | None = None
    worker: str | None = None
    wait_seconds: float | None = None
    run_seconds: float | None = None
    errors: tuple[Attempt, ...] = ()
    dependencies: tuple[str, ...] = ()
    dependency_states: dict[str, TaskState | None] = {}
    dependents: tuple[str, ...] = ()
    progress: float | None = None
    message: str = ""
    limits: tuple[str, ...] = ()
    held_by: str | None = None
    headers: dict[str, str] = {}
    expires_at: float | None = None
    unique: str | None = None
    snoozed: int = 0
    parent: str | None = None
    children: tuple[str, ...] = ()
    enqueued_at: float | None = None
    chunks: int = 0

    @property
    def error(self) -> Attempt | None:
        """The last error, if any attempt failed."""
        return self.errors[-1] if self.errors else None

    @property
    def timeline(self) -> tuple[TaskMoment, ...]:
        """What happened to it and is going to, in order, as far as it is kept: of attempts, the last 20 that failed."""
        ended_at = self.ended_at if self.state.ended else None
        if ended_at is not None and self.errors:  # an error is dated a moment after the run that raised it
            ended_at = max(ended_at, self.errors[-1].at)
        waiting = self.state in (TaskState.QUEUED, TaskState.SCHEDULED, TaskState.DEFERRED)
        marks = (
            (self.enqueued_at, "enqueued", None),
            (self.queued_at if self.queued_at != self.enqueued_at else None, "queued", None),
            (self.due_at, "due", None),
            (self.expires_at if waiting and not self.attempt else None, "expires", None),
            (self.started_at, "started", self.attempt),
            (ended_at, self.state.value, self.attempt),
        )
        found = [TaskMoment(at, what, attempt) for at, what, attempt in marks if at is not None]
        found += [TaskMoment(error.at, "attempt failed", error.attempt, error) for error in self.errors]
        return tuple(sorted(found, key=lambda moment: (moment.at, moment.what == self.state.value)))


class BatchState(StrEnum):
    """Whether tasks may be added to a batch, or why not. Whether all have ended is another matter."""

    OPEN = "open"
    CLOSED = "closed"
    CANCELED = "canceled"
    ABANDONED = "abandoned"  # nobody added to it, or closed it, for as long as its `ttl`


class BatchProgress(msgspec.Struct, frozen=True, kw_only=True):
    """How far a batch is: how many tasks it has had, and how those ended that have.

    Times are seconds since the epoch on the server's clock. `completed_at` is when all had ended for the first time and
    nobody but them could add to it, None before that.
    """

    batch_id: str
    state: BatchState
    total: int
    finished: int
    failed: int
    canceled: int
    created_at: float
    completed_at: float | None

    @property
    def pending(self) -> int:
        """Tasks that have not ended."""
        return self.total - self.finished - self.failed - self.canceled

    @property
    def ended(self) -> bool:
        """Nobody can add to it, and all of its tasks have ended."""
        return self.completed_at is not None and not self.pending

    @property
    def succeeded(self) -> bool:
        """It has ended, was closed by whoever opened it, and all of its tasks have finished."""
        return self.ended and self.state is BatchState.CLOSED and self.finished == self.total


class UserInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a user. `tag` is its virtual start time; None while it has nothing that may be served.

    `held` tasks wait for others because of a limit. `policy` is what governs it, its own and the defaults.
    `parked_until` and `breaker_open_until` are seconds since the epoch, on the server's clock. `wait_seconds` is how
    long the next of its tasks has waited for its turn, of those that wait in different places the longest. `bytes` is
    what counts for its `max_bytes`; None where it has no such limit. `at` is when that was, in seconds since the epoch
    on the server's clock.
    """

    user_id: str
    weight: float
    policy: Policy
    metrics: Metrics
    held: int
    parked_until: float | None
    breaker_open_until: float | None
    critical: int
    normal: int
    started: int
    scheduled: int
    deferred: int
    dead_letters: int
    finished: int
    failed: int
    canceled: int
    retried: int
    tag: float | None
    seen_at: float | None
    wait_seconds: float | None
    bytes: int | None = None
    at: float = 0.0

    @property
    def queued(self) -> int:
        """Tasks that wait for their turn: in either lane, or held back by a limit."""
        return self.critical + self.normal + self.held


class WorkerInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A worker that reported within the last minute. `serves`: the users that it is limited to; None: everyone.

    `leftover_threads` are those in which plain functions go on though their tasks are over. `memory` is what its
    process has in memory, in bytes, without its subprocesses. `draining`: it claims nothing more. All of that is as of
    `seen_at`: a worker tells it every 2 s while it runs something, else every 15 s (with a lease of 10 s).
    """

    worker_id: str
    host: str
    pid: int
    version: str
    concurrency: int
    running: int
    started_at: float
    seen_at: float
    serves: tuple[str, ...] | None = None
    leftover_threads: int = 0
    memory: int = 0
    draining: bool = False


class RunningTask(msgspec.Struct, frozen=True, kw_only=True):
    """A task that runs. `started_at` is in seconds since the epoch, on the server's clock."""

    user_id: str
    task_id: str
    name: str
    attempt: int
    started_at: float | None
    worker: str


class RunningTasks(msgspec.Struct, frozen=True, kw_only=True):
    """Tasks that run, at one moment, which `at` is. `is_sample`: there may be more. `missing` are partitions that did
    not answer.
    """

    tasks: tuple[RunningTask, ...]
    at: float
    is_sample: bool
    missing: tuple[int, ...] = ()


class QueueStats(msgspec.Struct, frozen=True, kw_only=True):
    """Totals of a queue. `critical` and `normal` wait in those lanes; ended ones are counted from the beginning.

    `users_ready` counts a group as one.

    `at` is when that was, in seconds since the epoch on the server's clock. `paused_tasks` are names of which nothing
    is started, at most 100. `missing` are partitions that did not answer: what they have is not in the others.
    """

    critical: int
    normal: int
    started: int
    scheduled: int
    deferred: int
    finished: int
    failed: int
    canceled: int
    retried: int
    users_ready: int
    users_known: int
    clock: float
    metrics: Metrics
    workers: tuple[WorkerInfo, ...]
    at: float
    paused_tasks: tuple[str, ...] = ()
    missing: tuple[int, ...] = ()

    @property
    def queued(self) -> int:
        """Tasks that wait in either lane."""
        return self.critical + self.normal

    @property
    def silent(self) -> tuple[WorkerInfo, ...]:
        """Workers that gave no sign of life for 35 s, two of an idle one. Others take over what runs there."""
        return tuple(worker for worker in self.workers if self.at - worker.seen_at >= SILENT_AFTER)

    @property
    def slots(self) -> int:
        """How many tasks the workers can run at once, all together, without those that are silent."""
        return sum(worker.concurrency for worker in self._heard())

    @property
    def free_slots(self) -> int:
        """Those of them that run nothing, without those of workers that claim nothing more."""
        idle = (worker.concurrency - worker.running for worker in self._heard() if not worker.draining)
        return sum(max(0, slots) for slots in idle)

    def _heard(self) -> Iterator[WorkerInfo]:
        silent = frozenset(worker.worker_id for worker in self.silent)
        return (worker for worker in self.workers if worker.worker_id not in silent)


class QueueHealth(msgspec.Struct, frozen=True, kw_only=True):
    """What tells whether a queue is well, in numbers; what is too much is for the reader to say. Times are in seconds.

    `longest_wait` is that of the next task of a user, among 100 users with something to serve: those with the lowest
    and the highest tags. `late` is for how long the first scheduled task, `schedule_late` for how long the first
    schedule, has been due. Memory is in bytes; a `memory_limit` of 0 is none.

    `min_running_users` are those whose `min_running` together leave no slot of the workers to others, of 1,000 that
    have a     policy of their own and of the 100 above. `unserved_users` are those of the 100 that no worker serves.
    `damaged_users` are those that claims leave alone, as something failed for them or their import is not complete, and
    those of the 100 users that became ready last whose keys contradict each other: see `check`. At most 100 of each.

    `blocking` is how many dead letters other tasks wait for, of the 1,000 oldest in workflows: those go on when they
    are requeued and finish, and are canceled when they are discarded or expire.
    """

    stats: QueueStats
    longest_wait: float
    dead_letters: int
    blocking: int
    late: float
    schedule_late: float
    memory_policy: str
    memory_used: int
    memory_limit: int
    min_running_users: tuple[str, ...] = ()
    unserved_users: tuple[str, ...] = ()
    damaged_users: tuple[str, ...] = ()
