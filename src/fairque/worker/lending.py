"""`Lending`: moves places of limits over all users to the partitions in which tasks wait for them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from fairque.errors import FairqueError
from fairque.redis.arguments import Ask, Told
from fairque.redis.delivery import Heads
from fairque.redis.store import Store
from fairque.redis.store_loans import Tells

__all__ = ["Lending"]

logger = logging.getLogger("fairque.worker")
KEYS = 100
"""In one call."""
STEPS = 20
"""Until others of this process have their turn."""


class Lending:
    """Carries what partitions have to ask the homes of keys, and what those tell. A worker that claims, or looks, is
    told where there is something; so places move as soon as tasks wait, and nobody polls.

    Any number of workers may do it at once, and die at it at any step: what is carried says how things stand, and tells
    nothing new when it comes late or twice. Whoever comes next goes on.

    Args:
        parts: The partitions of a queue.
    """

    def __init__(self, parts: Sequence[Store]) -> None:
        self._parts = parts
        self._due: dict[int, None] = {}
        self._calls: dict[int, asyncio.Task[None]] = {}

    def told(self, partition: int, heads: Heads) -> None:
        """What a claim or a look brought home."""
        if heads.exchange_ms == 0:
            self._begin(partition)

    async def stop(self) -> None:
        calls = list(self._calls.values())
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)

    def _begin(self, partition: int) -> None:
        """Or once more, where it is under way."""
        self._due[partition] = None
        if partition not in self._calls:
            self._calls[partition] = asyncio.create_task(self._run(partition))

    async def _run(self, partition: int) -> None:
        try:
            for _ in range(STEPS):
                if partition not in self._due:
                    break
                del self._due[partition]
                await self._exchange(partition)
        except FairqueError as exc:
            logger.debug("places of limits in partition %d are not moved: %s", partition, exc)
        finally:
            del self._calls[partition]
            self._due.pop(partition, None)

    async def _exchange(self, partition: int) -> None:
        found = await self._parts[partition].exchange(KEYS)
        asked = (self._ask(partition, found.at_us, home, asks) for home, asks in found.asks.items())
        await asyncio.gather(self._tell(found.tells), *asked)
        if sum(map(len, found.asks.values())) >= KEYS:
            self._due[partition] = None

    async def _ask(self, partition: int, at_us: float, home: int, asks: list[Ask]) -> None:
        try:
            tells = await self._parts[home].lend(partition, at_us, asks)
        except FairqueError as exc:
            logger.debug("partition %d lends no places: %s", home, exc)
        else:
            await self._tell(tells)

    async def _tell(self, tells: Tells) -> None:
        await asyncio.gather(*(self._accept(partition, told) for partition, told in tells.items()))

    async def _accept(self, partition: int, told: list[Told]) -> None:
        try:
            if await self._parts[partition].accept(told):
                self._begin(partition)
        except FairqueError as exc:
            logger.debug("partition %d does not hear of its places: %s", partition, exc)
