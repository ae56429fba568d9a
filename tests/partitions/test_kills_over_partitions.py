"""Workers of a queue with partitions that are killed at work: nothing is lost, and nothing recorded twice."""

from __future__ import annotations

import asyncio
import random
import signal
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fairque import TaskQueue
from tests.support.eventually import eventually
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
COUNT = "local sum = 0 for _, key in ipairs(KEYS) do sum = sum + redis.call('SCARD', key) end return sum"

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


async def test_no_more_run_than_may_while_those_who_carry_places_are_killed(
    spread: TaskQueue, fleet: Fleet, server: Server, tmp_path: Path
) -> None:
    """Workers die at any step of that, as often as tasks begin; all places are found again."""
    await spread.set_limit(tasks.log.name, max_running=3)
    seen: Counter[int] = Counter()

    async def look_all_the_time() -> None:
        running = [f"{part.keys.prefix}running::{tasks.log.name}" for part in spread.reader.parts]
        while True:
            seen[server.execute("EVAL", COUNT, len(running), *running)] += 1
            await asyncio.sleep(0.002)

    looking = asyncio.create_task(look_all_the_time())
    storm = Storm(fleet, tmp_path / "runs")
    for _ in range(WORKERS):
        await storm.launch()
    handles = [await spread.enqueue(tasks.log(str(tmp_path / "runs"), 0.05), user_id=user) for user in USERS * 4]
    for _ in range(KILLS):
        await storm.kill_one_at_work()
        await storm.launch()
    for handle in handles:
        await handle.result(timeout=60)
    for user in USERS:  # all three can be had at once, wherever they are
        await spread.enqueue(tasks.log(str(tmp_path / "runs"), 0.3), user_id=user)
    seen[3] = 0
    await eventually(lambda: seen[3], 20)
    looking.cancel()
    assert max(seen) == 3
    await storm.end()
