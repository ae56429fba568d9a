"""The overview: who is served, who waits, and what is wrong."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from fairque import Overview, QueueStats, TaskQueue, UserInfo, UserStatus
from fairque.contrib.dashboard.checks import checks_in
from fairque.contrib.dashboard.drawing.bars import scale_of
from fairque.contrib.dashboard.drawing.waits import wait_columns
from fairque.contrib.dashboard.look import Look
from fairque.contrib.dashboard.page import Page
from fairque.contrib.dashboard.viewer import Viewer
from fairque.contrib.dashboard.words import flags_in

__all__ = ["Glance", "OverviewPage"]

LOOKED_AT = 100
SHOWN = 20
HISTORY_SECONDS = 300.0
APART_SECONDS = 0.9


class _Holder(NamedTuple):
    """A user, what it holds of all slots and what it is entitled to, both from 0 to 1."""

    user: UserInfo
    held: float
    entitled: float | None
    flags: Sequence[str]


class Glance(NamedTuple):
    """A queue at one moment. `history` has tasks a second up to moments, the oldest first, while somebody looked."""

    overview: Overview
    history: Sequence[tuple[float, float]]
    since: float

    @property
    def rates(self) -> list[float]:
        return [rate for _, rate in self.history]

    @property
    def rate(self) -> float:
        """Now, or what is known of the last minute."""
        return self.history[-1][1] if self.history else self.overview.stats.metrics.recent_rate


class OverviewPage(Page[Glance]):
    """The queue as a whole."""

    name, path, title = "overview", "", "Overview"
    in_navigation = True
    parts = ("problems", "figures", "holders", "waits", "rates")

    def __init__(self, queue: TaskQueue, look: Look) -> None:
        super().__init__(queue, look)
        self._served: deque[tuple[float, int]] = deque(maxlen=1000)

    async def read(self, *_: str) -> Glance:
        overview = await self.queue.overview(limit=LOOKED_AT)
        return Glance(overview, self._history(overview.stats), self._served[0][0])

    def shown(self, seen: Glance, _: Viewer) -> Mapping[str, Any]:
        overview = seen.overview
        holders = _holders(overview)
        waits = overview.stats.metrics.waits
        return {
            "stats": overview.stats,
            "problems": [check for check in checks_in(overview.checks) if check.level != "ok"],
            "holders": holders[:SHOWN],
            "others": max(0, len(holders) - SHOWN),
            "scale": scale_of(*(max(each.held, each.entitled or 0.0) for each in holders[:SHOWN])),
            "waits": waits,
            "columns": wait_columns(waits),
        }

    def _history(self, stats: QueueStats) -> list[tuple[float, float]]:
        """Between looks that are a moment apart."""
        served, points = stats.finished + stats.failed + stats.retried, self._served
        if points and (stats.at < points[-1][0] or served < points[-1][1]):
            points.clear()
        if not points or stats.at - points[-1][0] >= APART_SECONDS:
            points.append((stats.at, served))
        while points[0][0] < stats.at - HISTORY_SECONDS:
            points.popleft()
        return [(to, (then - before) / (to - since)) for (since, before), (to, then) in pairwise(points)]


def _holders(overview: Overview) -> list[_Holder]:
    """Who holds something or waits: those that are starved first where there is no room for all."""
    slots = max(overview.stats.slots, overview.stats.started)
    busy = [user for user in overview.users if user.started or user.queued]
    busy.sort(key=lambda user: (-user.started, -user.queued, user.user_id))
    first = [user for user in busy if "starved" in overview.statuses[user.user_id].flags][: SHOWN // 2]
    rest = [user for user in busy if user not in first]
    shown = sorted((*first, *rest[: SHOWN - len(first)]), key=busy.index)
    behind = rest[SHOWN - len(first) :]
    return [_holder(user, overview.statuses[user.user_id], slots) for user in (*shown, *behind)]


def _holder(user: UserInfo, status: UserStatus, slots: int) -> _Holder:
    entitled = status.share.entitled if status.share is not None else None
    return _Holder(user, user.started / slots if slots else 0.0, entitled, flags_in(status))
