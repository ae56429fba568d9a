"""Schedules of many users that are due at once fire by turns of users."""

from __future__ import annotations

import pytest

from fairque import Schedule, Task, TaskQueue, TaskScheduler
from tests.support.core import Core

MANY = 5_000
TICKS = 2

pytestmark = pytest.mark.leaves_keys()


def make_due(core: Core, user_id: str, moment: int) -> None:
    """All schedules of this user, as if their time had come then."""
    names = core.execute("ZRANGE", f":schedules:{user_id}", 0, -1)
    core.execute("ZADD", f":schedules:{user_id}", *(part for name in names for part in (moment, name)))
    core.execute("ZADD", ":schedules", moment, user_id)


async def add(scheduler: TaskScheduler, user_id: str, count: int) -> None:
    tick = Task.create(payload={})
    await scheduler.add_schedules([Schedule(every=3600, task=tick, user_id=user_id) for _ in range(count)])


async def tick(scheduler: TaskScheduler) -> None:
    """One of each partition."""
    loops = await scheduler._loops()
    for loop in getattr(loops, "_loops", [loops]):
        await loop._tick()


async def test_the_schedule_of_a_user_fires_beside_thousands_of_another_that_were_due_before(
    queue: TaskQueue, core: Core
) -> None:
    scheduler = TaskScheduler(queue)
    await add(scheduler, "many", MANY)
    await add(scheduler, "one", 1)
    now_ms = core.now_us() // 1000
    make_due(core, "many", now_ms - 2)
    make_due(core, "one", now_ms - 1)
    for _ in range(TICKS):
        await tick(scheduler)
    assert (await queue.user("one")).queued == 1
