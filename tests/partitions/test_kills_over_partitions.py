"""Workers of a queue with partitions that are killed at work: nothing is lost, and nothing recorded twice."""

from __future__ import annotations

import random
import signal
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fairque import TaskQueue
from tests.support.workers import Fleet, Storm, release
from tests.workers import tasks

if TYPE_CHECKING:
    from fairque import TaskHandle
    from tests.support.process import WorkerProcess
    from tests.support.servers import Server

    StartProcess = Callable[..., Awaitable[WorkerProcess]]

LEASE = 1.0
USERS = [f"user {n}" for n in range(10)]
TASKS, KILLS, WORKERS = 80, 10, 3

pytestmark = [pytest.mark.damages, pytest.mark.leaves_keys()]


@pytest.fixture
async def spread(server: Server, queue_name: str) -> AsyncIterator[TaskQueue]:
    async with TaskQueue(server.url, name=queue_name, lease=LEASE, partitions=4) as queue:
        yield queue


@pytest.fixture
def fleet(worker_process: StartProcess, server: Server, queue_name: str) -> Fleet:
    return Fleet(worker_process, server.url, queue_name, lease=LEASE, partitions=4)


async def test_what_a_killed_worker_had_in_several_partitions_runs_elsewhere(
    spread: TaskQueue, fleet: Fleet, tmp_path: Path
) -> None:
    victim = await fleet.start()
    handles = [await spread.enqueue(tasks.hold(str(tmp_path)), user_id=user) for user in USERS[:6]]
    for handle in handles:
        await victim.line(f"runs {handle.task_id}")
    other = await fleet.start()
    victim.send(signal.SIGKILL)
    for handle in handles:  # suspects run apart: in each partition one, and one more each lease
        await other.line(f"runs {handle.task_id}", 40)
    release(tmp_path, other)
    assert [await handle.result(timeout=20) for handle in handles] == [other.pid] * len(handles)


async def test_a_storm_of_kills_over_partitions_loses_no_task_and_records_each_result_once(
    spread: TaskQueue, fleet: Fleet, tmp_path: Path
) -> None:
    storm = Storm(fleet, tmp_path / "runs")
    handles: list[TaskHandle[str]] = []
    for _ in range(WORKERS):
        await storm.launch()
    for kill in range(1, KILLS + 1):
        while len(handles) < TASKS * kill // KILLS:
            task = tasks.log(str(tmp_path / "runs"), random.uniform(0, 0.2))
            handles.append(await spread.enqueue(task, user_id=random.choice(USERS)))
        await storm.kill_one_at_work()
        await storm.launch()
    results = [await handle.result(timeout=60) for handle in handles]
    assert results == [handle.task_id for handle in handles]
    assert Counter(task_id for _, task_id in storm.starts()).keys() == set(results)
    await storm.end()
