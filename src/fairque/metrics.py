"""`Metrics`: what the scripts measure of a user, and of the whole queue."""

from __future__ import annotations

import math
from typing import NamedTuple

import msgspec

__all__ = ["BUCKETS", "Metrics", "WaitBucket", "Waits", "metrics_in", "seconds_of_bucket"]

BUCKETS = 22
RECENT_MS = 60_000
HOUR_MS = 3_600_000
_decode = msgspec.msgpack.Decoder(list[float]).decode


def seconds_of_bucket(bucket: int) -> float:
    """Below this many seconds are the waits of a bucket: 1 ms, 2 ms, 4 ms, …; the last one has no bound."""
    return math.inf if bucket == BUCKETS - 1 else float(2**bucket) / 1000


class WaitBucket(NamedTuple):
    """So many tasks waited for at least `low` seconds, and less than `high`, which of the last bucket is infinite."""

    low: float
    high: float
    tasks: int


class Waits(msgspec.Struct, frozen=True):
    """How long tasks waited: a histogram whose buckets double, see `seconds_of_bucket`."""

    counts: tuple[int, ...] = (0,) * BUCKETS

    @property
    def count(self) -> int:
        """Tasks that were measured."""
        return sum(self.counts)

    @property
    def buckets(self) -> tuple[WaitBucket, ...]:
        """From the shortest waits to the longest, without the empty ones at both ends."""
        filled = [bucket for bucket, count in enumerate(self.counts) if count]
        if not filled:
            return ()
        return tuple(
            WaitBucket(seconds_of_bucket(bucket - 1) if bucket else 0.0, seconds_of_bucket(bucket), self.counts[bucket])
            for bucket in range(filled[0], filled[-1] + 1)
        )

    def since(self, before: Waits) -> Waits:
        """What came after an earlier look; all, where that is of something that was forgotten since."""
        more = tuple(now - then for now, then in zip(self.counts, before.counts, strict=True))
        return self if any(count < 0 for count in more) else Waits(more)

    def percentile(self, percent: float) -> float:
        """Seconds that so many percent of the tasks waited at most, to within a factor of 2; 0 where there are none."""
        rank = self.count * percent / 100
        below = 0
        for bucket, count in enumerate(self.counts):
            if count and below + count >= rank:
                return _between(bucket, (rank - below) / count)
            below += count
        return 0.0

    @property
    def p50(self) -> float:
        """The median, in seconds."""
        return self.percentile(50)

    @property
    def p95(self) -> float:
        """Seconds that 95 of 100 waited at most."""
        return self.percentile(95)

    @property
    def p99(self) -> float:
        """Seconds that 99 of 100 waited at most."""
        return self.percentile(99)


class Metrics(msgspec.Struct, frozen=True, kw_only=True):
    """Totals since the user was first seen, or since it was forgotten after a week of silence.

    `cost` is what its services were charged, `busy_seconds` how long its tasks ran. What is recent fades with a time
    constant of a minute: `recent_rate` is in services per second.
    """

    finished: int = 0
    failed: int = 0
    canceled: int = 0
    retried: int = 0
    cost: float = 0.0
    busy_seconds: float = 0.0
    recent_cost: float = 0.0
    recent_busy: float = 0.0
    recent_services: float = 0.0
    recent_rate: float = 0.0
    hour: int = 0
    hour_tasks: int = 0
    hour_cost: float = 0.0
    hour_busy: float = 0.0
    waits: Waits = Waits()

    @property
    def recent_run_seconds(self) -> float:
        """The mean time that services took lately; 0 where there were none."""
        return self.recent_busy / self.recent_services if self.recent_services > 1e-9 else 0.0


def metrics_in(blob: bytes, now_ms: int) -> Metrics:
    """As the scripts keep it; empty where they have measured nothing yet."""
    if not blob:
        return Metrics()
    values = _decode(blob)
    finished, failed, canceled, retried, cost, busy, recent_cost, recent_busy, recent, at, age = values[:11]
    fade = math.exp((at - now_ms) / RECENT_MS)
    span = RECENT_MS / 1000 * (1 - math.exp((at - age - now_ms) / RECENT_MS))
    hour_tasks, hour_cost, hour_busy = values[11:14]
    waits = dict(zip(values[14::2], values[15::2], strict=True))
    return Metrics(
        finished=int(finished),
        failed=int(failed),
        canceled=int(canceled),
        retried=int(retried),
        cost=cost,
        busy_seconds=busy / 1e6,
        recent_cost=recent_cost * fade,
        recent_busy=recent_busy * fade,
        recent_services=recent * fade,
        recent_rate=recent * fade / max(span, 0.001),
        hour=int(at // HOUR_MS),
        hour_tasks=int(hour_tasks),
        hour_cost=hour_cost,
        hour_busy=hour_busy / 1e6,
        waits=Waits(tuple(int(waits.get(bucket, 0)) for bucket in range(BUCKETS))),
    )


def _between(bucket: int, share: float) -> float:
    """Somewhere inside a bucket, which is as wide as it begins high."""
    high = float(2**bucket) / 1000
    low = 0.0 if bucket == 0 else high / 2
    return low + (high - low) * min(1.0, max(0.0, share))
