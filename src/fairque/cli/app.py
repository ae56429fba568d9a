"""The commands under one roof."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated

import typer

from fairque.cli import errors
from fairque.cli.commands import (
    acl,
    change,
    config,
    dashboard,
    dead,
    demo,
    doctor,
    enqueue,
    functions,
    health,
    http,
    limits,
    outbox,
    policy,
    queue,
    schedule,
    server,
    settings,
    simulate,
    tasks,
    transfer,
    users,
    worker,
)
from fairque.cli.help import Group, adopt
from fairque.version import __version__

__all__ = ["PANELS", "app", "run"]

PANELS: dict[str, dict[str, Callable[..., object] | typer.Typer]] = {
    "Run": {
        "worker": worker.command,
        "scheduler": schedule.scheduler,
        "outbox": outbox.command,
        "http": http.command,
        "server": server.command,
        "demo": demo.command,
    },
    "Look": {
        "dashboard": dashboard.command,
        "info": queue.info,
        "top": queue.top,
        "users": users.list_users,
        "user": users.show_user,
        "tasks": tasks.list_tasks,
        "task": tasks.show_task,
        "explain": tasks.explain,
        "usage": queue.usage,
        "demand": queue.demand,
        "health": health.command,
        "doctor": doctor.command,
    },
    "Act": {
        "enqueue": enqueue.command,
        "change": change.command,
        "cancel": tasks.cancel,
        "cancel-all": tasks.cancel_all,
        "pause": users.pause,
        "resume": users.resume,
        "purge": users.purge,
        "export-user": transfer.export_user,
        "import-user": transfer.import_user,
        "move": transfer.move,
        "move-group": transfer.move_group,
        "dead": dead.app,
        "policy": policy.app,
        "limits": limits.app,
        "schedule": schedule.app,
    },
    "Set up": {
        "settings": settings.command,
        "acl": acl.command,
        "simulate": simulate.command,
        "config": config.app,
        "functions": functions.app,
    },
}
"""Every command, as the help lists them. Groups stand behind the others of their panel: typer puts them there."""

app = typer.Typer(
    name="fairque",
    cls=Group,
    help="A multi-tenant fair task queue on Redis Streams.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for _panel, _commands in PANELS.items():
    for _name, _command in _commands.items():
        if isinstance(_command, typer.Typer):
            app.add_typer(_command, name=_name, rich_help_panel=_panel)
        else:
            app.command(_name, rich_help_panel=_panel)(_command)
adopt(app)


def run(arguments: Sequence[str]) -> int:
    """Run one command; returns its exit code. Every error has been reported by then."""
    try:
        return int(app(args=list(arguments), prog_name="fairque", standalone_mode=False) or 0)
    except Exception as error:
        return errors.report(error)


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
