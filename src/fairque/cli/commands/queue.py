"""A queue as a whole: ``fairque info``, ``top``, ``usage`` and ``demand``."""

from __future__ import annotations

import asyncio
import csv
import sys
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Annotated

import msgspec
import typer
from rich.console import Console

from fairque import Overview, TaskQueue
from fairque.cli.errors import CommandError
from fairque.cli.input import parse_moment
from fairque.cli.options import AsJson, ConfigFile, QueueName, Url, make_queue, on_queue
from fairque.cli.output import make_console, print_fields, print_json, print_json_line, span
from fairque.cli.processes import stop_on_signal
from fairque.cli.screens.overview import look, overview_parts
from fairque.cli.screens.top import Order, Sampler, Snapshot, TopView, draw
from fairque.cli.table import names, numbers, print_table, words
from fairque.config.duration import parse_duration
from fairque.counted import counted
from fairque.everybody import EVERYONE, whom
from fairque.queue.demand import COOLDOWN
from fairque.queue.usage import KEPT_DAYS

__all__ = ["demand", "info", "top", "usage"]


def info(
    interval: Annotated[
        float | None,
        typer.Option("--interval", "-i", min=0.1, metavar="SECONDS", help="Look again so often, until Ctrl-C."),
    ] = None,
    stats: Annotated[bool, typer.Option("--stats", help="Show as well what has been counted for each user.")] = False,
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000, metavar="N", help="Most users to show.")] = 20,
    url: Url = None,
    queue: QueueName = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> int:
    """Show the sizes of a queue, its users and its workers.

    Users with something to do come first, then those that were active last.
    The fairness, as Jain's index, is 1 when all who wait got the same by weight lately, and 1/n when one of n got
    everything.
    With --interval and --json, every look is one line of JSON.

    Example: fairque info --interval 2

    Exit codes: 0 shown, 1 failed, 2 wrong usage, 130 ended by Ctrl-C.
    """

    def show(overview: Overview) -> None:
        if as_json:
            (print_json if interval is None else print_json_line)(overview)
        else:
            _show(make_console(), overview, stats, clear=interval is not None)

    on_queue(make_queue(url, queue, config), lambda opened: _watch(opened, limit, interval, show))
    return 0


async def _watch(queue: TaskQueue, limit: int, interval: float | None, show: Callable[[Overview], None]) -> None:
    if interval is None:
        show(await look(queue, limit))
        return
    with stop_on_signal():
        while True:
            show(await look(queue, limit))
            await asyncio.sleep(interval)


def _show(console: Console, overview: Overview, with_counters: bool, clear: bool) -> None:
    if clear and console.is_terminal:
        console.clear()
    for part in overview_parts(overview, with_counters):
        console.print(part)
        console.print()


