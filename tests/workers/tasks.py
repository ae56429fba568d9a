"""Tasks that tests have run by other processes. What they do is seen in the lines they print."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from itertools import chain
from pathlib import Path

import msgspec

from fairque import Collect, current_task, task

_PAUSE = 0.01


def _is_released(releases: str) -> bool:
    return Path(releases, str(os.getpid())).exists()


def _append(path: str, line: str) -> None:
    with Path(path).open("a") as lines:
        lines.write(line + "\n")


@task
async def add(a: int, b: int) -> int:
    return a + b


@task
async def nap(seconds: float) -> None:
    await asyncio.sleep(seconds)


@task
async def tell(text: str) -> str:
    current_task().progress(0.5, text)
    await asyncio.sleep(0.2)
    return text


@task
async def log(path: str, seconds: float) -> str:
    """Leave a line with the process in a file that all of them append to; the result is the task's id."""
    me = current_task()
    _append(path, f"{os.getpid()} {me.task_id}")
    await asyncio.sleep(seconds)
    return me.task_id


@task(collect=Collect(5, within=0.1))
async def log_together(calls: list[tuple[str, str]]) -> list[str | Exception]:
    """Leave a line for each call, a path and a name, which is its result."""
    for path, name in calls:
        _append(path, f"{os.getpid()} {name}")
    await asyncio.sleep(0.02)
    return [name for _, name in calls]


@task
async def log_after(path: str, seconds: float, before: list[list[str]]) -> list[str]:
    """The same; the result is the ids that others returned, and its own."""
    own = await log.fn(path, seconds)
    return [*chain(*before), own]


@task
async def hold(releases: str) -> int:
    """Run until the directory `releases` has a file with the number of this process, which is the result."""
    me = current_task()
    print(f"runs {me.task_id} attempt {me.attempt}")
    try:
        while not _is_released(releases):  # noqa: ASYNC110 (another process says when)
            await asyncio.sleep(_PAUSE)
    except asyncio.CancelledError:
        print(f"cancelled {me.task_id}")
        raise
    return os.getpid()


@task
async def tell_once_and_hold(releases: str) -> int:
    """The same; the first attempt tells half of it."""
    if current_task().attempt == 1:
        current_task().progress(0.5, "half of it")
    own: int = await hold.fn(releases)
    return own


@task
async def block_loop(releases: str) -> int:
    """The same, with the event loop blocked."""
    print(f"blocks {current_task().task_id}")
    while not _is_released(releases):
        time.sleep(_PAUSE)  # noqa: ASYNC251 (this is what it is for)
    return os.getpid()


@task
async def keep_interpreter(seconds: float) -> int:
    """No other thread runs meanwhile, as while a long regular expression is matched."""
    until = time.monotonic() + seconds
    any(map(until.__lt__, iter(time.monotonic, None)))
    return os.getpid()


@task
async def kill_worker() -> None:
    os._exit(9)


class Deadly(msgspec.Struct):
    """Its decoding kills the process."""

    number: int

    def __post_init__(self) -> None:
        if "deadly" in os.environ:
            os._exit(9)


@task
async def take_deadly(_: Deadly) -> None:
    pass


@task
async def numbers(most: int, seconds: float) -> AsyncIterator[tuple[int, int]]:
    """The attempt and a number, so many seconds apart."""
    for n in range(most):
        yield current_task().attempt, n
        await asyncio.sleep(seconds)
