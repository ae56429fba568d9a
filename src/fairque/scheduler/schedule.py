"""`Schedule`: one that is to be added."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, fields
from datetime import datetime
from typing import Any

from fairque.checks import Duration
from fairque.schedule.spec import Misfire, Overlap, Spec, spec_of
from fairque.schedule.timetable import check_cron, check_timezone
from fairque.tasks.task import Task

__all__ = ["Schedule", "checked_spec"]

_NO_TIMES = {"task", "user_id", "schedule_id"}


@dataclass(frozen=True)
class Schedule:
    """A schedule that is to be added, for `TaskScheduler.add_schedules`; see `TaskScheduler.add_schedule` for what each
    argument means. It is checked when it is added.
    """

    cron_expr: str | None = None
    task: Task[Any] | None = None
    _: KW_ONLY
    every: Duration | None = None
    at: datetime | None = None
    timezone: str = "UTC"
    user_id: str | None = None
    schedule_id: str | None = None
    start: datetime | None = None
    end: datetime | None = None
    jitter: Duration = 0.0
    max_runs: int | None = None
    misfire: Misfire = "once"
    misfire_limit: int = 100
    misfire_grace: Duration = 60.0
    overlap: Overlap = "allow"

    @property
    def spec(self) -> Spec:
        """When it fires, and by which rules. Raises `InvalidInput`."""
        return checked_spec(
            {each.name: getattr(self, each.name) for each in fields(self) if each.name not in _NO_TIMES}
        )


def checked_spec(options: Mapping[str, Any], before: Spec | None = None) -> Spec:
    """Options as callers give them; `before` is what they change. Raises `InvalidInput`."""
    spec = spec_of(options, before)
    if options.get("timezone") is not None:
        check_timezone(spec.timezone)
    if options.get("cron_expr") is not None:
        check_cron(spec.cron)
    return spec
