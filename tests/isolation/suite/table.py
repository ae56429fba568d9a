"""What was measured, as a table."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tests.isolation.suite.raid import Measured, typical_and_worst

HEAD = (
    "attack",
    "means",
    "services of others in all",
    "before one of the quiet user",
    "documented",
    "its wait alone, ms",
    "under attack, ms",
    "documented, ms",
)
"""Pairs are the median and the worst."""
BEGIN, END = "<!-- what was measured -->", "<!-- until here -->"


def row(measured: Measured) -> tuple[str, ...]:
    firsts = [wait for wait in measured.under_attack if wait.kth == 1]
    alone = [wait for wait in measured.alone if wait.kth == 1]
    return (
        measured.attack.name,
        measured.attack.means,
        f"{measured.others:,}",
        _both(wait.services for wait in firsts),
        f"{measured.bound():,}",
        _both(wait.ms for wait in alone),
        _both(wait.ms for wait in firsts),
        f"{measured.within_ms():,.0f}",
    )


def _both(figures: Iterable[float]) -> str:
    return " / ".join(f"{figure:,.0f}" for figure in typical_and_worst(list(figures)))


def markdown(all_measured: list[Measured]) -> str:
    lines = [HEAD, ("---",) * 2 + ("---:",) * (len(HEAD) - 2), *map(row, all_measured)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def write(path: Path, all_measured: list[Measured]) -> None:
    """Between the two marks of a page, or a page of its own."""
    text, table = path.read_text() if path.exists() else "", markdown(all_measured)
    if BEGIN in text and END in text:
        before, after = text.split(BEGIN)[0], text.split(END)[1]
        table = f"{before}{BEGIN}\n\n{table}\n{END}{after}"
    path.write_text(table)
