"""What the workers of the demo serve: ``fairque worker fairque.cli.showcase.work:queue``."""

from __future__ import annotations

import asyncio
import os
import time

import msgspec

from fairque import TaskQueue, task

__all__ = ["QUEUE_VARIABLE", "Sample", "queue", "work"]

QUEUE_VARIABLE = "FAIRQUE_DEMO_QUEUE"


class Sample(msgspec.Struct, frozen=True, array_like=True):
    """One task that was served. Times are seconds since the epoch, all of them on this machine's clock."""

    owner: str
    arrived: float
    began: float

    @property
    def wait(self) -> float:
        return max(0.0, self.began - self.arrived)


@task(name="fairque.demo", result_ttl=0)
async def work(owner: str, arrived: float, seconds: float) -> None:
    """Take some time, then tell the demo on stdout."""
    began = time.time()
    await asyncio.sleep(seconds)
    os.write(1, msgspec.json.encode(Sample(owner, arrived, began)) + b"\n")


def queue() -> TaskQueue:
    """The server comes from FAIRQUE_REDIS_URL."""
    return TaskQueue(name=os.environ[QUEUE_VARIABLE])
