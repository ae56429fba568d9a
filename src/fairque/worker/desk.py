"""`Desk`: one partition of a queue, as a worker sees it that serves all of them."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Coroutine
from typing import Any

from fairque.errors import FairqueError
from fairque.fairness.partition_choice import Chosen, PartitionChoice, Sight
from fairque.redis.delivery import Answer, Claim, Delivery, Heads, Outcome
from fairque.redis.store import ClaimOptions, Store
from fairque.worker.lending import Lending
from fairque.worker.options import WorkerOptions
from fairque.worker.pace import Pace
from fairque.worker.ruling import Ruling
from fairque.worker.runner import Runner
from fairque.worker.settler import Settler
from fairque.worker.settlers import Settlers
from fairque.worker.signals import Signals
from fairque.worker.steal_pause import StealPause

__all__ = ["BLOCKED", "SLOW", "Desk"]

logger = logging.getLogger("fairque.worker")
SLOW = 0.5
"""Seconds after which a claim that was not answered keeps no slot any more."""
BLOCKED = 0.05
"""Seconds until the next look at a partition in which somebody is ready whom a claim did not serve."""
SHARE_OF_A_CLAIM = 2


class Desk:
    """What is to be reported there, how claims go, and whether the worker waits there to be told of work.

    Nothing here waits for another partition: each has numbers of claims, pauses and calls of its own.

    Args:
        number: Of the partition.
        store: Of the partition.
        options: Of the worker.
        settler: What there is to report to it.
        settlers: Of all partitions.
        runner: Runs what is claimed.
        steal_pause: When nothing is to be stolen from others there.
        signals: Of the worker.
        lending: Moves places of limits between the partitions.
        ruling: Has them know what governs all users.
        on_forsaken: Told its number where somebody has to go on with a move.
    """

    def __init__(
        self,
        number: int,
        store: Store,
        options: WorkerOptions,
        settler: Settler,
        settlers: Settlers,
        runner: Runner,
        steal_pause: StealPause,
        signals: Signals,
        lending: Lending,
        ruling: Ruling,
        on_forsaken: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.number = number
        self._on_forsaken = on_forsaken
        self.settler = settler
        self.steal_pause = steal_pause
        self._store = store
        self._options = options
        self._settlers = settlers
        self._runner = runner
        self._signals = signals
        self._lending = lending
        self._ruling = ruling
        self._pace = Pace(max(1, options.concurrency // SHARE_OF_A_CLAIM))
        self._claim_number = time.time_ns() // 1000  # beyond those of a process before it under the same id
        self.reporting: asyncio.Task[None] | None = None
        self.claiming: asyncio.Task[None] | None = None
        self._asked, self._was_slow, self._is_last = 0, False, False
        self.asked_at = 0.0
        """When it claimed there last."""
        self.is_unsure = False
        """Whether a claim may have been answered without that coming here."""
        self.is_waiting = False
        """Whether it would be told of work there."""
        self.is_called = False
        """Whether it was told, and has not looked since."""
        self.look_at = math.inf
        """When to claim there, whatever is known of the others."""
        self.is_looked_at = False
        """Whether a look is under way."""
        self.seen_at = 0.0
        """When it told last where it stands."""
        self.is_apart = False
        """A call failed: reports and claims go apart until a claim succeeds."""
        self.errors = 0
        self.has_handed_on = False
        """Whether somebody else was told what it was told."""
        self._is_handing_on = False
        self.asked_at_event, self.idle_at_event = 0, -1
        """After how many reports of the worker it claimed last, and found nothing to do: -1, it found something."""

    # What is known

    @property
    def is_quiet(self) -> bool:
        return not (self.reporting or self.claiming or self.settler.unreported or self.is_unsure)

    @property
    def is_failing(self) -> bool:
        return self._pace.is_failing

    @property
    def can_claim(self) -> bool:
        """Whether a call may be made now. Not while it is taken out of those that wait there: a claim that came before
        that would put it among them, and it would take itself for one of them.
        """
        return self.claiming is None and not self._is_handing_on and not self._pace.left

    @property
    def most(self) -> int:
        """How many tasks one claim may ask for."""
        return self._pace.most

    @property
    def reserved(self) -> int:
        """Slots that are kept for the answer to a claim."""
        return self._asked if self.claiming is not None and not self.is_slow else 0

    @property
    def is_slow(self) -> bool:
        return self.claiming is not None and time.monotonic() - self.asked_at > SLOW

    def moments(self, now: float) -> list[float]:
        """Seconds until there may be something to do that nobody tells of."""
        moments = [self.look_at - now]
        if self.claiming is not None:
            moments.append(self.asked_at + SLOW - now)
        elif self._pace.is_failing:
            moments.append(self._pace.left)
        if self.settler.unreported:
            moments.append(self.settler.rest)
        return moments

    @property
    def has_last_call(self) -> bool:
        """As the worker stops; see `Claimer.has_last_call`."""
        return self._signals.stopping and (self.is_unsure or (self.is_waiting and self._settlers.holds > 0))

    def becomes_slow(self) -> bool:
        """Once for each claim: whether it was not answered in time."""
        if self._was_slow or not self.is_slow:
            return False
        self._was_slow = True
        return True

    def call(self) -> None:
        """There may be something."""
        self.is_called, self.is_waiting, self.has_handed_on = True, False, False
        self.look_at, self.idle_at_event = 0.0, -1

    # Calls

    async def settle(self, batch: list[Outcome]) -> None:
        try:
            answers = await self._store.settle(self._options.worker_id, batch)
        except FairqueError as exc:
            self.settler.failed(batch, exc)
        else:
            self.settler.settled(batch, answers)
        finally:
            self.reporting = None

    def claim(self, want: int, chosen: Chosen, choice: PartitionChoice) -> Coroutine[Any, Any, None]:
        """The slots are reserved from now on."""
        return self._claim(want, chosen, choice, self._begin(want, chosen, []))

    def turn(
        self, batch: list[Outcome], want: int, chosen: Chosen, choice: PartitionChoice
    ) -> Coroutine[Any, Any, None]:
        """Both in one call."""
        return self._turn(batch, want, chosen, choice, self._begin(want, chosen, batch))

    async def _claim(self, want: int, chosen: Chosen, choice: PartitionChoice, how: ClaimOptions) -> None:
        try:
            claim = await self._store.claim(self._options.worker_id, want, **how)
        except FairqueError as exc:
            self._failed(exc, choice)
        else:
            self.is_apart = False
            self._claimed(want, chosen, claim, choice)
        finally:
            self.claiming = None

    async def _turn(
        self, batch: list[Outcome], want: int, chosen: Chosen, choice: PartitionChoice, how: ClaimOptions
    ) -> None:
        try:
            answers, claim = await self._store.turn(self._options.worker_id, batch, want, **how)
        except FairqueError as exc:
            self.is_apart = True
            self.settler.failed(batch, exc)
            self._failed(exc, choice)
        else:
            self._turned(batch, want, chosen, choice, answers, claim)
        finally:
            self.reporting = self.claiming = None

    def _turned(
        self,
        batch: list[Outcome],
        want: int,
        chosen: Chosen,
        choice: PartitionChoice,
        answers: list[Answer],
        claim: Claim | FairqueError,
    ) -> None:
        self.settler.settled(batch, answers)
        if isinstance(claim, FairqueError):
            self.is_apart = True
            self._failed(claim, choice)
        else:
            self._claimed(want, chosen, claim, choice)

    async def look(self, choice: PartitionChoice) -> None:
        self.is_looked_at = True
        try:
            heads = await self._store.heads(self._options.groups)
        except FairqueError:
            choice.failed(self.number, time.monotonic())
        else:
            self._see(self._sight_in(heads), choice)
        finally:
            self.is_looked_at = False

    def _see(self, sight: Sight, choice: PartitionChoice) -> None:
        self.seen_at = time.monotonic()
        choice.saw(self.number, sight, self.seen_at)

    def _hear(self, heads: Heads) -> None:
        self._lending.told(self.number, heads)
        self._ruling.told(self.number, heads)

    def hand_on(self) -> Coroutine[Any, Any, None]:
        """It was told of work, or knows a moment, and has no slot: somebody else looks. It will, once it has one."""
        self.call()
        self.has_handed_on = self._is_handing_on = True
        return self._hand_on()

    async def _hand_on(self) -> None:
        try:
            await self._store.hand_on(self._options.worker_id, self._options.groups)
        except FairqueError as exc:
            logger.debug("what partition %d told was not handed on: %s", self.number, exc)
        finally:
            self._is_handing_on = False

    async def leave(self) -> None:
        await self._store.leave(self._options.worker_id, self._options.groups)

    def _begin(self, want: int, chosen: Chosen, report: list[Outcome]) -> ClaimOptions:
        self._asked, self.asked_at, self._was_slow = want, time.monotonic(), False
        self.is_called, self.look_at, self._is_last = False, math.inf, self.has_last_call
        if self._pace.is_failing:
            self.steal_pause.silent()  # only now: it is to last from the end of the outage on
        return {
            "groups": self._options.groups,
            "steal": self.steal_pause.may_steal(),
            "holds": self._settlers.holds - len(report),
            "suspects": self._settlers.suspects,
            "max_deliveries": self._options.max_deliveries,
            "number": self._claim_number,
            "repeats": self.is_unsure,
            "latest": chosen.latest,
            "floor": chosen.floor,
            "up_to": chosen.until,
            "revision": self._ruling.latest,
        }

    def _failed(self, error: FairqueError, choice: PartitionChoice) -> None:
        logger.warning("cannot claim in partition %d, trying again: %s", self.number, error)
        self.errors += 1
        self.is_unsure = not self._is_last  # once is enough
        self.is_waiting, self.look_at = False, 0.0
        self._pace.failed()
        choice.failed(self.number, time.monotonic())

    def _claimed(self, want: int, chosen: Chosen, claim: Claim, choice: PartitionChoice) -> None:
        """Start what came, and see when to look again."""
        self.steal_pause.heard()
        self._pace.went_well()
        if claim.is_outdated:  # what it may have been handed by an earlier try it hears of then
            self._ruling.bring(self.number)
            self.is_waiting, self.look_at = False, time.monotonic() + BLOCKED
            return
        self._signals.serving.set()
        is_short = len(claim.deliveries) < want
        self._take(claim.deliveries, is_short)
        self.settler.answered = self._claim_number  # only now that they are held: another thread looks
        self._claim_number += 1
        self.is_unsure = False
        self._note(chosen, claim, is_short, choice)

    def _take(self, deliveries: list[Delivery], is_short: bool) -> None:
        """What came too late for the slots that were free is put back."""
        room = self._options.concurrency - len(self._runner)
        for at, delivery in enumerate(deliveries):
            for each in (delivery, *delivery.followers):
                each.partition = self.number
                if at >= room:
                    each.body = b""
        if deliveries:
            self._runner.take(deliveries, at_once=is_short)

    def _note(self, chosen: Chosen, claim: Claim, is_short: bool, choice: PartitionChoice) -> None:
        now = time.monotonic()
        sight = self._sight_in(claim.heads) if claim.heads is not None else Sight(None)
        is_idle = is_short and sight.head is None
        self.is_waiting = is_idle and not self.is_called and claim.heads is not None
        if not self.is_called:
            self.look_at = now + self._nap(claim) if is_idle else math.inf
        if is_short and not claim.deliveries and sight.head is not None and _is_due(sight.head, chosen):
            self.look_at, sight = now + BLOCKED, sight._replace(head=None)
        self._see(sight, choice)
        has_ended = is_idle and not claim.deliveries and claim.sleep != 0
        self.idle_at_event = self.asked_at_event if has_ended and not self.is_called else -1

    def _sight_in(self, heads: Heads) -> Sight:
        """What else is to be done there is told to whoever does it."""
        self._hear(heads)
        if heads.has_forsaken:
            self._on_forsaken(self.number)
        return Sight(heads.head, heads.time, heads.mean, heads.ready, heads.workers, heads.passed)

    def _nap(self, claim: Claim) -> float:
        """Seconds until something may be possible there that nobody tells of."""
        sleep = math.inf if claim.sleep is None else claim.sleep
        pause = self.steal_pause.left
        return min(sleep, pause) if pause else sleep


def _is_due(head: float, chosen: Chosen) -> bool:
    """Whether the claim was to serve it."""
    return chosen.until is None or head <= chosen.until
