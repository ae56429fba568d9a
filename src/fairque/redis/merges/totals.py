"""Totals, health and demand of several partitions together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from fairque.redis import arguments
from fairque.redis.asking import Answers
from fairque.redis.merges.measures import merged_metrics

__all__ = ["merged_health", "merged_stats"]

_LATEST = b"clock"
"""All other numbers of a state add up."""


def merged_stats(_: arguments.Stats, answers: Answers) -> list[Any]:
    states = [dict(zip(reply[0][::2], reply[0][1::2], strict=True)) for reply in answers.replies]
    fields = [part for item in _summed(states).items() for part in item]
    ready, known, now = (column(answers.replies) for column in (_sum_of(1), _sum_of(2), _max_of(4)))
    workers = _latest_of_each(worker for reply in answers.replies for worker in reply[3])
    metrics = merged_metrics([reply[5] for reply in answers.replies])
    paused = list(dict.fromkeys(record for reply in answers.replies for record in reply[6]))
    return [fields, ready, known, workers, now, metrics, paused]


def _summed(states: Sequence[dict[bytes, bytes]]) -> dict[bytes, bytes]:
    totals: defaultdict[bytes, int] = defaultdict(int)
    for state in states:
        for name, value in state.items():
            if value.lstrip(b"-").isdigit():
                totals[name] += int(value)
    found = {name: b"%d" % total for name, total in totals.items()}
    clocks = [state[_LATEST] for state in states if _LATEST in state]
    return found | ({_LATEST: max(clocks, key=float)} if clocks else {})


def _sum_of(at: int) -> Any:
    return lambda replies: sum(reply[at] for reply in replies)


def _max_of(at: int) -> Any:
    return lambda replies: max(reply[at] for reply in replies)


def _latest_of_each(workers: Iterable[Sequence[Any]]) -> list[Any]:
    """A worker tells each partition about itself; what it told last counts."""
    latest: dict[bytes, tuple[float, Sequence[Any]]] = {}
    for worker in workers:
        name, flat = worker
        seen = float(dict(zip(flat[::2], flat[1::2], strict=True)).get(b"seen", 0))
        if name not in latest or seen > latest[name][0]:
            latest[name] = seen, worker
    return [worker for _, (_, worker) in sorted(latest.items())]


def merged_health(asked: arguments.Health, answers: Answers) -> list[Any]:
    letters, blocking = (sum(reply[at] for reply in answers.replies) for at in (0, 1))
    due, fires = (min((reply[at] for reply in answers.replies if reply[at]), key=float, default=b"") for at in (2, 3))
    recent, alone = (list(dict.fromkeys(name for reply in answers.replies for name in reply[at])) for at in (4, 5))
    return [letters, blocking, due, fires, recent[: asked.most], alone]
