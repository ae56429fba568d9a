"""What commands print: texts and times for people, JSON for programs. Tables are in `table`."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Iterable
from datetime import datetime
from typing import Any

import msgspec
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fairque.counted import shown, span_of

__all__ = [
    "NOTHING",
    "ago",
    "make_console",
    "moment",
    "print_fields",
    "print_json",
    "print_json_line",
    "say",
    "shown",
    "span",
]

NOTHING = "-"

WIDEST = 100_000
"""Columns of what is not a terminal: a program reads it, so nothing is wrapped or cut."""


def print_json(value: Any) -> None:
    """Anything that msgspec can encode: structs, dicts, lists, datetimes."""
    typer.echo(msgspec.json.format(msgspec.json.encode(_named(value)), indent=2).decode())


def print_json_line(value: Any) -> None:
    """The same in one line, for a stream of values."""
    typer.echo(msgspec.json.encode(_named(value)).decode())


def say(text: str, colour: str | None = None) -> None:
    """To stderr; at a terminal, a line that is too long is broken between words."""
    if sys.stderr.isatty():
        width = shutil.get_terminal_size().columns
        text = textwrap.fill(text, max(20, width), break_long_words=False, break_on_hyphens=False)
    typer.secho(text, err=True, fg=colour)


def make_console() -> Console:
    return Console(width=None if sys.stdout.isatty() else WIDEST, highlight=False, markup=False, emoji=False)


def print_fields(fields: Iterable[tuple[str, object]]) -> None:
    """Names and values, one pair a line."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in fields:
        table.add_row(Text(name), Text(shown(str(value))))
    make_console().print(table)


def span(seconds: float | None) -> str:
    """``85 ms``, ``1.2 s``, ``3 min``, ``12 h``, ``2.5 d``; ``-`` for None."""
    return NOTHING if seconds is None else span_of(seconds)


def ago(at: float | None, now: float) -> str:
    """How long before `now`, both in seconds since the epoch."""
    return NOTHING if at is None else f"{span(now - at)} ago"


def moment(at: float | None) -> str:
    """Local date and time of seconds since the epoch."""
    if at is None:
        return NOTHING
    return datetime.fromtimestamp(at).astimezone().isoformat(sep=" ", timespec="seconds")


def _named(value: Any) -> Any:
    """With the names of all fields, of those structs as well that are arrays on the wire."""
    if isinstance(value, msgspec.Struct):
        return {name: _named(field) for name, field in msgspec.structs.asdict(value).items()}
    if isinstance(value, dict):
        return {key: _named(field) for key, field in value.items()}
    if isinstance(value, (list, tuple)):
        return [_named(item) for item in value]
    return value
