"""One worker serves all partitions of a queue."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import pytest

from fairque import TaskQueue, TaskScheduler, Worker, current_task, task
from fairque.redis.partitions import partition_of
from fairque.redis.store import Store
from tests.support.calls import call_of, scripts_called
from tests.support.eventually import eventually

if TYPE_CHECKING:
    from tests.support.proxy import CuttingProxy
    from tests.support.servers import Server

pytestmark = [pytest.mark.damages, pytest.mark.leaves_keys()]
began: Counter[str] = Counter()
served: list[str] = []
USERS = [f"user-{n}" for n in range(20)]


@task
async def serve_in_partitions(n: int = 0) -> int:
    return n


@task
async def count_in_partitions() -> None:
    began[current_task().task_id] += 1


@task
async def note_user() -> None:
    served.append(current_task().user_id)


@task
async def wait_in_partitions() -> None:
    began["wait"] += 1
    await asyncio.sleep(60)


@task
async def tell_in_partitions(n: int) -> AsyncIterator[int]:
    current_task().progress(0.5, "halfway")
    for each in range(n):
        yield each


@pytest.fixture
async def spread(server: Server, queue_name: str) -> AsyncIterator[TaskQueue]:
    began.clear()
    served.clear()
    async with TaskQueue(server.url, name=queue_name, partitions=4) as queue:
        yield queue


async def test_a_worker_drains_all_partitions(spread: TaskQueue) -> None:
    handles = [
        handle
        for user in USERS
        for handle in await spread.enqueue_many([serve_in_partitions(n) for n in range(10)], user_id=user)
    ]
    async with Worker(spread, scheduler=False):
        assert sum([await handle.result(timeout=20) for handle in handles]) == 45 * len(USERS)


async def test_no_partition_takes_all_slots_before_the_others_are_known(server: Server, queue_name: str) -> None:
    served.clear()
    async with TaskQueue(server.url, name=queue_name, partitions=8) as queue:
        for user in USERS:
            await queue.enqueue_many([note_user()] * 60, user_id=user)
        async with Worker(queue, scheduler=False, concurrency=10):
            await eventually(lambda: len(served) >= 600)
    had = Counter(served[:600])
    assert max(had[user] for user in USERS) - min(had[user] for user in USERS) < 10


async def test_a_look_that_is_not_answered_keeps_nobody_elsewhere_waiting(
    spread: TaskQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def no_answer(*_: object) -> None:
        await asyncio.sleep(3600)

    monkeypatch.setattr(Store, "heads", no_answer)
    for user in USERS:
        await spread.enqueue_many([note_user()] * 100, user_id=user)
    async with Worker(spread, scheduler=False, concurrency=2):
        await eventually(lambda: len(served) >= 400)


async def test_an_idle_worker_is_told_of_work_in_any_partition(spread: TaskQueue) -> None:
    async with Worker(spread, scheduler=False, poll_interval=3600):
        for user in USERS:
            handle = await spread.enqueue(serve_in_partitions(7), user_id=user)
            assert await handle.result(timeout=10) == 7


@pytest.mark.parametrize("concurrency", [1, 10, 200])
async def test_a_worker_ends_when_nothing_is_left_in_any_partition(spread: TaskQueue, concurrency: int) -> None:
    for _ in range(5):  # one that asks the same partition again and again is stuck in some rounds only
        handles = [await spread.enqueue(serve_in_partitions(1), user_id=user) for user in USERS * 3]
        await Worker(spread, scheduler=False, concurrency=concurrency).run_until_idle()
        assert sum([await handle.result(timeout=1) for handle in handles]) == len(handles)


async def test_nothing_is_left_of_a_worker_that_stopped(server: Server, spread: TaskQueue) -> None:
    async with Worker(spread, scheduler=False):
        for user in USERS:
            await (await spread.enqueue(serve_in_partitions(7), user_id=user)).result(timeout=10)

    def is_gone() -> bool:
        return not server.execute("KEYS", f"fairque:{{{spread.name}/*waiting")

    await eventually(is_gone)
    assert not server.execute("KEYS", f"fairque:{{{spread.name}/*workers")


async def test_what_tasks_yield_comes_from_each_partition(spread: TaskQueue) -> None:
    async with Worker(spread, scheduler=False):
        for user in USERS:
            handle = await spread.enqueue(tell_in_partitions(3), user_id=user)
            assert [chunk async for chunk in handle.stream()] == [0, 1, 2]


async def test_schedules_of_users_in_all_partitions_fire(spread: TaskQueue) -> None:
    scheduler = TaskScheduler(spread)
    for user in USERS:
        await scheduler.add_schedule(task=serve_in_partitions(1), user_id=user, every=1, max_runs=1, schedule_id=user)
    async with Worker(spread):

        async def have_all_run() -> bool:
            return all([(await scheduler.get_schedule(user)).runs == 1 for user in USERS])

        await eventually(have_all_run, 20)


async def test_what_runs_when_a_worker_stops_is_put_back_in_its_partition(spread: TaskQueue) -> None:
    handles = [await spread.enqueue(wait_in_partitions(), user_id=user) for user in USERS[:8]]
    async with Worker(spread, scheduler=False, shutdown_timeout=0):
        await eventually(lambda: began["wait"] == 8)
    for handle in handles:
        assert (await handle.info()).state == "queued"


@pytest.mark.parametrize("script", ["claim", "settle", "turn", "heads", "renew"])
async def test_replies_that_are_cut_lose_no_task_and_run_none_twice(
    spread: TaskQueue, proxy: CuttingProxy, script: str
) -> None:
    handles = [await spread.enqueue(count_in_partitions(), user_id=user) for user in USERS * 5]
    cuts = [proxy.cut_reply(call_of(script), nth=nth) for nth in (2, 5)]
    async with TaskQueue(proxy.url, name=spread.name) as far, Worker(far, scheduler=False):
        for handle in handles:
            await handle.result(timeout=30)
        if script in ("claim", "turn"):
            assert cuts[0].done.is_set()
    assert {handle.task_id: began[handle.task_id] for handle in handles} == {handle.task_id: 1 for handle in handles}


async def test_an_idle_worker_of_many_partitions_asks_for_little(server: Server, queue_name: str) -> None:
    async with (
        TaskQueue(server.url, name=queue_name, partitions=32) as queue,
        Worker(queue, scheduler=False, poll_interval=0.5),
    ):
        await (await queue.enqueue(serve_in_partitions(1), user_id="acme")).result(timeout=10)
        async with asyncio.timeout(60):
            while await calls_within(3, server) > 6 + 4:  # a look each half second; and until it has come to rest
                pass


async def calls_within(seconds: float, server: Server) -> int:
    before = scripts_called(server.execute)
    await asyncio.sleep(seconds)
    return scripts_called(server.execute) - before


async def test_a_full_worker_that_is_told_of_work_hands_it_on(spread: TaskQueue) -> None:
    async with Worker(spread, scheduler=False, concurrency=1, poll_interval=3600, shutdown_timeout=0):
        busy = await spread.enqueue(wait_in_partitions(), user_id=USERS[0])
        await eventually(lambda: began["wait"])
        async with Worker(spread, scheduler=False, concurrency=len(USERS), poll_interval=3600):
            for user in USERS:  # of those that wait, either one is told
                assert await (await spread.enqueue(serve_in_partitions(3), user_id=user)).result(timeout=10) == 3
        assert (await busy.info()).state == "started"


@task
async def hold_the_slot() -> None:
    began["held"] += 1
    await eventually(lambda: began["released"])


async def test_who_hands_on_what_it_was_told_is_told_again_however_long_that_takes(
    spread: TaskQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A claim that overtook it would have the worker among those that wait there, until that took it out unnoticed."""
    is_asked, may_go, is_done = asyncio.Event(), asyncio.Event(), asyncio.Event()
    hand_on = Store.hand_on

    async def late(self: Store, *given: Any) -> None:
        is_asked.set()
        await may_go.wait()
        await hand_on(self, *given)
        is_done.set()

    monkeypatch.setattr(Store, "hand_on", late)
    busy, other = USERS[0], next(user for user in USERS if partition_of(user, 4) != partition_of(USERS[0], 4))
    async with Worker(spread, concurrency=1, scheduler=False, poll_interval=60):
        await (await spread.enqueue(serve_in_partitions(), user_id=other)).result(timeout=10)
        held = await spread.enqueue(hold_the_slot(), user_id=busy)
        await eventually(lambda: began["held"])
        first = await spread.enqueue(serve_in_partitions(1), user_id=other)
        await asyncio.wait_for(is_asked.wait(), 10)
        began["released"] = 1
        await held.result(timeout=10)
        for n in range(3):  # its loop goes on meanwhile
            await (await spread.enqueue(serve_in_partitions(n), user_id=busy)).result(timeout=10)
        may_go.set()
        await asyncio.wait_for(is_done.wait(), 10)
        assert await first.result(timeout=10) == 1
        assert await (await spread.enqueue(serve_in_partitions(2), user_id=other)).result(timeout=10) == 2
