"""The overview: who is served, who waits, and what is wrong."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import pairwise
from typing import Any, NamedTuple

from fairque import Demand, QueueHealth, QueueStats, Share, TaskQueue, UserInfo
from fairque.contrib.dashboard.checks import Check, checks_of
from fairque.contrib.dashboard.drawing.bars import scale_of
from fairque.contrib.dashboard.look import Look
from fairque.contrib.dashboard.page import Page
from fairque.contrib.dashboard.viewer import Viewer
from fairque.metrics import Waits, seconds_of_bucket
from fairque.queue.shares import look_at_shares

__all__ = ["Holder", "Overview", "OverviewPage", "flags_of", "wait_columns"]

LOOKED_AT = 200
SHOWN = 20
MOST_BEHIND = 60.0
"""Seconds for which one waits who is called starved: one that has just come was not served yet."""
HISTORY_SECONDS = 300.0


class Holder(NamedTuple):
    """A user, what it holds of all slots and what it is entitled to, both from 0 to 1."""

    user: UserInfo
    held: float
    entitled: float | None
    flags: Sequence[str]


class Overview(NamedTuple):
    """A queue at one moment. `history` has tasks a second up to moments, the oldest first, while somebody looked."""

    stats: QueueStats
    demand: Demand
    health: QueueHealth
    jain: float
    slots: int
    holders: Sequence[Holder]
    others: int
    checks: Sequence[Check]
    history: Sequence[tuple[float, float]]
    since: float

    @property
    def problems(self) -> list[Check]:
        return [check for check in self.checks if check.level != "ok"]

    @property
    def scale(self) -> float:
        """Of the bars."""
        return scale_of(*(max(holder.held, holder.entitled or 0.0) for holder in self.holders))

    @property
    def rates(self) -> list[float]:
        return [rate for _, rate in self.history]

    @property
    def rate(self) -> float:
        """Now, or what is known of the last minute."""
        return self.history[-1][1] if self.history else self.stats.metrics.recent_rate


class OverviewPage(Page[Overview]):
    """The queue as a whole."""

    name, path, title = "overview", "", "Overview"
    in_navigation = True
    parts = ("problems", "figures", "holders", "waits", "rates")

    def __init__(self, queue: TaskQueue, look: Look) -> None:
        super().__init__(queue, look)
        self._history: deque[tuple[float, int]] = deque(maxlen=400)

    async def read(self, *_: str) -> Overview:
        queue = self.queue
        stats, users, demand, health = await asyncio.gather(
            queue.stats(), queue.active_users(limit=LOOKED_AT), queue.demand(), queue.health()
        )
        shares = await look_at_shares(queue.reader, users, stats)
        of_user = {share.user_id: share for share in shares.users}
        slots = sum(worker.concurrency for worker in stats.workers)
        found = [_holder(user, of_user.get(user.user_id), slots or stats.started, stats.at) for user in users]
        found.sort(key=lambda holder: (-holder.user.started, -holder.user.queued, holder.user.user_id))
        starved = [holder.user.user_id for holder in found if "starved" in holder.flags]
        return Overview(
            stats=stats,
            demand=demand,
            health=health,
            jain=shares.jain,
            slots=slots,
            holders=_first(found),
            others=max(0, len(found) - SHOWN),
            checks=checks_of(health, starved),
            history=self._rates(stats),
            since=self._history[0][0],
        )

    def shown(self, seen: Overview, _: Viewer) -> Mapping[str, Any]:
        return {"waits": seen.stats.metrics.waits, "columns": wait_columns(seen.stats.metrics.waits)}

    def _rates(self, stats: QueueStats) -> list[tuple[float, float]]:
        """Between looks that are a moment apart."""
        served = stats.finished + stats.failed + stats.retried
        history = self._history
        if history and (stats.at < history[-1][0] or served < history[-1][1]):
            history.clear()
        if not history or stats.at - history[-1][0] >= 0.9:
            history.append((stats.at, served))
        while history[0][0] < stats.at - HISTORY_SECONDS:
            history.popleft()
        points = list(history)
        return [(to, (b - a) / (to - since)) for (since, a), (to, b) in pairwise(points)]


def flags_of(user: UserInfo, share: Share | None, now: float) -> list[str]:
    """Why a user is served less, or more, than others."""
    paused, flags = user.policy.paused, list[str]()
    if paused is True or (isinstance(paused, datetime) and paused.timestamp() > now):
        flags.append("paused")
    if user.policy.breaker is not None and user.breaker_open_until:
        flags.append("breaker open" if user.breaker_open_until > now else "probing")
    elif user.parked_until is not None and user.parked_until > now and not flags:
        flags.append("rate limited")
    if user.policy.max_running is not None and user.queued and user.started >= user.policy.max_running:
        flags.append("at its limit")
    if share is not None and share.verdict == "noisy":
        flags.append("noisy")
    if share is not None and share.verdict == "starved" and (user.wait_seconds or 0.0) > MOST_BEHIND:
        flags.append("starved")
    return flags


def wait_columns(waits: Waits) -> list[tuple[str, float]]:
    """Of a histogram, from the first to the last bucket in which there is anything."""
    filled = [bucket for bucket, count in enumerate(waits.counts) if count]
    if not filled:
        return []
    first, last = max(0, filled[0] - 1), min(len(waits.counts) - 1, filled[-1] + 1)
    return [(_below(bucket), float(waits.counts[bucket])) for bucket in range(first, last + 1)]


def _below(bucket: int) -> str:
    """The bound of a bucket in few letters."""
    seconds = seconds_of_bucket(bucket)
    if seconds == float("inf"):
        return "more"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def _holder(user: UserInfo, share: Share | None, slots: int, now: float) -> Holder:
    entitled = share.entitled if share is not None else None
    return Holder(user, user.started / slots if slots else 0.0, entitled, flags_of(user, share, now))


def _first(found: Sequence[Holder]) -> list[Holder]:
    """Those that hold most, and of the others those that are starved."""
    return [*found[:SHOWN], *[holder for holder in found[SHOWN:] if "starved" in holder.flags][:SHOWN]]
