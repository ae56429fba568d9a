"""What one asks for slots by, of all partitions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from fairque.redis import arguments
from fairque.redis.asking import Answers

__all__ = ["merged_demand"]


def merged_demand(asked: arguments.Demand, answers: Answers) -> list[Any]:
    """As of the first one's clock."""
    now = answers.replies[0][0]
    running = [part for reply in answers.replies for part in reply[2]][: 3 * asked.most]
    return [
        now,
        [_at(now, reply, float(ms)) for reply in answers.replies for ms in reply[1] if ms],
        running,
        _mean_times(answers),
        _pause(now, answers),
        _waiting(now, answers),
    ]


def _at(now: int, reply: Sequence[Any], ms: float) -> float:
    """What a partition says is then by its clock; 0 is now, and -1 no moment."""
    return ms - reply[0] + now if ms > 0 else ms


def _mean_times(answers: Answers) -> list[bytes]:
    means: defaultdict[bytes, list[float]] = defaultdict(list)
    for reply in answers.replies:
        for name, mean in zip(reply[3][::2], reply[3][1::2], strict=True):
            means[name] += [float(mean)] if mean else []
    return [part for name, some in means.items() for part in (name, b"%.9g" % (sum(some) / len(some)) if some else b"")]


def _pause(now: int, answers: Answers) -> float:
    """Of everybody: it is over when it is over anywhere."""
    pauses = [_at(now, reply, reply[4]) for reply in answers.replies]
    return 0 if 0 in pauses else min((pause for pause in pauses if pause > 0), default=-1)


def _waiting(now: int, answers: Answers) -> list[Any]:
    """How many wait of which nothing is known, in all of them, and those that were looked at."""
    rows = [
        [tasks, free, _at(now, reply, opens_ms), *rest]
        for reply in answers.replies
        for tasks, free, opens_ms, *rest in reply[5][1:]
    ]
    return [sum(reply[5][0] for reply in answers.replies), *rows]
