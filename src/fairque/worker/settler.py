"""`Settler`: reports outcomes in batches, and keeps them for as long as Redis cannot take them."""

from __future__ import annotations

import asyncio
import logging
import time

import anyio

from fairque.backoff import Backoff
from fairque.errors import FairqueError, StoreError
from fairque.redis.delivery import Delivery, Outcome
from fairque.redis.store import Store
from fairque.worker.hooks import Hooks
from fairque.worker.options import WorkerOptions
from fairque.worker.signals import Signals

__all__ = ["Settler"]

logger = logging.getLogger("fairque.worker")
BATCH = 500
# While many tasks run a report waits a moment for company. Tuned with the bench.
COMPANY_PAUSE = 0.001


class Settler:
    """Everything this worker was handed and has not reported yet.

    Args:
        store: A connection of its own.
        options: Of the worker.
        hooks: Told of an outcome that came too late.
        signals: Told of each report.
    """

    def __init__(self, store: Store, options: WorkerOptions, hooks: Hooks, signals: Signals) -> None:
        self._store = store
        self._worker_id = options.worker_id
        self._few = options.concurrency // 2
        self._hooks = hooks
        self._signals = signals
        self._scope = anyio.CancelScope(shield=True)
        self._backoff = Backoff()
        self._held: dict[int, Delivery] = {}
        self._watched: dict[int, float] = {}
        self._alone: Delivery | None = None
        self._outcomes: list[Outcome] = []
        self._most = BATCH
        self._something = asyncio.Event()

    def __len__(self) -> int:
        """Deliveries that are running or not reported yet."""
        return len(self._held)

    @property
    def suspects(self) -> int:
        """Deliveries that were lost before, and have been here for less than a lease."""
        now = time.monotonic()
        return sum(until > now for until in self._watched.values())

    @property
    def has_one_alone(self) -> bool:
        """Whether something runs here that is to run beside nothing else."""
        return self._alone is not None

    @property
    def unreported(self) -> int:
        return len(self._outcomes)

    def held(self) -> list[Delivery]:
        """What needs renewal. Safe to call from another thread."""
        return list(self._held.values())

    def hold(self, delivery: Delivery) -> None:
        self._held[id(delivery)] = delivery
        if delivery.lost:
            self._watched[id(delivery)] = time.monotonic() + self._store.settings.lease_ms / 1000
        if delivery.alone:
            self._alone = delivery

    def forget(self, delivery: Delivery) -> None:
        """Another worker has it, or its outcome is known: there is nothing to report."""
        self._held.pop(id(delivery), None)
        self._watched.pop(id(delivery), None)
        if self._alone is delivery:
            self._alone = None

    def report(self, outcome: Outcome) -> None:
        if outcome.delivery is self._alone:  # now, as the end of its run wakes who claims
            self._alone = None
        self._outcomes.append(outcome)
        self._something.set()

    async def run(self) -> None:
        """Until `stop`, whatever is cancelled around it: what runs in a cancelled worker is still to be put back."""
        with self._scope:
            while True:
                await self._something.wait()
                if self._is_worth_waiting():
                    await anyio.sleep(COMPANY_PAUSE)
                await self._settle(self._outcomes[: self._most])

    def stop(self) -> None:
        self._scope.cancel()

    def _is_worth_waiting(self) -> bool:
        """Few outcomes, and tasks are running: not all that is held has one."""
        return len(self._outcomes) < self._few and len(self._held) > len(self._outcomes)

    async def _settle(self, batch: list[Outcome]) -> None:
        try:
            answers = await self._store.settle(self._worker_id, batch)
        except FairqueError as exc:
            logger.warning("cannot report %d outcomes, keeping them: %s", len(self._outcomes), exc)
            if isinstance(exc, StoreError):
                self._isolate(batch)
            await anyio.sleep(self._backoff.next())
            return
        self._backoff.reset()
        self._most = min(BATCH, self._most * 2)
        self._drop(batch, answers)

    def _isolate(self, batch: list[Outcome]) -> None:
        """Redis works and does not take it: one bad outcome must not keep the others here. It goes to the back."""
        self._most = 1
        if len(batch) == 1:
            self._outcomes.append(self._outcomes.pop(0))

    def _drop(self, batch: list[Outcome], answers: list[bool]) -> None:
        del self._outcomes[: len(batch)]
        if not self._outcomes:
            self._something.clear()
        for outcome, accepted in zip(batch, answers, strict=True):
            self.forget(outcome.delivery)
            if not accepted:
                self._refused(outcome.delivery)
        self._signals.reported()

    def _refused(self, delivery: Delivery) -> None:
        logger.warning("task %r of user %r: outcome refused, another worker has it", delivery.id, delivery.user_id)
        self._hooks.tell("lost", delivery, "", time.monotonic())
