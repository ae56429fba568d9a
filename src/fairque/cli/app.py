"""The commands under one roof."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from fairque.cli import (
    cancel,
    config,
    dead,
    demand,
    demo,
    enqueue,
    explain,
    health,
    pause,
    policy,
    problem,
    purge,
    queue_info,
    schedule,
    scheduler,
    server,
    simulate,
    task,
    tasks,
    top,
    usage,
    user,
    users,
    worker,
)
from fairque.version import __version__

__all__ = ["PANELS", "app", "run"]

PANELS = {
    "Run": ("worker", "scheduler", "server", "demo"),
    "Look": ("info", "top", "users", "user", "tasks", "task", "explain", "usage", "demand", "health"),
    "Act": ("enqueue", "cancel", "pause", "resume", "purge", "dead", "policy", "schedule"),
    "Set up": ("config", "simulate"),
}
"""How the help lists the commands."""


class Commands(TyperGroup):
    """Puts each command where `PANELS` has it."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        registered = self.commands
        self.commands = {}
        for panel, names in PANELS.items():
            for name in names:
                if name in registered:
                    self.commands[name] = registered[name]
                    self.commands[name].rich_help_panel = panel  # type: ignore[attr-defined]


app = typer.Typer(
    name="fairque",
    cls=Commands,
    help="A multi-tenant fair task queue on Redis Streams.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command("worker")(worker.command)
app.command("scheduler")(scheduler.command)
app.command("server")(server.command)
app.command("demo")(demo.command)
app.command("simulate")(simulate.command)
app.command("enqueue")(enqueue.command)
app.command("cancel")(cancel.command)
app.command("pause")(pause.pause)
app.command("resume")(pause.resume)
app.command("purge")(purge.command)
app.command("info")(queue_info.command)
app.command("top")(top.command)
app.command("users")(users.command)
app.command("user")(user.command)
app.command("tasks")(tasks.command)
app.command("task")(task.command)
app.command("explain")(explain.command)
app.command("usage")(usage.command)
app.command("demand")(demand.command)
app.command("health")(health.command)
app.add_typer(policy.app, name="policy")
app.add_typer(dead.app, name="dead")
app.add_typer(schedule.app, name="schedule")
app.add_typer(config.app, name="config")


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
