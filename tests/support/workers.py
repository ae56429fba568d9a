"""Worker processes of one queue, to be killed."""

from __future__ import annotations

import json
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.support.eventually import eventually

if TYPE_CHECKING:
    from tests.support.process import WorkerProcess

SCRIPT = "tests/workers/worker.py"


class Fleet:
    """Starts workers of one queue.

    Args:
        start_process: The fixture `worker_process`.
        url: Where the server is.
        queue_name: Whom they serve.
        queue_options: Of their `TaskQueue`.
    """

    def __init__(
        self, start_process: Callable[..., Awaitable[WorkerProcess]], url: str, queue_name: str, **queue_options: Any
    ) -> None:
        self._start_process = start_process
        self._url = url
        self._queue_name = queue_name
        self._queue_options = queue_options

    async def launch(self, **worker_options: Any) -> WorkerProcess:
        """Returns at once."""
        options = json.dumps({"queue": self._queue_options, "worker": worker_options})
        return await self._start_process(SCRIPT, self._url, self._queue_name, options)

    async def start(self, **worker_options: Any) -> WorkerProcess:
        """Returns when it serves."""
        process = await self.launch(**worker_options)
        await process.line("ready ")
        return process


class Storm:
    """Workers that are killed in the middle of their tasks and replaced. Each task notes its start in a file.

    Args:
        fleet: Where the workers come from.
        log: The file: a line for each start, process and task.
        max_deliveries: Of the workers.
    """

    def __init__(self, fleet: Fleet, log: Path, max_deliveries: int = 1000) -> None:
        self._fleet = fleet
        self._log = log
        self._max_deliveries = max_deliveries
        self._workers: dict[int, WorkerProcess] = {}
        self.killed: set[int] = set()
        log.touch()

    async def launch(self) -> None:
        worker = await self._fleet.launch(concurrency=5, max_deliveries=self._max_deliveries)
        self._workers[worker.pid] = worker

    def starts(self) -> list[list[str]]:
        """Process and task of every start so far."""
        return [line.split() for line in self._log.read_text().splitlines()]

    async def kill_one_at_work(self) -> None:
        seen = len(self.starts())
        victim = await eventually(lambda: self._last_to_start(seen))
        assert victim is not None
        victim.send(signal.SIGKILL)
        self.killed.add(victim.pid)
        del self._workers[victim.pid]
        assert await victim.wait() == -signal.SIGKILL

    def _last_to_start(self, seen: int) -> WorkerProcess | None:
        """A worker that began a task since then."""
        return next((self._workers[int(pid)] for pid, _ in self.starts()[seen:] if int(pid) in self._workers), None)

    async def end(self) -> None:
        for worker in self._workers.values():
            await worker.line("ready ")
            worker.send(signal.SIGTERM)
        for worker in self._workers.values():
            assert await worker.wait() == 0


def worker_id(process: WorkerProcess) -> str:
    """The name under which a worker that is ready is known in Redis."""
    return next(line for line in process.lines if line.startswith("ready ")).removeprefix("ready ")


def release(directory: Path, process: WorkerProcess) -> None:
    """Let the tasks `hold` of this process end."""
    (directory / str(process.pid)).touch()
