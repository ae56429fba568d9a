"""Workers that are killed at work, again and again, with each lease. Run by ``nox -s storm``."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fairque import Priority, TaskQueue
from tests.support.workers import Fleet, Storm
from tests.workers import tasks

if TYPE_CHECKING:
    from fairque import TaskHandle
    from tests.support.process import WorkerProcess
    from tests.support.servers import Server

TASKS, KILLS, WORKERS = 300, 40, 4
USERS = [f"user {n}" for n in range(10)]
PATIENCE = 300.0

pytestmark = [pytest.mark.leaves_keys("workers", "waiting"), pytest.mark.timeout(900)]


@pytest.mark.parametrize("lease", [1.0, 10.0])
@pytest.mark.parametrize("partitions", [1, 4])
@pytest.mark.parametrize("_time", range(3))
async def test_what_runs_beside_the_killed_is_neither_lost_nor_failed_and_runs_again_only_where_its_worker_died(
    server: Server,
    queue_name: str,
    worker_process: Callable[..., Awaitable[WorkerProcess]],
    tmp_path: Path,
    record_property: Callable[[str, object], None],
    lease: float,
    partitions: int,
    _time: int,
) -> None:
    """A worker fails a task after five deaths that were its own, as by default: none may be put down to these."""
    fleet = Fleet(worker_process, server.url, queue_name, lease=lease, partitions=partitions)
    storm = Storm(fleet, tmp_path / "runs", max_deliveries=5)
    async with TaskQueue(server.url, name=queue_name, lease=lease, partitions=partitions) as queue:
        handles: list[TaskHandle[str]] = []
        for _ in range(WORKERS):
            await storm.launch()
        for kill in range(1, KILLS + 1):
            while len(handles) < TASKS * kill // KILLS:
                task = tasks.log(str(tmp_path / "runs"), random.uniform(0, 0.2))
                priority = random.choice([Priority.NORMAL, Priority.CRITICAL])
                handles.append(await queue.enqueue(task, user_id=random.choice(USERS), priority=priority))
            await storm.kill_one_at_work()
            await storm.launch()
        assert [await handle.result(timeout=PATIENCE) for handle in handles] == [each.task_id for each in handles]
        stats = await queue.stats()
        assert (stats.finished, stats.failed, stats.queued, stats.started) == (TASKS, 0, 0, 0)
        await storm.end()
    starts: defaultdict[str, Counter[int]] = defaultdict(Counter)
    for pid, task_id in storm.starts():
        starts[task_id][int(pid)] += 1
    assert starts.keys() == {handle.task_id for handle in handles}
    for task_id, where in starts.items():
        survived = {pid: times for pid, times in where.items() if pid not in storm.killed}
        assert sum(survived.values()) <= 1, f"{task_id} ran again though nobody died of it: {where}"
        assert set(where.values()) == {1}, f"{task_id} ran twice in a process: {where}"
    record_property("extra runs", sum(where.total() for where in starts.values()) - TASKS)
    record_property("killed", len(storm.killed))
