"""The end of the demo: a table, and the result in one sentence."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from fairque.cli.showcase.contest import Contest
from fairque.cli.showcase.load import FLOOD, Load
from fairque.cli.showcase.tally import Tally, percentile

__all__ = ["print_report"]

_LEGEND = """
wait: from enqueue to start, median and 99th percentile
served: started before the last task of the flood did; share: of all that did
"""
_MOST_ROWS = 20
_GOOD, _BAD, _PLAIN = "green", "red", "default"
_FAR_WORSE = 2


def print_report(load: Load, fair: Contest, first_come: Contest, console: Console) -> None:
    console.print()
    console.print(_table(load, (fair.tally, first_come.tally)))
    console.print(_LEGEND, style="dim")
    console.print(_sentence(load, fair.tally, first_come.tally), style="bold")


def _table(load: Load, tallies: Sequence[Tally]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    table.add_column("\nuser", no_wrap=True, min_width=9)
    table.add_column("\ntasks", justify="right", no_wrap=True)
    for title, style in (("FAIR", _GOOD), ("FIRST COME", _BAD)):
        table.add_column(f"[{style}]{title}[/]\nwait p50", justify="right", no_wrap=True, min_width=10)
        for name in ("p99", "served", "share"):
            table.add_column(f"\n{name}", justify="right", no_wrap=True, min_width=6)
    _add_row(table, FLOOD, load.flood, tallies, [FLOOD])
    table.add_section()
    for owner in load.quiet_users[:_MOST_ROWS]:
        _add_row(table, owner, load.tasks, tallies, [owner])
    table.add_section()
    _add_row(table, "all quiet", load.users * load.tasks, tallies, load.quiet_users)
    return table


def _add_row(table: Table, name: str, planned: int, tallies: Sequence[Tally], owners: Sequence[str]) -> None:
    cells = [name, f"{planned:,}"]
    waits = [tally.waits(owners) for tally in tallies]
    best = min(percentile(of_one, 0.5) for of_one in waits)
    for tally, of_one in zip(tallies, waits, strict=True):
        median = percentile(of_one, 0.5)
        shown = [_time(median), _time(percentile(of_one, 0.99)), f"{tally.during_flood(owners):,}"]
        style = _style(median, best)
        cells += [f"[{style}]{text}[/]" for text in (*shown, _percent(tally.share(owners)))]
    table.add_row(*cells)


def _style(median: float, best: float) -> str:
    if median > _FAR_WORSE * best:
        return _BAD
    return _GOOD if median < 1 else _PLAIN


def _percent(share: float) -> str:
    return f"{share:.1%}" if share < 0.9995 else "100%"


def _sentence(load: Load, fair: Tally, first_come: Tally) -> str:
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
