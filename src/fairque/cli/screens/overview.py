"""A look at a whole queue: its totals, its users, its workers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
from rich.console import RenderableType
from rich.text import Text

from fairque import Overview, QueueStats, TaskQueue, UserInfo, UserStatus, WorkerInfo
from fairque.cli.output import NOTHING, ago, moment, shown, span
from fairque.cli.screens.policies import shown_rule
from fairque.cli.table import FittedTable, names, numbers, words
from fairque.counted import counted, unanswered

__all__ = [
    "flags_of",
    "look",
    "overview_parts",
    "user_fields",
    "users_table",
    "workers_table",
]

MOST_COMPARED = 200


def flags_of(status: UserStatus) -> str:
    return ", ".join(status.flags) or NOTHING


async def look(queue: TaskQueue, most: int) -> Overview:
    """With at most so many users, compared among 200 at least."""
    found = await queue.overview(limit=max(most, MOST_COMPARED))
    users = found.users[:most]
    statuses = {user.user_id: found.statuses[user.user_id] for user in users}
    return msgspec.structs.replace(found, users=users, statuses=statuses)


def totals_table(stats: QueueStats) -> FittedTable:
    columns = (
        *(numbers("queued"), numbers("critical", 1), numbers("started"), numbers("scheduled", 6)),
        *(numbers("deferred", 5), numbers("finished"), numbers("failed", 7), numbers("canceled", 4)),
        numbers("retried", 3),
    )
    values = (
        *(stats.queued, stats.critical, stats.started, stats.scheduled, stats.deferred),
        *(stats.finished, stats.failed, stats.canceled, stats.retried),
    )
    return FittedTable(columns, [values])


def users_table(users: Sequence[UserInfo], statuses: Mapping[str, UserStatus], now: float) -> FittedTable:
    columns = [
        *(names("user", whole=5), numbers("weight", 1), numbers("started"), numbers("queued"), numbers("wait")),
        *(numbers("sched.", 3), numbers("defer.", 3), numbers("dead", 6), numbers("seen", 2), words("flags")),
    ]
    rows = [list(_user_row(user, statuses[user.user_id], now)) for user in users]
    if any(user.bytes is not None for user in users):
        columns.insert(-1, numbers("bytes", 4))
        for row, user in zip(rows, users, strict=True):
            row.insert(-1, _bytes(user))
    return FittedTable(columns, rows)


def _bytes(user: UserInfo) -> str:
    """Where they are limited."""
    return NOTHING if user.bytes is None else f"{user.bytes:,} of {user.policy.max_bytes:,}"


def _user_row(user: UserInfo, status: UserStatus, now: float) -> tuple[object, ...]:
    return (
        *(user.user_id, f"{user.weight:g}", user.started, user.queued, span(user.wait_seconds)),
        *(user.scheduled, user.deferred, user.dead_letters, ago(user.seen_at, now)),
        flags_of(status),
    )


def counters_table(users: Sequence[UserInfo]) -> FittedTable:
    columns = (
        *(names("user", whole=1), numbers("finished"), numbers("failed"), numbers("canceled"), numbers("retried")),
    )
    return FittedTable(
        columns, [(user.user_id, user.finished, user.failed, user.canceled, user.retried) for user in users]
    )


def workers_table(workers: Sequence[WorkerInfo], now: float, *, is_live: bool = False) -> FittedTable:
    """With its leftover threads, where a worker has any."""
    left = (numbers("left"),) if any(worker.leftover_threads for worker in workers) else ()
    columns = (
        *(names("worker", whole=3), names("host", 4), numbers("pid", 2), names("version", 1)),
        *(numbers("started"), *left, numbers("slots"), numbers("up", 5), numbers("seen")),
    )
    rows = [_worker_row(worker, now, bool(left)) for worker in workers]
    return FittedTable(columns, rows, wraps=not is_live, tells=not is_live)


def _worker_row(worker: WorkerInfo, now: float, shows_left: bool) -> tuple[object, ...]:
    left = (worker.leftover_threads,) if shows_left else ()
    return (
        *(worker.worker_id, worker.host, worker.pid, worker.version, worker.running, *left, worker.concurrency),
        *(span(now - worker.started_at), ago(worker.seen_at, now)),
    )


def overview_parts(overview: Overview, with_counters: bool) -> list[RenderableType]:
    stats, users = overview.stats, overview.users
    all_users = counted(stats.users_known, "user")
    known = f"{len(users)} of {all_users}" if stats.users_known > len(users) else counted(len(users), "user")
    parts: list[RenderableType] = [
        Text(f"queue {overview.queue}: {known}, {counted(len(stats.workers), 'worker')}"),
        totals_table(stats),
        Text(_fairness(overview)),
    ]
    if stats.missing:
        parts.append(Text(f"{unanswered(stats.missing)}: what is there is left out"))
    if stats.paused_tasks:
        parts.append(Text(f"paused, of all users: {', '.join(map(shown, stats.paused_tasks))}"))
    if users:
        parts.append(users_table(users, overview.statuses, stats.at))
    if users and with_counters:
        parts.append(counters_table(users))
    if stats.workers:
        parts.append(workers_table(stats.workers, stats.at))
    return parts


def _fairness(overview: Overview) -> str:
    demand = overview.demand
    return (
        f"fairness {overview.shares.jain:.2f} (Jain's index), {span(demand.work_seconds)} of work in the backlog, "
        f"{counted(demand.slots_needed, 'slot does', 'slots do')} it in {span(demand.target_wait)}"
    )


def user_fields(user: UserInfo, status: UserStatus, now: float) -> list[tuple[str, object]]:
    waits = user.metrics.waits
    return [
        ("user", user.user_id),
        ("weight", f"{user.weight:g}"),
        ("started", user.started),
        ("queued", f"{user.queued} (critical {user.critical}, normal {user.normal}, held {user.held})"),
        ("wait of the next", span(user.wait_seconds)),
        ("scheduled", user.scheduled),
        ("deferred", user.deferred),
        ("dead letters", user.dead_letters),
        *((("bytes", _bytes(user)),) if user.bytes is not None else ()),
        ("finished", user.finished),
        ("failed", user.failed),
        ("canceled", user.canceled),
        ("retried", user.retried),
        ("waits", f"median {span(waits.p50)}, 95 % {span(waits.p95)}, 99 % {span(waits.p99)}" if waits.count else "-"),
        ("cost", f"{user.metrics.cost:.12g}"),
        ("busy", span(user.metrics.busy_seconds)),
        ("share lately", _share(status)),
        ("flags", flags_of(status)),
        ("last active", ago(user.seen_at, now)),
        *(
            (f"policy: {name}", shown_rule(value))
            for name, value in msgspec.structs.asdict(user.policy).items()
            if value is not None
        ),
        *((("parked until", moment(user.parked_until)),) if user.parked_until is not None else ()),
    ]


def _share(status: UserStatus) -> str:
    share = status.share
    return NOTHING if share is None else f"{share.share:.1%}, entitled to {share.entitled:.1%}"
