"""``fairque demo``: see what fairness buys."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from fairque.cli.processes import Interrupted, stop_on_signal
from fairque.embedded.server import EmbeddedServer

if TYPE_CHECKING:
    from fairque.cli.demo.load import Load

__all__ = ["command"]


def _number(most: int, text: str) -> Any:
    return typer.Option(min=1, max=most, metavar="N", help=text)


def command(
    flood: Annotated[int, _number(1_000_000, "Tasks of the flooding user, all at once.")] = 5000,
    users: Annotated[int, _number(1000, "Quiet users.")] = 9,
    tasks: Annotated[int, _number(1000, "Tasks of each quiet user, arriving over time.")] = 8,
    workers: Annotated[int, _number(16, "Worker processes, for each of the two ways.")] = 2,
    concurrency: Annotated[int, _number(1000, "Tasks that a worker process runs at once.")] = 10,
    seconds: Annotated[
        float, typer.Option(min=0.001, max=60, metavar="SECONDS", help="Length of a task, give or take a half.")
    ] = 0.04,
    seed: Annotated[int, typer.Option(metavar="N", help="Draws the arrivals and the lengths.")] = 1,
) -> int:
    """See what fairness buys, on a load that is served in two ways.

    One user floods the queue, others need a task done now and then.
    The load is served fairly and, at the same time, first come, first served.
    Starts a server of its own and real worker processes, and cleans up after itself.

    Example: fairque demo --flood 2000 --workers 4

    Exit codes: 0 shown, 1 failed, 2 wrong usage, 130 interrupted by Ctrl-C.
    """
    from fairque.cli.demo.load import Load  # it all comes late: other commands know no task of the demo

    load = Load(flood, users, tasks, workers, concurrency, seconds, seed)
    with EmbeddedServer() as server, asyncio.Runner() as runner:
        return runner.run(_play(load, server.url))


async def _play(load: Load, url: str) -> int:
    from fairque.cli.demo.queue import serve_both_ways

    console = Console(highlight=False)
    console.print(
        f"One user puts in {load.flood:,} tasks at once, each of {load.users} quiet users {load.tasks} over time.\n"
        f"Slots for {load.slots} tasks in {load.workers} processes, about {load.seconds * 1000:g} ms per task: "
        f"about {load.ideal_seconds:.0f} s for all."
    )
    try:
        with stop_on_signal(console.show_cursor):
            await serve_both_ways(load, url, console)
    except Interrupted as stop:
        typer.echo("interrupted", err=True)
        return stop.code
    return 0
