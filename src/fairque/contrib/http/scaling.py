"""`demand`: how many slots a queue needs, for autoscalers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

import msgspec

from fairque import InvalidInput, TaskQueue
from fairque.checks import check_count
from fairque.contrib.http.asgi import Answer, App, Query, Refused, sentence
from fairque.contrib.http.metrics import metrics_of_queues
from fairque.contrib.http.shared import Shared
from fairque.queue.demand import COOLDOWN, Load, check_spans, look_at_load

__all__ = ["demand"]

TARGET_WAIT = 10.0
MOST_USERS = 100
_JSON = "application/json"
_PARAMETERS = ("target_wait", "cooldown", "queue")
_LONGEST_SHOWN = 40


def demand(*queues: TaskQueue, top_users: int = 0) -> App:
    """An ASGI app that says how much there is to do, also where no worker runs.

    ::

        app.mount("/fairque", demand(queue))

    ============  =======================================================================================
    ``/demand``   what `TaskQueue.demand` finds, as JSON: ``slots_needed`` is for the autoscaler.
                  Parameters: ``target_wait`` (10) and ``cooldown`` (300), in seconds; of several queues
                  ``queue``, the name of one. 422 for what is none of these
    ``/livez``    200: the event loop turns
    ``/readyz``   200: Redis answers for all queues. 503: it does not
    ``/metrics``  of the queues, for Prometheus, with ``pip install 'fairque[prometheus]'``; else 501
    ============  =======================================================================================

    However often it is asked, it looks at each queue once a second at most. Where Redis does not answer within two
    seconds it says so (503). Queues that are not open are opened by the first request, and closed at the end where the
    server tells the app of it, as it tells one that is not mounted.

    Args:
        queues: One or more, with different names.
        top_users: Users of each queue that metrics name, those that got the most lately; 0 to 100.

    Raises:
        InvalidInput: No queue, two of one name, or another number of users.
    """
    by_name = {queue.name: queue for queue in queues}
    if not queues or len(by_name) < len(queues):
        raise InvalidInput(f"demand takes one or more queues with different names, not {[q.name for q in queues]}")
    loads = {name: Shared(f"queue {name!r}", _looked_at(queue)) for name, queue in by_name.items()}

    async def show(query: Query) -> Answer:
        name, spans = _asked_for(query, loads)
        load = await loads[name].get()
        return Answer(200, msgspec.json.encode(load.demand(*spans)), _JSON)

    async def livez(_: Query) -> Answer:
        return sentence(200, "the event loop turns")

    async def readyz(_: Query) -> Answer:
        for load in loads.values():
            await load.get()
        return sentence(200, "Redis answers")

    async def close() -> None:
        for queue in queues:
            await queue.close()

    metrics = metrics_of_queues(queues, check_count("top_users", top_users, 0, MOST_USERS))
    return App({"/demand": show, "/livez": livez, "/readyz": readyz, "/metrics": metrics}, close)


def _looked_at(queue: TaskQueue) -> Callable[[], Awaitable[Load]]:
    return lambda: look_at_load(queue.reader)


def _asked_for(query: Query, loads: Mapping[str, Shared[Load]]) -> tuple[str, tuple[float, float]]:
    """The queue, and the longest wait and the cooldown. Raises `Refused`."""
    for name in query:
        if name not in _PARAMETERS:
            raise Refused(f"there is no parameter {_shown(name)}; there are {', '.join(_PARAMETERS)}")
    name = query.get("queue", next(iter(loads)))
    if name not in loads or ("queue" not in query and len(loads) > 1):
        there = ", ".join(map(repr, loads))
        raise Refused(f"queue names the one that is meant, of {there}" + _but("queue", query))
    spans = _seconds("target_wait", query, TARGET_WAIT), _seconds("cooldown", query, COOLDOWN)
    try:
        return name, check_spans(*spans)
    except InvalidInput as exc:
        raise Refused(str(exc)) from None


def _seconds(name: str, query: Query, default: float) -> float:
    if name not in query:
        return default
    try:
        return float(query[name])
    except ValueError:
        raise Refused(f"{name} must be a number of seconds{_but(name, query)}") from None


def _but(name: str, query: Query) -> str:
    return f", not {_shown(query[name])}" if name in query else ""


def _shown(text: str) -> str:
    return repr(text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}…")
