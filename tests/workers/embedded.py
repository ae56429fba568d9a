"""A worker process with an embedded server: ``embedded.py URL [LEASE]``. It prints where that is; SIGTERM stops it."""

from __future__ import annotations

import asyncio
import signal
import sys

from fairque import TaskQueue, Worker
from tests.workers import tasks  # noqa: F401 (registers them)


async def main(url: str, lease: float) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with TaskQueue(url, lease=lease) as queue:
        server = queue.connector._server
        assert server is not None
        async with Worker(queue):
            print(f"server {server.pid} {server.directory}")
            await stop.wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], float(sys.argv[2]) if len(sys.argv) > 2 else 10.0))
