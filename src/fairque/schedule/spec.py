"""What a schedule is: when it fires and by which rules, and what is known of one."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Literal, TypedDict

import msgspec

from fairque.checks import Duration, check_count, check_seconds
from fairque.errors import InvalidInput

__all__ = [
    "Misfire",
    "Overlap",
    "ScheduleChanges",
    "ScheduleRun",
    "ScheduleState",
    "ScheduledTask",
    "Spec",
    "moment_of",
    "spec_of",
]

Misfire = Literal["once", "skip", "all"]
Overlap = Literal["allow", "skip", "cancel_running"]
SHORTEST_INTERVAL = 1.0
MOST_MISFIRES = 1000
MOST_RUNS = 1_000_000_000


class ScheduleState(StrEnum):
    """Whether a schedule fires. One that has ended is kept for a while, to be looked at."""

    ACTIVE = "active"
    PAUSED = "paused"
    ENDED = "ended"


class ScheduleChanges(TypedDict, total=False):
    """What may be changed of when a schedule fires and by which rules, as callers give it. None: the default."""

    cron_expr: str | None
    every: Duration | None
    at: datetime | None
    timezone: str | None
    start: datetime | None
    end: datetime | None
    jitter: Duration | None
    max_runs: int | None
    misfire: Misfire | None
    misfire_limit: int | None
    misfire_grace: Duration | None
    overlap: Overlap | None


class Spec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """When a schedule fires, exactly one of `cron`, `every_ms` and `at_ms`, and by which rules. Times are ms."""

    cron: str | None = None
    timezone: str = "UTC"
    every_ms: int | None = None
    at_ms: int | None = None
    jitter_ms: int = 0
    start_ms: int | None = None
    end_ms: int | None = None
    max_runs: int | None = None
    misfire: Misfire = "once"
    misfire_limit: int = 100
    misfire_grace_ms: int = 60_000
    overlap: Overlap = "allow"

    @property
    def times(self) -> tuple[Any, ...]:
        """What decides about the slots."""
        return (self.cron, self.timezone, self.every_ms, self.at_ms, self.jitter_ms, self.start_ms, self.end_ms)


class ScheduleRun(msgspec.Struct, frozen=True):
    """What came of a slot.

    Attributes:
        at: When that was decided.
        outcome: ``"fired"``, ``"skipped"`` (a task of it lived), ``"full"`` (the backlog of the user was), ``"missed"``
            (only slots that were missed), or ``"by-hand"``: a run now.
        missed: Slots before it that were missed, and made no task.
        task_id: Of the task that it made.
    """

    at: datetime
    outcome: Literal["fired", "skipped", "full", "missed", "by-hand"]
    missed: int
    task_id: str | None


class ScheduledTask(msgspec.Struct, frozen=True, kw_only=True):
    """A schedule and what has become of it so far. Times are aware datetimes in UTC, durations are seconds.

    Attributes:
        name: The task's.
        cron, every, at: When it fires; the others are None.
        declared: It comes from ``@task(cron=…)``.
        orphaned: It was declared, and no living worker or scheduler declares it any more. It still fires.
        runs: How often it has fired by itself.
        skipped: Slots that made no task, because one before still ran (``overlap="skip"``) or the backlog was full.
        misfired: Slots that were missed and made no task of their own. Counted up to 1,000 for each downtime.
        next_run: When it fires next; None while it is paused and after its end.
        last_run, last_task_id: Of its latest firing, or run by hand.
        recent: What came of its last 20 slots, and runs by hand, the oldest first.
    """

    schedule_id: str
    user_id: str
    name: str
    state: ScheduleState
    cron: str | None
    timezone: str
    every: float | None
    at: datetime | None
    jitter: float
    start: datetime | None
    end: datetime | None
    max_runs: int | None
    misfire: Misfire
    misfire_limit: int
    misfire_grace: float
    overlap: Overlap
    declared: bool
    orphaned: bool
    created_at: datetime
    runs: int
    skipped: int
    misfired: int
    next_run: datetime | None
    last_run: datetime | None
    last_task_id: str | None
    recent: tuple[ScheduleRun, ...] = ()

    @property
    def active(self) -> bool:
        """Whether it will fire again by itself."""
        return self.state is ScheduleState.ACTIVE


def moment_of(ms: int) -> datetime:
    return datetime.fromtimestamp(ms / 1000, UTC)


def spec_of(options: Mapping[str, Any], before: Spec | None = None) -> Spec:
    """Options as callers give them; `before` is what they change. Cron and timezone are still to be checked."""
    fields: dict[str, Any] = {}
    for name, value in options.items():
        if name not in _FIELDS:
            raise InvalidInput(f"unknown option {name!r} of a schedule; there are {', '.join(_FIELDS)}")
        field, convert = _FIELDS[name]
        fields[field] = value if value is None else convert(name, value)
    given = [name for name in ("cron", "every_ms", "at_ms") if fields.get(name) is not None]
    if len(given) > 1 or (before is None and not given):
        raise InvalidInput("a schedule has one of cron_expr, every and at")
    if given:
        fields = {"cron": None, "every_ms": None, "at_ms": None, **fields}
    defaults = {name: getattr(_DEFAULT, name) for name, value in fields.items() if value is None}
    spec = msgspec.structs.replace(before or _DEFAULT, **{**fields, **defaults})
    if (spec.cron, spec.every_ms, spec.at_ms) == (None, None, None):
        raise InvalidInput("a schedule has one of cron_expr, every and at")
    if spec.start_ms is not None and spec.end_ms is not None and spec.end_ms < spec.start_ms:
        raise InvalidInput(f"end {options.get('end')!r} lies before start {moment_of(spec.start_ms)}")
    return spec


def _seconds(name: str, value: object) -> int:
    return round(check_seconds(name, value) * 1000)


def _interval(name: str, value: object) -> int:
    return round(check_seconds(name, value, SHORTEST_INTERVAL) * 1000)


def _moment(name: str, value: object) -> int:
    """Naive datetimes are local time, as everywhere."""
    if not isinstance(value, datetime):
        raise InvalidInput(f"{name} must be a datetime, not {value!r}")
    try:
        return max(0, round(value.timestamp() * 1000))
    except (ValueError, OverflowError, OSError) as exc:
        raise InvalidInput(f"{name} {value!r} cannot be used: {exc}") from None


def _one_of(*choices: str) -> Any:
    def check(name: str, value: object) -> object:
        if value not in choices:
            raise InvalidInput(f"{name} must be {', '.join(map(repr, choices[:-1]))} or {choices[-1]!r}, not {value!r}")
        return value

    return check


def _as_it_is(_: str, value: Any) -> Any:
    return value


_DEFAULT = Spec()
_FIELDS: dict[str, tuple[str, Any]] = {
    "cron_expr": ("cron", _as_it_is),
    "timezone": ("timezone", _as_it_is),
    "every": ("every_ms", _interval),
    "at": ("at_ms", _moment),
    "jitter": ("jitter_ms", _seconds),
    "start": ("start_ms", _moment),
    "end": ("end_ms", _moment),
    "max_runs": ("max_runs", lambda name, value: check_count(name, value, 1, MOST_RUNS)),
    "misfire": ("misfire", _one_of("once", "skip", "all")),
    "misfire_limit": ("misfire_limit", lambda name, value: check_count(name, value, 1, MOST_MISFIRES)),
    "misfire_grace": ("misfire_grace_ms", _seconds),
    "overlap": ("overlap", _one_of("allow", "skip", "cancel_running")),
}
