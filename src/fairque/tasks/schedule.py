"""The schedule that a function declares: ``@task(cron=…)`` or ``@task(every=…)``, and by which rules it fires."""

from __future__ import annotations

from typing import Any

from fairque.errors import InvalidInput
from fairque.schedule.spec import Spec, spec_of
from fairque.schedule.timetable import check_cron, check_timezone
from fairque.tasks.function import Attach, TaskFunction
from fairque.tasks.registry import registry

__all__ = ["declared_schedules", "take_schedule"]


WHEN = ("cron", "every")
RULES = ("timezone", "jitter", "misfire", "misfire_limit", "misfire_grace", "overlap")


def take_schedule(options: dict[str, Any]) -> Attach | None:
    given = {name: value for name in (*WHEN, *RULES) if (value := options.pop(name, None)) is not None}
    if not given:
        return None
    if not given.keys() & set(WHEN):
        raise InvalidInput(f"{min(given)} is about a schedule: a task declares one with cron or every")
    if options.get("user_id") is None:
        raise InvalidInput("a task that declares a schedule needs a user: @task(cron=…, user_id='system')")
    if "cron" in given:
        check_cron(given["cron"])
        given["cron_expr"] = given.pop("cron")
    if "timezone" in given:
        check_timezone(given["timezone"])
    spec = spec_of(given)

    def attach(function: TaskFunction[Any, Any]) -> None:
        function.add(spec)
        function()  # it is run without arguments: one that needs some is wrong here and now

    return attach


def declared_schedules() -> list[tuple[TaskFunction[Any, Any], Spec]]:
    """The functions that are registered with one."""
    return [(function, spec) for function in registry.values() if (spec := function.feature(Spec)) is not None]
