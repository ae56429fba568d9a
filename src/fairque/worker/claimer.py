"""`Claimer`: claims tasks for free slots, and has them started."""

from __future__ import annotations

import logging

from fairque.backoff import Backoff
from fairque.errors import FairqueError
from fairque.redis.delivery import Claim
from fairque.redis.store import Store
from fairque.tasks.limits import declared_limits
from fairque.worker.options import WorkerOptions
from fairque.worker.runner import Runner
from fairque.worker.settler import Settler
from fairque.worker.signals import Signals
from fairque.worker.steal_pause import StealPause

__all__ = ["Claimer"]

logger = logging.getLogger("fairque.worker")
SHORTEST_SLEEP = 0.005
LIMITS = 500
# Claiming in quarters keeps Redis and the loop busy at the same time. Tuned with the bench.
CLAIM_SHARE = 4


class Claimer:
    """Never claims more than there are free slots: a task that waited in a worker could not be given to another.

    Args:
        store: A connection of its own.
        options: Of the worker.
        runner: Runs what is claimed.
        settler: Reports it. While very much is unreported nothing is claimed.
        steal_pause: When nothing is to be stolen from others.
        signals: Of the worker.
    """

    def __init__(
        self,
        store: Store,
        options: WorkerOptions,
        runner: Runner,
        settler: Settler,
        steal_pause: StealPause,
        signals: Signals,
    ) -> None:
        self._store = store
        self._options = options
        self._runner = runner
        self._settler = settler
        self._steal_pause = steal_pause
        self._signals = signals
        self._backoff = Backoff()

    async def run(self) -> None:
        """Until the worker stops or, where it runs `until_idle`, nothing is left to do."""
        await self._declare_limits()
        while not self._signals.stopping:
            sleep = await self._claim_some() if self._has_room() else None
            if sleep != 0:
                await self._signals.sleep(sleep)

    async def _declare_limits(self) -> None:
        """What the code says of limits holds for every worker, from the first claim on."""
        limits = declared_limits()
        backoff = Backoff()
        while limits and not self._signals.stopping:
            try:
                await self._store.set_limits(limits[:LIMITS], declared=True)
            except FairqueError as exc:
                logger.warning("cannot declare the limits of tasks, trying again: %s", exc)
                await self._signals.sleep(backoff.next())
            else:
                del limits[:LIMITS]

    def _has_room(self) -> bool:
        concurrency = self._options.concurrency
        if self._settler.has_one_alone:
            return False
        return len(self._runner) < concurrency and len(self._settler) <= concurrency * 10 + 1000

    async def _claim_some(self) -> float:
        """Start what there is. Returns the seconds to sleep unless a message comes; 0: there may be more."""
        self._signals.clear()
        concurrency = self._options.concurrency
        want = min(concurrency - len(self._runner), max(1, concurrency // CLAIM_SHARE))
        try:
            claim = await self._claim(want)
        except FairqueError as exc:
            await self._wait_out(exc)
            return 0.0
        for delivery in claim.deliveries:
            self._runner.start(delivery)
        if len(claim.deliveries) == want:
            return 0.0
        if self._is_done(claim):
            self._signals.stop()
        return self._nap(claim)

    async def _claim(self, want: int) -> Claim:
        options = self._options
        steal = not self._steal_pause.left
        claim = await self._store.claim(
            options.worker_id,
            want,
            groups=options.groups,
            steal=steal,
            holds=len(self._settler),
            suspects=self._settler.suspects,
            max_deliveries=options.max_deliveries,
        )
        self._steal_pause.heard()
        self._backoff.reset()
        self._signals.serving.set()
        return claim

    async def _wait_out(self, error: FairqueError) -> None:
        logger.warning("cannot claim, trying again: %s", error)
        await self._signals.sleep(self._backoff.next())
        self._steal_pause.silent()  # after the sleep: it is to last from the end of the outage on

    def _is_done(self, claim: Claim) -> bool:
        """Nothing came, nothing is due, nothing runs, and no message came since: reports may have made more work."""
        is_idle = not (claim.deliveries or len(self._runner) or len(self._settler) or self._signals.is_woken)
        return self._signals.until_idle and is_idle and claim.sleep != 0

    def _nap(self, claim: Claim) -> float:
        """Seconds to sleep unless a message comes."""
        sleep = self._options.poll_interval if claim.sleep is None else min(claim.sleep, self._options.poll_interval)
        pause = self._steal_pause.left
        if pause:
            sleep = min(sleep, pause)
        return max(sleep, SHORTEST_SLEEP)
