"""`probes`: whether a worker is alive and takes tasks."""

from __future__ import annotations

from typing import Any

from fairque import Worker
from fairque.contrib.http.asgi import Answer, App, Query, sentence
from fairque.contrib.http.metrics import metrics_of_report

__all__ = ["probes"]


def probes(worker: Worker[Any]) -> App:
    """An ASGI app that says how a worker is that runs on the same event loop.

    ::

        app.mount("/fairque", probes(worker))

    ============  =======================================================================================
    ``/livez``    200: the event loop turns, as it has answered. Where a task blocks it there is no answer,
                  and the probe runs out of time, as it should. Redis has no part in it
    ``/readyz``   200: it takes tasks. 503: not yet, not while Redis does not answer, not while it drains
    ``/metrics``  for Prometheus, where `fairque.contrib.prometheus.WorkerMetrics` was made for the worker;
                  else 501
    ============  =======================================================================================

    Args:
        worker: It may run already, or later.
    """

    async def livez(_: Query) -> Answer:
        return sentence(200, "the event loop turns")

    async def readyz(_: Query) -> Answer:
        return sentence(200, "claims") if worker.can_claim else sentence(503, "does not claim")

    return App({"/livez": livez, "/readyz": readyz, "/metrics": metrics_of_report(lambda: worker.report)})
