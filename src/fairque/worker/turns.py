"""`Turns`: the one loop of a worker that talks to its queue: it tells what has ended, and takes what comes next."""

from __future__ import annotations

import asyncio
from contextvars import copy_context

import anyio

from fairque.errors import FairqueError
from fairque.redis.delivery import Outcome
from fairque.redis.store import Store
from fairque.worker.claimer import Claimer
from fairque.worker.options import WorkerOptions
from fairque.worker.settler import Settler
from fairque.worker.signals import Signals

__all__ = ["Turns"]

# So many outcomes are worth a turn of their own beside one that is under way: a number, or a part of the concurrency.
ENOUGH, ENOUGH_SHARE = 4, 25


class Turns:
    """A turn is one call where there is something to report and room for more. Where many tasks end while one is under
    way, another one is begun beside it, so that Redis has something to do while the worker has.

    After a call that failed, reports and claims go apart, each at its own pace, until a claim succeeds: a server
    without memory still takes reports, and a report that is not taken keeps nobody from being served.

    Args:
        store: A connection of its own.
        options: Of the worker.
        settler: What there is to report.
        claimer: What to ask for.
        signals: Of the worker: each wakes the loop.
    """

    def __init__(
        self,
        store: Store,
        options: WorkerOptions,
        settler: Settler,
        claimer: Claimer,
        signals: Signals,
    ) -> None:
        self._store = store
        self._enough = max(ENOUGH, options.concurrency // ENOUGH_SHARE)
        self._beside: asyncio.Task[None] | None = None
        self._fault: BaseException | None = None
        self._context = copy_context()
        self._reporting: asyncio.Task[None] | None = None
        self._worker_id = options.worker_id
        self._longest_rest = options.poll_interval
        self._settler = settler
        self._claimer = claimer
        self._signals = signals
        self._scope = anyio.CancelScope(shield=True)
        self._apart = False
        self._is_calling = False

    @property
    def is_quiet(self) -> bool:
        """Nothing is to be reported, and no delivery can be on its way here."""
        is_calling = self._is_calling or self._beside is not None or self._is_reporting()
        return not (is_calling or self._settler.unreported or self._claimer.is_unsure)

    @property
    def errors(self) -> tuple[int, ...]:
        """Claims that failed, of each partition; here there is one."""
        return (self._claimer.errors,)

    @property
    def is_held_up(self) -> bool:
        """Whether nothing can be claimed, free slots or not."""
        return self._claimer.is_held_up

    async def run(self) -> None:
        """Until `stop`, whatever is cancelled around it: what runs in a cancelled worker is still to be put back."""
        with self._scope:
            while True:
                rest = self._rest()
                if rest > 0 and await self._signals.sleep(rest):
                    self._claimer.look()
                if self._fault is not None:
                    raise self._fault
                if self._beside is None or self._may_go_beside():
                    self._is_calling, self._signals.on_busy = True, self._begin_beside
                    await self._take_turn()
                    self._is_calling, self._signals.on_busy = False, None
                    if self._claimer.came_short:
                        await asyncio.sleep(0)  # what came begins before anything else is thought of
                self._signals.turned()

    def _rest(self) -> float:
        """Seconds until there is something to do."""
        if self._beside is not None:
            return 0.0 if self._may_go_beside() else self._longest_rest
        rest = min(self._claimer.rest, self._longest_rest)
        return rest if self._is_reporting() else min(rest, self._settler.rest)

    def stop(self) -> None:
        self._scope.cancel()
        for call in (self._beside, self._reporting):
            if call is not None:
                call.cancel()

    async def _take_turn(self) -> None:
        batch = [] if self._is_reporting() else self._settler.batch()
        want = self._claimer.want()
        if batch and want and not self._apart:
            await self._settle_and_claim(batch, want)
            return
        if batch:
            self._reporting = asyncio.create_task(self._settle(batch))
            self._reporting.add_done_callback(self._reported)
        if want or self._claimer.has_last_call:
            await self._claim(want)

    def _is_reporting(self) -> bool:
        """Raises what is no outage, and no fault of an outcome: the worker ends of it, as of a claim."""
        if self._reporting is None or not self._reporting.done():
            return self._reporting is not None
        reporting, self._reporting = self._reporting, None
        reporting.result()
        return False

    def _reported(self, _: asyncio.Task[None]) -> None:
        self._signals.wake()
        self._signals.turned()

    # A turn beside another one

    def _may_go_beside(self) -> bool:
        is_ready = self._settler.waiting >= self._enough and self._settler.rest <= 0
        return is_ready and self._reporting is None and not self._apart and self._claimer.may_go_beside

    def _begin_beside(self) -> None:
        """Called for each task that ends while a turn is under way."""
        if self._beside is None and self._may_go_beside():
            context = self._context.copy()  # not that of the task: what the turn brings begins in it
            self._beside = asyncio.create_task(self._take_turn_beside(), context=context)
            self._beside.add_done_callback(self._ended_beside)

    async def _take_turn_beside(self) -> None:
        """By now all have ended that ended with the last one that it took; or the other turn has, and they go with the
        next one.
        """
        if self._is_calling and self._may_go_beside():
            want = self._claimer.want()
            await self._settle_and_claim(self._settler.batch(), want)

    def _ended_beside(self, beside: asyncio.Task[None]) -> None:
        """What is no outage, and no fault of an outcome, is raised in the loop: the worker ends of it."""
        self._beside = None
        if not beside.cancelled():
            self._fault = beside.exception()
        self._signals.nudge()
        self._signals.turned()

    async def _settle_and_claim(self, batch: list[Outcome], want: int) -> None:
        how = self._claimer.begin(want, batch)
        try:
            answers, claim = await self._store.turn(self._worker_id, batch, want, **how)
        except FairqueError as exc:
            self._apart = True
            self._settler.failed(batch, exc)
            self._claimer.failed(how["number"], exc)
            return
        self._settler.settled(batch, answers)
        if isinstance(claim, FairqueError):
            self._apart = True
            self._claimer.failed(how["number"], claim)
        else:
            self._claimer.claimed(how["number"], claim)

    async def _settle(self, batch: list[Outcome]) -> None:
        try:
            answers = await self._store.settle(self._worker_id, batch)
        except FairqueError as exc:
            self._settler.failed(batch, exc)
        else:
            self._settler.settled(batch, answers)

    async def _claim(self, want: int) -> None:
        how = self._claimer.begin(want, [])
        try:
            claim = await self._store.claim(self._worker_id, want, **how)
        except FairqueError as exc:
            self._claimer.failed(how["number"], exc)
        else:
            self._apart = False
            self._claimer.claimed(how["number"], claim)
