"""A task that runs in the test's own process until the test opens the gate."""

from __future__ import annotations

import asyncio

from fairque import current_task, task


class Gate:
    """What the tasks `work` did, and whether they may end."""

    def __init__(self) -> None:
        self.is_open = asyncio.Event()
        self.started: list[str] = []
        """Task ids, one for each run."""

    def open(self) -> None:
        self.is_open.set()


_gate = Gate()


def new_gate() -> Gate:
    """The gate of this test; that of the test before is gone."""
    global _gate
    _gate = Gate()
    return _gate


@task
async def work(n: int) -> int:
    gate = _gate
    gate.started.append(current_task().task_id)
    await gate.is_open.wait()
    return n
