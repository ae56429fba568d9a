"""Reports outcomes in batches, and keeps them for as long as Redis cannot take them."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable

import anyio

from fairque.errors import FairqueError, StoreError
from fairque.redis.delivery import Delivery, Outcome
from fairque.redis.store import Store

__all__ = ["Settler"]

logger = logging.getLogger("fairque.worker")
BATCH = 500
LONGEST_PAUSE = 2.0
# While many tasks run a report waits a moment for company. Tuned with the bench.
COMPANY_PAUSE = 0.001


class Settler:
    """Everything this worker was handed and has not reported yet.

    Args:
        store: A connection of its own.
        worker_id: Who reports.
        few: Fewer outcomes than this wait for company while `busy`.
        busy: Whether tasks are running.
        refused: Told of an outcome that came too late: another worker has the task.
        settled: Called after each report.
    """

    def __init__(
        self,
        store: Store,
        worker_id: str,
        *,
        few: int,
        busy: Callable[[], bool],
        refused: Callable[[Delivery], None],
        settled: Callable[[], None],
    ) -> None:
        self._store = store
        self._worker_id = worker_id
        self._few = few
        self._busy = busy
        self._refused = refused
        self._settled = settled
        self._held: dict[int, Delivery] = {}
        self._outcomes: list[Outcome] = []
        self._most = BATCH
        self._something = asyncio.Event()

    def __len__(self) -> int:
        """Deliveries that are running or not reported yet."""
        return len(self._held)

    @property
    def unreported(self) -> int:
        return len(self._outcomes)

    def held(self) -> list[Delivery]:
        """What needs renewal. Safe to call from another thread."""
        return list(self._held.values())

    def hold(self, delivery: Delivery) -> None:
        self._held[id(delivery)] = delivery

    def forget(self, delivery: Delivery) -> None:
        """Another worker has it: there is nothing to report."""
        self._held.pop(id(delivery), None)

    def report(self, outcome: Outcome) -> None:
        self._outcomes.append(outcome)
        self._something.set()

    async def run(self) -> None:
        pause = 0.05
        while True:
            await self._something.wait()
            if self._busy() and len(self._outcomes) < self._few:
                await anyio.sleep(COMPANY_PAUSE)
            batch = self._outcomes[: self._most]
            try:
                answers = await self._store.settle(self._worker_id, batch)
            except FairqueError as exc:
                logger.warning("cannot report %d outcomes, keeping them: %s", len(self._outcomes), exc)
                if isinstance(exc, StoreError):
                    self._isolate(batch)
                await anyio.sleep(pause * (0.5 + random.random()))
                pause = min(LONGEST_PAUSE, pause * 2)
                continue
            pause = 0.05
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
            self._held.pop(id(outcome.delivery), None)
            if not accepted:
                self._refused(outcome.delivery)
        self._settled()