def top(
    interval: Annotated[
        float, typer.Option("--interval", "-i", min=0.1, max=60, metavar="SECONDS", help="Between two looks.")
    ] = 2.0,
    sort: Annotated[Order, typer.Option("--sort", metavar="ORDER", help=f"Users by {', '.join(Order)}.")] = Order.SHARE,
    once: Annotated[bool, typer.Option("--once", help="Show what one interval was like, and exit.")] = False,
    url: Url = None,
    queue: QueueName = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> int:
    """Watch a queue: who is served, who waits, what the workers do.

    "share" is what a user was served of all over the last minute or so, by cost, "fair" what it is entitled to.
    Keys: s share, w wait, t started, b backlog, u user; p or space holds the picture; q quits.
    Of more than 200 users with something to do, those next and those last served are shown.
    Where it is not at a terminal, and with --json, it shows one interval and exits.

    Example: fairque top --sort wait

    Exit codes: 0 quit, 1 failed, 2 wrong usage, 130 ended by Ctrl-C.
    """
    opened = make_queue(url, queue, config)
    if once or as_json or not (sys.stdin.isatty() and sys.stdout.isatty()):
        snapshot = on_queue(opened, lambda each: _one_interval(each, interval))
        if as_json:
            print_json(snapshot)
        else:
            make_console().print(draw(snapshot, sort, None, ""))
    else:
        on_queue(opened, lambda each: _view(each, interval, sort))
    return 0


async def _one_interval(queue: TaskQueue, interval: float) -> Snapshot:
    sampler = Sampler(queue)
    await sampler.look()
    await asyncio.sleep(interval)
    return await sampler.look()


async def _view(queue: TaskQueue, interval: float, sort: Order) -> None:
    with stop_on_signal():
        await TopView(queue, interval, sort).run()


class Hour(msgspec.Struct, frozen=True):
    """What one user used in the hour that begins at `start`."""

    user_id: str
    start: datetime
    tasks: int
    cost: float
    busy_seconds: float


def usage(
    users: Annotated[
        list[str] | None,
        typer.Argument(metavar="USER", help="Their ids; without any, or '*': all together.", show_default=False),
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
    """Show what users used, hour by hour: tasks, cost, run time.

    That is: tasks started, what they were charged, and how long they ran.
    Hours without use are left out; the current one is shown as far as it has got. Hours are kept for 40 days, or for
    the queue's usage_ttl.
    In CSV and JSON, hours are in UTC, and "busy_seconds" is not rounded.

    Example: fairque usage acme --since 7d

    Example: fairque usage acme globex --since 2030-01-01 --csv

    Exit codes: 0 shown, 1 failed, 2 wrong usage.
    """
    if as_csv and as_json:
        raise CommandError("--csv and --json exclude each other", "leave one out")
    names = list(dict.fromkeys(users or (EVERYONE,)))
    first = _since(since)
    hours = on_queue(make_queue(url, queue, config), lambda opened: _find(opened, names, first))
    if as_json:
        print_json(hours)
    elif as_csv:
        _print_csv(hours)
    else:
        _print_usage(hours)
    return 0


async def _find(queue: TaskQueue, users: Sequence[str], since: datetime) -> list[Hour]:
    return [
        Hour(user, hour.start, hour.tasks, hour.cost, hour.busy_seconds)
        for user in users
        for hour in await queue.usage(whom(user), since)
    ]


def _print_csv(hours: Sequence[Hour]) -> None:
    writer = csv.writer(sys.stdout)
    writer.writerow(Hour.__struct_fields__)
    writer.writerows((hour.user_id, hour.start.isoformat(), hour.tasks, hour.cost, hour.busy_seconds) for hour in hours)


def _print_usage(hours: Sequence[Hour]) -> None:
    rows = [(hour.user_id, f"{hour.start:%Y-%m-%d %H:%M}", *_amounts((hour,))) for hour in hours]
    if len(rows) != 1:
        rows.append(("total", "", *_amounts(hours)))
    print_table((names("user", whole=1), words("hour (UTC)"), numbers("tasks"), numbers("cost"), numbers("busy")), rows)


def _amounts(hours: Sequence[Hour]) -> tuple[int, str, str]:
    cost = sum(hour.cost for hour in hours)
    return sum(hour.tasks for hour in hours), f"{cost:.12g}", span(sum(hour.busy_seconds for hour in hours))


def _since(text: str) -> datetime:
    """A duration has a unit: a plain number would be a year."""
    ago = parse_duration(text) if text[-1:].isalpha() else None
    if ago is None:
        return parse_moment("--since", text)
    return datetime.now().astimezone() - timedelta(seconds=min(ago, (KEPT_DAYS + 2) * 86_400))


def demand(
    target_wait: Annotated[
        float, typer.Option(min=0.001, metavar="SECONDS", help="Within this time, what waits should start.")
    ] = 10.0,
    cooldown: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="What is due within this time keeps one slot.")
    ] = COOLDOWN,
    url: Url = None,
    queue: QueueName = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> int:
    """Show how much work there is, and how many slots it takes.

    So many tasks should be able to run at once that all that waits starts in time.

    For an autoscaler: "slots_needed" in JSON is how many tasks should be able to run at once, on all workers.
    The mean run is that of the last minute or so, or where nothing ran lately, of everything that was measured.

    Example: fairque demand --target-wait 30 --json

    Exit codes: 0 shown, 1 failed, 2 wrong usage.
    """
    found = on_queue(
        make_queue(url, queue, config), lambda opened: opened.demand(target_wait=target_wait, cooldown=cooldown)
    )
    if as_json:
        print_json(found)
        return 0
    print_fields(
        (
            ("backlog", f"{counted(found.backlog, 'task')}, {span(found.work_seconds)} of work"),
            ("mean run", span(found.run_seconds)),
            ("slots", f"{found.slots}, {found.running} in use, {span(found.running_seconds)} of work left in them"),
            ("wait with these", span(found.wait_seconds)),
            ("slots needed", f"{found.slots_needed} for a wait of {span(target_wait)}"),
        )
    )
    return 0
