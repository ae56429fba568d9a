"""``fairque usage``: what users used, hour by hour."""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Annotated

import msgspec
import typer

from fairque import TaskQueue
from fairque.cli.output import print_json, print_table
from fairque.cli.problem import Problem
from fairque.cli.reach import AsJson, ConfigFile, QueueName, Url, make_queue, on_queue
from fairque.cli.times import span
from fairque.cli.values import parse_moment
from fairque.config.duration import parse_duration
from fairque.models import EVERYONE
from fairque.queue.tenants import KEPT_DAYS

__all__ = ["command"]


class Hour(msgspec.Struct, frozen=True):
    """What one user used in the hour that begins at `start`."""

    user_id: str
    start: datetime
    tasks: int
    cost: float
    busy_seconds: float


def command(
    users: Annotated[
        list[str] | None,
        typer.Argument(metavar="[USER]...", help="Their ids; without any, or '*': all together.", show_default=False),
    ] = None,
    since: Annotated[
        str, typer.Option(metavar="TIME", help="A date, a date and time (ISO 8601), or how long ago: 12h, 7d.")
    ] = "1d",
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV, for bills.")] = False,
    url: Url = None,
    queue: QueueName = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> int:
    """Show what users used, hour by hour: tasks started, what they were charged, and how long they ran.

    Hours without use are left out; the current one is shown as far as it has got. Hours are kept for 40 days.
    In CSV and JSON, hours are in UTC, and "busy_seconds" is not rounded.

    Example: fairque usage acme --since 7d

    Example: fairque usage acme globex --since 2030-01-01 --csv

    Exit codes: 0 shown, 1 failed, 2 wrong usage.
    """
    if as_csv and as_json:
        raise Problem("--csv and --json exclude each other", "leave one out")
    names = list(dict.fromkeys(users or (EVERYONE,)))
    first = _moment(since)
    hours = on_queue(make_queue(url, queue, config), lambda opened: _find(opened, names, first))
    if as_json:
        print_json(hours)
    elif as_csv:
        _print_csv(hours)
    else:
        _print_table(hours)
    return 0


async def _find(queue: TaskQueue, users: Sequence[str], since: datetime) -> list[Hour]:
    return [
        Hour(user, hour.start, hour.tasks, hour.cost, hour.busy_seconds)
        for user in users
        for hour in await queue.usage(user, since)
    ]


def _print_csv(hours: Sequence[Hour]) -> None:
    writer = csv.writer(sys.stdout)
    writer.writerow(Hour.__struct_fields__)
    writer.writerows((hour.user_id, hour.start.isoformat(), hour.tasks, hour.cost, hour.busy_seconds) for hour in hours)


def _print_table(hours: Sequence[Hour]) -> None:
    rows = [(hour.user_id, f"{hour.start:%Y-%m-%d %H:%M}", *_amounts((hour,))) for hour in hours]
    if len(rows) != 1:
        rows.append(("total", "", *_amounts(hours)))
    print_table(("user", "hour (UTC)", ">tasks", ">cost", ">busy"), rows)


def _amounts(hours: Sequence[Hour]) -> tuple[int, str, str]:
    cost = sum(hour.cost for hour in hours)
    return sum(hour.tasks for hour in hours), f"{cost:.12g}", span(sum(hour.busy_seconds for hour in hours))


def _moment(text: str) -> datetime:
    """A duration has a unit: a plain number would be a year."""
    ago = parse_duration(text) if text[-1:].isalpha() else None
    if ago is None:
        return parse_moment("--since", text)
    return datetime.now().astimezone() - timedelta(seconds=min(ago, (KEPT_DAYS + 2) * 86_400))
