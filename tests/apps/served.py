"""What the worker processes of ``test_cli.py`` serve. Importing it connects to nothing."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

from fairque import Retry, RetryPolicy, TaskQueue, current_task, task

TIMEOUT = float(os.environ.get("SERVED_TIMEOUT", "5"))


def queue() -> TaskQueue:
    """The queue of the test that started this process."""
    return TaskQueue(os.environ["SERVED_URL"], name=os.environ["SERVED_QUEUE"], timeout=TIMEOUT, lease=1.0)


nothing = None
private_queue = TaskQueue("embedded://")


def broken_queue() -> TaskQueue:
    raise RuntimeError("no settings")


@task
async def greet(name: str) -> str:
    return f"hello {name}"


@task
async def whereabouts() -> tuple[str, int]:
    return current_task().worker_id, os.getpid()


def tell() -> None:
    """Tests wait for this line: what a worker was only handed when it is told to stop, it puts back."""
    print(f"runs {current_task().task_id}\n", end="", flush=True)  # in one write: processes share the line


@task
async def nap(seconds: float) -> str:
    tell()
    await asyncio.sleep(seconds)
    return "rested"


@task
async def hold(file: str) -> str:
    """Until the file is there."""
    tell()
    while not Path(file).exists():  # noqa: ASYNC110, ASYNC240
        await asyncio.sleep(0.02)
    return "let go"


@task
async def speak(seconds: float) -> str:
    tell()
    await asyncio.sleep(seconds)
    print("woke up", flush=True)
    return "rested"


@task
async def block(seconds: float) -> str:
    """Holds up the event loop, as nobody should."""
    tell()
    time.sleep(seconds)  # noqa: ASYNC251
    return "blocked"


@task
async def fork(seconds: float) -> int:
    """The process that it leaves behind, as some libraries do."""
    if pid := os.fork():
        return pid
    for output in (1, 2):  # the test reads it to its end
        os.close(output)
    time.sleep(seconds)  # noqa: ASYNC251
    os._exit(0)


@task
async def keep_interpreter(seconds: float) -> None:
    """No other thread runs meanwhile, as while a long regular expression is matched."""
    tell()
    until = time.monotonic() + seconds
    any(map(until.__lt__, iter(time.monotonic, None)))


@task(retry=RetryPolicy(max=1, base=0))
async def stumble(secret: str) -> None:
    if current_task().attempt == 1:
        raise Retry(reason=secret)
    raise ValueError(secret)


@task
def doze(seconds: float) -> str:
    """In a thread, which nobody can cancel."""
    tell()
    time.sleep(seconds)
    return "rested"
