"""``/metrics``: what `fairque.contrib.prometheus` counts, where that is installed."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
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


def metrics_page(read: Callable[[], Awaitable[bytes]]) -> Route:
    """However many scrape: it is read once a second at most."""
    if not are_kept_here():
        return _none
    from fairque.contrib.prometheus import CONTENT_TYPE

    shared = Shared("metrics", read)

    async def show(_: Query) -> Answer:
        return Answer(200, await shared.get(), CONTENT_TYPE)

    return show


def metrics_of_report(report: Callable[[], Callable[[], bytes] | None]) -> Route:
    """What a worker tells of its process, if it is asked to keep that by then."""

    async def read() -> bytes:
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
    """What Redis tells of each, in time for an answer: what is not there by then is left out, and said to be."""
    if not are_kept_here():
        return _none
    from fairque.contrib.prometheus import QueueMetrics

    timeout = ANSWER_SECONDS - _MARGIN_SECONDS
    metrics = [QueueMetrics(queue, top_users=top_users, timeout=timeout) for queue in queues]

    async def read() -> bytes:
        return _joined(await asyncio.gather(*(each.render() for each in metrics)))

    return metrics_page(read)


async def _none(_: Query) -> Answer:
    return sentence(501, _MISSING)


def _joined(texts: Sequence[bytes]) -> bytes:
    """Each metric once, with what all of them say of it. The text of a label has no end of a line, and begins none."""
    families: dict[bytes, tuple[bytes, list[bytes]]] = {}
    for text in texts:
        for block in (b"\n" + text).split(b"\n# HELP ")[1:]:
            described, kind, *samples = block.rstrip(b"\n").split(b"\n")
            head = b"# HELP " + described + b"\n" + kind
            families.setdefault(described.partition(b" ")[0], (head, []))[1].extend(samples)
    return b"".join(b"\n".join([head, *samples, b""]) for head, samples in families.values())
