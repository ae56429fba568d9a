"""A user: what waits and runs, what holds it back, what it used, and what failed."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar, NamedTuple

from fairque import (
    DeadLetter,
    Explanation,
    Reason,
    ScheduleView,
    TaskInfo,
    TaskScheduler,
    UsageHour,
    UserInfo,
    UserStatus,
)
from fairque.contrib.dashboard.drawing.waits import wait_columns
from fairque.contrib.dashboard.page import Page
from fairque.contrib.dashboard.viewer import Viewer
from fairque.contrib.dashboard.words import brief, flags_in

__all__ = ["REASONS", "User", "UserPage"]

TASKS = 20
LETTERS = 10
SCHEDULES = 10
COMPARED = 200
HOURS = 24
REASONS: Mapping[Reason, str] = {
    Reason.TURN: "It waits for its turn.",
    Reason.PAUSED: "Nothing is started for now.",
    Reason.USER_LIMIT: "As many of its tasks run as may run at once.",
    Reason.RATE: "As many of its tasks were started as may be for now.",
    Reason.BREAKER: "Too many tasks failed: nothing is started for a while.",
    Reason.LIMIT: "A limit of its kind of task is reached.",
    Reason.SCHEDULED: "Its time has not come.",
    Reason.DEFERRED: "It waits for other tasks.",
    Reason.BLOCKED: "It waits for a task that failed.",
    Reason.NO_WORKER: "It cannot be started at the moment.",
    Reason.UNKNOWN_TASK: "It cannot be started at the moment.",
    Reason.SLOTS: "It cannot be started at the moment.",
    Reason.NOTHING: "Nothing waits for its turn.",
}
"""What holds a task back, in words that tell nothing of others."""


class User(NamedTuple):
    """All that one page tells of a user."""

    user: UserInfo
    status: UserStatus
    explanation: Explanation
    tasks: Sequence[TaskInfo]
    letters: Sequence[DeadLetter]
    schedules: Sequence[ScheduleView]
    usage: Sequence[UsageHour]
    now: float


class UserPage(Page[User]):
    """One user."""

    name, path, title = "user", "user", "User"
    arguments: ClassVar[Sequence[str]] = ("user",)
    is_for_customers = True
    parts = ("state", "reasons", "tasks", "letters", "waits", "usage")

    def heading(self, *about: str) -> str:
        return brief(about[0])

    async def read(self, *about: str) -> User:
        own, shares, stats = await asyncio.gather(
            self.read_own(*about), self.queue.shares(limit=COMPARED), self.queue.stats()
        )
        share = next((share for share in shares.users if share.user_id == own.user.user_id), None)
        return own._replace(status=UserStatus.of(own.user, share, stats.at, stats.slots))

    async def read_own(self, *about: str) -> User:
        [user_id] = about
        queue = self.queue
        user, explanation, tasks, letters = await asyncio.gather(
            queue.user(user_id),
            queue.explain(user_id),
            queue.tasks(user_id, limit=TASKS),
            queue.dead_letters(user_id, limit=LETTERS),
        )
        usage, schedules = await asyncio.gather(
            queue.usage(user_id, datetime.now(UTC) - timedelta(hours=HOURS - 1)),
            TaskScheduler(queue).schedule_page(user_id, limit=SCHEDULES, next_runs=1),
        )
        return User(
            user=user,
            status=UserStatus.of(user, None, user.at),
            explanation=explanation,
            tasks=[task for task in tasks if not task.state.ended],
            letters=letters,
            schedules=schedules.schedules,
            usage=usage,
            now=user.at,
        )

    def shown(self, seen: User, viewer: Viewer) -> Mapping[str, Any]:
        """A viewer of some users reads nothing that tells of others: no shares, and reasons without their numbers."""
        sees_all = viewer.is_operator
        return {
            "share": seen.status.share if sees_all else None,
            "flags": [flag for flag in flags_in(seen.status) if sees_all or flag not in _OF_OTHERS],
            "reasons": [held.text if sees_all else REASONS[held.reason] for held in seen.explanation.waiting],
            "waits": seen.user.metrics.waits,
            "columns": wait_columns(seen.user.metrics.waits),
            "hours": _hours(seen.usage, seen.now),
        }


_OF_OTHERS = ("noisy", "starved")
"""What a user is called beside others."""


def _hours(usage: Sequence[UsageHour], now: float) -> list[UsageHour]:
    """Of the last day, with those in which nothing was used."""
    known = {hour.start: hour for hour in usage}
    last = datetime.fromtimestamp(now // 3600 * 3600, UTC)
    starts = [last - timedelta(hours=ago) for ago in range(HOURS - 1, -1, -1)]
    nothing = {"tasks": 0, "cost": 0.0, "busy_seconds": 0.0}
    return [known.get(start) or UsageHour(start=start, **nothing) for start in starts]  # type: ignore[arg-type]
