"""Users of different partitions share fairly: held over the real scripts, by a real worker."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING

import pytest

from fairque import TaskQueue, Worker, current_task, task
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
