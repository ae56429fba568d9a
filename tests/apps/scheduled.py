"""What the scheduler processes of ``test_scheduler_processes.py`` fire. Importing it connects to nothing."""

from __future__ import annotations

import os

from fairque import TaskQueue, task


def queue() -> TaskQueue:
    """The queue of the test that started this process."""
    return TaskQueue(os.environ["SERVED_URL"], name=os.environ["SERVED_QUEUE"])


@task
async def tick(number: int = 0) -> int:
    return number


@task(every=3600, user_id="system")
async def sweep() -> None: ...
