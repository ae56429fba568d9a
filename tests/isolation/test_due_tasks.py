"""Many tasks of one user that come due at once are that user's own affair."""

from __future__ import annotations

import asyncio

import pytest

from tests.support.core import Core
from tests.support.tenants import numbered, place_of, put, tasks_of

pytestmark = pytest.mark.leaves_keys()


async def due(core: Core, at_ms: int) -> None:
    """Wait until then."""
    left = at_ms - core.now_us() / 1000
    assert left > 0, "what is to come due must be put in before"
    await asyncio.sleep(left / 1000)
    core.wait_until_ms(at_ms + 1)


@pytest.mark.parametrize(("tasks", "within_ms"), [(2_000, 500), (20_000, 2_500)])
async def test_the_task_of_another_user_is_not_behind_those_that_came_due_before_it(
    core: Core, tasks: int, within_ms: int
) -> None:
    at_ms = core.now_us() // 1000 + within_ms
    await put(core, tasks_of("a", numbered(tasks), at_ms=at_ms))
    await put(core, tasks_of("b", ["1"], at_ms=at_ms + 1))
    await due(core, at_ms + 1)
    assert await place_of(core, "b", 2) == 2


async def test_a_hundred_users_with_many_due_tasks_delay_another_by_no_more_than_a_round(core: Core) -> None:
    at_ms = core.now_us() // 1000 + 2_500
    for user_id in numbered(100, "a"):
        await put(core, tasks_of(user_id, numbered(210), at_ms=at_ms))
    await put(core, tasks_of("b", ["1"], at_ms=at_ms + 1))
    await due(core, at_ms + 1)
    assert await place_of(core, "b", 101) <= 101


async def test_tasks_with_the_same_due_time_start_in_the_order_in_which_they_were_put_in(core: Core) -> None:
    at_ms = core.now_us() // 1000 + 100
    ids = [id_ for pair in zip(numbered(10, "z"), numbered(10, "a"), strict=True) for id_ in pair]
    await put(core, tasks_of("acme", ids[:15], at_ms=at_ms))
    await put(core, tasks_of("acme", ids[15:], at_ms=at_ms))
    await due(core, at_ms)
    started = []
    for _ in ids:
        [taken] = await core.take(1)
        started.append(taken.id)
        await core.settle([taken])
    assert started == ids
