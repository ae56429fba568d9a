"""``fairque pause`` and ``fairque resume``: hold the tasks of a user back, and let them go on."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated

import typer

from fairque.checks import check_seconds
from fairque.cli.problem import Problem
from fairque.cli.reach import ConfigFile, QueueName, Url, make_queue, on_queue
from fairque.cli.times import moment
from fairque.cli.values import parse_moment, shown

__all__ = ["pause", "resume"]

User = Annotated[str, typer.Argument(metavar="USER", help="Whose tasks.")]


def pause(
    user: User,
    until: Annotated[
        str | None, typer.Option(metavar="ISO", help="Go on by itself then; local time unless it has an offset.")
    ] = None,
    seconds: Annotated[
        float | None, typer.Option("--for", metavar="SECONDS", help="Go on by itself after so long.")
    ] = None,
    url: Url = None,
    queue: QueueName = None,
    config: ConfigFile = None,
) -> int:
    """Start no more tasks of a user, for a while or until fairque resume.

    What runs goes on, what waits keeps its place, and tasks can still be added.

    Example: fairque pause acme --until 2030-01-31T09:00

    Exit codes: 0 done, also when the user was paused before, 1 failed, 2 wrong usage.
    """
    end = _end(until, seconds)
    on_queue(make_queue(url, queue, config), lambda opened: opened.pause(user, until=end))
    typer.echo(f"user {shown(user)} is paused until {moment(end.timestamp()) if end else 'resumed'}")
    return 0


def resume(user: User, url: Url = None, queue: QueueName = None, config: ConfigFile = None) -> int:
    """Go on with the tasks of a user that is paused.

    Example: fairque resume acme

    Exit codes: 0 done, also when the user was not paused, 1 failed, 2 wrong usage.
    """
    on_queue(make_queue(url, queue, config), lambda opened: opened.resume(user))
    typer.echo(f"user {shown(user)} is not paused")
    return 0


def _end(until: str | None, seconds: float | None) -> datetime | None:
    if until is not None and seconds is not None:
        raise Problem("--until and --for both say how long", "give one of them")
    if until is not None:
        return parse_moment("--until", until)
    if seconds is not None:
        return datetime.now().astimezone() + timedelta(seconds=check_seconds("--for", seconds))
    return None
