"""A tour through every script on each kind of server there is: one of a cluster refuses keys of a foreign slot."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from fairque import (
    Priority,
    ResultNotKept,
    Retry,
    TaskFailed,
    TaskQueue,
    TaskState,
    UnknownTask,
    Worker,
    current_task,
    task,
)
from tests.support.eventually import eventually
from tests.support.gate import Gate, new_gate, work

if TYPE_CHECKING:
    from fairque.redis.delivery import Delivery
    from tests.support.servers import Server

pytestmark = [pytest.mark.every_server, pytest.mark.smoke]

ODD_IDS = ["a:b", "{a}", "}{", "**", "ä 火 🙂", "a\nb\0c", "%41", "x" * 512]
NEVER = 3600.0


@pytest.fixture
def gate() -> Gate:
    return new_gate()


@task(max_retries=2)
async def fail(times: int) -> int:
    attempt = current_task().attempt
    if attempt <= times:
        raise Retry(delay=0.01)
    return attempt


async def test_the_life_of_a_task(queue: TaskQueue, gate: Gate) -> None:
    async with Worker(queue, concurrency=1, poll_interval=NEVER) as worker:
        first = await queue.enqueue(work(1), user_id="acme")
        second = await queue.enqueue(work(2), user_id="acme")
        waiting = [asyncio.create_task(handle.result()) for handle in (first, second)]
        await eventually(lambda: gate.started)
        assert (await first.state(), await second.state()) == (TaskState.STARTED, TaskState.QUEUED)
        user = await queue.user("acme")
        assert (user.started, user.queued) == (1, 1)
        assert [known.user_id for known in await queue.users()] == ["acme"]
        gate.open()
        assert await asyncio.gather(*waiting) == [1, 2]
        info = await first.info()
        assert (info.state, info.attempt, info.worker) == (TaskState.FINISHED, 1, worker.worker_id)
        stats = await queue.stats()
        assert (stats.finished, stats.started, stats.queued) == (2, 0, 0)


async def test_users_and_tasks_of_any_name(queue: TaskQueue, gate: Gate) -> None:
    gate.open()
    handles = [
        await queue.enqueue(work(n), user_id=user_id, task_id=task_id)
        for n, (user_id, task_id) in enumerate((user_id, task_id) for user_id in ODD_IDS for task_id in ODD_IDS)
    ]
    await Worker(queue, concurrency=20).run_until_idle()
    assert [await handle.result(timeout=0) for handle in handles] == list(range(len(ODD_IDS) ** 2))
    assert {user.user_id for user in await queue.users()} == set(ODD_IDS)


async def test_order_within_a_user_and_between_users(queue: TaskQueue, gate: Gate) -> None:
    gate.open()
    await queue.set_policy("heavy", weight=2)
    await queue.enqueue_many(
        [
            work(1).options(task_id=f"{user_id} {n}", user_id=user_id)
            for user_id in ("heavy", "light")
            for n in range(30)
        ]
    )
    await queue.enqueue(work(1), user_id="light", task_id="light high", priority=Priority.HIGH)
    await queue.enqueue(work(1), user_id="light", task_id="light first", priority=Priority.CRITICAL)
    await Worker(queue, concurrency=1).run_until_idle()
    assert [task_id for task_id in gate.started if "light" in task_id][:3] == ["light first", "light high", "light 0"]
    heavy = sum("heavy" in task_id for task_id in gate.started[:30])
    assert 19 <= heavy <= 21
    await queue.clear_policy("heavy")


async def test_delays_retries_failures_and_duplicates(queue: TaskQueue, gate: Gate) -> None:
    async with Worker(queue, poll_interval=NEVER):
        delayed = await queue.enqueue(fail(0), user_id="acme", delay=0.2)
        assert await delayed.state() is TaskState.SCHEDULED
        retried = await queue.enqueue(fail(2), user_id="acme")
        failed = await queue.enqueue(fail(3), user_id="acme")
        forgotten = await queue.enqueue(fail(0).options(result_ttl=0), user_id="acme")
        original = await queue.enqueue(work(1), user_id="acme", task_id="x")
        duplicate = await queue.enqueue(work(2), user_id="acme", task_id="x")
        assert (original.created, duplicate.created) == (True, False)
        gate.open()
        assert await duplicate.result(timeout=20) == 1
        assert await delayed.result(timeout=20) == 1
        assert await retried.result(timeout=20) == 3
        with pytest.raises(ResultNotKept):
            await forgotten.result(timeout=20)
        with pytest.raises(TaskFailed, match="Retry"):
            await failed.result(timeout=20)
    assert len((await failed.info()).errors) == 3
    user = await queue.user("acme")
    assert (user.dead_letters, user.retried, user.started, user.scheduled) == (1, 4, 0, 0)


async def test_tasks_of_a_silent_worker_are_taken_over(server: Server, queue_name: str, gate: Gate) -> None:
    gate.open()
    async with TaskQueue(server.url, name=queue_name, lease=0.3) as queue:
        for priority in (Priority.NORMAL, Priority.CRITICAL):
            await queue.enqueue(work(1), user_id="acme", task_id=priority.name, priority=priority)
        assert len(await claim_and_die(queue)) == 2
        async with Worker(queue):
            for priority in (Priority.NORMAL, Priority.CRITICAL):
                assert await queue.handle("acme", priority.name).result(timeout=20) == 1
                assert (await queue.handle("acme", priority.name).info()).attempt == 2
    assert [key for key in server.keys(queue_name) if "stream" in key or key.endswith(":leases")] == []
    server.execute(
        "ZREM", f"fairque:{{{queue_name}}}:workers", "ghost"
    )  # what the heartbeat of others does in a minute


async def claim_and_die(queue: TaskQueue) -> list[Delivery]:
    store = queue.store()
    claim = await store.claim("ghost", 2, settings=queue.settings)
    await store.close()
    return claim.deliveries


async def test_leases_are_renewed_and_what_remains_is_released(server: Server, queue_name: str, gate: Gate) -> None:
    async with TaskQueue(server.url, name=queue_name, lease=0.3) as queue:
        handle = await queue.enqueue(work(1), user_id="acme")
        async with Worker(queue, shutdown_timeout=0.05), Worker(queue, shutdown_timeout=0.05):
            await eventually(lambda: gate.started)
            await asyncio.sleep(1.0)  # in which nothing may happen
            assert len(gate.started) == 1
        info = await handle.info()
        assert (info.state, info.attempt) == (TaskState.QUEUED, 0)
        gate.open()
        await Worker(queue).run_until_idle()
        assert await handle.result(timeout=0) == 1


async def test_workers_of_some_users_are_woken_for_them_only(queue: TaskQueue, gate: Gate) -> None:
    gate.open()
    async with Worker(queue, assigned_users=["acme"], steal_targets=["globex"], poll_interval=NEVER):
        assert await (await queue.enqueue(work(1), user_id="acme")).result(timeout=20) == 1
        assert await (await queue.enqueue(work(2), user_id="globex")).result(timeout=20) == 2
        other = await queue.enqueue(work(3), user_id="initech")
        assert await (await queue.enqueue(work(4), user_id="acme")).result(timeout=20) == 4
        assert await other.state() is TaskState.QUEUED
    await Worker(queue).run_until_idle()
    assert await other.result(timeout=0) == 3


async def test_a_task_that_nobody_knows_is_unknown(queue: TaskQueue) -> None:
    handle = queue.handle("acme", "never enqueued")
    for look in (handle.result, handle.state, handle.info):
        with pytest.raises(UnknownTask, match="'never enqueued' of user 'acme'"):
            await look()
