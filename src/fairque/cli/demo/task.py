"""What the workers of the demo serve: ``fairque worker fairque.cli.demo.task:queue``."""

from __future__ import annotations

import asyncio
import os
import time

import msgspec

from fairque import TaskQueue, task
from fairque.cli.demo.results import Sample

__all__ = ["QUEUE_VARIABLE", "queue", "work"]

QUEUE_VARIABLE = "FAIRQUE_DEMO_QUEUE"


@task(name="fairque.demo", result_ttl=0)
async def work(owner: str, arrived: float, seconds: float) -> None:
    """Take some time, then tell the demo on stdout."""
    began = time.time()
    await asyncio.sleep(seconds)
    os.write(1, msgspec.json.encode(Sample(owner, arrived, began)) + b"\n")


def queue() -> TaskQueue:
    """The server comes from FAIRQUE_REDIS_URL."""
    return TaskQueue(name=os.environ[QUEUE_VARIABLE])
