"""Users of different partitions share fairly: held over the real scripts, by a real worker."""

from __future__ import annotations

import asyncio
import statistics
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING

import pytest

from fairque import TaskQueue, Worker, current_task, task
from fairque.redis.partitions import partition_of
from fairque.tasks.registry import unregister
from tests.support.eventually import eventually

if TYPE_CHECKING:
    from tests.support.servers import Server

pytestmark = [pytest.mark.damages, pytest.mark.leaves_keys()]
SERVICES = 20_000
Spread = Callable[[int], AbstractAsyncContextManager[TaskQueue]]
services: list[str] = []


@task
async def share_over_partitions() -> None:
    services.append(current_task().user_id)


@pytest.fixture
def spread(server: Server, queue_name: str) -> Spread:
    services.clear()
    return lambda partitions: TaskQueue(server.url, name=queue_name, partitions=partitions)


async def share_error(queue: TaskQueue, weights: dict[str, int], concurrency: int = 10) -> float:
    """The standard deviation of what busy users were served for their weight, as a part of the mean."""
    for user, weight in weights.items():
        if weight != 1:
            await queue.set_policy(user, weight=weight)
        most = round(1.3 * SERVICES * weight / sum(weights.values())) + 50
        for at in range(0, most, 500):
            await queue.enqueue_many([share_over_partitions()] * min(500, most - at), user_id=user)
    async with Worker(queue, concurrency=concurrency, scheduler=False):
        await eventually(lambda: len(services) >= SERVICES, 400)
    had = Counter(services[:SERVICES])
    shares = [had[user] / weight for user, weight in weights.items()]
    return statistics.pstdev(shares) / statistics.mean(shares)


@pytest.mark.timeout(600)
async def test_equal_users_over_8_partitions_have_equal_shares(spread: Spread) -> None:
    async with spread(8) as queue:
        assert await share_error(queue, dict.fromkeys((f"user-{n}" for n in range(25)), 1)) < 0.02


@pytest.mark.timeout(600)
async def test_users_with_weights_over_16_partitions_share_by_them(spread: Spread) -> None:
    async with spread(16) as queue:
        assert await share_error(queue, {f"user-{n}": (1, 2, 5)[n % 3] for n in range(45)}) < 0.03


@pytest.mark.parametrize("lives", ["in the same partition", "in another one"])
async def test_who_was_served_alone_for_long_is_not_made_to_wait_for_whoever_comes_next(
    server: Server, queue_name: str, lives: str
) -> None:
    """One task after the other: between two of them nobody waits anywhere."""
    same = lives == "in the same partition"
    names = (f"flood-{n}" for n in range(1000))
    flood = next(user for user in names if (partition_of(user, 4) == partition_of("quiet", 4)) is same)
    order: list[str] = []

    @task(name="partitions.alone")
    async def alone(user: str) -> None:
        order.append(user)
        await asyncio.sleep(0.001)

    try:
        async with TaskQueue(server.url, name=queue_name, partitions=4) as queue, Worker(queue, concurrency=4):
            for _ in range(60):
                await (await queue.enqueue(alone("quiet"), user_id="quiet")).result(timeout=20)
                await asyncio.sleep(0.01)  # so that the worker rests
            await queue.enqueue_many([alone(flood)] * 400, user_id=flood)
            await eventually(lambda: flood in order)
            before = len(order)
            await (await queue.enqueue(alone("last"), user_id="quiet")).result(timeout=20)
            assert order[before:].index("last") < 30, "60 were served to it before, and count no more"
            await queue.cancel_all(flood)
    finally:
        unregister("partitions.alone")
