"""Schedules: when each fires next, what came of its last slots, and whether it is paused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

from fairque import SchedulePage, TaskQueue, TaskScheduler
from fairque.contrib.dashboard.acts import Act
from fairque.contrib.dashboard.page import Page

__all__ = ["Schedules", "SchedulesPage"]

PAGE = 50
NEXT_RUNS = 3


class Schedules(NamedTuple):
    """A page of schedules, and behind which of them it begins."""

    page: SchedulePage
    after: str


class SchedulesPage(Page[Schedules]):
    """What comes by itself."""

    name, path, title = "schedules", "schedules", "Schedules"
    in_navigation = True
    arguments: ClassVar = ("after",)
    parts = ("schedules",)

    @property
    def acts(self) -> Mapping[str, Act]:
        return {
            "pause-schedule": Act(
                ("schedule",), _pause, "The schedule fires no more until it is resumed.", "schedules"
            ),
            "resume-schedule": Act(("schedule",), _resume, "The schedule goes on with its next slot.", "schedules"),
            "run-schedule": Act(("schedule",), _run, "A task of the schedule was put in.", "schedules"),
        }

    async def read(self, *about: str) -> Schedules:
        [after] = about
        page = await TaskScheduler(self.queue).schedule_page(limit=PAGE, after=after or None, next_runs=NEXT_RUNS)
        return Schedules(page, after)

    def shown(self, _seen: Schedules, _viewer: object) -> Mapping[str, Any]:
        return {"outcomes": _OUTCOMES}


_OUTCOMES = {"fired": "ok", "by-hand": "started", "skipped": "canceled", "full": "bad", "missed": "warn"}
"""The shape of each."""


async def _pause(queue: TaskQueue, schedule: str) -> None:
    await TaskScheduler(queue).pause_schedule(schedule)


async def _resume(queue: TaskQueue, schedule: str) -> None:
    await TaskScheduler(queue).resume_schedule(schedule)


async def _run(queue: TaskQueue, schedule: str) -> None:
    await TaskScheduler(queue).run_now(schedule)
