"""1,000 users moved while producers and workers run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fairque import TaskQueue
from tests.support.moves import moved_while_served, starts_in
from tests.support.workers import Fleet

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.support.process import WorkerProcess
    from tests.support.servers import Server

    StartProcess = Callable[..., Awaitable[WorkerProcess]]

PARTITIONS, USERS, TASKS = 4, 1000, 6

pytestmark = [pytest.mark.leaves_keys(), pytest.mark.timeout(900)]


async def test_a_thousand_users_that_are_moved_lose_nothing_and_keep_their_order(
    server: Server, queue_name: str, worker_process: StartProcess, tmp_path: Path
) -> None:
    users, log = [f"user-{n}" for n in range(USERS)], tmp_path / "starts"
    options = {"lease": 10.0, "partitions": PARTITIONS, "timeout": 30.0}
    async with (
        TaskQueue(server.url, name=queue_name, **options) as queue,
        TaskQueue(server.url, name=queue_name, **options) as stranger,
    ):
        fleet = Fleet(worker_process, server.url, queue_name, **options)
        for _ in range(2):
            await fleet.start(concurrency=20)
        handles = await moved_while_served(queue, stranger, log, users, TASKS, USERS, PARTITIONS)
        for user in users:
            ids = [handle.task_id for handle in handles[user]]
            assert [await handle.result(timeout=60) for handle in handles[user]] == ids
        order, counts = starts_in(log)
        assert set(counts.values()) == {1}
        assert counts.total() == USERS * TASKS
        assert all(numbers == sorted(numbers) for numbers in order.values())
        stats = await queue.stats()
        assert (stats.finished, stats.queued, stats.started) == (USERS * TASKS, 0, 0)
        assert (await queue.check()).findings == ()
