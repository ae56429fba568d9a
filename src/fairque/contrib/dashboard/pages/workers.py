"""Workers: what each runs and since when, its slots, its memory, and which fell silent."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from fairque import QueueStats, RunningTask, RunningTasks, WorkerInfo
from fairque.contrib.dashboard.page import Page
from fairque.contrib.dashboard.viewer import Viewer

__all__ = ["Workers", "WorkersPage"]

SHOWN = 100
RUNNING = 500
RUNNING_OF_ONE = 20


class Workers(NamedTuple):
    """The workers of a queue, and what runs."""

    stats: QueueStats
    running: RunningTasks


class _Row(NamedTuple):
    worker: WorkerInfo
    flags: Sequence[str]
    tasks: Sequence[RunningTask]
    more: int


class WorkersPage(Page[Workers]):
    """Who does the work."""

    name, path, title = "workers", "workers", "Workers"
    in_navigation = True
    parts = ("sum", "workers")

    async def read(self, *_: str) -> Workers:
        return Workers(*await asyncio.gather(self.queue.stats(), self.queue.running(limit=RUNNING)))

    def shown(self, seen: Workers, _: Viewer) -> Mapping[str, Any]:
        stats = seen.stats
        tasks = defaultdict[str, list[RunningTask]](list)
        for task in seen.running.tasks:
            tasks[task.worker].append(task)
        silent = {worker.worker_id for worker in stats.silent}
        rows = [_row(worker, tasks[worker.worker_id], worker.worker_id in silent) for worker in stats.workers]
        rows.sort(key=lambda row: (not row.flags, -row.worker.running, row.worker.worker_id))
        return {
            "stats": stats,
            "silent": len(silent),
            "memory": sum(worker.memory for worker in stats.workers),
            "rows": rows[:SHOWN],
            "rest": max(0, len(rows) - SHOWN),
        }


def _row(worker: WorkerInfo, tasks: Sequence[RunningTask], is_silent: bool) -> _Row:
    flags = [flag for flag, holds in (("silent", is_silent), ("draining", worker.draining)) if holds]
    if worker.leftover_threads:
        flags.append(f"{worker.leftover_threads} threads left over")
    first = sorted(tasks, key=lambda task: task.started_at or 0.0)[:RUNNING_OF_ONE]
    return _Row(worker, flags, first, max(0, worker.running - len(first)))
