"""`SlotWatch`: whether every slot of a worker is taken by a task that waits for the end of another one."""

from __future__ import annotations

import logging
import time

from fairque.worker.runner import Runner

__all__ = ["SlotWatch"]

logger = logging.getLogger("fairque.worker")
PATIENCE_SECONDS = 5.0


class SlotWatch:
    """Warns once when that lasts: where no other worker has a free slot, none of them will ever go on.

    Args:
        runner: Has the slots.
        concurrency: How many there are.
    """

    def __init__(self, runner: Runner, concurrency: int) -> None:
        self._runner = runner
        self._concurrency = concurrency
        self._since: float | None = None
        self._warned = False

    def look(self) -> None:
        """From another thread than the loop's."""
        if self._runner.waiting < self._concurrency:
            self._since, self._warned = None, False
            return
        now = time.monotonic()
        self._since = now if self._since is None else self._since
        if not self._warned and now - self._since >= PATIENCE_SECONDS:
            self._warned = True
            logger.warning(
                "every slot (%d) runs a task that waits for the result of another one, among them %s: unless other "
                "workers have free slots, none will go on. Dependencies wait without a slot: depends_on, pipelines",
                self._concurrency,
                self._runner.describe_waiting(),
            )
