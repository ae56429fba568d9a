"""Metrics for Prometheus.

::

    worker = Worker(queue)
    metrics = WorkerMetrics(worker)  # of this process: what its tasks came to, its slots, its calls to Redis
    metrics.render()

    queue_metrics = QueueMetrics(queue)  # of the queue, from one place: its backlog, its shares, its workers
    await queue_metrics.render()

    sums = Sum()  # of the processes of ``Supervisor(…, reports=sums)``
    sums.render()

What `render` returns is the text format of Prometheus; `CONTENT_TYPE` goes with it.
"""

from __future__ import annotations

try:
    import prometheus_client as _prometheus_client  # noqa: F401
except ModuleNotFoundError as exc:
    raise ImportError(f"fairque.contrib.prometheus needs {exc.name}: pip install 'fairque[prometheus]'") from exc

from fairque.contrib.prometheus.exposition import CONTENT_TYPE
from fairque.contrib.prometheus.queue_metrics import QueueMetrics
from fairque.contrib.prometheus.sum import Sum
from fairque.contrib.prometheus.worker_metrics import WorkerMetrics

__all__ = ["CONTENT_TYPE", "QueueMetrics", "Sum", "WorkerMetrics"]
