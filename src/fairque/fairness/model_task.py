"""The values of the model of a queue: tasks, deliveries, lanes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from fairque.fairness.choice import SortedSet
from fairque.models import Priority, TaskState

__all__ = [
    "LANES",
    "Ending",
    "Fence",
    "Holding",
    "Kind",
    "Lane",
    "LaneName",
    "ModelDelivery",
    "ModelTask",
    "UserCounts",
]

LaneName = Literal["critical", "normal"]
Kind = Literal["finished", "failed", "retry", "released"]
LANES: tuple[LaneName, ...] = ("critical", "normal")


class Fence(NamedTuple):
    """Identifies a delivery; whoever presents an outdated one is refused."""

    stream_id: int
    attempt: int


@dataclass(slots=True, eq=False)
class ModelTask:
    """A task from its enqueue to its end. The fields in the second half belong to the queue."""

    user_id: str
    task_id: str
    priority: int = Priority.NORMAL
    cost: float = 1.0
    nonce: bytes = b""  # names the call that enqueued it
    start_ms: float = 0.0  # not before
    name: str = ""

    state: TaskState = TaskState.QUEUED
    score: int | None = None  # its place in the lane, kept through retries
    attempt: int = 0
    failures: int = 0
    lost: int = 0
    returned: int = 0
    returned_since_ms: int = 0
    paid: bool = False  # the next delivery is not charged
    is_held: bool = False  # waits apart from its lane, for its name
    is_offered: bool = False  # was let in again, and may take a slot of its name
    limited: str = ""  # the name whose slot it took last
    delivery: Fence | None = None
    last: Fence | None = None  # the delivery that was settled last

    @property
    def lane(self) -> LaneName:
        return "critical" if self.priority == Priority.CRITICAL else "normal"

    @property
    def key(self) -> tuple[str, str]:
        return self.user_id, self.task_id


class ModelDelivery(NamedTuple):
    """One task as it was handed to one worker."""

    task: ModelTask
    fence: Fence
    history: tuple[int, int, int, int]  # failures, lost, returned, returned since


class Ending(NamedTuple):
    """How a delivery ended. `charge` is what it cost beyond its cost."""

    delivery: ModelDelivery
    kind: Kind
    delay_ms: int = 0
    charge: float = 0.0


@dataclass(slots=True, eq=False)
class Holding:
    """An entry of a stream: who has the task, and when it was last heard of."""

    task: ModelTask
    worker: str
    touched_ms: int


@dataclass(slots=True, eq=False)
class Lane:
    """What waits and what is out. A task is in exactly one of both."""

    name: LaneName
    user_id: str
    backlog: SortedSet[str] = field(default_factory=lambda: SortedSet(str))
    stream: dict[int, Holding] = field(default_factory=dict)  # by ascending stream id
    cursor: int = 0  # where the next look at silent workers goes on


@dataclass(slots=True, eq=False)
class UserCounts:
    """How many tasks and deliveries ended how, and what they cost."""

    finished: int = 0
    failed: int = 0
    retried: int = 0
    canceled: int = 0
    cost: float = 0.0
