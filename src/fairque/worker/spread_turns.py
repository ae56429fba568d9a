"""`SpreadTurns`: the loop of a worker that talks to all partitions of its queue."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Coroutine, Sequence
from typing import Any

import anyio

from fairque.fairness.partition_choice import Chosen, PartitionChoice
from fairque.models import ANY_USER
from fairque.worker.declared_limits import LimitDeclarations
from fairque.worker.desk import BLOCKED, Desk
from fairque.worker.options import WorkerOptions
from fairque.worker.runner import Runner
from fairque.worker.settlers import Settlers
from fairque.worker.signals import Signals

__all__ = ["SpreadTurns"]

FEW, FEW_SHARE = 10, 8
CLAIM_SHARE = 4
LOOK_AGE = 0.1
"""Seconds for which what is known of a partition is as good as a look."""
LEAST_REST = 0.001


class SpreadTurns:
    """What has ended is reported to the partition that it came from; free slots go to the partition whose next user
    stands lowest. A call is waited for by nobody: one that is not answered holds up its own partition alone.

    Where a worker has free slots and nothing to do, it waits in every partition. One that is told of work while it has
    no free slot hands that on, and looks there as soon as it has one.

    Args:
        desks: By the numbers of their partitions.
        options: Of the worker.
        runner: Has the slots.
        settlers: What there is to report.
        limits: Nothing is claimed while some that the code declares are not told.
        signals: Of the worker: each wakes the loop.
    """

    def __init__(
        self,
        desks: Sequence[Desk],
        options: WorkerOptions,
        runner: Runner,
        settlers: Settlers,
        limits: LimitDeclarations,
        signals: Signals,
    ) -> None:
        self._desks = desks
        self._concurrency = options.concurrency
        self._few = max(FEW, options.concurrency // FEW_SHARE)
        self._most_while_many_run = max(1, options.concurrency // CLAIM_SHARE)
        self._most_unreported = options.concurrency * 10 + 1000
        self._poll_interval = options.poll_interval
        self._serves_all = list(options.groups) == list(ANY_USER)
        self._runner = runner
        self._settlers = settlers
        self._limits = limits
        self._signals = signals
        self._choice = PartitionChoice(len(desks), random.Random())
        self._calls: set[asyncio.Task[None]] = set()
        self._failure: BaseException | None = None
        self._looking: asyncio.Task[None] | None = None
        self._has_looked = False
        self._poll_at = time.monotonic() + self._poll_interval
        self._polled = random.randrange(len(desks))
        self._events = 0
        self._scope = anyio.CancelScope(shield=True)

    @property
    def is_quiet(self) -> bool:
        """Nothing is to be reported, and no delivery can be on its way here."""
        return all(desk.is_quiet for desk in self._desks)

    @property
    def is_held_up(self) -> bool:
        """Whether nothing can be claimed anywhere, free slots or not."""
        is_behind = len(self._settlers) > self._most_unreported or not self._limits.are_told()
        return is_behind or all(desk.is_failing for desk in self._desks)

    @property
    def errors(self) -> tuple[int, ...]:
        """Claims that failed, of each partition."""
        return tuple(desk.errors for desk in self._desks)

    @property
    def workers(self) -> int:
        """How many serve the queue, more or less."""
        return self._choice.workers

    async def run(self) -> None:
        """Until `stop`, whatever is cancelled around it: what runs in a cancelled worker is still to be put back."""
        with self._scope:
            self._looking = self._start(self._look(self._desks))  # claims carry the latest rules that any of them tells
            while True:
                if self._signals.is_woken:
                    await asyncio.sleep(0)  # the calls that were begun go on, however often it is woken
                await self._signals.sleep(max(self._rest(), LEAST_REST))
                if self._failure is not None:
                    raise self._failure
                self._take_turns()
                self._signals.turned()

    def stop(self) -> None:
        self._scope.cancel()
        for call in self._calls:
            call.cancel()

    # What is done now

    def _take_turns(self) -> None:
        """Begins all calls that may be made now."""
        now = time.monotonic()
        self._poll(now)
        self._note_slow(now)
        room = self._room()  # reckoned up once: it is a sum over all partitions
        others_wait = self._called(now) is not None  # or partitions that report could take all slots among them
        for desk in self._desks:
            if desk.reporting is None and desk.settler.unreported and desk.settler.rest <= 0:
                room -= self._report(desk, 0 if others_wait else room)
        if self._signals.stopping:
            self._make_last_calls()
        elif self._signals.until_idle:
            self._end_if_idle(now)
        while room > 0 and (asked := self._claim_somewhere(now, room)):
            room -= asked
        if room <= 0:
            self._hand_on(now)

    @property
    def _rarity(self) -> float:
        """Of the polls: it is enough that some worker looks at each partition once in the interval."""
        return max(1.0, self.workers / len(self._desks)) if self._serves_all else 1.0

    def _poll(self, now: float) -> None:
        """A safety net: one partition after the other. Where it waits, a look is enough: most find nothing."""
        if now < self._poll_at:
            return
        self._poll_at = now + self._poll_interval * self._rarity
        self._polled = (self._polled + 1) % len(self._desks)
        desk = self._desks[self._polled]
        if desk.can_claim and desk.is_waiting and not desk.is_looked_at:
            self._start(desk.look(self._choice))
        else:
            desk.look_at = 0.0

    def _note_slow(self, now: float) -> None:
        for desk in self._desks:
            if desk.claiming is not None and desk.becomes_slow():
                self._choice.failed(desk.number, now)

    def _report(self, desk: Desk, room: int) -> int:
        """For how many tasks it asks as well."""
        batch = desk.settler.batch()
        if not batch:
            return 0
        self._events += 1
        want = self._want(desk, room) if len(batch) <= self._few else 0
        if want and self._can_turn(desk, chosen := self._beside(desk, want)):
            desk.asked_at_event = self._events
            desk.reporting = desk.claiming = self._start(desk.turn(batch, want, chosen, self._choice))
            return want
        desk.reporting = self._start(desk.settle(batch))
        return 0

    def _make_last_calls(self) -> None:
        for desk in self._desks:
            if desk.has_last_call and desk.can_claim:
                self._claim(desk, 0, self._beside(desk, 0))

    def _can_turn(self, desk: Desk, chosen: Chosen) -> bool:
        """Whether a claim goes along with a report: it costs as much as one that goes where somebody has its turn."""
        return self._can_claim(desk) and not desk.is_apart and self._choice.has_turn(desk.number, chosen)

    def _room(self) -> int:
        """Slots for which nothing was asked yet."""
        if self._signals.stopping or self._settlers.alone_left or len(self._settlers) > self._most_unreported:
            return 0
        if not self._limits.are_told():
            return 0
        return self._concurrency - len(self._runner) - sum(desk.reserved for desk in self._desks if desk.claiming)

    def _can_claim(self, desk: Desk) -> bool:
        return desk.can_claim

    def _want(self, desk: Desk, room: int) -> int:
        most = desk.most
        if len(self._runner) > self._most_while_many_run:
            most = min(most, self._most_while_many_run)
        return max(0, min(room, most))

    def _claim_somewhere(self, now: float, room: int) -> int:
        """For how many tasks a claim was begun."""
        desk = self._called(now)
        if desk is not None:
            return self._claim_beside(desk, room)
        if (chosen := self._choose(now, room)) is not None:
            desk = self._desks[chosen.partition]
            return self._claim(desk, self._want(desk, room), chosen)
        desk = next(filter(self._is_unknown, self._desks), None) if self._looking is None else None
        return self._claim_beside(desk, room) if desk is not None else 0

    def _claim_beside(self, desk: Desk, room: int) -> int:
        want = self._want(desk, room)
        return self._claim(desk, want, self._beside(desk, want))

    def _called(self, now: float) -> Desk | None:
        """One where there may be something, by a message or by the time: of several the one that was not asked for
        longest, as one that has nothing for this worker yet is due again at once.
        """
        due = (desk for desk in self._desks if desk.look_at <= now and self._can_claim(desk))
        return min(due, key=lambda desk: desk.asked_at, default=None)

    def _is_unknown(self, desk: Desk) -> bool:
        """Nobody would tell of work there."""
        return not (desk.is_waiting or self._choice.knows_work(desk.number)) and self._can_claim(desk)

    def _choose(self, now: float, room: int) -> Chosen | None:
        """The lowest of those that are known to have work; None as well while it is looked at some of them."""
        if self._looking is not None:
            return None
        if not self._has_looked:
            stale = [self._desks[at] for at in self._choice.to_look(now) if self._is_worth_a_look(at, now)]
            if stale:
                self._looking = self._start(self._look(stale))
                return None
        self._has_looked = False
        return self._choice.choose(now, min(room, self._concurrency), self._is_busy)

    def _is_busy(self, partition: int) -> bool:
        return not self._can_claim(self._desks[partition])

    def _is_worth_a_look(self, partition: int, now: float) -> bool:
        desk = self._desks[partition]
        is_known = desk.is_waiting or desk.is_looked_at or now - desk.seen_at <= LOOK_AGE
        return self._can_claim(desk) and not is_known

    async def _look(self, desks: Sequence[Desk]) -> None:
        """One that does not answer is not waited for by those who would be served elsewhere."""
        try:
            await asyncio.wait([self._start(desk.look(self._choice)) for desk in desks], timeout=LOOK_AGE)
        finally:
            self._looking, self._has_looked = None, True

    def _beside(self, desk: Desk, want: int) -> Chosen:
        return self._choice.beside(desk.number, time.monotonic(), want)

    def _claim(self, desk: Desk, want: int, chosen: Chosen) -> int:
        desk.asked_at_event = self._events
        desk.claiming = self._start(desk.claim(want, chosen, self._choice))
        return want

    def _hand_on(self, now: float) -> None:
        """What it was told, where every slot is taken."""
        if any(desk.reserved for desk in self._desks if desk.claiming):
            return
        for desk in self._desks:
            if (desk.is_called and not desk.has_handed_on) or (desk.is_waiting and desk.look_at <= now):
                self._start(desk.hand_on())

    def _end_if_idle(self, now: float) -> None:
        """Where nothing was left to do in any partition since the last report."""
        if self._settlers.holds or any(desk.reporting or desk.claiming for desk in self._desks):
            return
        unknown = [desk for desk in self._desks if desk.idle_at_event != self._events]
        for desk in unknown:
            if desk.look_at > now + BLOCKED:  # else it is looked at soon
                desk.look_at = now
        if not unknown:
            self._signals.stop()

    # Calls that are under way

    def _start(self, call: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(call)
        self._calls.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Raises in the loop what is no outage, and no fault of an outcome: the worker ends of it."""
        self._calls.discard(task)
        if not task.cancelled() and (failure := task.exception()) is not None:
            self._failure = failure
        self._signals.wake()
        self._signals.turned()

    def _rest(self) -> float:
        """Seconds until there may be something to do that nobody tells of."""
        now = time.monotonic()
        times = [self._poll_at - now, self._settlers.alone_left]
        for desk in self._desks:
            times += desk.moments(now)
        return min((each for each in times if each > 0), default=self._poll_interval)
