"""``fairque worker``: serve a queue."""

from __future__ import annotations

import asyncio
from typing import Annotated
from urllib.parse import urlsplit

import typer

from fairque import TaskQueue
from fairque.cli import journal
from fairque.cli.problem import Problem
from fairque.cli.serving import Settings, make_worker, serve
from fairque.cli.supervisor import Supervisor
from fairque.cli.target import load_queue

__all__ = ["command"]


def command(
    target: Annotated[
        str, typer.Argument(help="The queue, as module:name: a TaskQueue, or a function that returns one.")
    ],
    concurrency: Annotated[
        int, typer.Option("--concurrency", "-c", min=1, metavar="N", help="Tasks that a process runs at once.")
    ] = 10,
    processes: Annotated[int, typer.Option("--processes", "-p", min=1, metavar="N", help="Worker processes.")] = 1,
    assigned_user: Annotated[
        list[str] | None,
        typer.Option(metavar="USER", help="Serve this user first. Repeatable; without it: everyone."),
    ] = None,
    steal_target: Annotated[
        list[str] | None,
        typer.Option(metavar="USER", help="Serve this user when the assigned ones have nothing; * is everyone."),
    ] = None,
    shutdown_timeout: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="What running tasks are given when the worker stops.")
    ] = 25.0,
    log_level: Annotated[
        journal.LogLevel,
        typer.Option(
            case_sensitive=False,
            metavar="LEVEL",
            help="debug, info (every finished task), warning (retries) or error (failures).",
        ),
    ] = journal.LogLevel.INFO,
    uvloop: Annotated[bool, typer.Option("--uvloop/--no-uvloop", help="Use uvloop where it is installed.")] = True,
) -> int:
    """Serve a queue until SIGTERM or Ctrl-C.

    The first signal drains: nothing more is claimed, and running tasks get the shutdown timeout.
    What is left then goes back to the front of its user's lane.
    A second signal leaves at once, and other workers take over what ran.

    Example: fairque worker myapp.tasks:queue --concurrency 50 --processes 2
    """
    settings = Settings(
        target,
        concurrency,
        processes,
        tuple(assigned_user or ()),
        tuple(steal_target or ()),
        shutdown_timeout,
        log_level,
        uvloop,
    )
    _check(settings)
    queue = load_queue(target)
    journal.set_up(log_level)
    _check_reach(queue)
    if processes == 1:
        return serve(queue, settings)
    return asyncio.run(_supervise(queue, settings))


def _check(settings: Settings) -> None:
    if settings.steal_targets and not settings.assigned_users:
        raise Problem(
            "--steal-target says whom to serve after the assigned users, and none is assigned",
            "add --assigned-user, or leave both out to serve everyone",
        )


def _check_reach(queue: TaskQueue) -> None:
    """A private server is of no use to a worker: nobody else could put a task in."""
    url = urlsplit(queue.connector.url)
    if url.scheme == "embedded" and not url.path:
        raise Problem(
            "embedded:// is a server for one process alone, nothing could reach this worker",
            "use embedded:///some/directory, which processes of this machine share, or redis://",
        )


async def _supervise(queue: TaskQueue, settings: Settings) -> int:
    """What every process would trip over is said once, here."""
    make_worker(queue, settings)
    async with queue:
        pass
    return await Supervisor(settings.arguments_of_one(), settings.processes).run()
