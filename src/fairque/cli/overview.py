"""A look at a whole queue: its totals, its users, its workers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
from rich.table import Table

from fairque import Demand, QueueStats, Shares, TaskQueue, UserInfo, WorkerInfo
from fairque.cli.output import make_table
from fairque.cli.standing import Standing, standings
from fairque.cli.times import ago, span
from fairque.queue.usage import demand, shares

__all__ = ["Overview", "counters_table", "look", "totals_table", "users_table", "workers_table"]


MOST_COMPARED = 200
TARGET_WAIT = 10.0


class Overview(msgspec.Struct, frozen=True):
    """What was there at one moment. The users are those with something to do, then those that were active last.

    `shares` and `standings` are among up to 200 such users; `demand` is for a wait of 10 seconds.
    """

    queue: str
    stats: QueueStats
    users: tuple[UserInfo, ...]
    shares: Shares
    standings: Mapping[str, Standing]
    demand: Demand


async def look(queue: TaskQueue, most: int) -> Overview:
    """With at most so many users."""
    stats = await queue.stats()
    compared = max(most, MOST_COMPARED)
    found = {user.user_id: user for user in await queue.active_users(limit=compared)}
    for user in await queue.users(limit=compared):
        found.setdefault(user.user_id, user)
    of_all = shares(tuple(found.values()))
    users = tuple(found.values())[:most]
    return Overview(queue.name, stats, users, of_all, standings(users, of_all, stats.at), demand(stats, TARGET_WAIT))


def totals_table(stats: QueueStats) -> Table:
    columns = ("waiting", "critical", "running", "scheduled", "deferred", "finished", "failed", "canceled", "retried")
    values = (
        *(stats.queued, stats.critical, stats.started, stats.scheduled, stats.deferred),
        *(stats.finished, stats.failed, stats.canceled, stats.retried),
    )
    return make_table([f">{name}" for name in columns], [values])


def users_table(users: Sequence[UserInfo], standing: Mapping[str, Standing], now: float) -> Table:
    columns = ("user", ">weight", ">running", ">waiting", ">wait", ">sched.", ">defer.", ">dead", ">seen", "flags")
    return make_table(columns, [_user_row(user, standing[user.user_id], now) for user in users])


def _user_row(user: UserInfo, standing: Standing, now: float) -> tuple[object, ...]:
    return (
        *(user.user_id, f"{user.weight:g}", user.started, user.queued, span(user.wait_seconds)),
        *(user.scheduled, user.deferred, user.dead_letters, ago(user.seen_at, now)),
        standing.text,
    )


def counters_table(users: Sequence[UserInfo]) -> Table:
    columns = ("user", ">finished", ">failed", ">canceled", ">retried")
    return make_table(
        columns, [(user.user_id, user.finished, user.failed, user.canceled, user.retried) for user in users]
    )


def workers_table(workers: Sequence[WorkerInfo], now: float, *, wraps: bool = True) -> Table:
    columns = ("worker", "host", ">pid", "version", ">running", ">slots", ">up", ">seen")
    return make_table(columns, [_worker_row(worker, now) for worker in workers], wraps=wraps)


def _worker_row(worker: WorkerInfo, now: float) -> tuple[object, ...]:
    return (
        *(worker.worker_id, worker.host, worker.pid, worker.version, worker.running, worker.concurrency),
        *(span(now - worker.started_at), ago(worker.seen_at, now)),
    )
