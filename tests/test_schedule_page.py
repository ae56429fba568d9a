"""Schedules for pages: what comes next, what came of the last slots, page by page, and nothing of other users."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from fairque import InvalidInput, TaskFunction, TaskQueue, TaskScheduler, TaskState, Worker, task
from fairque.embedded.server import EmbeddedServer
from fairque.redis.keys import encode_user
from fairque.tasks.registry import unregister
from tests.support.commands import commands_of
from tests.support.resp import RespClient

pytestmark = pytest.mark.leaves_keys()
HOUR = 3600


@pytest.fixture
def report() -> Iterator[TaskFunction[..., Any]]:
    async def report(number: int = 0) -> int:
        return 1 // number

    made = task(name="pages.report")(report)
    yield made
    unregister(made.name)


@pytest.fixture
async def own_queue(own_server: Callable[..., EmbeddedServer], queue_name: str) -> AsyncIterator[TaskQueue]:
    async with TaskQueue(own_server().url, name=queue_name) as queue:
        yield queue


async def add(queue: TaskQueue, task: Any, schedule_id: str, user_id: str = "anna", **options: Any) -> TaskScheduler:
    scheduler = TaskScheduler(queue)
    times = {"every": HOUR} | options
    await scheduler.add_schedule(task=task, user_id=user_id, schedule_id=schedule_id, **times)
    return scheduler


async def test_a_page_tells_what_came_of_the_last_slots_and_of_their_tasks(
    queue: TaskQueue, report: TaskFunction[..., Any]
) -> None:
    scheduler = await add(queue, report(1), "s", overlap="skip")
    assert await scheduler.fire_due(1.5 * HOUR) == 1
    assert await scheduler.fire_due(2.5 * HOUR) == 0
    by_hand = await scheduler.run_now("s")
    await Worker(queue, scheduler=False).run_until_idle()
    [view] = (await scheduler.schedule_page()).schedules
    assert [run.outcome for run in view.schedule.recent] == ["fired", "skipped", "by-hand"]
    first, _, last = view.schedule.recent
    assert last.task_id == by_hand
    assert view.states == {first.task_id: TaskState.FINISHED, by_hand: TaskState.FINISHED}
    assert view.schedule == await scheduler.get_schedule("s")


async def test_no_more_than_the_last_twenty_are_kept(queue: TaskQueue, report: TaskFunction[..., Any]) -> None:
    scheduler = await add(queue, report(0), "s")
    ids = [await scheduler.run_now("s") for _ in range(25)]
    [view] = (await scheduler.schedule_page()).schedules
    assert [run.task_id for run in view.schedule.recent] == ids[5:]
    assert list(view.states) == ids[-5:]
    assert set(view.states.values()) == {TaskState.QUEUED}


async def test_slots_that_were_missed_are_told(queue: TaskQueue, report: TaskFunction[..., Any]) -> None:
    scheduler = await add(queue, report(1), "s", misfire="skip", misfire_grace=0)
    with RespClient(queue.connector.url) as client:
        key = f"{queue.keys.prefix}schedule:s"
        slot = client.execute("HINCRBY", key, "slot", -5 * HOUR * 1000)
        client.execute("HINCRBY", key, "anchor", -5 * HOUR * 1000)
        client.execute("ZADD", f"{queue.keys.prefix}schedules:anna", slot, "s")
        client.execute("ZADD", f"{queue.keys.prefix}schedules", slot, "anna")
    assert await scheduler.fire_due() == 0
    [view] = (await scheduler.schedule_page()).schedules
    runs = view.schedule.recent  # one for each look that found some: a slot may come due between two
    assert {(run.outcome, run.task_id) for run in runs} == {("missed", None)}
    assert sum(run.missed for run in runs) == view.schedule.misfired > 0


async def test_a_page_tells_the_next_slots(queue: TaskQueue, report: TaskFunction[..., Any]) -> None:
    scheduler = await add(queue, report(1), "s")
    await add(queue, report(1), "twice", max_runs=2)
    await add(queue, report(1), "paused")
    await scheduler.pause_schedule("paused")
    views = {view.schedule.schedule_id: view for view in (await scheduler.schedule_page(next_runs=4)).schedules}
    assert list(views["s"].next_runs) == await scheduler.next_runs("s", 4)
    assert [len(views[name].next_runs) for name in ("s", "twice", "paused")] == [4, 2, 0]


async def test_pages_of_a_user_hold_its_own_alone(queue: TaskQueue, report: TaskFunction[..., Any]) -> None:
    for user_id in ("anna", "ben", "a b"):
        for number in range(5):
            await add(queue, report(1), f"{user_id}/{number}", user_id)
    scheduler = TaskScheduler(queue)
    found, after = [], None
    while True:
        page = await scheduler.schedule_page("anna", limit=2, after=after)
        found += [view.schedule.schedule_id for view in page.schedules]
        after = page.after
        if after is None:
            break
    assert found == [f"anna/{number}" for number in range(5)]
    assert len((await scheduler.schedule_page(limit=500)).schedules) == 15
    for other in ("", "ben:ben/0", f"{encode_user('a b')}:a b/0", "anna"):
        with pytest.raises(InvalidInput, match="after"):
            await scheduler.schedule_page("anna", after=other)


@pytest.mark.parametrize(
    "wrong", [{"limit": 0}, {"limit": 501}, {"next_runs": 0}, {"after": 7}, {"after": "a:\udc80"}, {"user_id": ""}]
)
async def test_what_no_page_can_be_is_refused(queue: TaskQueue, wrong: dict) -> None:
    with pytest.raises(InvalidInput):
        await TaskScheduler(queue).schedule_page(**wrong)


async def test_a_page_costs_the_same_however_many_schedules_there_are(
    own_queue: TaskQueue, report: TaskFunction[..., Any]
) -> None:
    for number in range(20):
        scheduler = await add(own_queue, report(1), f"s{number:03}")
    few = await commands_of(own_queue, lambda: scheduler.schedule_page(limit=10))
    for number in range(20, 200):
        await add(own_queue, report(1), f"s{number:03}")
    many = await commands_of(own_queue, lambda: scheduler.schedule_page(limit=10))
    assert many == few
