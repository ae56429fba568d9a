"""`HeldBack`: how much of what waits may start within a time, as policies, limits and pauses have it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

__all__ = ["HeldBack", "Startable", "held_back_in"]


class Startable(NamedTuple):
    """What waits and may start: tasks that take any slot, and slots for those of which no more may run."""

    tasks: int
    slots: int

    def __bool__(self) -> bool:
        return self.tasks > 0 or self.slots > 0


class _Waiting(NamedTuple):
    """Tasks of a user, or under a key: `free` of them nothing else holds back. Times are in seconds, from now on.

    `opens` is when they may start, infinite where that takes an event, `left` how many more may run, `interval` the
    time between two starts (0: there is no rate), and `allowed` how many may start at once.
    """

    tasks: int
    free: int
    opens: float
    left: float
    interval: float
    allowed: float

    def may_start(self, seconds: float) -> int:
        if self.opens > seconds:
            return 0
        at_once = max(self.allowed, 1.0 if self.opens > 0 else 0.0)
        by_rate = at_once + (seconds - self.opens) // self.interval if self.interval else math.inf
        return int(min(self.free, by_rate))


class HeldBack(NamedTuple):
    """What the script looked at, and how many tasks wait of which nothing is known."""

    pause: float
    others: int
    waiting: Sequence[_Waiting]

    def startable(self, seconds: float, per_slot: float) -> Startable:
        """Of all that waits. What was not looked at counts as if it could start.

        Args:
            seconds: Within which.
            per_slot: How many a slot starts in that time.
        """
        if self.pause > seconds:
            return Startable(0, 0)
        parts = [_part(each, seconds, per_slot) for each in self.waiting]
        return Startable(self.others + sum(part.tasks for part in parts), sum(part.slots for part in parts))


def _part(of: _Waiting, seconds: float, per_slot: float) -> Startable:
    tasks = of.may_start(seconds) if of.left else 0
    return Startable(0, int(of.left)) if tasks > of.left * per_slot else Startable(tasks, 0)


def held_back_in(now_ms: float, pause_ms: float, found: Sequence[Any]) -> HeldBack:
    """From what the script found."""
    return HeldBack(_opens(pause_ms, now_ms), found[0], tuple(_waiting_in(found[1:], now_ms)))


def _waiting_in(rows: Sequence[Sequence[Any]], now_ms: float) -> Iterable[_Waiting]:
    for tasks, free, at_ms, left, interval_us, allowed in rows:
        yield _Waiting(
            tasks=tasks,
            free=free,
            opens=_opens(at_ms, now_ms),
            left=float(left) if left != b"" else math.inf,
            interval=float(interval_us) / 1e6 if interval_us != b"" else 0.0,
            allowed=float(allowed) if allowed != b"" else math.inf,
        )


def _opens(at_ms: float, now_ms: float) -> float:
    """0 is now, and -1: somebody, or an event, says when."""
    return math.inf if at_ms < 0 else max(0.0, (at_ms - now_ms) / 1000) if at_ms else 0.0
