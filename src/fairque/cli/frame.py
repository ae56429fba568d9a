"""What a queue did between two looks at it."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from fairque import QueueStats, TaskQueue, UserInfo
from fairque.cli.overview import Overview, look

__all__ = ["Frame", "Order", "Row", "Sampler"]

MOST_USERS = 200


class Order(StrEnum):
    """How users are sorted. The first letters are the keys."""

    SHARE = "share"
    WAIT = "wait"
    RUNNING = "running"
    BACKLOG = "backlog"
    USER = "user"


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One user. `share` is its part of what was served, `fair_share` that of its weight among those with work.

    `flags`: see `fairque.cli.standing`.
    """

    user: UserInfo
    rate: float | None
    share: float | None
    fair_share: float | None
    flags: tuple[str, ...]


class Frame(msgspec.Struct, frozen=True, kw_only=True):
    """`seconds` since the look before, None in the first; `rate` is tasks per second."""

    queue: str
    seconds: float | None
    rate: float | None
    stats: QueueStats
    rows: tuple[Row, ...]

    def sorted_by(self, order: Order) -> list[Row]:
        keys = {
            Order.SHARE: lambda row: (-(row.share or 0.0), -row.user.started, -row.user.queued),
            Order.WAIT: lambda row: -(row.user.wait_seconds or 0.0),
            Order.RUNNING: lambda row: -row.user.started,
            Order.BACKLOG: lambda row: -row.user.queued,
            Order.USER: lambda row: row.user.user_id,
        }
        return sorted(sorted(self.rows, key=keys[Order.USER]), key=keys[order])


class Sampler:
    """Looks at a queue again and again."""

    def __init__(self, queue: TaskQueue) -> None:
        self._queue = queue
        self._before: Overview | None = None

    async def look(self) -> Frame:
        now = await look(self._queue, MOST_USERS)
        before, self._before = self._before, now
        return _compare(before, now)


def _compare(before: Overview | None, now: Overview) -> Frame:
    seconds = max(0.001, now.stats.at - before.stats.at) if before is not None else None
    counted = {user.user_id: _served(user) for user in before.users} if before is not None else {}
    served = {user.user_id: max(0, _served(user) - counted.get(user.user_id, _served(user))) for user in now.users}
    total = sum(served.values())
    weights = sum(user.weight for user in now.users if _is_active(user, served))
    rows = tuple(
        Row(
            user=user,
            rate=served[user.user_id] / seconds if seconds else None,
            share=served[user.user_id] / total if total else None,
            fair_share=user.weight / weights if _is_active(user, served) else None,
            flags=now.standings[user.user_id].flags,
        )
        for user in now.users
    )
    return Frame(
        queue=now.queue,
        seconds=seconds,
        rate=(_served(now.stats) - _served(before.stats)) / seconds if before is not None and seconds else None,
        stats=now.stats,
        rows=rows,
    )


def _served(counts: UserInfo | QueueStats) -> int:
    """Attempts that came to an end."""
    return counts.finished + counts.failed + counts.retried


def _is_active(user: UserInfo, served: dict[str, int]) -> bool:
    """A user that is paused, say, is entitled to nothing."""
    return user.tag is not None or user.started + served[user.user_id] > 0
