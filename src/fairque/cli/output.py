"""What commands print: tables for people, JSON for programs."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fairque.cli.values import shown

__all__ = ["make_console", "make_table", "print_fields", "print_json", "print_json_line", "print_table"]

WIDEST = 100_000
"""Columns of what is not a terminal: a program reads it, so nothing is wrapped or cut."""


def print_json(value: Any) -> None:
    """Anything that msgspec can encode: structs, dicts, lists, datetimes."""
    typer.echo(msgspec.json.format(msgspec.json.encode(_named(value)), indent=2).decode())


def print_json_line(value: Any) -> None:
    """The same in one line, for a stream of values."""
    typer.echo(msgspec.json.encode(_named(value)).decode())


def make_console() -> Console:
    return Console(width=None if sys.stdout.isatty() else WIDEST, highlight=False, markup=False, emoji=False)


def make_table(
    columns: Sequence[str], rows: Iterable[Sequence[object]], title: str | None = None, *, wraps: bool = True
) -> Table:
    """A column whose name begins with ``>`` is aligned to the right. Cells are shown literally.

    On a terminal, what is too wide is wrapped, or cut.
    """
    table = Table(title=Text(title) if title else None, title_justify="left", box=None, pad_edge=False)
    for column in columns:
        table.add_column(
            Text(column.lstrip(">")),
            justify="right" if column[0] == ">" else "left",
            overflow="fold" if wraps else "ellipsis",
            no_wrap=not wraps,
        )
    for row in rows:
        table.add_row(*(Text(shown(str(cell))) for cell in row))
    return table


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], title: str | None = None) -> None:
    """See `make_table`."""
    make_console().print(make_table(columns, rows, title))


def print_fields(fields: Iterable[tuple[str, object]]) -> None:
    """Names and values, one pair a line."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in fields:
        table.add_row(Text(name), Text(shown(str(value))))
    make_console().print(table)


def _named(value: Any) -> Any:
    """With the names of all fields, of those structs as well that are arrays on the wire."""
    if isinstance(value, msgspec.Struct):
        return {name: _named(field) for name, field in msgspec.structs.asdict(value).items()}
    if isinstance(value, dict):
        return {key: _named(field) for key, field in value.items()}
    if isinstance(value, (list, tuple)):
        return [_named(item) for item in value]
    return value
