"""`LastWill`: what a process whose event loop stands still tells its queue before it ends."""

from __future__ import annotations

import logging

from fairque.errors import FairqueError
from fairque.queue.queue import TaskQueue
from fairque.redis.arguments import Accuse, Values
from fairque.redis.blocking_call import call_blocking
from fairque.redis.delivery import Delivery
from fairque.redis.requester import BlockingRequester
from fairque.redis.store import report
from fairque.worker.settler import Settler

__all__ = ["LastWill"]

logger = logging.getLogger("fairque.worker")


class LastWill:
    """What has ended is reported. Where it is known whose task stands in the way, all others are put back, so that
    they run elsewhere at once and are not suspected; that one is left to its lease, and its death counts.

    Called from a thread, while the loop stands still.

    Args:
        queue: It is open.
        worker_id: Of the worker that ends.
        settler: Has its deliveries and outcomes.
    """

    def __init__(self, queue: TaskQueue, worker_id: str, settler: Settler) -> None:
        self._keys = queue.keys
        self._settings = queue.settings
        self._worker_id = worker_id
        self._settler = settler

    def execute(self, requester: BlockingRequester, culprit: Delivery | None) -> None:
        """What cannot be told is left to the leases."""
        try:
            self._accuse(requester, culprit)
            for outcomes in self._settler.last_outcomes(culprit):
                values = Values()
                told = report(self._settings, self._worker_id, outcomes, values)
                call_blocking(requester, self._keys, told, values)
        except FairqueError as exc:
            logger.warning("what ran here is left to its leases: %s", exc)

    def _accuse(self, requester: BlockingRequester, culprit: Delivery | None) -> None:
        if culprit is None:
            return
        of = culprit
        accused = Accuse(self._worker_id, of.lane.decode(), of.user.decode(), of.id, of.stream_id.decode(), of.attempt)
        call_blocking(requester, self._keys, accused)
