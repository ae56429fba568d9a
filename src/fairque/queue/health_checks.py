"""`HealthCheck`: what of a queue's health is too much, in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum

import msgspec

from fairque.counted import counted, shown, span_of, unanswered
from fairque.models import SILENT_AFTER, QueueHealth
from fairque.queue.user_status import UserStatus

__all__ = ["USUAL", "HealthCheck", "Severity", "Threshold", "checks_of", "worst"]

_MOST_NAMES = 5


class Severity(StrEnum):
    """How bad something is."""

    OK = "ok"
    WARNING = "warning"
    CRITICAL = "critical"


class HealthCheck(msgspec.Struct, frozen=True):
    """One thing that was looked at, and the values from which on it is a warning, or critical."""

    name: str
    status: Severity
    value: float | None
    warning: float | None
    critical: float | None
    text: str


class Threshold(msgspec.Struct, frozen=True):
    """From which value on something is a warning, or critical; None: never."""

    warning: float | None = None
    critical: float | None = None

    @property
    def looks(self) -> bool:
        return self.warning is not None or self.critical is not None

    def check(self, name: str, value: float, text: str) -> HealthCheck:
        status = Severity.OK
        if self.critical is not None and value >= self.critical:
            status = Severity.CRITICAL
        elif self.warning is not None and value >= self.warning:
            status = Severity.WARNING
        return HealthCheck(name, status, value, self.warning, self.critical, text)


USUAL: Mapping[str, Threshold] = {
    "backlog": Threshold(100_000, 1_000_000),
    "wait": Threshold(300, 3600),
    "dead": Threshold(100, 10_000),
    "blocking": Threshold(1),
    "silent": Threshold(1),
    "starved": Threshold(1),
    "late": Threshold(60, 600),
    "memory": Threshold(80, 95),
}
"""What is too much where nobody says something else."""


def checks_of(
    health: QueueHealth,
    statuses: Sequence[UserStatus],
    thresholds: Mapping[str, Threshold] = USUAL,
    *,
    silent_after: float = SILENT_AFTER,
    workers: int = 1,
) -> list[HealthCheck]:
    """In a fixed order. `statuses` are of those users that were looked at; `workers` should be there, 0: any number."""
    found = [*_measured(health, statuses, thresholds, silent_after), _eviction(health), *_of_users(health)]
    found += _missing(health.stats.missing)
    return [*found, _workers(health, silent_after, workers)] if workers else found


def worst(checks: Sequence[HealthCheck]) -> Severity:
    """Of all; `OK` where there are none."""
    return max((check.status for check in checks), key=list(Severity).index, default=Severity.OK)


def _measured(
    health: QueueHealth, statuses: Sequence[UserStatus], thresholds: Mapping[str, Threshold], silent_after: float
) -> Iterator[HealthCheck]:
    silent = _silent(health, silent_after)
    starved, noisy = (sum(flag in each.flags for each in statuses) for flag in ("starved", "noisy"))
    percent = 100 * health.memory_used / health.memory_limit if health.memory_limit else 0.0
    wait, blocking = span_of(health.longest_wait), health.blocking
    values = {
        "backlog": (health.stats.queued, counted(health.stats.queued, "task waits", "tasks wait")),
        "wait": (health.longest_wait, f"the next task of a user has waited {wait}"),
        "dead": (health.dead_letters, counted(health.dead_letters, "dead letter")),
        "blocking": (
            blocking,
            f"{counted(blocking, 'dead letter is', 'dead letters are')} waited for: requeue or discard",
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
        if thresholds[name].looks:
            yield thresholds[name].check(name, value, text)


def _lateness(health: QueueHealth) -> str:
    return f"scheduled tasks are {span_of(health.late)} late, schedules {span_of(health.schedule_late)}"


def _eviction(health: QueueHealth) -> HealthCheck:
    """A server that evicts keys loses tasks without a word."""
    evicts = health.memory_policy != "noeviction"
    bad = Severity.CRITICAL if health.memory_limit else Severity.WARNING
    text = f"maxmemory-policy is {health.memory_policy}" + (", set it to noeviction" if evicts else "")
    return HealthCheck("eviction", bad if evicts else Severity.OK, None, None, None, text)


def _missing(partitions: Sequence[int]) -> Iterator[HealthCheck]:
    """Of a queue that has some, and only where one does not answer: its users are not served."""
    if partitions:
        yield HealthCheck("partitions", Severity.CRITICAL, len(partitions), None, 1, unanswered(partitions))


def _of_users(health: QueueHealth) -> Iterator[HealthCheck]:
    """Users that others starve without a word, or that nobody serves."""
    yield _named("reservations", health.min_running_users, "min_running leaves no slot to others", "slots are left")
    yield _named("served", health.unserved_users, "no worker serves", "all users with tasks are served")
    yield _named("paused", health.stats.paused_tasks, "tasks are paused, of all users", "no tasks are paused by name")
    yield _named(
        "damage",
        health.damaged_users,
        "run `fairque doctor`, or end their import: left alone for damaged keys, or half imported,",
        "no damaged keys",
    )


def _named(name: str, users: Sequence[str], bad: str, good: str) -> HealthCheck:
    names = ", ".join(map(shown, users[:_MOST_NAMES])) + (", …" if len(users) > _MOST_NAMES else "")
    text = f"{bad}: {names}" if users else good
    return HealthCheck(name, Severity.WARNING if users else Severity.OK, len(users), 1, None, text)


def _silent(health: QueueHealth, silent_after: float) -> int:
    return sum(health.stats.at - worker.seen_at >= silent_after for worker in health.stats.workers)


def _workers(health: QueueHealth, silent_after: float, wanted: int) -> HealthCheck:
    """Without a worker, what waits goes on waiting."""
    alive = len(health.stats.workers) - _silent(health, silent_after)
    status = Severity.OK if alive >= wanted else Severity.WARNING
    if not alive and health.stats.queued + health.stats.started:
        status = Severity.CRITICAL
    return HealthCheck("workers", status, alive, wanted, None, f"{counted(alive, 'worker')}, {wanted} wanted")
