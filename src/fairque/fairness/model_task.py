"""The values of the model of a queue: tasks, deliveries, lanes."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from fairque.fairness.sorted_set import SortedSet
from fairque.models import Enqueued, Priority, TaskState

__all__ = [
    "LANES",
    "Alone",
    "Conflict",
    "Ending",
    "Ends",
    "Fence",
    "Holding",
    "Kind",
    "Lane",
    "LaneKey",
    "LaneName",
    "ModelCallback",
    "ModelDelivery",
    "ModelTask",
    "OnFailure",
    "UserCounts",
    "names_of",
]

LaneName = Literal["critical", "normal"]
LaneKey = tuple[LaneName, str]
Kind = Literal["finished", "failed", "canceled", "retry", "snoozed", "released"]
Conflict = Literal["keep", "replace", "error"]
Alone = Literal["", "started", "ended", "after", "debounce", "throttle"]
OnFailure = Literal["wait", "cancel", "run"]
CallbackKind = Literal["on_success", "on_failure", "on_end", "on_complete"]
LANES: tuple[LaneName, ...] = ("critical", "normal")


class Fence(NamedTuple):
    """Identifies a delivery; whoever presents an outdated one is refused."""

    stream_id: int
    attempt: int


class ModelCallback(NamedTuple):
    """A task that is put in at the end of another one, or of a batch. `after`: what is put in at its own end."""

    kind: CallbackKind
    priority: int = Priority.NORMAL
    cost: float = 1.0
    delay_ms: int = 0
    name: str = ""
    after: tuple[ModelCallback, ...] = ()
    nonce: bytes = b""


class Ends(NamedTuple):
    """What comes of the end of a task: its callbacks, and the batch that counts it. `size`: how many bytes it takes."""

    callbacks: tuple[ModelCallback, ...] = ()
    batch: str = ""
    life: int = 1
    size: int = 0

    def of_the_next_life(self) -> Ends:
        return self._replace(life=self.life + 1)

    def named(self, task_id: str) -> list[tuple[str, ModelCallback]]:
        return names_of(task_id, self.callbacks, self.life)


def names_of(of: str, callbacks: tuple[ModelCallback, ...], life: int = 1) -> list[tuple[str, ModelCallback]]:
    """Callbacks with their ids. The second one of a kind, and one of a second life, has a number."""
    named = []
    for at, callback in enumerate(callbacks):
        of_kind = sum(other.kind == callback.kind for other in callbacks)
        number = (life - 1) * of_kind + sum(other.kind == callback.kind for other in callbacks[: at + 1])
        named.append((f"{of}.{callback.kind}" + (f"-{number}" if number > 1 else ""), callback))
    return named


@dataclass(slots=True, eq=False)
class ModelTask:
    """A task from its enqueue to its end. The fields in the second half belong to the queue."""

    user_id: str
    task_id: str
    priority: int = Priority.NORMAL
    cost: float = 1.0
    nonce: bytes = b""  # names the call that enqueued it
    start_ms: float = 0.0  # not before
    delay_ms: float = 0.0  # from the moment on at which it waits for no other task
    name: str = ""
    needs: set[str] = field(default_factory=set)  # the tasks that it waits for
    on_failure: OnFailure = "wait"  # when one of them does not finish
    allow_unknown: bool = False
    expires_in_ms: float = math.inf  # to begin
    call: bytes = b""  # names the call, of one that is put in on a condition
    conflict: Conflict = "keep"  # with one that has its id
    kind: Alone = ""  # until when it is alone under its key
    pointer: str = ""  # the key
    span_ms: int = 0  # from its call on, of one that is throttled; from its end on, of one that is alone after that
    longest_ms: int = 0
    limits: tuple[str, ...] = ()  # keys beside its name, by their names in Redis
    ends: Ends | None = None  # what comes of its end
    adder: str = ""  # the task that adds it to its batch
    uses: set[str] = field(default_factory=set)  # the tasks whose results are kept for it until it has ended

    state: TaskState = TaskState.QUEUED
    put_in_ms: int | None = None
    expires_ms: float = math.inf
    answer: tuple[Enqueued, str] = (Enqueued.CREATED, "")
    first_ms: int = 0  # of the first call, while it is debounced
    came_us: int | None = None  # the arrival of the one whose place it takes
    has_key: bool = False
    came: int = 0  # when it began to wait for others
    score: int | None = None  # its place in the lane, kept through retries
    attempt: int = 0
    failures: int = 0
    errors: int = 0
    lost: int = 0
    is_suspect: bool = False  # it was lost, or its worker said that it ended because of it
    received: int = 0  # the attempt that arrived at its worker, of a suspect
    tried: int = 0  # how often it may have killed its worker
    deaths: int = 0  # how often nobody else can have
    alone_ms: int = 0  # for so long this delivery runs beside nothing else
    worker: str = ""  # that it was handed to
    returned: int = 0
    returned_since_ms: int = 0
    paid: bool = False  # the next delivery is not charged
    started_ms: int = 0
    charged: float | None = None  # what this delivery was charged so far, where time is
    charged_before: float = 0.0  # what those before it were that were stolen or put back
    canceling: str = ""  # why its worker is to end it
    held: str = ""  # waits apart from its lane, for this key
    held_since_ms: int = 0
    places: list[str] = field(default_factory=list)  # keys of which it has one in hand
    limited: list[str] = field(default_factory=list)  # the keys whose slots it took last
    delivery: Fence | None = None
    last: Fence | None = None  # the delivery that was settled last
    known_until_ms: float = math.inf  # its result, when it has ended
    body_bytes: int = 0
    error_bytes: int = 0
    result_bytes: int = 0

    @property
    def bytes(self) -> int:
        """All that is kept of it."""
        return self.own_bytes + self.result_bytes + (self.ends.size if self.ends else 0)

    @property
    def own_bytes(self) -> int:
        """But for its result, and what comes of its end."""
        return self.body_bytes + self.error_bytes

    @property
    def lane(self) -> LaneName:
        return "critical" if self.priority == Priority.CRITICAL else "normal"

    @property
    def keys(self) -> tuple[str, ...]:
        """What limits it, in the order in which it stands in their lines."""
        own = f":{self.name}"
        return self.limits if own in self.limits else (*self.limits, own)

    @property
    def key(self) -> tuple[str, str]:
        return self.user_id, self.task_id

    def came_before(self, ms: float) -> bool:
        return self.put_in_ms is not None and self.put_in_ms < ms

    def charge_anew(self) -> None:
        """Another delivery follows, which is charged from nothing on."""
        if self.charged is not None:
            self.charged, self.charged_before = 0.0, self.charged_before + self.charged

    def clear_its_name(self) -> None:
        """It lives, so it kills nobody."""
        self.is_suspect = False
        self.lost = self.received = self.tried = self.deaths = self.alone_ms = 0

    def begin_anew(self) -> None:
        """A dead letter lives again. The history of its errors stays."""
        self.score, self.charged, self.charged_before, self.canceling = None, None, 0.0, ""
        self.result_bytes = 0
        self.expires_ms = math.inf
        self.attempt = self.failures = self.returned = self.returned_since_ms = 0
        self.clear_its_name()


class ModelDelivery(NamedTuple):
    """One task as it was handed to one worker."""

    task: ModelTask
    fence: Fence
    # Failures, lost, returned, returned since, to be canceled, deaths, for how many ms it runs alone.
    history: tuple[int, int, int, int, bool, int, int]

    @property
    def is_suspect(self) -> bool:
        return self.history[1] > 0

    @property
    def is_alone(self) -> bool:
        return self.history[6] > 0


class Ending(NamedTuple):
    """How a delivery ended. `charge` is what it cost beyond its cost, `run_ms` for how long it ran.

    `ttl_ms`: for how long its result is known, if it finished. `record_bytes` and `error_bytes`: what it leaves.
    """

    delivery: ModelDelivery
    kind: Kind
    delay_ms: int = 0
    charge: float = 0.0
    run_ms: float = 0.0
    ttl_ms: float = math.inf
    record_bytes: int = 0
    error_bytes: int = 0


@dataclass(slots=True, eq=False)
class Holding:
    """An entry of a stream: who has the task, when it was last heard of, and for how long it may be silent."""

    task: ModelTask
    worker: str
    touched_ms: int
    lease_ms: int


@dataclass(slots=True, eq=False)
class Lane:
    """What waits and what is out. A task is in exactly one of both."""

    name: LaneName
    user_id: str
    backlog: SortedSet[str] = field(default_factory=lambda: SortedSet(str))
    stream: dict[int, Holding] = field(default_factory=dict)  # by ascending stream id


@dataclass(slots=True, eq=False)
class UserCounts:
    """How many tasks and deliveries ended how, and what they cost."""

    finished: int = 0
    failed: int = 0
    retried: int = 0
    canceled: int = 0
    cost: float = 0.0
