"""What goes to the scripts, and what comes back: new tasks, deliveries, outcomes."""

from __future__ import annotations

from enum import IntEnum
from typing import Literal, NamedTuple, TypeAlias

import msgspec

from fairque.errors import StoreError, UserFrozen
from fairque.models import Enqueued, Priority
from fairque.redis.arguments import Rules
from fairque.redis.keys import decode_user
from fairque.tasks.message import cost_in, priority_in

__all__ = [
    "Answer",
    "Claim",
    "Delivery",
    "Heads",
    "Needs",
    "NewCallback",
    "NewTask",
    "Outcome",
    "Placed",
    "Put",
    "Refusal",
    "StoredTask",
    "arrival_ms",
]


class NewCallback(NamedTuple):
    """A task that is put in at the end of another one: ``on_success``, ``on_failure`` or ``on_end``."""

    kind: str
    priority: int
    when: str
    body: bytes
    after: tuple[NewCallback, ...] = ()

    def __repr__(self) -> str:  # without the arguments
        return f"<NewCallback {self.kind}>"


class NewTask(NamedTuple):
    """A task for `enqueue`.

    `when` and `rules` are as `AddedTask` has them; `needs` is empty or an encoded `Needs`; `callbacks` are put in at
    its end; `batch` is the id of the batch that counts it, `adder` of the task of that batch that adds it, `parent` of
    the task that puts it in, and with that it is canceled `with_parent`.
    """

    user_id: str
    task_id: str
    priority: int
    when: str
    body: bytes
    needs: bytes = b""
    rules: Rules | None = None
    callbacks: tuple[NewCallback, ...] = ()
    batch: str = ""
    adder: str = ""
    parent: str = ""
    with_parent: bool = False

    @property
    def is_linked(self) -> bool:
        """Whether anything else knows of it, or it of anything."""
        return bool(self.needs or self.rules or self.callbacks or self.batch or self.parent)

    def __repr__(self) -> str:  # without the arguments, which a traceback with local variables would show
        return f"<NewTask {self.user_id!r} {self.task_id!r}>"


class Placed(NamedTuple):
    """What became of a task that was put in on a condition, and the id of the one that lives."""

    enqueued: Enqueued
    task_id: str


Put: TypeAlias = bool | Placed
"""What became of a new task; of one without a condition, whether it was created."""


class Needs(msgspec.Struct, frozen=True, array_like=True):
    """What a task waits for, and what becomes of it when one of those fails or is canceled: wait, cancel or run."""

    policy: str
    allow_unknown: bool
    ids: list[str]


class Delivery(msgspec.Struct, eq=False):
    """One task handed to one worker. (`stream_id`, `attempt`) identifies it. Without a body it is to be put
    back.

    Attributes:
        lost: How many workers fell silent that had it. If any, it is a suspect: it may have killed them.
        deaths: How many of those ran nothing else.
        alone_ms: For so long it is to run beside nothing else; 0: it need not.
        snoozed: How often it has put itself off.
        followers: Those that run with it, in one service.
        partition: Which one of the queue it comes from.
    """

    user: bytes
    task_id: bytes
    lane: bytes
    stream_id: bytes
    attempt: int
    queued_ms: int
    started_ms: int
    body: bytes
    failures: int = 0
    lost: int = 0
    returned: int = 0
    returned_since_ms: int = 0
    canceling: bool = False
    deaths: int = 0
    alone_ms: int = 0
    snoozed: int = 0
    followers: tuple[Delivery, ...] = ()
    partition: int = 0

    def __repr__(self) -> str:
        return f"<Delivery {self.user_id!r} {self.id!r}, attempt {self.attempt}>"

    @property
    def user_id(self) -> str:
        return decode_user(self.user)

    @property
    def cost(self) -> float:
        return cost_in(self.body)

    @property
    def wait_ms(self) -> int | None:
        """From the enqueue to the first start; None for later ones."""
        return max(0, self.started_ms - self.queued_ms) if self.attempt == 1 else None

    @property
    def id(self) -> str:
        return self.task_id.decode()

    @property
    def mark(self) -> bytes:
        """Names it, as the scripts write it down."""
        return b"%s %d" % (self.stream_id, self.attempt)


