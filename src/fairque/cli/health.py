"""``fairque health``: whether a queue is well, for monitors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import typer

from fairque import QueueHealth, QueueUnavailable, TaskQueue
from fairque.cli.checkup import Check, Limits, Status, worst
from fairque.cli.output import print_json, print_table
from fairque.cli.reach import AsJson, ConfigFile, QueueName, Url, make_queue, on_queue
from fairque.cli.standing import Standing, standings
from fairque.cli.times import span
from fairque.queue.usage import shares

__all__ = ["command"]


def _limits(text: str) -> Any:
    return typer.Option(metavar="WARN:CRIT", help=text)


def command(
    backlog: Annotated[str, _limits("Tasks that wait for their turn.")] = "100000:1000000",
    wait: Annotated[str, _limits("Seconds that the next task of a user has waited.")] = "300:3600",
    dead: Annotated[str, _limits("Dead letters.")] = "100:10000",
    silent: Annotated[str, _limits("Workers that fell silent within the last minute.")] = "1:",
    silent_after: Annotated[
        float, typer.Option(min=1, max=60, metavar="SECONDS", help="From when on a worker counts as silent.")
    ] = 35.0,
    workers: Annotated[
        int, typer.Option(min=0, metavar="N", help="Workers that should be there; 0 does not look.")
    ] = 1,
    starved: Annotated[
        str, _limits("Users that wait for a minute, and got less than half of their share lately.")
    ] = "1:",
    late: Annotated[str, _limits("Seconds for which a scheduled task, or a schedule, has been due.")] = "60:600",
    memory: Annotated[str, _limits("Percent of maxmemory in use.")] = "80:95",
    url: Url = None,
    queue: QueueName = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> int:
    """Say whether a queue is well. The exit code is for monitors.

    Each threshold is WARN:CRIT, reached or passed; one side may be empty, and "off" leaves the check out.
    The wait is looked at for 100 users with something to serve: those with the lowest and the highest tags.
    Shares are looked at for the 1,000 users that were active last. A noisy user got half as much again as its share.

    Example: fairque health --wait 60:600 --dead off

    Exit codes: 0 fine, 1 warning, 2 critical (also: Redis cannot be reached, or wrong usage).
    """
    limits = {
        "backlog": Limits.parse("--backlog", backlog),
        "wait": Limits.parse("--wait", wait),
        "dead": Limits.parse("--dead", dead),
        "silent": Limits.parse("--silent", silent),
        "starved": Limits.parse("--starved", starved),
        "late": Limits.parse("--late", late),
        "memory": Limits.parse("--memory", memory),
    }
    checks = _checks(make_queue(url, queue, config), limits, silent_after, workers)
    status = worst(checks)
    if as_json:
        print_json({"status": status, "checks": checks})
    else:
        print_table(("check", "status", "what"), [(check.name, check.status, check.text) for check in checks])
    return status.exit_code


def _checks(queue: TaskQueue, limits: dict[str, Limits], silent_after: float, workers: int) -> list[Check]:
    async def find(opened: TaskQueue) -> tuple[QueueHealth, list[Standing]]:
        health, users = await opened.health(), await opened.users(limit=1000)
        return health, list(standings(users, shares(users), health.stats.at).values())

    try:
        health, standing = on_queue(queue, find)
    except QueueUnavailable as error:
        return [Check("server", Status.CRITICAL, None, None, None, str(error))]
    found = [*_measured(health, standing, limits, silent_after), *_policy_check(health)]
    return [*found, _worker_check(health, silent_after, workers)] if workers else found


def _measured(
    health: QueueHealth, standing: Sequence[Standing], limits: dict[str, Limits], silent_after: float
) -> Iterator[Check]:
    silent = _silent(health, silent_after)
    starved, noisy = (sum(flag in each.flags for each in standing) for flag in ("starved", "noisy"))
    percent = 100 * health.memory_used / health.memory_limit if health.memory_limit else 0.0
    values = {
        "backlog": (health.stats.queued, f"{health.stats.queued} tasks wait"),
        "wait": (health.longest_wait, f"the next task of a user has waited {span(health.longest_wait)}"),
        "dead": (health.dead_letters, f"{health.dead_letters} dead letters"),
        "silent": (silent, f"{silent} workers fell silent"),
        "starved": (starved, f"{starved} users are starved, {noisy} are noisy"),
        "late": (max(health.late, health.schedule_late), _lateness(health)),
        "memory": (percent, f"{percent:.0f} % of maxmemory in use" if health.memory_limit else "maxmemory is not set"),
    }
    for name, (value, text) in values.items():
        if limits[name].looks:
            yield limits[name].check(name, value, text)


def _lateness(health: QueueHealth) -> str:
    return f"scheduled tasks are {span(health.late)} late, schedules {span(health.schedule_late)}"


def _policy_check(health: QueueHealth) -> Iterator[Check]:
    """A server that evicts keys loses tasks without a word."""
    evicts = health.memory_policy != "noeviction"
    bad = Status.CRITICAL if health.memory_limit else Status.WARNING
    text = f"maxmemory-policy is {health.memory_policy}" + (", set it to noeviction" if evicts else "")
    yield Check("eviction", bad if evicts else Status.OK, None, None, None, text)


def _silent(health: QueueHealth, silent_after: float) -> int:
    return sum(health.stats.at - worker.seen_at >= silent_after for worker in health.stats.workers)


def _worker_check(health: QueueHealth, silent_after: float, wanted: int) -> Check:
    """Without a worker, what waits goes on waiting."""
    alive = len(health.stats.workers) - _silent(health, silent_after)
    status = Status.OK if alive >= wanted else Status.WARNING
    if not alive and health.stats.queued + health.stats.started:
        status = Status.CRITICAL
    return Check("workers", status, alive, wanted, None, f"{alive} workers, {wanted} wanted")
