"""The limits that the code of a worker declares: told at the start, and again whenever a module is imported later."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from fairque.backoff import Backoff
from fairque.errors import FairqueError
from fairque.limit import Limit
from fairque.redis.dividing import of_those_there
from fairque.redis.store import Store
from fairque.tasks.function import TaskFunction
from fairque.tasks.limits import declared_limits, has_limits
from fairque.tasks.registry import newest, registry
from fairque.worker.signals import Signals

__all__ = ["LimitDeclarations"]

logger = logging.getLogger("fairque.worker")
BATCH = 500


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
        self.revision = 0
        """Of what governs all users of a queue with partitions, when they had been told."""

    async def tell(self, store: Store, sleep: Callable[[float], Awaitable[object]]) -> None:
        """All of them. Outages are waited out: of a queue with partitions that of the first one, if there is news."""
        latest, functions, limits = newest(), dict(registry), declared_limits()
        parts = store.parts
        if len(parts) == 1:
            await self._tell(store, limits, sleep)
        else:
            await self._number(parts, limits, sleep)
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

    async def _number(
        self,
        parts: Sequence[Store],
        limits: list[tuple[str, Limit | None]],
        sleep: Callable[[float], Awaitable[object]],
    ) -> None:
        """The first partition numbers what is new. Others are brought it before something is claimed there. What is not
        new they tell as well: a first one that is gone keeps nobody from the users of others.
        """
        left, backoff = list(limits), Backoff()
        while left and not self._signals.stopping:
            try:
                self.revision = await parts[0].declare_limits(left[:BATCH])
            except FairqueError as exc:
                if await self._is_known(parts[1:], left):
                    return
                logger.warning("cannot declare the limits of tasks, trying again: %s", exc)
                await sleep(backoff.next())
            else:
                del left[:BATCH]

    async def _is_known(self, parts: Sequence[Store], limits: list[tuple[str, Limit | None]]) -> bool:
        """By the code of a worker before this one."""
        try:
            told = await of_those_there(parts, lambda part: part.revision_with(limits))
        except FairqueError:
            return False
        found = [revision for revision in told if revision is not None]
        self.revision = max(found, default=self.revision)
        return bool(found)

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
