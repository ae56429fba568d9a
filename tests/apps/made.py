"""Workers that code has made, for ``fairque worker``, on the queue of ``tests.apps.served``."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fairque import TaskEvent, TaskQueue, Worker, current_task, task
from tests.apps import served

FAILS_AT = os.environ.get("FAILS_AT", "")


@asynccontextmanager
async def greeting() -> AsyncIterator[str]:
    if FAILS_AT == "start":
        raise OSError("nothing to greet with")
    print("opened", flush=True)
    yield "hello"
    if FAILS_AT == "end":
        raise OSError("no goodbye")
    print("closed", flush=True)


@task
async def greet(name: str) -> str:
    return f"{current_task(str).state} {name}"


def tell(event: TaskEvent) -> None:
    print(f"hook {event.task_id}", flush=True)


def worker() -> Worker[str]:
    return Worker(served.queue(), lifespan=greeting, concurrency=3, on_success=tell)


def named() -> Worker[str]:
    return Worker(served.queue(), lifespan=greeting, worker_id="w1")


@asynccontextmanager
async def never() -> AsyncIterator[None]:
    print("opening", flush=True)
    await asyncio.Event().wait()
    yield


def slow() -> Worker[None]:
    return Worker(served.queue(), lifespan=never)


instance = Worker(TaskQueue(os.environ.get("SERVED_URL", "embedded://"), name=os.environ.get("SERVED_QUEUE", "q")))
private = Worker(TaskQueue("embedded://"))


hoard: list[bytearray] = []


@task
async def swell(megabytes: int) -> int:
    hoard.append(bytearray(megabytes << 20))  # zeroes that are written to, so that they take memory
    hoard[-1][:: 1 << 12] = b"x" * len(hoard[-1][:: 1 << 12])
    return os.getpid()
