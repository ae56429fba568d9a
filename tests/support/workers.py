"""Worker processes of one queue, to be killed."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

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


def worker_id(process: WorkerProcess) -> str:
    """The name under which a worker that is ready is known in Redis."""
    return next(line for line in process.lines if line.startswith("ready ")).removeprefix("ready ")


def release(directory: Path, process: WorkerProcess) -> None:
    """Let the tasks `hold` of this process end."""
    (directory / str(process.pid)).touch()
