"""`LastWill`: what a process whose event loop stands still tells its queue before it ends."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from functools import partial

from fairque.backoff import Backoff
from fairque.errors import FairqueError, QueueUnavailable
from fairque.redis.arguments import Accuse, Arguments, Values
from fairque.redis.blocking_call import call_blocking
from fairque.redis.delivery import Delivery
from fairque.redis.keys import Keys
from fairque.redis.requester import BlockingRequester
from fairque.redis.store import report
from fairque.settings import QueueSettings
from fairque.worker.settler import Settler

__all__ = ["PATIENCE_SECONDS", "LastWill"]

logger = logging.getLogger("fairque.worker")
PATIENCE_SECONDS = 60.0


class LastWill:
    """What has ended is reported. Where it is known whose task stands in the way, all others are put back, so that
    they run elsewhere at once and are not suspected; that one is left to its lease, and its death counts.

    Called from a thread, while the loop stands still.

    Args:
        keys: Of the queue, or of one partition.
        settings: Of the queue.
        worker_id: Of the worker that ends.
        settler: Has its deliveries and outcomes.
    """

    def __init__(self, keys: Keys, settings: QueueSettings, worker_id: str, settler: Settler) -> None:
        self._keys = keys
        self._settings = settings
        self._worker_id = worker_id
        self._settler = settler

    def execute(self, requester: BlockingRequester, culprit: Delivery | None) -> None:
        """Through an outage it is tried again, for a minute. What cannot be told is left to the leases."""
        until = time.monotonic() + PATIENCE_SECONDS
        try:
            for told, values in self._statements(culprit):
                self._insist(partial(call_blocking, requester, self._keys, told, values), until)
        except QueueUnavailable as exc:
            logger.warning("what ran here is left to its leases: %s", exc)

    def _statements(self, culprit: Delivery | None) -> Iterator[tuple[Arguments, Values]]:
        if (of := culprit) is not None and of in self._settler.held():  # else it is of another partition
            place = of.lane.decode(), of.user.decode(), of.id, of.stream_id.decode(), of.attempt
            yield Accuse(self._worker_id, *place), Values()
        for outcomes in self._settler.last_outcomes(culprit):
            values = Values()
            yield report(self._settings, self._worker_id, outcomes, values), values

    def _insist(self, tell: Callable[[], object], until: float) -> None:
        """Each of them may be said twice. One that Redis refuses keeps nothing from the others."""
        backoff = Backoff()
        while True:
            try:
                tell()
            except QueueUnavailable as exc:
                pause = backoff.next()
                if time.monotonic() + pause > until:
                    raise
                logger.warning("cannot tell what ran here, trying again: %s", exc)
                time.sleep(pause)
            except FairqueError as exc:
                logger.warning("some of what ran here is left to its leases: %s", exc)
                return
            else:
                return
