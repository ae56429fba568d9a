"""Users moved while producers and workers run: a thousand of them, and with workers and movers that are killed."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fairque import TaskHandle, TaskQueue
from tests.support.eventually import eventually
from tests.support.moves import moved_while_served, starts_in
from tests.support.resp import RespClient
from tests.support.workers import Fleet, Storm
from tests.workers import tasks

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


KILLS, WORKERS, MOVERS = 15, 3, 40
FEW = [f"user {n}" for n in range(12)]


async def test_workers_and_movers_that_are_killed_lose_no_task_and_record_each_once(
    server: Server, queue_name: str, worker_process: StartProcess, tmp_path: Path
) -> None:
    options = {"lease": 1.0, "partitions": PARTITIONS, "timeout": 40.0}
    storm = Storm(Fleet(worker_process, server.url, queue_name, **options), tmp_path / "runs")
    async with TaskQueue(server.url, name=queue_name, **options) as queue:
        handles: list[TaskHandle[str]] = []
        for _ in range(WORKERS):
            await storm.launch()
        moving = asyncio.create_task(move_and_kill(server.url, queue_name))
        for _ in range(KILLS):
            for user in FEW:
                task = tasks.log(str(tmp_path / "runs"), random.uniform(0, 0.2))
                handles.append(await queue.enqueue(task, user_id=user))
            await storm.kill_one_at_work()
            await storm.launch()
        killed = await moving
        assert killed > MOVERS // 4, "some were killed before they were through"
        results = [await handle.result(timeout=90) for handle in handles]
        assert results == [handle.task_id for handle in handles]
        await eventually(lambda: nobody_moves(queue), 60)
        stats = await queue.stats()
        assert (stats.finished, stats.queued, stats.started) == (len(handles), 0, 0)
        assert (await queue.check()).findings == ()
        await storm.end()


async def nobody_moves(queue: TaskQueue) -> bool:
    with RespClient(queue.connector.url) as client:
        return not any(client.execute("EXISTS", f"{part.keys.prefix}moves") for part in queue.store().parts)


async def move_and_kill(url: str, name: str) -> int:
    """Movers of random users, each killed at a random moment. Returns how many were."""
    killed = 0
    for _ in range(MOVERS):
        words = "move", random.choice(FEW), str(random.randrange(PARTITIONS)), f"--url={url}", f"--queue={name}"
        mover = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "fairque", *words), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        try:
            async with asyncio.timeout(random.uniform(0.4, 1.6)):
                await mover.wait()
        except TimeoutError:
            mover.kill()
            killed += 1
            await mover.wait()
    return killed
