"""Serves the load both ways at once: each has a queue, worker processes, and the results of what they did."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections import deque
from collections.abc import Iterable
from types import TracebackType
from typing import Self

import msgspec
from rich.console import Console

from fairque import Task, TaskQueue
from fairque.cli.demo.load import Arrival, Load
from fairque.cli.demo.results import DemoResults, Sample
from fairque.cli.demo.task import QUEUE_VARIABLE, work
from fairque.cli.errors import FAILED, CommandError
from fairque.cli.processes import FAIRQUE
from fairque.cli.screens.demo import print_report, showing
from fairque.worker.lifeline import Lifeline, spawn

__all__ = ["DemoQueue", "serve_both_ways"]

_EVERYONE = "everyone"
_START_SECONDS = 60.0
_STALL_SECONDS = 20.0
_STOP_SECONDS = 3.0


async def serve_both_ways(load: Load, url: str, console: Console) -> None:
    with Lifeline() as line:
        fair = DemoQueue("fair", True, load, url, line)
        first_come = DemoQueue("first come", False, load, url, line)
        async with fair, first_come:
            console.print(f"Starting {2 * load.workers} worker processes …", style="dim")
            await asyncio.gather(fair.ready(), first_come.ready())
            async with showing(load, (fair.results, first_come.results), console):
                await _run(load, (fair, first_come))
    print_report(load, fair.results, first_come.results, console)


async def _run(load: Load, queues: tuple[DemoQueue, ...]) -> None:
    async with asyncio.TaskGroup() as group:
        for queue in queues:
            group.create_task(queue.finished())
        await asyncio.gather(*(_flood(load, queue) for queue in queues))
        await _trickle(load, queues)


async def _flood(load: Load, queue: DemoQueue) -> None:
    await queue.put_in(load.flood_tasks())


async def _trickle(load: Load, queues: tuple[DemoQueue, ...]) -> None:
    """Each task is put into both queues at the same moment."""
    began = time.monotonic()
    for arrival in load.quiet_tasks():
        await asyncio.sleep(began + arrival.at - time.monotonic())
        await asyncio.gather(*(queue.put_in([arrival]) for queue in queues))


class DemoQueue:
    """Use it as ``async with``.

    First come, first served is the same code with one difference: all tasks are enqueued by one and the same user,
    and within a user, tasks of equal priority are served in the order of their arrival.

    Args:
        title: Shown above its columns.
        fair: Whether each task is enqueued by the user it belongs to.
        load: What will be put in.
        url: The server.
        line: Ends the workers when this process dies.
    """

    def __init__(self, title: str, fair: bool, load: Load, url: str, line: Lifeline) -> None:
        self.results = DemoResults(title, load)
        self._fair = fair
        self._load = load
        self._url = url
        self._line = line
        self._queue = TaskQueue(url, name="fair" if fair else "first-come")
        self._workers: list[asyncio.subprocess.Process] = []
        self._readers: list[asyncio.Task[None]] = []
        self._errors: deque[str] = deque(maxlen=1)

    async def ready(self) -> None:
        """Returns when every worker waits for tasks."""
        deadline = time.monotonic() + _START_SECONDS
        while len((await self._queue.stats()).workers) < self._load.workers:
            self._check_workers()
            if time.monotonic() > deadline:
                raise CommandError(f"the workers did not start within {_START_SECONDS:g} s", self._last_words(), FAILED)
            await asyncio.sleep(0.05)

    async def put_in(self, arrivals: Iterable[Arrival]) -> None:
        """Enqueue these tasks now."""
        now = time.time()
        tasks = [self._task(arrival, now) for arrival in arrivals]
        for arrival in arrivals:
            self.results.arrive(arrival.owner)
        await self._queue.enqueue_many(tasks)

    async def finished(self) -> None:
        """Returns when everything was served. Raises `CommandError` when nothing moves on, or a worker ends before."""
        patience = _STALL_SECONDS + 2 * self._load.seconds + self._load.ideal_seconds
        served, since = 0, time.monotonic()
        while not self.results.complete.is_set():
            self._check_workers()
            if self.results.served > served:
                served, since = self.results.served, time.monotonic()
            elif time.monotonic() - since > patience:
                raise CommandError(f"nothing was served for {patience:.0f} s", self._last_words(), FAILED)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.5):
                    await self.results.complete.wait()

    async def __aenter__(self) -> Self:
        await self._queue.open()
        for _ in range(self._load.workers):
            worker = await self._start_worker()
            self._workers.append(worker)
            self._readers += [asyncio.create_task(self._read(worker)), asyncio.create_task(self._read_errors(worker))]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(_STOP_SECONDS):
                await self._ended()
        except TimeoutError:
            self._signal(signal.SIGKILL)
            await self._ended()
        await self._queue.close()

    def _task(self, arrival: Arrival, now: float) -> Task[None]:
        user_id = arrival.owner if self._fair else _EVERYONE
        return work(arrival.owner, now, arrival.seconds).options(user_id=user_id)

    async def _start_worker(self) -> asyncio.subprocess.Process:
        return await spawn(
            [
                *FAIRQUE,
                "worker",
                f"{work.fn.__module__}:queue",
                f"--concurrency={self._load.concurrency}",
                "--shutdown-timeout=0",
                "--log-level=warning",
            ],
            self._line,
            env={**self._line.environment, "FAIRQUE_REDIS_URL": self._url, QUEUE_VARIABLE: self._queue.name},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )

    async def _read(self, worker: asyncio.subprocess.Process) -> None:
        assert worker.stdout is not None
        decode = msgspec.json.Decoder(Sample).decode
        async for line in worker.stdout:
            self.results.serve(decode(line))

    async def _read_errors(self, worker: asyncio.subprocess.Process) -> None:
        assert worker.stderr is not None
        async for line in worker.stderr:
            self._errors.append(line.decode(errors="replace").strip())

    def _check_workers(self) -> None:
        ended = next((worker for worker in self._workers if worker.returncode is not None), None)
        if ended is not None:
            raise CommandError(f"a worker of the demo ended with code {ended.returncode}", self._last_words(), FAILED)

    def _last_words(self) -> str:
        return f"a worker said last: {self._errors[-1]}" if self._errors else "start the demo again"

    def _signal(self, signum: signal.Signals) -> None:
        for worker in self._workers:
            if worker.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    worker.send_signal(signum)

    async def _ended(self) -> None:
        await asyncio.gather(*(worker.wait() for worker in self._workers))
        await asyncio.gather(*self._readers)
