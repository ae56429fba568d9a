"""`WorkerMetrics`: what the workers of a process did, as metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from prometheus_client.core import Metric as Family

from fairque import FailureKind, TaskEvent, TaskQueue, Worker
from fairque.checks import check_count, check_id, check_kind, check_list
from fairque.contrib.prometheus.catalogue import PROCESS, partition_label
from fairque.contrib.prometheus.exposition import families_of, rendered
from fairque.contrib.prometheus.figures import Figures
from fairque.contrib.prometheus.names import Names
from fairque.contrib.prometheus.snapshot import snapshot_of

__all__ = ["WorkerMetrics"]

_OUTCOMES = {
    "success": "finished",
    "failure": "failed",
    "retry": "retried",
    "cancel": "canceled",
    "release": "released",
    "snooze": "snoozed",
    "lost": "lost",
}
"""By event of a worker."""
_RAN = ("finished", "retried")
_FAILURES_OF_RUNS = (FailureKind.ERROR, FailureKind.TIMEOUT, FailureKind.QUOTA)
"""Others fail before their body begins."""
_WAITED = ("finished", "failed", "retried", "canceled", "snoozed")


class WorkerMetrics:
    """The metrics of this process: how its tasks ended, how long they ran and waited, its calls to Redis, claims that
    failed, and its slots. There is no label for users, workers or ids.

    In a process of ``fairque worker`` or `Worker.serve` that has a supervisor which asks, it reports to that.

    Args:
        *workers: They do not run yet; others may come by `watch`.
        names: Names of tasks without a function here, as a `TaskHandler` serves them, that are to have a label. Others
            without one are ``other``, as whoever puts tasks in could make up any number of names.
        most_names: Names that have a label, 1 to 10,000: first those of `names`, then functions in the order in which
            they were defined. The rest is ``other``.

    Raises:
        InvalidInput: A worker has begun to run, or an argument breaks a rule.
    """

    def __init__(self, *workers: Worker[Any], names: Iterable[str] = (), most_names: int = 200) -> None:
        given = [check_id("task name", name) for name in check_list("names", names)]
        self._names = Names(given, check_count("most_names", most_names, 1, 10_000))
        self._watched: list[_Watched] = []
        self._queues: dict[TaskQueue, _Calls] = {}
        for worker in workers:
            self.watch(worker)

    def watch(self, worker: Worker[Any]) -> None:
        """One more worker, which does not run yet. Raises `InvalidInput` where it does."""
        watched = _Watched(check_kind("worker", worker, Worker), self._names)
        self._watched.append(watched)
        if worker.queue not in self._queues:
            self._queues[worker.queue] = _Calls(worker.queue)
        worker.report = self.snapshot

    def snapshot(self) -> bytes:
        """All that was counted so far, for a `Sum`. Also from another thread."""
        return snapshot_of(self._figures())

    def collect(self) -> Iterable[Family]:
        """For a registry of prometheus-client: ``REGISTRY.register(metrics)``."""
        return families_of(self._figures())

    def render(self) -> bytes:
        """In the text format of Prometheus."""
        return rendered(self._figures())

    def _figures(self) -> Figures:
        total = Figures(PROCESS)
        for watched in self._watched:
            total.add(watched.figures())
        for calls in self._queues.values():
            total.add(calls.figures)
        return total


class _Watched:
    """What is counted of one worker."""

    def __init__(self, worker: Worker[Any], names: Names) -> None:
        self._worker = worker
        self._queue = worker.queue.name
        self._names = names
        self._figures = Figures(PROCESS)
        hooks: dict[str, Callable[[TaskEvent], None]] = {
            event: partial(self._note, outcome) for event, outcome in _OUTCOMES.items()
        }
        worker.add_hooks(hooks)

    def figures(self) -> Figures:
        """With what the worker itself knows."""
        stats, queue = self._worker.stats(), self._queue
        errors = stats.claim_errors_by_partition or (0,)
        for number, count in enumerate(errors):
            self._figures.set("fairque_claim_errors_total", (queue, partition_label(number, len(errors))), count)
        self._figures.set("fairque_leases_stolen_total", (queue,), stats.stolen)
        self._figures.set("fairque_slots", (queue, "busy"), stats.busy)
        self._figures.set("fairque_slots", (queue, "free"), max(0, stats.slots - stats.busy))
        return self._figures

    def _note(self, outcome: str, event: TaskEvent) -> None:
        figures, queue, name = self._figures, self._queue, self._names.label(event.name)
        figures.increase("fairque_tasks_total", (queue, name, outcome))
        if outcome in _RAN or (event.failure is not None and event.failure.kind in _FAILURES_OF_RUNS):
            figures.observe("fairque_task_run_seconds", (queue, name), event.run_seconds)
        if event.wait_seconds is not None and outcome in _WAITED:
            figures.observe("fairque_task_wait_seconds", (queue, name), event.wait_seconds)


class _Calls:
    """What is counted of the calls to Redis of one queue, which several workers may share."""

    def __init__(self, queue: TaskQueue) -> None:
        self.figures = Figures(PROCESS)
        self._queue = queue.name
        queue.time_calls(self._note)

    def _note(self, script: str, seconds: float) -> None:
        self.figures.observe("fairque_redis_seconds", (self._queue, script), seconds)
