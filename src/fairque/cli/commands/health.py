"""``fairque health``: whether a queue is well, for monitors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from fairque import HealthCheck, QueueHealth, QueueUnavailable, Severity, TaskQueue, UserStatus
from fairque.cli.errors import CommandError
from fairque.cli.known_queues import UnknownQueue, check_is_known
from fairque.cli.options import AsJson, ConfigFile, QueueName, Url, make_queue, on_queue
from fairque.cli.output import print_json
from fairque.cli.table import print_table, words
from fairque.queue.health_checks import Threshold, checks_of, worst
from fairque.queue.user_status import user_statuses

__all__ = ["EXIT_CODES", "command", "parse_threshold"]

EXIT_CODES = {Severity.OK: 0, Severity.WARNING: 1, Severity.CRITICAL: 2}


def parse_threshold(option: str, text: str) -> Threshold:
    """``WARN:CRIT``, either of which may be empty, or ``off``. Raises `CommandError`."""
    if text == "off":
        return Threshold()
    warning, _, critical = text.partition(":")
    found = Threshold(_number(option, warning, text), _number(option, critical, text))
    if found.warning is not None and found.critical is not None and found.warning > found.critical:
        raise CommandError(f"{option} {text}: a warning beyond what is critical", "put the smaller number first")
    return found


def _limits(text: str) -> Any:
    return typer.Option(metavar="WARN:CRIT", help=text)


def command(
    backlog: Annotated[str, _limits("Tasks that wait for their turn.")] = "100000:1000000",
    wait: Annotated[str, _limits("Seconds that the next task of a user has waited.")] = "300:3600",
    dead: Annotated[str, _limits("Dead letters.")] = "100:10000",
    blocking: Annotated[str, _limits("Dead letters that other tasks wait for.")] = "1:",
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
    given = {
        "backlog": backlog,
        "wait": wait,
        "dead": dead,
        "blocking": blocking,
        "silent": silent,
        "starved": starved,
        "late": late,
        "memory": memory,
    }
    limits = {name: parse_threshold(f"--{name}", text) for name, text in given.items()}
    checks = _checks(make_queue(url, queue, config), limits, silent_after, workers)
    status = worst(checks)
    if as_json:
        print_json({"status": status, "checks": checks})
    else:
        print_table(
            (words("check"), words("status"), words("what")),
            [(check.name, check.status, check.text) for check in checks],
        )
    return EXIT_CODES[status]


def _checks(queue: TaskQueue, limits: Mapping[str, Threshold], silent_after: float, workers: int) -> list[HealthCheck]:
    async def find(opened: TaskQueue) -> tuple[list[HealthCheck], QueueHealth, list[UserStatus]]:
        health, users = await opened.health(), await opened.users(limit=1000)
        shares, stats = await opened.shares(), health.stats
        statuses = user_statuses(users, shares, stats.at, stats.slots)
        return await _queue_check(opened), health, list(statuses.values())

    try:
        found, health, statuses = on_queue(queue, find, begins=True)
    except QueueUnavailable as error:
        return [HealthCheck("server", Severity.CRITICAL, None, None, None, str(error))]
    return [*found, *checks_of(health, statuses, limits, silent_after=silent_after, workers=workers)]


async def _queue_check(queue: TaskQueue) -> list[HealthCheck]:
    """Nothing where it is there."""
    try:
        await check_is_known(queue)
    except UnknownQueue as error:
        return [HealthCheck("queue", Severity.WARNING, None, None, None, f"{error}: {error.hint}")]
    return []


def _number(option: str, part: str, text: str) -> float | None:
    if not part:
        return None
    try:
        number = float(part)
    except ValueError:
        number = -1.0
    if not 0 <= number < float("inf"):
        raise CommandError(f"{option} {text!r} is not WARN:CRIT", f"write it like {option} 10:100, 10:, :100 or off")
    return number
