"""A task that waits for the result of another keeps its slot: where all do, who waits behind them is told."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

import fairque.sync
from fairque import Reason, TaskCanceled, TaskQueue, TaskState, UnknownTask, Worker, task
from fairque.worker import slot_watch
from tests.support.eventually import eventually
from tests.support.servers import Server

TEXT = "every slot of its workers (1) runs a task that waits for the result of another"


class Around:
    """Where the tasks below put others in."""

    queue: TaskQueue
    blocking: fairque.sync.TaskQueue


@task
async def child() -> str:
    return "done"


@task
async def parent() -> str:
    return str(await (await Around.queue.enqueue(child(), user_id="acme", task_id="child")).result())


@task
async def watcher() -> str:
    async for info in (await Around.queue.enqueue(child(), user_id="acme", task_id="child")).watch():
        state = info.state
    return str(state.value)


@task
def plain_parent() -> str:
    return str(Around.blocking.enqueue(child(), user_id="acme", task_id="child").result())


@pytest.fixture
async def queue(server: Server, queue_name: str) -> AsyncIterator[TaskQueue]:
    async with TaskQueue(server.url, name=queue_name, lease=1.0) as queue:
        Around.queue = queue
        Around.blocking = fairque.sync.TaskQueue(server.url, name=queue_name)
        yield queue
        await asyncio.to_thread(Around.blocking.close)


async def reasons(queue: TaskQueue, task_id: str = "child") -> set[Reason]:
    try:
        return {held.reason for held in (await queue.explain("acme", task_id)).waiting}
    except UnknownTask:
        return set()


@pytest.mark.parametrize(("waiting", "result"), [(parent, "done"), (watcher, "finished"), (plain_parent, "done")])
async def test_who_waits_behind_slots_that_wait_is_told_so(
    queue: TaskQueue, waiting: object, result: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(slot_watch, "PATIENCE_SECONDS", 0.5)
    async with Worker(queue, concurrency=1):
        handle = await queue.enqueue(waiting(), user_id="acme", task_id="parent")  # type: ignore[operator]
        await eventually(lambda: is_told(queue))
        explained = await queue.explain("acme", "child")
        assert TEXT in str(explained)
        assert explained.starts_in is None
        await eventually(lambda: "waits for the result of another" in caplog.text)
        await asyncio.sleep(1)
        assert len([line for line in caplog.messages if "waits for the result of another" in line]) == 1
        assert "('parent') of user 'acme'" in caplog.text
        async with Worker(queue, concurrency=1):
            assert await handle.result(timeout=20) == result
    assert await reasons(queue) == set()


async def is_told(queue: TaskQueue) -> bool:
    return Reason.SLOTS in await reasons(queue)


async def test_a_slot_counts_no_longer_when_its_task_goes_on(queue: TaskQueue) -> None:
    async with Worker(queue, concurrency=1):
        gone_on = await queue.enqueue(parent_that_gives_up(), user_id="acme")
        behind = await queue.enqueue(child(), user_id="acme", task_id="child")
        await eventually(lambda: is_told(queue))
        await queue.handle("acme", "never").cancel()
        await eventually(lambda: is_told_no_more(queue))
        assert await gone_on.state() is TaskState.STARTED
        assert await gone_on.result(timeout=20) == "gave up"
        assert await behind.result(timeout=20) == "done"


async def is_told_no_more(queue: TaskQueue) -> bool:
    return await reasons(queue) == {Reason.TURN}


@task
async def parent_that_gives_up() -> str:
    """It goes on for a while after it has."""
    handle = await Around.queue.enqueue(child().options(delay=60), user_id="acme", task_id="never")
    with contextlib.suppress(TaskCanceled):
        await handle.result()
    await asyncio.sleep(1.5)
    return "gave up"


async def test_nobody_is_warned_while_a_slot_is_left(
    queue: TaskQueue, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(slot_watch, "PATIENCE_SECONDS", 0.0)
    async with Worker(queue, concurrency=2):
        waits = await queue.enqueue(parent_that_gives_up(), user_id="acme")
        await queue.enqueue(nap(), user_id="acme", task_id="nap")
        await queue.enqueue(child(), user_id="acme", task_id="child")
        await eventually(lambda: has_started(queue, 2))
        await asyncio.sleep(1)
        assert await reasons(queue) == {Reason.TURN}
        for task_id in ("nap", "never"):
            await queue.handle("acme", task_id).cancel()
        assert await waits.result(timeout=20) == "gave up"
    assert "waits for the result" not in caplog.text


async def has_started(queue: TaskQueue, count: int) -> bool:
    return (await queue.stats()).started == count


@task
async def nap() -> None:
    await asyncio.sleep(60)
