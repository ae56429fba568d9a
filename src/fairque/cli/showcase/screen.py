"""The demo while it runs: two bars per user, or some plain lines where there is no terminal."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fairque.cli.showcase.contest import Contest
from fairque.cli.showcase.load import FLOOD, Load

__all__ = ["showing"]

_FRAME_SECONDS = 0.125
_LINE_SECONDS = 2.0
_MOST_ROWS = 20
_BAR_STYLES = ("green", "yellow")


@asynccontextmanager
async def showing(load: Load, contests: Sequence[Contest], console: Console) -> AsyncIterator[None]:
    """Show how far they are, until the block is left."""
    is_live = console.is_terminal and not console.is_dumb_terminal
    task = asyncio.create_task((_draw if is_live else _tell)(load, contests, console))
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def _draw(load: Load, contests: Sequence[Contest], console: Console) -> None:
    began = time.monotonic()
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while True:
            live.update(_bars(load, contests, time.monotonic() - began), refresh=True)
            await asyncio.sleep(_FRAME_SECONDS)


async def _tell(load: Load, contests: Sequence[Contest], console: Console) -> None:
    began = time.monotonic()
    while True:
        await asyncio.sleep(_LINE_SECONDS)
        parts = [f"{contest.title} {contest.tally.served:,}" for contest in contests]
        console.print(f"{time.monotonic() - began:4.0f} s  served of {load.total:,}: {', '.join(parts)}")


def _bars(load: Load, contests: Sequence[Contest], seconds: float) -> Table:
    table = Table(box=None, padding=(0, 1), expand=False)
    table.add_column(f"{seconds:.0f} s", header_style="dim", min_width=8)
    for contest, style in zip(contests, _BAR_STYLES, strict=True):
        table.add_column(contest.title, width=16, header_style=f"bold {style}", no_wrap=True)
        table.add_column("", width=16, no_wrap=True)
    for owner in [FLOOD, *load.quiet_users][:_MOST_ROWS]:
        table.add_row(owner, *_cells(load, contests, owner))
    if load.users >= _MOST_ROWS:
        table.add_row(f"and {load.users - _MOST_ROWS + 1} more", style="dim")
    return table


def _cells(load: Load, contests: Sequence[Contest], owner: str) -> list[ProgressBar | Text]:
    cells: list[ProgressBar | Text] = []
    planned = load.planned(owner)
    for contest, style in zip(contests, _BAR_STYLES, strict=True):
        served = len(contest.tally.samples[owner])
        waiting = contest.tally.arrived[owner] - served
        told = f" of {planned:,}" if owner == FLOOD else f"  {waiting} waiting" if waiting else ""
        cells.append(ProgressBar(planned, served, width=16, complete_style=style, finished_style=style))
        cells.append(Text.assemble(f"{served:,}", (told, "dim")))
    return cells
