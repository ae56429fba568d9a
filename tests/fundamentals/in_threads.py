"""Workers with a loop of their own, for tests in which a task blocks the loop of its worker."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator
from typing import Any

from fairque import TaskQueue, Worker


class WorkerThread:
    """A thread that runs one worker until it is told to stop."""

    def __init__(self, url: str, name: str, *, lease: float, **options: Any) -> None:
        self._queue = {"url": url, "name": name, "lease": lease}
        self._options = options
        self._serving = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="worker-thread")

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._end = asyncio.Event()
        async with TaskQueue(**self._queue) as queue, Worker(queue, **self._options) as worker:
            self.worker_id = worker.worker_id
            self._serving.set()
            await self._end.wait()

    async def __aenter__(self) -> WorkerThread:
        self._thread.start()
        await asyncio.to_thread(self._serving.wait, 10)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        await asyncio.to_thread(self._thread.join, 20)
        assert not self._thread.is_alive()


@contextlib.asynccontextmanager
async def loop_blocked_until(event: threading.Event) -> AsyncIterator[None]:
    """Whatever happens in the block, the loop that waits for `event` goes on in the end."""
    try:
        yield
    finally:
        event.set()
