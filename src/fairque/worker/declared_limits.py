"""The limits that the code of a worker declares: told at the start, and again whenever a module is imported later."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

from fairque.backoff import Backoff
from fairque.errors import FairqueError
from fairque.limit import Limit
from fairque.redis.store import Store
from fairque.tasks.function import TaskFunction
from fairque.tasks.limits import declared_limits, has_limits
from fairque.tasks.registry import newest, registry
from fairque.worker.signals import Signals

__all__ = ["LimitDeclarations"]

logger = logging.getLogger("fairque.worker")
BATCH = 500
SOON = 1.0
"""Seconds for which all partitions are waited for."""


class LimitDeclarations:
    """What the code says of limits holds for every worker before this one claims.

    Args:
        signals: Of the worker: woken when it may claim again.
    """

    def __init__(self, signals: Signals) -> None:
        self._signals = signals
        self._newest: TaskFunction[Any, Any] | None = None  # that was registered by then
        self._told: dict[str, TaskFunction[Any, Any]] = {}
        self._is_outdated = asyncio.Event()
        self._telling: dict[int, asyncio.Task[None]] = {}

    async def tell(self, store: Store, sleep: Callable[[float], Awaitable[object]]) -> None:
        """All of them. Outages are waited out; of some partitions only, for a moment: see `is_untold`."""
        latest, functions, limits = newest(), dict(registry), declared_limits()
        parts = store.parts
        if len(parts) == 1:
            await self._tell(store, limits, sleep)
        else:
            await self._tell_apart(parts, limits)
        self._newest, self._told = latest, functions

    async def _tell(
        self, store: Store, limits: list[tuple[str, Limit | None]], sleep: Callable[[float], Awaitable[object]]
    ) -> None:
        left, backoff = list(limits), Backoff()
        while left and not self._signals.stopping:
            try:
                await store.set_limits(left[:BATCH], declared=True)
            except FairqueError as exc:
                logger.warning("cannot declare the limits of tasks, trying again: %s", exc)
                await sleep(backoff.next())
            else:
                del left[:BATCH]

    async def _tell_apart(self, parts: Sequence[Store], limits: list[tuple[str, Limit | None]]) -> None:
        """What does not answer soon is told later, and not served before that."""
        for telling in self._telling.values():
            telling.cancel()
        self._telling = {
            at: asyncio.create_task(self._tell(part, limits, asyncio.sleep)) for at, part in enumerate(parts)
        }
        for at, telling in self._telling.items():
            telling.add_done_callback(partial(self._told_one, at))
        done, _ = await asyncio.wait(self._telling.values(), timeout=SOON)
        for telling in done:
            telling.result()

    def _told_one(self, partition: int, telling: asyncio.Task[None]) -> None:
        if self._telling.get(partition) is telling and not telling.cancelled() and telling.exception() is None:
            del self._telling[partition]
            self._signals.wake()

    def is_untold(self, partition: int) -> bool:
        """Whether one of several partitions does not know them yet: nothing is claimed there."""
        return partition in self._telling

    def stop(self) -> None:
        for telling in self._telling.values():
            telling.cancel()

    async def keep_telling(self, store: Store) -> None:
        """Until it is cancelled: those of modules that are imported while the worker runs."""
        while True:
            await self._is_outdated.wait()
            self._is_outdated.clear()
            await self.tell(store, asyncio.sleep)
            self._signals.wake()

    def are_told(self) -> bool:
        """Whether the worker may claim."""
        if self._newest is newest():
            return True
        self._is_outdated.set()
        return False

    def cover(self, function: TaskFunction[Any, Any] | None) -> bool:
        """False: a task of it was claimed without regard for a limit that it declares, as it was not known by then."""
        if function is None or self._newest is newest() or not has_limits(function):
            return True
        return self._told.get(function.name) is function
