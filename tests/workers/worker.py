"""A worker process: ``worker.py URL QUEUE {"queue": {…}, "worker": {…}}``. SIGTERM, SIGINT and SIGHUP stop it.

It prints ``ready`` with its worker id once it serves, its own log, and a line for each event of a task.
"""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import sys
from typing import Any

from fairque import TaskEvent, TaskQueue, Worker
from tests.workers import process_tasks, tasks  # noqa: F401 (registers them)


class Extras(logging.Handler):
    """Prints the `extra` fields of a record."""

    def emit(self, record: logging.LogRecord) -> None:
        if hasattr(record, "colour"):
            print(record.colour, record.size, record.at)


def announce(event: str, told: TaskEvent) -> None:
    print(f"{event} {told.task_id} attempt {told.attempt}")


async def main(url: str, queue_name: str, queue_options: dict[str, Any], worker_options: dict[str, Any]) -> None:
    stop = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(signum, stop.set)
    hooks = {
        "on_success": lambda told: announce("success", told),
        "on_failure": lambda told: announce("failure", told),
        "on_retry": lambda told: announce("retry", told),
        "on_lost": lambda told: announce("lost", told),
    }
    async with TaskQueue(url, name=queue_name, **queue_options) as queue:
        async with Worker(queue, **hooks, **worker_options) as worker:
            print(f"ready {worker.worker_id}")
            await stop.wait()
            print("stopping")
        print("stopped")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("app").addHandler(Extras())
    options = json.loads(sys.argv[3])
    asyncio.run(main(sys.argv[1], sys.argv[2], options["queue"], options["worker"]))
