"""`Ruling`: brings what governs all users to partitions that do not have the latest of it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from fairque.errors import FairqueError
from fairque.redis.delivery import Heads
from fairque.redis.store import Store
from fairque.worker.declared_limits import LimitDeclarations

__all__ = ["Ruling"]

logger = logging.getLogger("fairque.worker")


class Ruling:
    """Knows the latest revision that any partition told, which claims carry: one that was away while something was
    changed serves nothing by what held before.

    Args:
        parts: The partitions of a queue.
        limits: What the code of this worker declares, the last change that it made.
    """

    def __init__(self, parts: Sequence[Store], limits: LimitDeclarations) -> None:
        self._parts = parts
        self._limits = limits
        self._latest, self._source = 0, 0
        self._calls: dict[int, asyncio.Task[None]] = {}

    @property
    def latest(self) -> int:
        return max(self._latest, self._limits.revision)

    def told(self, partition: int, heads: Heads) -> None:
        """What a claim or a look brought home."""
        if heads.revision > self._latest:
            self._latest, self._source = heads.revision, partition
        if heads.revision < self.latest:
            self.bring(partition)

    def bring(self, partition: int) -> None:
        """Have it take over what it lacks."""
        if partition not in self._calls:
            self._calls[partition] = asyncio.create_task(self._bring(partition))

    async def stop(self) -> None:
        calls = list(self._calls.values())
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)

    async def _bring(self, partition: int) -> None:
        source = self._source if self._latest >= self._limits.revision else 0
        try:
            await self._parts[partition].follow(await self._parts[source].rulebook())
        except FairqueError as exc:
            logger.warning("partition %d does not hear of new limits and policies, trying again: %s", partition, exc)
        finally:
            del self._calls[partition]
