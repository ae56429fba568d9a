"""`Parts`: what a worker is made of while it runs, and how its parts are wired."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

import anyio

from fairque.errors import FairqueError
from fairque.queue.queue import TaskQueue
from fairque.redis.store import Store
from fairque.scheduler.scheduler import TaskScheduler
from fairque.worker.claimer import Claimer
from fairque.worker.declared_limits import LimitDeclarations
from fairque.worker.desk import Desk
from fairque.worker.executor import Executor
from fairque.worker.forsaken import ForsakenMoves
from fairque.worker.hooks import Hooks
from fairque.worker.inbox import Inbox
from fairque.worker.inputs import Inputs
from fairque.worker.lending import Lending
from fairque.worker.lifespan import Lifespan
from fairque.worker.options import WorkerOptions
from fairque.worker.outcomes import Outcomes
from fairque.worker.progress import Progress
from fairque.worker.renewal import Renewal
from fairque.worker.ruling import Ruling
from fairque.worker.run_times import MOST_NAMES, RunTimes
from fairque.worker.runner import Runner
from fairque.worker.settler import Settler
from fairque.worker.settlers import Settlers
from fairque.worker.signals import Signals
from fairque.worker.spread_turns import SpreadTurns
from fairque.worker.steal_pause import StealPause
from fairque.worker.streams import Streams
from fairque.worker.turns import Turns
from fairque.worker.worker_stats import WorkerStats

__all__ = ["Parts"]

logger = logging.getLogger("fairque.worker")
LISTENING_SECONDS = 1.0


class Parts:
    """Made once the settings of the queue are known, on the loop that runs the worker.

    Args:
        queue: It has agreed on its settings.
        options: Of the worker.
        signals: Of the worker.
        limits: Of its code; those that were known so far have been told.
        lifespan: It is open.
        store: The connection that claims and reports; it is closed with the parts.
    """

    def __init__(
        self,
        queue: TaskQueue,
        options: WorkerOptions,
        signals: Signals,
        limits: LimitDeclarations,
        lifespan: Lifespan[Any],
        store: Store,
    ) -> None:
        settings, timeout = queue.settings, queue.connector.timeout
        self._worker_id, self._groups, self._concurrency = options.worker_id, options.groups, options.concurrency
        self._store, self._limits = store, limits
        self._services = queue.store(patience=timeout)  # what running tasks ask for
        self.hooks = Hooks(options.hooks, queue.name)
        self._stores = store.parts
        settlers = [Settler(self.hooks, signals, settings.lease_ms / 1000) for _ in self._stores]
        self.settler = settlers[0] if len(settlers) == 1 else Settlers(settlers, store.places)
        self.progress = Progress(self._services)
        self._chunks = queue.store(patience=timeout)
        self._forsaken = ForsakenMoves(self._services)
        self._streams = Streams(self._chunks, options.worker_id)
        inputs = Inputs(self._services)
        self._executor = executor = Executor(options, queue, inputs, self.progress, lifespan, self._streams)
        outcomes = Outcomes(options.worker_id, settings, queue.sealer)
        most_names = 0 if settings.fairness == "time" else MOST_NAMES  # there they come with the outcomes
        run_times = [RunTimes(most_names) for _ in self._stores]
        services = self._services.parts
        self.runner = Runner(
            *(executor, outcomes, self.settler, self.hooks, options, signals, limits, services, run_times)
        )
        backends = [each.backend for each in self._stores]
        self.renewal = Renewal(queue, backends, options, settlers, self.runner, run_times, signals)
        pauses = [StealPause(settings.lease_ms, timeout, self.renewal.watch) for _ in self._stores]
        self.turns: Turns | SpreadTurns
        self._lending: Lending | None = None
        self._ruling: Ruling | None = None
        on_work: list[Callable[[], None]] = [lambda: None]
        on_answer: list[Callable[[bytes], None]] = []  # where claims rest
        if isinstance(self.settler, Settlers):
            self._lending = Lending(self._stores)
            self._ruling = Ruling(self._stores, limits)
            more = (self._lending, self._ruling, self._forsaken.note)
            desks = [
                Desk(at, part, options, settlers[at], self.settler, self.runner, pauses[at], signals, *more)
                for at, part in enumerate(self._stores)
            ]
            self.turns = spread = SpreadTurns(desks, options, self.runner, self.settler, limits, signals)
            on_work = [desk.call for desk in desks]
            self.renewal.fleet = lambda: spread.workers
        else:
            claimer = Claimer(options, self.runner, self.settler, pauses[0], limits, signals)
            self.turns = turns = Turns(store, options, self.settler, claimer, signals)
            on_answer = [turns.answered]
        self._inboxes = [
            Inbox(queue.listener, backend, options.worker_id, self.runner, pause, signals, called, *on_answer)
            for backend, pause, called in zip(backends, pauses, on_work, strict=True)
        ]
        self._signals = signals
        self._is_closed = False
        self._scheduler = TaskScheduler(queue, is_watched=True) if options.scheduler else None
        self.renewal.scheduler = self._scheduler

    def stats(self) -> WorkerStats:
        busy = 0 if self._is_closed else len(self.runner)
        return WorkerStats(
            slots=busy if self._is_closed or self._signals.stopping else self._concurrency,
            busy=busy,
            claim_errors=sum(self.turns.errors),
            claim_errors_by_partition=self.turns.errors,
            stolen=self.settler.stolen,
        )

    def loops(self) -> list[Callable[[], Coroutine[Any, Any, None]]]:
        """What runs until it is cancelled."""
        loops: list[Callable[[], Coroutine[Any, Any, None]]] = [
            *(inbox.run for inbox in self._inboxes),
            self._take_turns,
            self._tell_limits,
        ]
        return [*loops, self._scheduler.run] if self._scheduler is not None else loops

    async def _tell_limits(self) -> None:
        await self._limits.keep_telling(self._services)

    async def _take_turns(self) -> None:
        """Once it listens and is listed, if that is soon.

        Else a task that is canceled as it starts hears of it by its renewal, and a monitor sees tasks run on no worker.
        """
        with anyio.move_on_after(LISTENING_SECONDS):
            for inbox in self._inboxes:
                await inbox.has_tried.wait()
            await self.renewal.has_tried.wait()
        await self.turns.run()

    async def _say_goodbye(self) -> None:
        await asyncio.gather(*map(self._leave, self._stores))

    async def _leave(self, store: Store) -> None:
        try:
            await store.leave(self._worker_id, self._groups)
        except FairqueError as exc:
            logger.warning("could not say goodbye: %s", exc)

    async def close(self) -> None:
        """Say goodbye, where nothing is to be reported any more: else this worker is one that fell silent."""
        self._is_closed = True
        if self._lending is not None:
            await self._lending.stop()
        if self._ruling is not None:
            await self._ruling.stop()
        await self._executor.close()
        await self.renewal.stop()
        await self.progress.stop()
        await self._streams.stop()
        await self._forsaken.stop()
        if not self.settler.holds:
            await self._say_goodbye()
        for store in (self._store, self._services, self._chunks):
            await store.close()
        await self.hooks.drain(1.0)
