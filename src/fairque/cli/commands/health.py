"""``fairque health``: whether a queue is well, for monitors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import StrEnum
from typing import Annotated, Any

import msgspec
import typer

from fairque import QueueHealth, QueueUnavailable, TaskQueue
from fairque.cli.errors import CommandError
from fairque.cli.known_queues import UnknownQueue, check_is_known
from fairque.cli.options import AsJson, ConfigFile, QueueName, Url, make_queue, on_queue
from fairque.cli.output import print_json, shown, span
from fairque.cli.screens.overview import UserStatus, user_statuses
from fairque.cli.table import print_table, words
from fairque.counted import counted
from fairque.queue.shares import look_at_shares

__all__ = ["Check", "Limits", "Status", "command"]


_MOST_NAMES = 5


class Status(StrEnum):
    OK = "ok"
    WARNING = "warning"
    CRITICAL = "critical"

    @property
    def exit_code(self) -> int:
        return list(Status).index(self)


class Check(msgspec.Struct, frozen=True):
    """One thing that was looked at, and the values from which on it is a warning, or critical."""

    name: str
    status: Status
    value: float | None
    warning: float | None
    critical: float | None
    text: str


class Limits(msgspec.Struct, frozen=True):
    """From which value on something is a warning, or critical; None: never."""

    warning: float | None = None
    critical: float | None = None

    @staticmethod
    def parse(option: str, text: str) -> Limits:
        """``WARN:CRIT``, either of which may be empty, or ``off``. Raises `CommandError`."""
        if text == "off":
            return Limits()
        warning, _, critical = text.partition(":")
        limits = Limits(_number(option, warning, text), _number(option, critical, text))
        if limits.warning is not None and limits.critical is not None and limits.warning > limits.critical:
            raise CommandError(f"{option} {text}: a warning beyond what is critical", "put the smaller number first")
        return limits

    @property
    def looks(self) -> bool:
        return self.warning is not None or self.critical is not None

    def check(self, name: str, value: float, text: str) -> Check:
        status = Status.OK
        if self.critical is not None and value >= self.critical:
            status = Status.CRITICAL
        elif self.warning is not None and value >= self.warning:
            status = Status.WARNING
        return Check(name, status, value, self.warning, self.critical, text)


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
    limits = {
        "backlog": Limits.parse("--backlog", backlog),
        "wait": Limits.parse("--wait", wait),
        "dead": Limits.parse("--dead", dead),
        "blocking": Limits.parse("--blocking", blocking),
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
        print_table(
            (words("check"), words("status"), words("what")),
            [(check.name, check.status, check.text) for check in checks],
        )
    return status.exit_code


def _checks(queue: TaskQueue, limits: dict[str, Limits], silent_after: float, workers: int) -> list[Check]:
    async def find(opened: TaskQueue) -> tuple[list[Check], QueueHealth, list[UserStatus]]:
        health, users = await opened.health(), await opened.users(limit=1000)
        shares = await look_at_shares(opened.reader, users)
        return await _queue_check(opened), health, list(user_statuses(users, shares, health.stats.at).values())

    try:
        found, health, statuses = on_queue(queue, find, begins=True)
    except QueueUnavailable as error:
        return [Check("server", Status.CRITICAL, None, None, None, str(error))]
    found += [*_measured(health, statuses, limits, silent_after), *_policy_check(health), *_tenant_checks(health)]
    return [*found, _worker_check(health, silent_after, workers)] if workers else found


async def _queue_check(queue: TaskQueue) -> list[Check]:
    """Nothing where it is there."""
    try:
        await check_is_known(queue)
    except UnknownQueue as error:
        return [Check("queue", Status.WARNING, None, None, None, f"{error}: {error.hint}")]
    return []


def _measured(
    health: QueueHealth, statuses: Sequence[UserStatus], limits: dict[str, Limits], silent_after: float
) -> Iterator[Check]:
    silent = _silent(health, silent_after)
    starved, noisy = (sum(flag in each.flags for each in statuses) for flag in ("starved", "noisy"))
    percent = 100 * health.memory_used / health.memory_limit if health.memory_limit else 0.0
    values = {
        "backlog": (health.stats.queued, counted(health.stats.queued, "task waits", "tasks wait")),
        "wait": (health.longest_wait, f"the next task of a user has waited {span(health.longest_wait)}"),
        "dead": (health.dead_letters, counted(health.dead_letters, "dead letter")),
        "blocking": (
            health.blocking,
            f"{counted(health.blocking, 'dead letter is', 'dead letters are')} waited for: requeue or discard",
        ),
        "silent": (silent, counted(silent, "worker") + " fell silent"),
        "starved": (
            starved,
            f"{counted(starved, 'user is', 'users are')} starved, {counted(noisy, 'is', 'are')} noisy",
        ),
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


def _tenant_checks(health: QueueHealth) -> Iterator[Check]:
    """Users that others starve without a word, or that nobody serves."""
    yield _names_check(
        "reservations", health.min_running_users, "min_running leaves no slot to others", "slots are left"
    )
    yield _names_check("served", health.unserved_users, "no worker serves", "all users with tasks are served")
    yield _names_check(
        "paused", health.stats.paused_tasks, "tasks are paused, of all users", "no tasks are paused by name"
    )
    yield _names_check("damage", health.damaged_users, "run `fairque doctor`: damaged keys of", "no damaged keys")


def _names_check(name: str, users: Sequence[str], bad: str, good: str) -> Check:
    names = ", ".join(map(shown, users[:_MOST_NAMES])) + (", …" if len(users) > _MOST_NAMES else "")
    text = f"{bad}: {names}" if users else good
    return Check(name, Status.WARNING if users else Status.OK, len(users), 1, None, text)


def _silent(health: QueueHealth, silent_after: float) -> int:
    return sum(health.stats.at - worker.seen_at >= silent_after for worker in health.stats.workers)


def _worker_check(health: QueueHealth, silent_after: float, wanted: int) -> Check:
    """Without a worker, what waits goes on waiting."""
    alive = len(health.stats.workers) - _silent(health, silent_after)
    status = Status.OK if alive >= wanted else Status.WARNING
    if not alive and health.stats.queued + health.stats.started:
        status = Status.CRITICAL
    return Check("workers", status, alive, wanted, None, f"{counted(alive, 'worker')}, {wanted} wanted")


def worst(checks: Sequence[Check]) -> Status:
    return max((check.status for check in checks), key=list(Status).index, default=Status.OK)


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
