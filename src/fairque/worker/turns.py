"""`Turns`: the one loop of a worker that talks to its queue: it tells what has ended, and takes what comes next."""

from __future__ import annotations

import asyncio

import anyio

from fairque.errors import FairqueError
from fairque.redis.delivery import Outcome
from fairque.redis.store import Store
from fairque.worker.claimer import Claimer
from fairque.worker.options import WorkerOptions
from fairque.worker.settler import Settler
from fairque.worker.signals import Signals

__all__ = ["Turns"]

# So many outcomes at most go with a claim: a number, or a part of the concurrency if that is more. By the bench.
FEW, FEW_SHARE = 10, 8


class Turns:
    """A turn is one call where there is something to report and room for more. Where many tasks end at once, what they
    came to is reported beside the next claim, so that no slot waits for a report.

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
        self._few = max(FEW, options.concurrency // FEW_SHARE)
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
        may_be_given = self._is_calling or self._claimer.is_unsure or self._claimer.rests
        return not (may_be_given or self._is_reporting() or self._settler.unreported)

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
                rest = min(self._claimer.rest, self._longest_rest)
                if not self._is_reporting():
                    rest = min(rest, self._settler.rest)
                if rest > 0 and await self._signals.sleep(rest):
                    self._claimer.look()
                self._is_calling = True
                await self._take_turn()
                self._is_calling = False
                self._signals.turned()

    def answered(self, message: bytes) -> None:
        """A claim that rested, by whoever put in a task."""
        self._claimer.answered(*self._store.answer_in(message))
        self._signals.wake()

    def stop(self) -> None:
        self._scope.cancel()
        if self._reporting is not None:
            self._reporting.cancel()

    async def _take_turn(self) -> None:
        batch = [] if self._is_reporting() else self._settler.batch()
        want = self._claimer.want()
        if batch and want and not self._apart and len(batch) <= self._few:
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

    async def _settle_and_claim(self, batch: list[Outcome], want: int) -> None:
        how = self._claimer.begin(batch)
        try:
            answers, claim = await self._store.turn(self._worker_id, batch, want, **how)
        except FairqueError as exc:
            self._apart = True
            self._settler.failed(batch, exc)
            self._claimer.failed(exc)
            return
        self._settler.settled(batch, answers)
        if isinstance(claim, FairqueError):
            self._apart = True
            self._claimer.failed(claim)
        else:
            self._claimer.claimed(want, claim)

    async def _settle(self, batch: list[Outcome]) -> None:
        try:
            answers = await self._store.settle(self._worker_id, batch)
        except FairqueError as exc:
            self._settler.failed(batch, exc)
        else:
            self._settler.settled(batch, answers)

    async def _claim(self, want: int) -> None:
        how = self._claimer.begin([])
        try:
            claim = await self._store.claim(self._worker_id, want, **how)
        except FairqueError as exc:
            self._claimer.failed(exc)
        else:
            self._apart = False
            self._claimer.claimed(want, claim)
