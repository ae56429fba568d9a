"""No user takes all slots where `max_share` says so, however long its tasks take."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from fairque import EVERYBODY, TaskQueue, Worker, current_task, task
from fairque.tasks.registry import unregister
from tests.support.core import Core
from tests.support.eventually import eventually
from tests.support.tenants import fill, govern, numbered, put, tasks_of, whose

pytestmark = pytest.mark.leaves_keys()
LONG_POLL = 3_600.0
"""Nobody finds anything by looking."""


@pytest.fixture
def tasks() -> Iterator[SimpleNamespace]:
    started: Counter[str] = Counter()
    opened = asyncio.Event()

    @task(name="hour-long")
    async def hour_long() -> None:
        started[current_task().user_id] += 1
        await opened.wait()

    yield SimpleNamespace(hour_long=hour_long, started=started, opened=opened)
    unregister("hour-long")


@pytest.fixture
async def queue(server: Any, queue_name: str) -> AsyncIterator[TaskQueue]:
    async with TaskQueue(server.url, name=queue_name) as queue:
        yield queue


async def started(tasks: SimpleNamespace, user_id: str, count: int) -> None:
    await eventually(lambda: tasks.started[user_id] == count)


async def test_hour_long_tasks_of_one_user_leave_a_slot_for_the_task_of_another(
    queue: TaskQueue, tasks: SimpleNamespace
) -> None:
    await queue.set_policy(EVERYBODY, max_share=0.8)
    await queue.enqueue_many([tasks.hour_long() for _ in range(50)], user_id="attacker")
    async with Worker(queue, concurrency=5, poll_interval=LONG_POLL, scheduler=False):
        await started(tasks, "attacker", 4)
        enqueued = time.monotonic()
        await queue.enqueue(tasks.hour_long(), user_id="quiet")
        await started(tasks, "quiet", 1)
        assert time.monotonic() - enqueued < 1
        assert tasks.started["attacker"] == 4
        assert "at most 4 may (0.8 of 5 slots)" in str(await queue.explain("attacker"))
        tasks.opened.set()


async def test_more_workers_make_the_part_larger_without_anybody_polling(
    queue: TaskQueue, tasks: SimpleNamespace
) -> None:
    await queue.set_policy("acme", max_share=0.5, max_running=100)
    await queue.enqueue_many([tasks.hour_long() for _ in range(50)], user_id="acme")
    async with Worker(queue, concurrency=4, poll_interval=LONG_POLL, scheduler=False):
        await started(tasks, "acme", 2)
        async with Worker(queue, concurrency=6, poll_interval=LONG_POLL, scheduler=False):
            await started(tasks, "acme", 5)
            tasks.opened.set()


async def test_a_user_may_take_its_part_of_the_slots_and_no_more(core: Core) -> None:
    core.renew("w", [], concurrency=10)
    await govern(core, "acme", max_share=0.35)
    await fill(core, "acme", tasks=20)
    running = await core.take(10)
    assert len(running) == 3
    await core.settle(running[:1])
    assert len(await core.take(10)) == 1


async def test_one_slot_is_left_to_everybody_and_while_nobody_has_told_of_any_no_more(core: Core) -> None:
    await govern(core, "acme", max_share=0.1)
    await fill(core, "acme", tasks=20)
    assert len(await core.take(10)) == 1
    core.renew("w", [], concurrency=5)
    assert await core.take(10) == []
    core.renew("w", [], concurrency=20)
    assert len(await core.take(10)) == 1


@pytest.mark.parametrize(("most", "part", "runs"), [(3, 0.5, 3), (7, 0.5, 5)])
async def test_the_smaller_one_of_a_number_and_a_part_holds(core: Core, most: int, part: float, runs: int) -> None:
    core.renew("w", [], concurrency=10)
    await govern(core, "acme", max_running=most, max_share=part)
    await fill(core, "acme", tasks=20)
    assert len(await core.take(10)) == runs


async def test_what_a_user_says_itself_comes_before_what_holds_for_everybody(core: Core) -> None:
    core.renew("w", [], concurrency=10)
    await govern(core, "*", max_share=0.1)
    await govern(core, "large", max_share=0.6)
    await fill(core, "large", "small", tasks=20)
    assert whose(await core.take(10)) == {"large": 6, "small": 1}


async def test_fewer_workers_stop_nothing_and_let_nothing_more_start(core: Core) -> None:
    core.renew("w", [], concurrency=10)
    core.renew("goes", [], concurrency=10)
    await govern(core, "acme", max_share=0.5)
    await fill(core, "acme", tasks=30)
    running = await core.take(20)
    assert len(running) == 10
    await core.store.leave("goes", [[]])
    await core.settle(running[:5])
    assert await core.take(10) == []
    await core.settle(running[5:6])
    assert len(await core.take(10)) == 1


async def test_all_who_were_held_come_back_when_slots_are_added(core: Core) -> None:
    """A hundred at each claim, each by its turn."""
    users = numbered(500, "u")
    core.renew("w", [], concurrency=10)
    await govern(core, "*", max_share=0.1)
    await put(core, [new for user_id in users for new in tasks_of(user_id, ["1", "2"])])
    while await core.take(100):
        pass
    core.renew("w2", [], concurrency=10)
    found: Counter[str] = Counter()
    for _ in range(10):
        found += whose(await core.take(100))
    assert found == dict.fromkeys(users, 1)


async def test_who_is_held_costs_the_others_no_claim(core: Core) -> None:
    core.renew("w", [], concurrency=10)
    await govern(core, "*", max_share=0.1)
    await fill(core, "held", tasks=5_000)
    await core.take(1)
    await fill(core, "other", tasks=1)
    assert whose(await core.take(1)) == {"other": 1}
    assert "held" not in core.ready()
