"""`QueueMetrics`: how a queue is, read from Redis for all who ask."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

from fairque import Demand, FairqueError, QueueHealth, Share, TaskQueue, UserInfo
from fairque.checks import Duration, check_count, check_kind, check_seconds
from fairque.contrib.prometheus.catalogue import QUEUE
from fairque.contrib.prometheus.exposition import rendered
from fairque.contrib.prometheus.figures import Figures
from fairque.queue.shares import is_starved, look_at_shares

__all__ = ["QueueMetrics"]

logger = logging.getLogger("fairque.prometheus")
MOST_COMPARED = 1000
SILENT_SECONDS = 35.0
"""Two heartbeats of an idle worker, and some more."""


class QueueMetrics:
    """The metrics of a queue. One process is to tell them, as the numbers of several would be added up.

    They are read when somebody asks, at most once in `max_age`, and all who ask meanwhile are told the same.

    Args:
        queue: It is open, or opened by the first call.
        target_wait: Of `fairque_slots_needed`: seconds within which all that waits should have started, or a timedelta.
        top_users: Users that have labels, those that got the most lately; 0 to 100.
        max_age: Seconds for which what was read is told, or a timedelta.
        timeout: Seconds that a read may take, or a timedelta. What is not there by then is left out, and `fairque_up`
            is 0.

    Raises:
        InvalidInput: An argument breaks a rule.
    """

    def __init__(
        self,
        queue: TaskQueue,
        *,
        target_wait: Duration = 30.0,
        top_users: int = 0,
        max_age: Duration = 1.0,
        timeout: Duration = 2.0,
    ) -> None:
        self._queue = check_kind("queue", queue, TaskQueue)
        self._target_wait = check_seconds("target_wait", target_wait, least=0.001)
        self._top_users = check_count("top_users", top_users, 0, 100)
        self._max_age = check_seconds("max_age", max_age)
        self._timeout = check_seconds("timeout", timeout, least=0.001)
        self._reading: asyncio.Task[bytes] | None = None
        self._read_at = 0.0

    async def render(self) -> bytes:
        """In the text format of Prometheus, within `timeout`, whatever becomes of Redis."""
        reading = self._reading
        if reading is None or self._is_over(reading):
            reading = self._reading = asyncio.create_task(self._read(), name="fairque-metrics")
        return await asyncio.shield(reading)

    def _is_over(self, reading: asyncio.Task[bytes]) -> bool:
        if reading.get_loop() is not asyncio.get_running_loop():
            return True
        failed = reading.done() and (reading.cancelled() or reading.exception() is not None)
        return failed or (reading.done() and time.monotonic() - self._read_at >= self._max_age)

    async def _read(self) -> bytes:
        figures = Figures(QUEUE)
        parts: list[Callable[[Figures], Awaitable[None]]] = [self._read_health, self._read_demand, self._read_users]
        reads = [asyncio.create_task(self._guarded(part, figures), name="fairque-metrics-part") for part in parts]
        try:
            done, late = await asyncio.wait(reads, timeout=self._timeout)
        finally:
            for read in reads:
                read.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.gather(*late, return_exceptions=True)
        if late:
            logger.warning("Redis did not tell the metrics of queue %r in time", self._queue.name)
        is_up = not late and all(read.result() for read in done)
        figures.set("fairque_up", (self._queue.name,), is_up)
        self._read_at = time.monotonic()
        return rendered(figures)

    async def _guarded(self, part: Callable[[Figures], Awaitable[None]], figures: Figures) -> bool:
        """Whether it was read. What goes wrong with one part keeps nothing from the others."""
        try:
            await part(figures)
        except FairqueError as exc:
            logger.warning("some metrics of queue %r cannot be read: %s", self._queue.name, exc)
            return False
        return True

    async def _read_health(self, figures: Figures) -> None:
        health, queue = await self._queue.health(), self._queue.name
        for state in ("queued", "started", "scheduled", "deferred"):
            figures.set("fairque_queue_depth", (queue, state), getattr(health.stats, state))
        for name, value in {
            "fairque_queue_latency_seconds": health.longest_wait,
            "fairque_tasks_late_seconds": health.late,
            "fairque_schedules_late_seconds": health.schedule_late,
            "fairque_dead_letters": health.dead_letters,
            "fairque_dead_letters_blocking": health.blocking,
        }.items():
            figures.set(name, (queue,), value)
        silent = _silent_workers(health)
        figures.set("fairque_workers", (queue, "silent"), silent)
        figures.set("fairque_workers", (queue, "alive"), len(health.stats.workers) - silent)

    async def _read_demand(self, figures: Figures) -> None:
        demand: Demand = await self._queue.demand(target_wait=self._target_wait)
        figures.set("fairque_slots_needed", (self._queue.name,), demand.slots_needed)

    async def _read_users(self, figures: Figures) -> None:
        users = {user.user_id: user for user in await self._queue.users(limit=MOST_COMPARED)}
        stats, queue = await self._queue.stats(), self._queue.name
        shares = await look_at_shares(self._queue.reader, list(users.values()), stats)
        figures.set("fairque_share_jain", (queue,), shares.jain)
        starved = sum(is_starved(users[share.user_id], share) for share in shares.users)
        figures.set("fairque_users_starved", (queue,), starved)
        most = sorted(shares.users, key=lambda share: share.share, reverse=True)[: self._top_users]
        for share in most:
            self._set_user(figures, share, users[share.user_id])

    def _set_user(self, figures: Figures, share: Share, user: UserInfo) -> None:
        labels = (self._queue.name, user.user_id)
        figures.set("fairque_user_share", labels, share.share)
        figures.set("fairque_user_entitled_share", labels, share.entitled)
        figures.set("fairque_user_queued", labels, user.queued)


def _silent_workers(health: QueueHealth) -> int:
    return sum(health.stats.at - worker.seen_at >= SILENT_SECONDS for worker in health.stats.workers)
