"""``/metrics``: what `fairque.contrib.prometheus` counts, where that is installed."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from importlib.util import find_spec

from fairque.contrib.http.asgi import ANSWER_SECONDS, Answer, Query, Route, sentence
from fairque.contrib.http.shared import Shared
from fairque.queue.queue import TaskQueue

__all__ = ["are_kept_here", "metrics_of_queues", "metrics_of_report", "metrics_page"]

_MISSING = "there are no metrics here: pip install 'fairque[prometheus]'"
_NOT_KEPT = "this worker keeps no metrics: WorkerMetrics(worker), of fairque.contrib.prometheus, has it keep some"
_MARGIN_SECONDS = 0.5


def are_kept_here() -> bool:
    """Whether there is what keeps them."""
    return find_spec("prometheus_client") is not None


def metrics_page(read: Callable[[], bytes]) -> Route:
    """However many scrape: it is read once a second at most."""
    shared = Shared("metrics", partial(_at_once, read))
    return _page(shared.get)


def metrics_of_report(report: Callable[[], Callable[[], bytes] | None]) -> Route:
    """What a worker tells of its process, if it is asked to keep that by then."""

    def read() -> bytes:
        from fairque.contrib.prometheus import Sum

        found, sums = report(), Sum()
        if found is not None:
            sums.add(os.getpid(), found())
        return sums.render()

    page = metrics_page(read)

    async def show(query: Query) -> Answer:
        return await page(query) if report() is not None or not are_kept_here() else sentence(501, _NOT_KEPT)

    return show


def metrics_of_queues(queues: Sequence[TaskQueue], top_users: int) -> Route:
    """What Redis tells of them, in time for an answer: what is not there by then is left out, and said to be."""
    if not are_kept_here():
        return _none
    from fairque.contrib.prometheus import QueueMetrics

    timeout = ANSWER_SECONDS - _MARGIN_SECONDS
    return _page(QueueMetrics(*queues, top_users=top_users, timeout=timeout).render)


def _page(render: Callable[[], Awaitable[bytes]]) -> Route:
    if not are_kept_here():
        return _none
    from fairque.contrib.prometheus import CONTENT_TYPE

    async def show(_: Query) -> Answer:
        return Answer(200, await render(), CONTENT_TYPE)

    return show


async def _at_once(read: Callable[[], bytes]) -> bytes:
    return read()


async def _none(_: Query) -> Answer:
    return sentence(501, _MISSING)
