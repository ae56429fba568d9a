"""A worker in a process of its own, led by the process that measures.

It prints `ready` when its first task has run, answers the lines `waits` and `cpu`, and leaves when its input ends.
"""

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

from bodies import tally
from contenders import Contender, load

PATIENCE = 60


class WorkerProcess:
    """The leading end."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def waits(self, tasks: int) -> list[tuple[float, float]]:
        """(sent, seconds until started) of so many `stamp` tasks, as soon as they have all begun."""
        return await self._ask(f"waits {tasks}")

    async def cpu_seconds(self) -> float:
        return await self._ask("cpu")

    async def _ask(self, line: str) -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")
        return json.loads(await self.line())

    async def line(self) -> bytes:
        assert self.process.stdout is not None
        async with asyncio.timeout(PATIENCE):
            return await self.process.stdout.readline()


@asynccontextmanager
async def worker_process(client: Contender, url: str, concurrency: int) -> AsyncIterator[WorkerProcess]:
    """Starts it with the same contender, and yields it when a first task has run there."""
    name = type(client).__module__.rpartition(".")[2]
    command = [sys.executable, str(Path(__file__).with_name("child.py")), "work", name, url, str(concurrency)]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, limit=2**24)
    try:
        worker = WorkerProcess(process)
        await client.enqueue("stamp", perf_counter(), "user-0")
        if await worker.line() != b"ready\n":
            raise RuntimeError(f"the worker process of {name} did not start")
        yield worker
        assert process.stdin is not None
        process.stdin.close()
        async with asyncio.timeout(PATIENCE):
            await process.wait()
    finally:
        if process.returncode is None:
            process.kill()


async def serve(name: str, url: str, concurrency: int) -> None:
    """The worker's end."""
    client = load(name, url)
    await client.open()
    tally.expect(1)
    async with client.work(concurrency):
        await tally.done.wait()
        tally.expect(0)
        print("ready", flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            print(json.dumps(await _answer(line)), flush=True)
        os._exit(0)


async def _answer(line: str) -> Any:
    question, *rest = line.split()
    if question == "cpu":
        return time.process_time()
    while len(tally.waits) < int(rest[0]):  # noqa: ASYNC110  an event would weigh on what is measured
        await asyncio.sleep(0.02)
    return tally.waits
