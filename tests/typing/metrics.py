"""What a type checker knows of the metrics. mypy checks this file; nothing runs it.

A line with ``type: ignore`` must be an error: mypy complains of an ignore that ignores nothing.
"""

from __future__ import annotations

from datetime import timedelta
from typing import assert_type

from prometheus_client import CollectorRegistry

from fairque import TaskEvent, TaskQueue, Worker, WorkerStats
from fairque.contrib.prometheus import CONTENT_TYPE, QueueMetrics, Sum, WorkerMetrics
from fairque.worker.supervisor import Supervisor


def a_process_has_metrics(worker: Worker[str], other: Worker[None], registry: CollectorRegistry) -> None:
    metrics = WorkerMetrics(worker, other, names=["echo"], most_names=10)
    assert_type(metrics.render(), bytes)
    assert_type(metrics.snapshot(), bytes)
    assert_type(CONTENT_TYPE, str)
    registry.register(metrics)
    WorkerMetrics("worker")  # type: ignore[arg-type]


async def a_queue_has_metrics(queue: TaskQueue) -> None:
    assert_type(await QueueMetrics(queue, top_users=3, max_age=timedelta(seconds=1)).render(), bytes)
    QueueMetrics("queue")  # type: ignore[arg-type]


def a_supervisor_takes_a_sum(registry: CollectorRegistry) -> None:
    sums = Sum()
    Supervisor([["-m", "shop"]], reports=sums)
    registry.register(sums)
    assert_type(sums.render(), bytes)


def a_worker_tells_of_itself(worker: Worker[str]) -> None:
    assert_type(worker.stats(), WorkerStats)
    assert_type(worker.stats().busy, int)
    worker.add_hooks({"success": tell})
    worker.add_hooks({"success": 3})  # type: ignore[dict-item]


def tell(event: TaskEvent) -> None:
    assert_type(event.wait_seconds, float | None)
