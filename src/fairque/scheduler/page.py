"""`SchedulePage`: schedules as a page shows them, with what comes next and what came of the last ones."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime

import msgspec

from fairque.checks import check_count, is_text
from fairque.errors import InvalidInput
from fairque.everybody import check_user
from fairque.models import TaskState
from fairque.redis.keys import encode_user
from fairque.redis.missing import noting_missing
from fairque.redis.store import Store
from fairque.redis.store_schedules import ScheduleStore, StoredSchedule
from fairque.schedule.spec import ScheduledTask, moment_of
from fairque.schedule.timetable import Timetable

__all__ = ["SchedulePage", "ScheduleView", "look_at_schedules", "next_slots"]

MOST_LISTED = 500
TASKS_LOOKED_AT = 5


class ScheduleView(msgspec.Struct, frozen=True):
    """A schedule, and what belongs beside it.

    Attributes:
        schedule: It, with what came of its last slots in `recent`.
        next_runs: Its next slots, without jitter; none while it is paused and after its end.
        states: By id, what became of the last tasks that it made, five at most; None: nothing is known any more.
    """

    schedule: ScheduledTask
    next_runs: tuple[datetime, ...]
    states: Mapping[str, TaskState | None]


class SchedulePage(msgspec.Struct, frozen=True):
    """Schedules in the order of user and id; `after` is for the next page, None at the end. `missing` are partitions
    that did not answer, whose schedules are not on it.
    """

    schedules: tuple[ScheduleView, ...]
    after: str | None
    missing: tuple[int, ...] = ()


def next_slots(known: StoredSchedule, n: int) -> list[datetime]:
    """At most so many, without jitter."""
    if not known.schedule.active or known.slot is None:
        return []
    most = n if known.spec.max_runs is None else min(n, known.spec.max_runs - known.schedule.runs)
    timetable = Timetable(known.spec, known.anchor_ms)
    slots = [known.slot]
    while len(slots) < most and (slot := timetable.after(slots[-1])) is not None:
        slots.append(slot)
    return [moment_of(slot) for slot in slots]


async def look_at_schedules(
    schedules: ScheduleStore, store: Store, user_id: str | None, limit: int, after: str | None, next_runs: int
) -> SchedulePage:
    """See `TaskScheduler.schedule_page`."""
    check_count("limit", limit, 1, MOST_LISTED)
    check_count("next_runs", next_runs, 1, 20)
    with noting_missing() as missing:
        rows, then = await schedules.page(user_id, _cursor(user_id, after), limit)
        states = await _states(store, rows)
    return SchedulePage(tuple(_view(known, states, next_runs) for known in rows), then or None, missing.numbers)


def _cursor(user_id: str | None, after: str | None) -> str:
    """Of the pages of one user only those of that user: else it would begin among the schedules of another."""
    begin = "" if user_id is None else encode_user(check_user("user_id", user_id)) + ":"
    if after is None:
        return ""
    if not is_text(after) or ":" not in after or not after.startswith(begin):
        raise InvalidInput(f"after must be that of the page before, not {after!r}")
    return after


async def _states(store: Store, rows: Sequence[StoredSchedule]) -> dict[tuple[str, str], TaskState | None]:
    """By user and id of the task; one call for each user, all at once."""
    wanted: defaultdict[str, list[str]] = defaultdict(list)
    for known in rows:
        wanted[known.schedule.user_id] += _last_tasks(known.schedule)
    asked = [(user_id, ids) for user_id, ids in wanted.items() if ids]
    answers = await asyncio.gather(*(store.standings(user_id, ids) for user_id, ids in asked))
    return {
        (user_id, task_id): TaskState(state) if state else None
        for (user_id, ids), (standings, _) in zip(asked, answers, strict=True)
        for task_id, (state, _) in zip(ids, standings, strict=True)
    }


def _last_tasks(schedule: ScheduledTask) -> list[str]:
    return [run.task_id for run in schedule.recent if run.task_id is not None][-TASKS_LOOKED_AT:]


def _view(known: StoredSchedule, states: Mapping[tuple[str, str], TaskState | None], next_runs: int) -> ScheduleView:
    schedule = known.schedule
    told = {task_id: states[schedule.user_id, task_id] for task_id in _last_tasks(schedule)}
    return ScheduleView(schedule, tuple(next_slots(known, next_runs)), told)
