"""One worker serves all partitions of a queue."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import pytest

from fairque import TaskQueue, Worker, task
from tests.support.eventually import eventually

if TYPE_CHECKING:
    from tests.support.servers import Server

pytestmark = [pytest.mark.damages, pytest.mark.leaves_keys()]
USERS = [f"user-{n}" for n in range(20)]


@task
async def serve_in_partitions(n: int = 0) -> int:
    return n


@pytest.fixture
async def spread(server: Server, queue_name: str) -> AsyncIterator[TaskQueue]:
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


async def test_an_idle_worker_is_told_of_work_in_any_partition(spread: TaskQueue) -> None:
    async with Worker(spread, scheduler=False, poll_interval=3600):
        for user in USERS:
            handle = await spread.enqueue(serve_in_partitions(7), user_id=user)
            assert await handle.result(timeout=10) == 7


async def test_a_worker_ends_when_nothing_is_left_in_any_partition(spread: TaskQueue) -> None:
    handles = [await spread.enqueue(serve_in_partitions(1), user_id=user) for user in USERS * 3]
    await Worker(spread, scheduler=False).run_until_idle()
    assert sum([await handle.result(timeout=1) for handle in handles]) == len(handles)


async def test_nothing_is_left_of_a_worker_that_stopped(server: Server, spread: TaskQueue) -> None:
    async with Worker(spread, scheduler=False):
        for user in USERS:
            await (await spread.enqueue(serve_in_partitions(7), user_id=user)).result(timeout=10)

    def is_gone() -> bool:
        return not server.execute("KEYS", f"fairque:{{{spread.name}/*waiting")

    await eventually(is_gone)
    assert not server.execute("KEYS", f"fairque:{{{spread.name}/*workers")
