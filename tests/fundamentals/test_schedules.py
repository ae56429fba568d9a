"""Tasks at planned times."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from fairque import Firing, TaskQueue, TaskScheduler, Worker, current_task, task

pytestmark = pytest.mark.leaves_keys("schedule*", "declare*")


async def test_a_schedule_enqueues_a_task_again_and_again(queue: TaskQueue):
    ran: asyncio.Queue[str] = asyncio.Queue()

    @task
    async def report(name: str) -> None:
        await ran.put(name)

    scheduler = TaskScheduler(queue)
    schedule_id = await scheduler.add_schedule(cron_expr="* * * * * *", task=report("sales"), user_id="acme")
    async with Worker(queue):  # workers fire schedules as well
        assert await asyncio.wait_for(ran.get(), 10) == "sales"
        assert await asyncio.wait_for(ran.get(), 10) == "sales"
    assert (await scheduler.get_schedule(schedule_id)).runs >= 2


async def test_a_time_may_be_local_to_a_place(queue: TaskQueue):
    @task
    async def report() -> None: ...

    scheduler = TaskScheduler(queue)
    await scheduler.add_schedule(
        cron_expr="0 9 * * MON-FRI",
        task=report(),
        timezone="Europe/Berlin",
        user_id="acme",
        schedule_id="morning",
        start=datetime(2030, 1, 1, tzinfo=UTC),
    )
    assert await scheduler.next_runs("morning", 2) == [datetime(2030, 1, day, 8, tzinfo=UTC) for day in (1, 2)]


async def test_a_task_knows_the_schedule_that_made_it(queue: TaskQueue):
    told: list[Firing | None] = []

    @task
    def report() -> None:
        told.append(current_task().schedule)

    scheduler = TaskScheduler(queue)
    await scheduler.add_schedule(every=timedelta(hours=1), task=report(), user_id="acme", schedule_id="hourly")
    [planned] = await scheduler.next_runs("hourly", 1)
    await scheduler.fire_due(ahead=3600)
    await queue.enqueue(report(), user_id="acme")
    await Worker(queue, concurrency=1).run_until_idle()
    assert told[1] is None
    assert told[0] is not None
    assert (told[0].schedule_id, told[0].cron, told[0].planned_at) == ("hourly", None, planned)


async def test_a_task_in_a_subprocess_knows_it_as_well(queue: TaskQueue):
    from tests.fundamentals.in_processes import firing

    scheduler = TaskScheduler(queue)
    await scheduler.add_schedule(every=60, task=firing(), user_id="acme", schedule_id="s")
    await scheduler.fire_due(ahead=60)
    await Worker(queue).run_until_idle()
    task_id = (await scheduler.get_schedule("s")).last_task_id
    assert task_id is not None
    assert await queue.handle("acme", task_id).result(timeout=0) == "s"


@pytest.mark.smoke
async def test_a_task_may_declare_its_schedule(queue: TaskQueue):
    ran = asyncio.Event()

    @task(name="cleanup", cron="* * * * * *", user_id="system")
    async def cleanup() -> None:
        ran.set()

    async with Worker(queue):
        await asyncio.wait_for(ran.wait(), 10)
    assert (await TaskScheduler(queue).get_schedule("cleanup")).declared
    await queue.purge("system")  # what came due while the worker stopped


async def test_a_schedule_can_be_paused_changed_and_removed(queue: TaskQueue):
    @task
    async def report() -> None: ...

    scheduler = TaskScheduler(queue)
    schedule_id = await scheduler.add_schedule(every=timedelta(minutes=5), task=report(), user_id="acme")
    await scheduler.pause_schedule(schedule_id)
    assert await scheduler.list_schedules("acme", active=True) == []
    await scheduler.resume_schedule(schedule_id)
    await scheduler.update_schedule(schedule_id, every=timedelta(minutes=10), overlap="skip")
    assert (await scheduler.get_schedule(schedule_id)).every == 600
    task_id = await scheduler.run_now(schedule_id)
    await Worker(queue).run_until_idle()
    assert await queue.handle("acme", task_id).result(timeout=0) is None
    await scheduler.remove_schedule(schedule_id)
    assert await scheduler.list_schedules() == []
