"""Has the load served both ways at once, on the same machine, in the same seconds."""

from __future__ import annotations

import asyncio
import time

from rich.console import Console

from fairque.cli.lifeline import Lifeline
from fairque.cli.showcase.contest import Contest
from fairque.cli.showcase.load import Load
from fairque.cli.showcase.report import print_report
from fairque.cli.showcase.screen import showing

__all__ = ["play"]


async def play(load: Load, url: str, console: Console) -> None:
    """Raises `Problem`."""
    with Lifeline() as lifeline:
        fair = Contest("fair", True, load, url, lifeline)
        first_come = Contest("first come", False, load, url, lifeline)
        async with fair, first_come:
            console.print(f"Starting {2 * load.workers} worker processes …", style="dim")
            await asyncio.gather(fair.ready(), first_come.ready())
            async with showing(load, (fair, first_come), console):
                await _run(load, (fair, first_come))
    print_report(load, fair, first_come, console)


async def _run(load: Load, contests: tuple[Contest, ...]) -> None:
    async with asyncio.TaskGroup() as group:
        for contest in contests:
            group.create_task(contest.finished())
        await asyncio.gather(*(_flood(load, contest) for contest in contests))
        await _trickle(load, contests)


async def _flood(load: Load, contest: Contest) -> None:
    await contest.put_in(load.flood_tasks())


async def _trickle(load: Load, contests: tuple[Contest, ...]) -> None:
    """Each task is put into both queues at the same moment."""
    began = time.monotonic()
    for arrival in load.quiet_tasks():
        await asyncio.sleep(began + arrival.at - time.monotonic())
        await asyncio.gather(*(contest.put_in([arrival]) for contest in contests))
