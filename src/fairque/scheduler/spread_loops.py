"""`SpreadLoops`: fires the schedules of all partitions of a queue."""

from __future__ import annotations

import logging

import anyio

from fairque.errors import FairqueError
from fairque.queue.queue import TaskQueue
from fairque.redis.store import Store
from fairque.redis.store_schedules import ScheduleStore
from fairque.scheduler.declarations import Declarations
from fairque.scheduler.loop import DECLARE_SECONDS, ScheduleLoop

__all__ = ["SpreadLoops"]

logger = logging.getLogger("fairque.scheduler")


class SpreadLoops:
    """A loop for each partition: one that does not answer holds up no schedule of the others.

    Args:
        queue: An open queue.
        store: Of the queue.
        declarations: What the code of this process declares.
        name: Of the scheduler.
        is_watched: See `ScheduleLoop`.
    """

    def __init__(
        self, queue: TaskQueue, store: Store, declarations: Declarations, name: str, *, is_watched: bool
    ) -> None:
        self._queue = queue
        self._declarations = declarations
        self._stopping = anyio.Event()
        self._loops = [
            ScheduleLoop(*(queue, ScheduleStore(part), None, part.keys.schedules_channel, name), is_watched=is_watched)
            for part in store.parts
        ]

    async def run(self) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(self._declare)
            for loop in self._loops:
                group.start_soon(loop.run)

    def stop(self) -> None:
        self._stopping.set()
        for loop in self._loops:
            loop.stop()

    def look(self, partition: int = 0) -> None:
        self._loops[partition].look()

    async def fire_due(self, ahead_ms: int) -> int:
        return sum([await loop.fire_due(ahead_ms) for loop in self._loops])

    async def _declare(self) -> None:
        """Now and then, until it stops. What cannot be told is told the next time."""
        while not self._stopping.is_set() and not self._queue.connector.is_closed:
            try:
                await self._declarations.declare()
            except FairqueError as exc:
                logger.warning("cannot declare schedules, trying again: %s", exc)
            with anyio.move_on_after(DECLARE_SECONDS):
                await self._stopping.wait()
