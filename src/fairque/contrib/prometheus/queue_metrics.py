"""`QueueMetrics`: how queues are, read from Redis for all who ask."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence

from fairque import InvalidInput, TaskQueue
from fairque.checks import Duration, check_count, check_kind, check_seconds
from fairque.contrib.prometheus.catalogue import QUEUE
from fairque.contrib.prometheus.exposition import rendered
from fairque.contrib.prometheus.figures import Figures
from fairque.contrib.prometheus.queue_reader import QueueReader

__all__ = ["QueueMetrics"]


class QueueMetrics:
    """The metrics of queues. One process is to tell those of a queue, as the numbers of several would be added up.

    They are read when somebody asks, at most once in `max_age`, and all who ask meanwhile are told the same.

    Args:
        *queues: At least one, and none with the name of another. Each is open, or opened by the first call.
        target_wait: Of `fairque_slots_needed`: seconds within which all that waits should have started, or a timedelta.
        top_users: Users of each queue that have labels, those that got the most lately; 0 to 100.
        max_age: Seconds for which what was read is told, or a timedelta.
        timeout: Seconds that a read may take, or a timedelta. What is not there by then is left out, and `fairque_up`
            of that queue is 0.

    Raises:
        InvalidInput: An argument breaks a rule.
    """

    def __init__(
        self,
        *queues: TaskQueue,
        target_wait: Duration = 30.0,
        top_users: int = 0,
        max_age: Duration = 1.0,
        timeout: Duration = 2.0,
    ) -> None:
        target_seconds = check_seconds("target_wait", target_wait, least=0.001)
        check_count("top_users", top_users, 0, 100)
        _check_are_told_apart(queues)
        self._readers = [QueueReader(queue, target_seconds, top_users) for queue in queues]
        self._max_age = check_seconds("max_age", max_age)
        self._timeout = check_seconds("timeout", timeout, least=0.001)
        self._reading: asyncio.Task[bytes] | None = None
        self._read_at = 0.0

    async def render(self) -> bytes:
        """In the text format of Prometheus, within `timeout`, whatever becomes of Redis."""
        reading = self._reading
        if reading is None or self._is_over(reading):
            reading = self._reading = asyncio.create_task(self._read(), name="fairque-metrics")
        return await asyncio.shield(reading)

    def _is_over(self, reading: asyncio.Task[bytes]) -> bool:
        if reading.get_loop() is not asyncio.get_running_loop():
            return True
        if not reading.done():
            return False
        has_failed = reading.cancelled() or reading.exception() is not None
        return has_failed or time.monotonic() - self._read_at >= self._max_age

    async def _read(self) -> bytes:
        figures = Figures(QUEUE)
        async with asyncio.TaskGroup() as group:
            for reader in self._readers:
                group.create_task(reader.read(figures, self._timeout), name="fairque-metrics-of-a-queue")
        self._read_at = time.monotonic()
        return rendered(figures)


def _check_are_told_apart(queues: Sequence[TaskQueue]) -> None:
    names = Counter(check_kind("queue", queue, TaskQueue).name for queue in queues)
    if not names:
        raise InvalidInput("there is no queue to tell metrics of")
    [(name, count)] = names.most_common(1)
    if count > 1:
        raise InvalidInput(f"{count} queues are called {name!r}: on one page, their metrics could not be told apart")
