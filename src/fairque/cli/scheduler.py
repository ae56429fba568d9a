"""``fairque scheduler``: fire schedules, without serving tasks."""

from __future__ import annotations

import asyncio
import logging
import signal
from typing import Annotated

import typer

from fairque import TaskQueue, TaskScheduler
from fairque.cli import journal
from fairque.cli.target import load_queue

__all__ = ["command"]

logger = logging.getLogger("fairque.scheduler")


def command(
    target: Annotated[
        str, typer.Argument(help="The queue, as module:name: a TaskQueue, or a function that returns one.")
    ],
    log_level: Annotated[
        journal.LogLevel,
        typer.Option(case_sensitive=False, metavar="LEVEL", help="debug, info, warning (missed slots) or error."),
    ] = journal.LogLevel.INFO,
) -> int:
    """Fire the schedules of a queue until SIGTERM or Ctrl-C.

    Workers do this as well, unless they are told not to. Any number may: each slot makes one task.
    Schedules that tasks of the module declare are registered at the start.

    Example: fairque scheduler myapp.tasks:queue

    Exit codes: 0 stopped by a signal, 1 failed, 2 wrong usage.
    """
    queue = load_queue(target)
    journal.set_up(log_level)
    return asyncio.run(_run(queue))


async def _run(queue: TaskQueue) -> int:
    scheduler = TaskScheduler(queue)
    loop = asyncio.get_running_loop()
    async with queue:
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, lambda: loop.create_task(scheduler.stop()))
        logger.info("fires the schedules of queue %r at %s", queue.name, queue.connector.safe_url)
        await scheduler.run()
    logger.info("stopped")
    return 0
