"""`QueueReader`: reads the metrics of one queue."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

from fairque import FairqueError, QueueUnavailable, Share, TaskQueue, UserInfo
from fairque.contrib.prometheus.catalogue import partition_label
from fairque.contrib.prometheus.figures import Figures
from fairque.queue.shares import is_starved, look_at_shares
from fairque.redis.missing import note_missing, noting_missing
from fairque.redis.store import Store

__all__ = ["QueueReader"]

logger = logging.getLogger("fairque.prometheus")
MOST_RECENT, MOST_WAITING = 500, 200
"""Users that are compared: those active last, and those that wait with the lowest and the highest tags. So whoever
comes with many users hides nobody who has had the least.
"""


class QueueReader:
    """What goes wrong with one part of what it reads keeps nothing from the others.

    Args:
        queue: Whose metrics they are.
        target_wait: Seconds, of `fairque_slots_needed`.
        top_users: How many users have labels.
    """

    def __init__(self, queue: TaskQueue, target_wait: float, top_users: int) -> None:
        self._queue = queue
        self._name = queue.name
        self._target_wait = target_wait
        self._top_users = top_users

    async def read(self, figures: Figures, seconds: float) -> None:
        """Into `figures`, what is there within so many seconds. What lacks a partition was not read."""
        parts = [
            *(self._read_health(figures), self._read_demand(figures), self._read_shares(figures)),
            self._read_partitions(figures),
        ]
        reads = [asyncio.create_task(self._was_read(part), name="fairque-metrics-part") for part in parts]
        try:
            done, late = await asyncio.wait(reads, timeout=seconds)
        finally:
            for read in reads:
                read.cancel()
        if late:
            await asyncio.wait(late)
            logger.warning("Redis did not tell the metrics of queue %r within %g s", self._name, seconds)
        were_read = [read.result() for read in done]
        figures.set("fairque_up", (self._name,), not late and all(were_read))

    async def _was_read(self, part: Coroutine[Any, Any, None]) -> bool:
        try:
            with noting_missing() as missing:
                await part
        except FairqueError as exc:
            logger.warning("some metrics of queue %r cannot be read: %s", self._name, exc)
            return False
        except Exception:  # a page with what there is tells more than none
            logger.exception("some metrics of queue %r cannot be read", self._name)
            return False
        return not missing.numbers

    async def _read_health(self, figures: Figures) -> None:
        health = await self._queue.health()
        for name, value in {
            "fairque_queue_latency_seconds": health.longest_wait,
            "fairque_tasks_late_seconds": health.late,
            "fairque_schedules_late_seconds": health.schedule_late,
            "fairque_dead_letters": health.dead_letters,
            "fairque_dead_letters_blocking": health.blocking,
        }.items():
            figures.set(name, (self._name,), value)
        silent = len(health.stats.silent)
        figures.set("fairque_workers", (self._name, "silent"), silent)
        figures.set("fairque_workers", (self._name, "alive"), len(health.stats.workers) - silent)

    async def _read_partitions(self, figures: Figures) -> None:
        """Each by itself: one that says nothing keeps those of others from nobody."""
        await self._queue.reader.agree(store=False)
        parts = self._queue.reader.parts
        if len(parts) > 1:
            for part in parts:
                figures.set("fairque_partition_up", (self._name, str(part.number)), 0)
        await asyncio.gather(*(self._read_partition(figures, part, len(parts)) for part in parts))

    async def _read_partition(self, figures: Figures, part: Store, count: int) -> None:
        try:
            stats = await part.stats()
        except QueueUnavailable:
            if count == 1:
                raise
            note_missing((part.number,))
            return
        label = partition_label(part.number, count)
        for state in ("queued", "started", "scheduled", "deferred"):
            figures.set("fairque_queue_depth", (self._name, label, state), getattr(stats, state))
        if count > 1:
            figures.set("fairque_partition_up", (self._name, label), 1)

    async def _read_demand(self, figures: Figures) -> None:
        demand = await self._queue.demand(target_wait=self._target_wait)
        figures.set("fairque_slots_needed", (self._name,), demand.slots_needed)

    async def _read_shares(self, figures: Figures) -> None:
        stats, recent, waiting = await asyncio.gather(
            self._queue.stats(), self._queue.users(limit=MOST_RECENT), self._queue.active_users(limit=MOST_WAITING)
        )
        users = {user.user_id: user for user in (*recent, *waiting)}
        shares = await look_at_shares(self._queue.reader, list(users.values()), stats)
        figures.set("fairque_share_jain", (self._name,), shares.jain)
        starved = sum(is_starved(users[share.user_id], share) for share in shares.users)
        figures.set("fairque_users_starved", (self._name,), starved)
        most = sorted(shares.users, key=lambda share: share.share, reverse=True)[: self._top_users]
        for share in most:
            self._set_user(figures, share, users[share.user_id])

    def _set_user(self, figures: Figures, share: Share, user: UserInfo) -> None:
        labels = (self._name, user.user_id)
        figures.set("fairque_user_share", labels, share.share)
        figures.set("fairque_user_entitled_share", labels, share.entitled)
        figures.set("fairque_user_queued", labels, user.queued)
