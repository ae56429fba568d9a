"""``fairque info``: the sizes of a queue."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Annotated

import typer
from rich.console import Console, RenderableType
from rich.text import Text

from fairque import TaskQueue
from fairque.cli.interruption import Interruption
from fairque.cli.output import make_console, print_json, print_json_line
from fairque.cli.overview import Overview, counters_table, look, totals_table, users_table, workers_table
from fairque.cli.reach import AsJson, ConfigFile, QueueName, Url, make_queue, on_queue
from fairque.cli.times import span

__all__ = ["command"]


def command(
    interval: Annotated[
        float | None,
        typer.Option("--interval", "-i", min=0.1, metavar="SECONDS", help="Look again so often, until Ctrl-C."),
    ] = None,
    stats: Annotated[bool, typer.Option("--stats", help="Show as well what has been counted for each user.")] = False,
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000, metavar="N", help="Most users to show.")] = 20,
    url: Url = None,
    queue: QueueName = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> int:
    """Show the sizes of a queue, its users and its workers.

    Users with something to do come first, then those that were active last.
    Jain's index is 1 when all who wait got the same by weight lately, and 1/n when one of n got everything.
    With --interval and --json, every look is one line of JSON.

    Example: fairque info --interval 2

    Exit codes: 0 shown, 1 failed, 2 wrong usage, 130 ended by Ctrl-C.
    """

    def show(overview: Overview) -> None:
        if as_json:
            (print_json if interval is None else print_json_line)(overview)
        else:
            _show(make_console(), overview, stats, clear=interval is not None)

    return on_queue(make_queue(url, queue, config), lambda opened: _watch(opened, limit, interval, show))


async def _watch(queue: TaskQueue, limit: int, interval: float | None, show: Callable[[Overview], None]) -> int:
    if interval is None:
        show(await look(queue, limit))
        return 0
    interruption = Interruption(lambda: None)
    try:
        while True:
            show(await look(queue, limit))
            await asyncio.sleep(interval)
    except asyncio.CancelledError:
        if not interruption.code:
            raise
    return interruption.code


def _show(console: Console, overview: Overview, with_counters: bool, clear: bool) -> None:
    if clear and console.is_terminal:
        console.clear()
    for part in _parts(overview, with_counters):
        console.print(part)
        console.print()


def _fairness(overview: Overview) -> str:
    demand = overview.demand
    return (
        f"Jain's index {overview.shares.jain:.2f}, {span(demand.work_seconds)} of work waiting, "
        f"{demand.slots_needed} slots needed to do it in {span(demand.target_wait)}"
    )


def _parts(overview: Overview, with_counters: bool) -> list[RenderableType]:
    stats, users = overview.stats, overview.users
    known = f"{len(users)} of {stats.users_known} users" if stats.users_known > len(users) else f"{len(users)} users"
    parts: list[RenderableType] = [
        Text(f"queue {overview.queue}: {known}, {len(stats.workers)} workers"),
        totals_table(stats),
        Text(_fairness(overview)),
    ]
    if users:
        parts.append(users_table(users, overview.standings, stats.at))
    if users and with_counters:
        parts.append(counters_table(users))
    if stats.workers:
        parts.append(workers_table(stats.workers, stats.at))
    return parts
