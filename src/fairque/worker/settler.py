"""`Settler`: keeps outcomes until Redis has taken them, however long it is away, and makes batches of them."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence

from fairque.counted import counted
from fairque.errors import FairqueError, StoreError, UserFrozen
from fairque.redis.delivery import Answer, Delivery, Outcome, Refusal
from fairque.redis.places import UserElsewhere
from fairque.tasks.message import name_in
from fairque.worker.hooks import Hooks
from fairque.worker.pace import Pace
from fairque.worker.signals import Signals
from fairque.worker.task_log import log_about

__all__ = ["Settler"]

logger = logging.getLogger("fairque.worker")
BATCH = 500
BATCH_BYTES = 1 << 20
MOST_SICK = 1000


class Settler:
    """Everything this worker was handed and has not reported yet.

    An outcome that Redis answers with an error is *sick*: it is tried again by and by, and keeps nobody else's waiting.
    One whose user stands still waits for that. One whose user has moved goes to where it lives, and so does what runs.

    Args:
        hooks: Told of an outcome that came too late.
        signals: Woken when there is something to report.
        lease: Seconds for which a delivery that was lost before is watched.
    """

    def __init__(self, hooks: Hooks, signals: Signals, lease: float) -> None:
        self._lease = lease
        self._hooks = hooks
        self._signals = signals
        self._held: dict[int, Delivery] = {}
        self._watched: dict[int, float] = {}
        self.answered = 0
        """The number of the last claim whose deliveries are held; of those that came to nothing as well."""
        self.stolen = 0
        """Deliveries that others had lost before they came here."""
        self._alone: Delivery | None = None
        self._alone_until = 0.0
        self._outcomes: list[Outcome] = []
        self._sick: list[Outcome] = []
        self._standing: list[Outcome] = []
        self._pace = Pace(BATCH)
        self._sick_pace = Pace(BATCH)
        self._standing_pace = Pace(BATCH)
        self.peers: Sequence[Settler] = (self,)
        """Of all partitions."""
        self.find: Callable[[Delivery, UserElsewhere], int] = lambda delivery, _: delivery.partition
        """In which partition the user of a delivery lives by now."""

    def __len__(self) -> int:
        """What it holds, but for the sick."""
        return len(self._held) - len(self._sick)

    @property
    def holds(self) -> int:
        """Deliveries that are running or not reported yet."""
        return len(self._held)

    @property
    def suspects(self) -> int:
        """Of those that run, which were lost before and have been here for less than a lease."""
        if not self._watched:
            return 0
        now = time.monotonic()
        return sum(until > now for until in self._watched.values())

    @property
    def alone_left(self) -> float:
        """Seconds for which what runs here is to run beside nothing else; 0: it need not."""
        return max(0.0, self._alone_until - time.monotonic()) if self._alone is not None else 0.0

    @property
    def unreported(self) -> int:
        return len(self._outcomes) + len(self._sick) + len(self._standing)

    @property
    def rest(self) -> float:
        """Seconds until there is something to report."""
        rest = self._pace.left if self._outcomes else math.inf
        rest = min(rest, self._standing_pace.left) if self._standing else rest
        return min(rest, self._sick_pace.left) if self._sick else rest

    def held(self) -> list[Delivery]:
        """What needs renewal. Safe to call from another thread."""
        return list(self._held.values())

    def hold(self, delivery: Delivery) -> None:
        self._held[id(delivery)] = delivery
        if delivery.lost:
            self.stolen += 1
            self._watched[id(delivery)] = time.monotonic() + self._lease
        if delivery.alone_ms:
            self._alone, self._alone_until = delivery, time.monotonic() + delivery.alone_ms / 1000

    def forget(self, delivery: Delivery) -> None:
        """It is not this worker's any more: there is nothing to report."""
        self._held.pop(id(delivery), None)
        self._exonerate(delivery)

    def _exonerate(self, delivery: Delivery) -> None:
        """It does not run here any more."""
        self._watched.pop(id(delivery), None)
        if self._alone is delivery:
            self._alone = None

    def report(self, outcome: Outcome) -> None:
        if outcome.delivery.lost:
            self._exonerate(outcome.delivery)
        self._outcomes.append(outcome)
        self._signals.wake()

    def batch(self) -> list[Outcome]:
        """What is to be reported now; nothing while reports fail. Its bytes are bounded, but for the first."""
        if self._sick and not self._sick_pace.left:
            self._outcomes += self._sick
            self._sick.clear()
        if self._standing and not self._standing_pace.left:
            self._outcomes += self._standing
            self._standing.clear()
        return [] if self._pace.left else _fitting(self._outcomes[: self._pace.most])

    def last_outcomes(self, culprit: Delivery | None) -> Iterator[list[Outcome]]:
        """For a process that ends at once: what has ended and, if it is known which one makes it end, all others as to
        be put back. From another thread, while the loop stands still.
        """
        ended = [*self._outcomes, *self._sick, *self._standing]
        if culprit is not None:
            known = {id(outcome.delivery) for outcome in ended} | {id(culprit)}
            ended += [Outcome(of, "released") for of in self.held() if id(of) not in known]
        while ended:
            batch = _fitting(ended[:BATCH])
            yield batch
            ended = ended[len(batch) :]

    def failed(self, batch: list[Outcome], error: FairqueError) -> None:
        """The call that was to report them."""
        logger.warning("cannot report %s, trying again: %s", counted(self.unreported, "outcome"), error)
        self._pace.failed()
        if len(batch) == 1 and isinstance(error, StoreError):  # it must not keep the others here
            self._outcomes.append(self._outcomes.pop(0))

    def settled(self, batch: list[Outcome], answers: list[Answer]) -> None:
        """How Redis answered to a batch."""
        self._pace.went_well()
        del self._outcomes[: len(batch)]
        sick, standing = len(self._sick), len(self._standing)
        for outcome, answer in zip(batch, answers, strict=True):
            if answer is True:
                self._let_go(outcome.delivery)
            elif isinstance(answer, Refusal):
                self._refused(outcome.delivery, answer)
            elif isinstance(answer, UserElsewhere) and self.follow(outcome.delivery, answer):
                self.peers[outcome.delivery.partition].report(outcome)
            elif isinstance(answer, (UserElsewhere, UserFrozen)):  # it is on its way
                self._standing.append(outcome)
            else:
                self._fell_sick(outcome, answer)
        if len(self._sick) > sick:
            self._sick_pace.failed()
        elif not sick:
            self._sick_pace.went_well()
        if len(self._standing) > standing:
            self._standing_pace.failed()
        elif not standing:
            self._standing_pace.went_well()

    def follow(self, delivery: Delivery, elsewhere: UserElsewhere) -> bool:
        """Its user has moved, and it with that. Returns whether that leads to another partition."""
        partition = self.find(delivery, elsewhere)
        if partition == self._number:
            return False
        if delivery.partition == self._number:
            delivery.partition = partition
            if id(delivery) in self._held:
                self.peers[partition]._take(delivery, self)
        return True

    @property
    def _number(self) -> int:
        return self.peers.index(self)

    def _take(self, delivery: Delivery, other: Settler) -> None:
        del other._held[id(delivery)]
        self._held[id(delivery)] = delivery
        if (until := other._watched.pop(id(delivery), None)) is not None:
            self._watched[id(delivery)] = until
        if other._alone is delivery:
            other._alone = None
            self._alone, self._alone_until = delivery, other._alone_until

    def _let_go(self, delivery: Delivery) -> None:
        """Which may have moved since its outcome was sent."""
        self.peers[delivery.partition]._held.pop(id(delivery), None)

    def _refused(self, delivery: Delivery, why: Refusal) -> None:
        self._let_go(delivery)
        log_about(logging.WARNING, delivery, "has its outcome refused: %s", why.text)
        self._hooks.tell("lost", delivery, name_in(delivery.body), time.monotonic())

    def _fell_sick(self, outcome: Outcome, error: StoreError) -> None:
        delivery = outcome.delivery
        log_about(logging.WARNING, delivery, "cannot be reported, trying again: %s", error)
        self._sick.append(outcome)
        if len(self._sick) > MOST_SICK:
            self.forget(self._sick.pop(0).delivery)


def _fitting(outcomes: list[Outcome]) -> list[Outcome]:
    """As many as one report may carry, at least one."""
    size = 0
    for count, outcome in enumerate(outcomes):
        size += len(outcome.record) + len(outcome.error) + len(outcome.pushed)
        if size > BATCH_BYTES and count:
            return outcomes[:count]
    return outcomes
