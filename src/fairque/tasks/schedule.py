"""The schedule that a function declares: ``@task(cron=…)`` or ``@task(every=…)``."""

from __future__ import annotations

from typing import Any

from fairque.errors import InvalidInput
from fairque.schedule.spec import Spec, spec_of
from fairque.schedule.timetable import check_cron, check_timezone
from fairque.tasks.function import Attach, TaskFunction
from fairque.tasks.registry import registry

__all__ = ["declared_schedules", "take_schedule"]


def take_schedule(options: dict[str, Any]) -> Attach | None:
    cron, every, timezone = options.pop("cron", None), options.pop("every", None), options.pop("timezone", "UTC")
    if cron is None and every is None:
        return None
    if options.get("user_id") is None:
        raise InvalidInput("a task that declares a schedule needs a user: @task(cron=…, user_id='system')")
    if cron is not None:
        check_cron(cron)
    spec = spec_of({"cron_expr": cron, "every": every, "timezone": check_timezone(timezone)})

    def attach(function: TaskFunction[Any, Any]) -> None:
        function.add(spec)
        function()  # it is run without arguments: one that needs some is wrong here and now

    return attach


def declared_schedules() -> list[tuple[TaskFunction[Any, Any], Spec]]:
    """The functions that are registered with one."""
    return [(function, spec) for function in registry.values() if (spec := function.feature(Spec)) is not None]