class Heads(NamedTuple):
    """Where a partition stands: the virtual time of whom it would serve next (None: nobody is ready) and that of the
    queue as known there, how far a service takes a tag lately, and how many are ready; how many workers serve it, and
    how far its own virtual time has gone; whether a user is on its way from or to it whose mover fell silent; ms until
    places of limits are to be moved there, or -1; the revision of what governs all users.
    """

    head: float | None
    time: float
    mean: float
    ready: int
    workers: int
    passed: float
    has_forsaken: bool = False
    exchange_ms: int = -1
    revision: int = 0


class Claim(NamedTuple):
    """`sleep` is the seconds until something is due, None when nothing is. `heads` is of a partition only.
    `is_outdated`: nothing was handed out, as what governs all users was changed elsewhere, and not there.
    """

    deliveries: list[Delivery]
    sleep: float | None
    heads: Heads | None = None
    is_outdated: bool = False


class Outcome(msgspec.Struct, eq=False):
    """How a delivery ended: kind is ``finished``, ``failed``, ``canceled``, ``retry``, ``snoozed``,
    ``restated`` or ``released``. The `record` of a restated one is its new body.

    `error` of a canceled one is the reason; `pushed` is an XCom value to be written with the outcome, see
    `SettledDelivery`. `run_ms` is how long it ran, `charge` what the task added to its cost meanwhile.
    """

    delivery: Delivery
    kind: str
    ttl_ms: int = 0
    delay_ms: int = 0
    record: bytes = b""
    error: bytes = b""
    pushed: bytes = b""
    run_ms: float = 0.0
    charge: float = 0.0

    def __repr__(self) -> str:
        return f"<Outcome {self.kind} of {self.delivery!r}>"


class Refusal(IntEnum):
    """Why a worker has a delivery no longer, as lua/lib/whereabouts.lua tells. False."""

    ELSEWHERE = 0
    ANEW = -1
    WAITS = -2
    ENDED = -3
    GONE = -4

    def __bool__(self) -> bool:
        return False

    @property
    def text(self) -> str:
        return _REFUSALS[self]


_REFUSALS = {
    Refusal.ELSEWHERE: "another worker has it",
    Refusal.ANEW: "it was late, and this worker was handed it anew",
    Refusal.WAITS: "it waits for another start",
    Refusal.ENDED: "it has ended",
    Refusal.GONE: "it is gone: it was purged or lost, or its result has expired",
}

Answer: TypeAlias = Literal[True] | Refusal | StoreError | UserFrozen
"""To an outcome: that it was taken, or why it was refused; or why it can be neither now: `UserElsewhere` where its user
lives in another partition by now, which takes it, `UserFrozen` while it stands still."""


class StoredTask(NamedTuple):
    """Everything Redis has of one task; all empty when it has nothing."""

    fields: dict[str, str]
    body: bytes
    record: bytes
    errors: list[bytes]
    score: int | None  # in its lane, while it waits
    dependents: tuple[str, ...]
    due_ms: int | None = None  # while it is scheduled
    dependencies: tuple[tuple[str, str], ...] = ()  # id and state, '' where nothing is known
    children: tuple[str, ...] = ()
    chunks: int = 0  # of the last run that yielded


def arrival_ms(score: int, body: bytes, priority_step_ms: int) -> int:
    """When a task was placed: its score is that moment in microseconds, less the head start of its priority."""
    priority = priority_in(body) or Priority.VERY_LOW
    head_start = (priority - 1) * priority_step_ms if priority is not Priority.CRITICAL else 0
    return score // 1000 + head_start
