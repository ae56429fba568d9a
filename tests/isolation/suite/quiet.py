"""The quiet user: single tasks, small batches, and tasks for a moment later."""

from __future__ import annotations

import asyncio
import random
import time
from datetime import UTC, datetime
from typing import Any, NamedTuple

from fairque import Task, TaskHandle, TaskQueue
from tests.isolation.suite import tasks

QUIET = "quiet"
BATCH = 3
DELAY = 0.03
PAUSE = 0.02


class Probe(NamedTuple):
    """A task of the quiet user, the `kth` of its call. It waits from `since_ms` on, when it was called, or due."""

    task_id: str
    kth: int
    since_ms: float
    due_ms: int | None = None


class Quiet:
    """Puts in a few tasks and waits for each.

    Args:
        queue: Open.
        same_name: Take the tasks with the limited name.
        patience: Seconds for each result.
    """

    def __init__(self, queue: TaskQueue, same_name: bool, patience: float) -> None:
        self._queue = queue
        self._task = tasks.limited if same_name else tasks.double
        self._patience = patience
        self.probes: list[Probe] = []
        self.faults: list[str] = []

    async def go_on(self, rounds: int) -> None:
        for _ in range(rounds):
            if self.faults:
                return
            await self.single()
            await self.batch()
            await self.at(time.time() + DELAY)
            await self.single()

    async def single(self) -> None:
        await asyncio.sleep(random.uniform(0, PAUSE))
        since = _now_ms()
        n, task = self._make()
        await self._all([await self._queue.enqueue(task, user_id=QUIET)], [n], since)

    async def batch(self) -> None:
        since = _now_ms()
        made = [self._make() for _ in range(BATCH)]
        await self._all(
            await self._queue.enqueue_many([task for _, task in made], user_id=QUIET), [n for n, _ in made], since
        )

    async def at(self, moment: float) -> None:
        n, task = self._make()
        # To the millisecond, as the server keeps it.
        due_ms = max(int(moment * 1000), int(_now_ms()))
        when = datetime.fromtimestamp(due_ms / 1000, UTC)
        handle = await self._queue.enqueue(task, user_id=QUIET, execute_after=when)
        was_late = _now_ms() >= due_ms  # it may have come after its time
        await self._all([handle], [n], due_ms, None if was_late else due_ms)

    def _make(self) -> tuple[int, Task[int]]:
        n = random.randrange(1_000_000)
        return n, self._task(n)

    async def _all(
        self, handles: list[TaskHandle[Any]], numbers: list[int], since_ms: float, due_ms: int | None = None
    ) -> None:
        self.probes += [Probe(handle.task_id, at, since_ms, due_ms) for at, handle in enumerate(handles, 1)]
        for handle, n in zip(handles, numbers, strict=True):
            try:
                found = await handle.result(timeout=self._patience)
            except Exception as exc:
                self.faults.append(f"a task of the quiet user: {type(exc).__name__}: {exc}")
                return
            if found != 2 * n:
                self.faults.append(f"a result of the quiet user is {found!r} instead of {2 * n}")


def _now_ms() -> float:
    return time.time() * 1000
