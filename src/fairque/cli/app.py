"""The commands under one roof."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from fairque.cli import demo, problem, worker
from fairque.version import __version__

__all__ = ["app", "run"]

app = typer.Typer(
    name="fairque",
    help="A multi-tenant fair task queue on Redis Streams.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("worker")(worker.command)
app.command("demo")(demo.command)


def run(arguments: Sequence[str]) -> int:
    """Run one command; returns its exit code. Every error has been reported by then."""
    try:
        return int(app(args=list(arguments), prog_name="fairque", standalone_mode=False) or 0)
    except Exception as error:
        return problem.report(error)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fairque {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    pass
