"""A worker process: ``worker.py URL LOG``. It is told which queue to serve."""

from __future__ import annotations

import asyncio
import sys
from contextlib import AsyncExitStack
from pathlib import Path

from fairque import TaskQueue, Worker
from tests.isolation.suite import tasks  # noqa: F401 (registers them)
from tests.isolation.suite.led import follow
from tests.isolation.suite.log import note_deliveries


class Serving:
    """One queue at a time."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._stack = AsyncExitStack()

    async def serve(self, queue: str, concurrency: int, lease: float | None, partitions: int) -> str:
        opened = await self._stack.enter_async_context(
            TaskQueue(self._url, name=queue, lease=lease, partitions=partitions)
        )
        worker = Worker(opened, concurrency=concurrency, shutdown_timeout=0.1)
        await self._stack.enter_async_context(worker)
        return worker.worker_id

    async def leave(self) -> str:
        await self._stack.aclose()
        return "left"


if __name__ == "__main__":
    note_deliveries(Path(sys.argv[2]))
    serving = Serving(sys.argv[1])
    asyncio.run(follow({"serve": serving.serve, "leave": serving.leave}))
