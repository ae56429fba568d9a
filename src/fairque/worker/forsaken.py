"""`ForsakenMoves`: goes on with moves of users between partitions whose movers fell silent."""

from __future__ import annotations

import asyncio
import logging

from fairque.errors import FairqueError
from fairque.redis.store import Store
from fairque.transfer.moving import finish_moves

__all__ = ["ForsakenMoves"]

logger = logging.getLogger("fairque.worker")


class ForsakenMoves:
    """At most one call of each partition at a time; who is told of a move first sees to it, others pass it over.

    Args:
        store: Of the queue.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._going_on: dict[int, asyncio.Task[None]] = {}

    def note(self, partition: int) -> None:
        """There is one."""
        if partition not in self._going_on:
            self._going_on[partition] = going_on = asyncio.create_task(self._go_on(partition), name="fairque-moves")
            going_on.add_done_callback(lambda _: self._going_on.pop(partition))

    async def _go_on(self, partition: int) -> None:
        try:
            while await finish_moves(self._store, partition):
                pass
        except FairqueError as exc:
            logger.warning("cannot go on with a move in partition %d, somebody tries again: %s", partition, exc)

    async def stop(self) -> None:
        left = list(self._going_on.values())
        for going_on in left:
            going_on.cancel()
        if left:
            await asyncio.wait(left)
