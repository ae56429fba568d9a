"""What was used, hour by hour, for bills."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from fairque.metrics import metrics_in

__all__ = ["KEPT_DAYS", "UsageHour", "usage_days", "usage_in"]

HOURS = 24
HOUR_SECONDS = 3600
DAY_SECONDS = 86_400
KEPT_DAYS = 40


class UsageHour(msgspec.Struct, frozen=True, kw_only=True):
    """What a user used in one hour, which begins at `start` (UTC).

    `tasks` are services, each attempt counted; `cost` is what they were charged, `busy_seconds` how long they ran.
    """

    start: datetime
    tasks: int
    cost: float
    busy_seconds: float


def usage_days(first: datetime) -> list[int]:
    """Those, counted since 1970, that are kept at most, from this moment to now."""
    today = int(datetime.now(UTC).timestamp()) // DAY_SECONDS + 1
    return list(range(max(int(first.timestamp()) // DAY_SECONDS, today - KEPT_DAYS - 1), today + 1))


def usage_in(reply: Sequence[Any], days: Sequence[int], since: datetime) -> list[UsageHour]:
    """From what the script found, the hours that end after `since`, in order."""
    now_ms, blob, *hashes = reply
    hours: dict[int, tuple[float, float, float]] = {}
    for day, flat in zip(days, hashes, strict=True):
        for hour, packed in zip(flat[::2], flat[1::2], strict=True):
            tasks, cost, busy = msgspec.msgpack.decode(packed)
            hours[day * HOURS + int(hour)] = (tasks, cost, busy / 1e6)
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
