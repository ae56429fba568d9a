"""What was used: hours for bills, shares for fairness."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec

from fairque.fairness.contention import jains_index
from fairque.metrics import metrics_in
from fairque.models import UserInfo

__all__ = ["Share", "Shares", "UsageHour", "shares", "usage_in"]

HOURS = 24
HOUR_SECONDS = 3600
NOISY, STARVED = 1.5, 0.5  # times what one is entitled to


class UsageHour(msgspec.Struct, frozen=True, kw_only=True):
    """What a user used in one hour, which begins at `start` (UTC).

    `tasks` are services, each attempt counted; `cost` is what they were charged, `busy_seconds` how long they ran.
    """

    start: datetime
    tasks: int
    cost: float
    busy_seconds: float


class Share(msgspec.Struct, frozen=True, kw_only=True):
    """What a user got of the queue lately, and what it is entitled to, both from 0 to 1.

    `verdict`: ``"noisy"`` got half as much again while others waited, ``"starved"`` waits and got less than half of it.
    """

    user_id: str
    share: float
    entitled: float
    verdict: Literal["", "noisy", "starved"]


class Shares(msgspec.Struct, frozen=True, kw_only=True):
    """How evenly the queue served its users lately, over a minute or so.

    `jain` is the index of Jain, Chiu and Hawe (1984) over the services by weight of those who wanted any: 1 when all
    got the same, 1/n when one got everything.
    """

    jain: float
    users: tuple[Share, ...]


def usage_in(reply: Sequence[Any], days: Sequence[int], since: datetime) -> list[UsageHour]:
    """From what the script found, the hours that end after `since`, in order."""
    now_ms, blob, *hashes = reply
    hours: dict[int, tuple[float, float, float]] = {}
    for day, flat in zip(days, hashes, strict=True):
        for hour, packed in zip(flat[::2], flat[1::2], strict=True):
            tasks, cost, busy = msgspec.msgpack.decode(packed)
            hours[day * HOURS + int(hour)] = (tasks, cost, busy)
    current = metrics_in(blob, now_ms)
    if current.hour_tasks or current.hour_cost or current.hour_busy:
        tasks, cost, busy = hours.get(current.hour, (0, 0, 0))
        hours[current.hour] = (tasks + current.hour_tasks, cost + current.hour_cost, busy + current.hour_busy)
    first = since.timestamp() // HOUR_SECONDS
    return [
        UsageHour(
            start=datetime.fromtimestamp(hour * HOUR_SECONDS, UTC), tasks=int(tasks), cost=cost, busy_seconds=busy
        )
        for hour, (tasks, cost, busy) in sorted(hours.items())
        if hour >= first
    ]


def shares(users: Sequence[UserInfo]) -> Shares:
    """Of those who are ready to be served, or were lately. Those who wait for nothing took what they wanted."""
    active = [user for user in users if user.tag is not None or user.metrics.recent_cost > 0.001]
    served = sum(user.metrics.recent_cost for user in active)
    weights = sum(user.weight for user in active)
    rated = tuple(_rated(user, served, weights, any(other.tag is not None for other in active)) for user in active)
    by_weight = [user.metrics.recent_cost / user.weight for user in active if user.tag is not None]
    return Shares(jain=jains_index(by_weight), users=rated)


def _rated(user: UserInfo, served: float, weights: float, somebody_waits: bool) -> Share:
    share = user.metrics.recent_cost / served if served else 0.0
    entitled = user.weight / weights
    verdict: Literal["", "noisy", "starved"] = ""
    if served and user.tag is not None and share < STARVED * entitled:
        verdict = "starved"
    elif somebody_waits and share > NOISY * entitled:
        verdict = "noisy"
    return Share(user_id=user.user_id, share=share, entitled=entitled, verdict=verdict)
