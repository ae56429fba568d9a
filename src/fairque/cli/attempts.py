"""Failed attempts of a task, for people."""

from __future__ import annotations

from collections.abc import Iterable

import typer

from fairque import Attempt
from fairque.cli.times import moment
from fairque.cli.values import shown

__all__ = ["print_attempts"]


def print_attempts(attempts: Iterable[Attempt]) -> None:
    """Each with its time, its error and its traceback."""
    for attempt in attempts:
        typer.echo(f"\n{_heading(attempt)}\n{_lines(attempt.traceback) or '(no traceback)'}")


def _heading(attempt: Attempt) -> str:
    error = shown(f"{attempt.type_name}: {attempt.message}" if attempt.message else attempt.type_name)
    return f"attempt {attempt.attempt}, {moment(attempt.at)}, {attempt.kind} on {shown(attempt.worker)}: {error}"


def _lines(text: str) -> str:
    return "\n".join(line if line.isprintable() else shown(line) for line in text.rstrip().splitlines())
