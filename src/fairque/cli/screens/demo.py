"""What ``fairque demo`` shows: bars or lines while it runs, then a table and the result in one sentence."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from rich import box
from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fairque.cli.demo.load import FLOOD, Load
from fairque.cli.demo.results import DemoResults
from fairque.fairness.report import percentile

__all__ = ["print_report", "showing"]

_LEGEND = """
wait: from enqueue to start, median and 99th percentile
served: started before the last task of the flood did; share: of all that did
"""
_FRAME_SECONDS = 0.125
_LINE_SECONDS = 2.0
_MOST_ROWS = 20
_BAR_STYLES = ("green", "yellow")
_GOOD, _BAD, _PLAIN = "green", "red", "default"
_FAR_WORSE = 2


@asynccontextmanager
async def showing(load: Load, both: Sequence[DemoResults], console: Console) -> AsyncIterator[None]:
    """Show how far they are, until the block is left."""
    is_live = console.is_terminal and not console.is_dumb_terminal
    task = asyncio.create_task((_draw if is_live else _tell)(load, both, console))
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def _draw(load: Load, both: Sequence[DemoResults], console: Console) -> None:
    began = time.monotonic()
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while True:
            live.update(_bars(load, both, time.monotonic() - began), refresh=True)
            await asyncio.sleep(_FRAME_SECONDS)


async def _tell(load: Load, both: Sequence[DemoResults], console: Console) -> None:
    began = time.monotonic()
    while True:
        await asyncio.sleep(_LINE_SECONDS)
        parts = [f"{results.title} {results.served:,}" for results in both]
        console.print(f"{time.monotonic() - began:4.0f} s  served of {load.total:,}: {', '.join(parts)}")


def _bars(load: Load, both: Sequence[DemoResults], seconds: float) -> Table:
    table = Table(box=None, padding=(0, 1), expand=False)
    table.add_column(f"{seconds:.0f} s", header_style="dim", min_width=8)
    for results, style in zip(both, _BAR_STYLES, strict=True):
        table.add_column(results.title, width=16, header_style=f"bold {style}", no_wrap=True)
        table.add_column("", width=16, no_wrap=True)
    for owner in [FLOOD, *load.quiet_users][:_MOST_ROWS]:
        table.add_row(owner, *_cells(load, both, owner))
    if load.users >= _MOST_ROWS:
        table.add_row(f"and {load.users - _MOST_ROWS + 1} more", style="dim")
    return table


def _cells(load: Load, both: Sequence[DemoResults], owner: str) -> list[ProgressBar | Text]:
    cells: list[ProgressBar | Text] = []
    planned = load.planned(owner)
    for results, style in zip(both, _BAR_STYLES, strict=True):
        served = len(results.samples[owner])
        left = results.arrived[owner] - served
        told = f" of {planned:,}" if owner == FLOOD else f"  {left} to serve" if left else ""
        cells.append(ProgressBar(planned, served, width=16, complete_style=style, finished_style=style))
        cells.append(Text.assemble(f"{served:,}", (told, "dim")))
    return cells


def print_report(load: Load, fair: DemoResults, first_come: DemoResults, console: Console) -> None:
    console.print()
    console.print(_table(load, (fair, first_come)))
    console.print(_LEGEND, style="dim")
    console.print(_sentence(load, fair, first_come), style="bold")


def _table(load: Load, both: Sequence[DemoResults]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    table.add_column("\nuser", no_wrap=True, min_width=9)
    table.add_column("\ntasks", justify="right", no_wrap=True)
    for title, style in (("FAIR", _GOOD), ("FIRST COME", _BAD)):
        table.add_column(f"[{style}]{title}[/]\nwait p50", justify="right", no_wrap=True, min_width=10)
        for name in ("p99", "served", "share"):
            table.add_column(f"\n{name}", justify="right", no_wrap=True, min_width=6)
    _add_row(table, FLOOD, load.flood, both, [FLOOD])
    table.add_section()
    for owner in load.quiet_users[:_MOST_ROWS]:
        _add_row(table, owner, load.tasks, both, [owner])
    table.add_section()
    _add_row(table, "all quiet", load.users * load.tasks, both, load.quiet_users)
    return table


def _add_row(table: Table, name: str, planned: int, both: Sequence[DemoResults], owners: Sequence[str]) -> None:
    cells = [name, f"{planned:,}"]
    waits = [results.waits(owners) for results in both]
    best = min(percentile(of_one, 0.5) for of_one in waits)
    for results, of_one in zip(both, waits, strict=True):
        median = percentile(of_one, 0.5)
        shown = [_time(median), _time(percentile(of_one, 0.99)), f"{results.during_flood(owners):,}"]
        style = _style(median, best)
        cells += [f"[{style}]{text}[/]" for text in (*shown, _percent(results.share(owners)))]
    table.add_row(*cells)


def _style(median: float, best: float) -> str:
    if median > _FAR_WORSE * best:
        return _BAD
    return _GOOD if median < 1 else _PLAIN


def _percent(share: float) -> str:
    return f"{share:.1%}" if share < 0.9995 else "100%"


def _sentence(load: Load, fair: DemoResults, first_come: DemoResults) -> str:
    ours, theirs = fair.waits(load.quiet_users), first_come.waits(load.quiet_users)
    times = percentile(theirs, 0.5) / max(percentile(ours, 0.5), 0.0001)
    return (
        f"Behind {load.flood:,} tasks of another user, a quiet user's task waited {_median_and_p99(ours)} "
        f"when served fairly, and {_median_and_p99(theirs)} when served first come, first served: "
        f"{times:,.0f} times as long. "
        f"The flood took {fair.flood_seconds():.1f} s instead of {first_come.flood_seconds():.1f} s."
    )


def _median_and_p99(waits: list[float]) -> str:
    return f"{_time(percentile(waits, 0.5))} (p99 {_time(percentile(waits, 0.99))})"


def _time(seconds: float) -> str:
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms" if seconds >= 0.00995 else f"{seconds * 1000:.1f} ms"
    return f"{seconds:.1f} s" if seconds < 100 else f"{seconds:.0f} s"
