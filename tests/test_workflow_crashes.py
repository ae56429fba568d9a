"""Workers that are killed in the middle of pipelines: no run hangs, no task is left out, nothing is left behind."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fairque import PipelineHandle, Task, TaskQueue, TaskState
from tests.support.servers import own_keys
from tests.support.workers import Fleet, Storm
from tests.workers import tasks

if TYPE_CHECKING:
    from tests.support.process import WorkerProcess
    from tests.support.servers import Server

    StartProcess = Callable[..., Awaitable[WorkerProcess]]

LEASE = 1.0
RUNS = 200
KILLS = 25
WORKERS = 3
USERS = [f"user {n}" for n in range(5)]
NAMES = ["top", "left", "right", "bottom"]

# Whoever was killed said no goodbye: the next heartbeat after a minute, and the next wake-up, forget them.
pytestmark = pytest.mark.leaves_keys("workers", "waiting")


@pytest.fixture
async def queue(server: Server, queue_name: str) -> AsyncIterator[TaskQueue]:
    async with TaskQueue(server.url, name=queue_name, lease=LEASE) as queue:
        yield queue


class Diamonds(Storm):
    """Runs of a diamond come in meanwhile, whose tasks hand on who has run before them."""

    def __init__(self, queue: TaskQueue, fleet: Fleet, log: Path) -> None:
        super().__init__(fleet, log)
        self._queue = queue
        self.handles: list[PipelineHandle] = []

    async def enqueue(self) -> None:
        """left and right need top by order, bottom needs both by argument."""
        top, left, right = (self._task([]).options(task_id=name) for name in NAMES[:3])
        bottom = self._task([left.output, right.output]).options(task_id="bottom")
        self.handles.append(await self._queue.enqueue(top >> (left | right) >> bottom, user_id=random.choice(USERS)))

    def _task(self, before: list[list[str]]) -> Task[list[str]]:
        return tasks.log_after(str(self._log), random.uniform(0, 0.1), before)


async def test_diamonds_outlive_their_workers(
    queue: TaskQueue, worker_process: StartProcess, server: Server, queue_name: str, tmp_path: Path
) -> None:
    fleet = Fleet(worker_process, server.url, queue_name, lease=LEASE)
    diamonds = Diamonds(queue, fleet, tmp_path / "starts")
    for _ in range(WORKERS):
        await diamonds.launch()
    for kill in range(1, KILLS + 1):
        while len(diamonds.handles) < RUNS * kill // KILLS:
            await diamonds.enqueue()
        await diamonds.kill_one_at_work()
        await diamonds.launch()

    runs = diamonds.handles
    results = await asyncio.gather(*(run.result(timeout=30) for run in runs))
    assert [sorted(result) for result in results] == [
        sorted(run[name].task_id for name in ("left", "right", "bottom")) for run in runs
    ], "each task was given what those before it returned"
    starts = [task_id for _, task_id in diamonds.starts()]
    assert set(starts) == {handle.task_id for run in runs for handle in run.tasks.values()}
    assert len(starts) >= 4 * RUNS + KILLS // 2, "the kills hit hardly anyone at work"
    for run in runs:
        assert (await run.state()).tasks == {TaskState.FINISHED: 4}
        last = {name: max(at for at, task_id in enumerate(starts) if task_id == run[name].task_id) for name in NAMES}
        first = {name: starts.index(run[name].task_id) for name in NAMES}
        assert first["top"] < min(first["left"], first["right"])
        assert max(first["left"], first["right"]) < last["bottom"]
    await diamonds.end()
    await assert_nothing_is_left(queue, server, queue_name)


async def assert_nothing_is_left(queue: TaskQueue, server: Server, queue_name: str) -> None:
    stats = await queue.stats()
    assert (stats.finished, stats.failed, stats.canceled) == (4 * RUNS, 0, 0)
    assert (stats.queued, stats.started, stats.scheduled, stats.deferred) == (0, 0, 0, 0)
    kinds = Counter(own_keys(queue_name, key).partition(":")[0] for key in server.keys(queue_name))
    assert kinds["result"] == 4 * RUNS
    lasting = {"settings", "state", "users", "run-times", "schedule-keepers", "usage"}  # usage: an hour ended meanwhile
    assert set(kinds) <= {"result", "user", "metrics", "workers", "worker", "claimed", "waiting"} | lasting, kinds
