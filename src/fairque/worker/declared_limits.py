"""The limits that the code of a worker declares for task names."""

from __future__ import annotations

import logging

from fairque.backoff import Backoff
from fairque.errors import FairqueError
from fairque.redis.store import Store
from fairque.tasks.limits import declared_limits
from fairque.worker.signals import Signals

__all__ = ["declare_limits"]

logger = logging.getLogger("fairque.worker")
BATCH = 500


async def declare_limits(store: Store, signals: Signals) -> None:
    """What the code says of task names holds for every worker, before this one claims. Outages are waited out."""
    limits = declared_limits()
    backoff = Backoff()
    while limits and not signals.stopping:
        try:
            await store.set_limits(limits[:BATCH], declared=True)
        except FairqueError as exc:
            logger.warning("cannot declare the limits of tasks, trying again: %s", exc)
            await signals.sleep(backoff.next())
        else:
            del limits[:BATCH]
