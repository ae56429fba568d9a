"""Tasks at planned times: ``fairque schedule …`` changes the schedules, ``fairque scheduler`` fires them."""

from __future__ import annotations

import asyncio
import logging
from datetime import datetime
from typing import Annotated, Any

import typer

from fairque import ScheduledTask, TaskQueue, TaskScheduler
from fairque.cli.clock import now_of
from fairque.cli.commands.enqueue import make_task
from fairque.cli.errors import UNKNOWN, CommandError
from fairque.cli.imports import load_queue
from fairque.cli.input import parse_moment, parse_priority
from fairque.cli.options import AsJson, ConfigFile, LogJson, QueueName, Url, make_queue, on_queue
from fairque.cli.output import NOTHING, moment, print_json, span
from fairque.cli.table import names, numbers, print_table, words
from fairque.worker.logs import LogLevel, LogSettings, set_up_logging
from fairque.worker.processes import on_stop

__all__ = ["app", "scheduler"]

logger = logging.getLogger("fairque.scheduler")
app = typer.Typer(
    help="Tasks at planned times: list, add, pause and remove schedules.\n\nExample: fairque schedule list acme",
    no_args_is_help=True,
)

Id = Annotated[str, typer.Argument(metavar="ID", help="The id of the schedule.")]


@app.command("list")
def list_schedules(
    user: Annotated[
        str | None, typer.Argument(metavar="USER", help="Only those of this user.", show_default=False)
    ] = None,
    active: Annotated[
        bool | None, typer.Option("--active/--inactive", help="Only those that fire, or only those that do not.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, metavar="N", help="Most schedules to show.")] = 100,
    url: Url = None,
    queue: QueueName = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> int:
    """List schedules, in the order of user and id.

    Example: fairque schedule list acme --active

    Exit codes: 0 shown, 1 failed, 2 wrong usage.
    """

    async def find(opened: TaskQueue) -> tuple[list[ScheduledTask], float]:
        return await TaskScheduler(opened).list_schedules(user, active, limit=limit), await now_of(opened, user)

    found, now = on_queue(make_queue(url, queue, config), find)
    if as_json:
        print_json(found)
    else:
        columns = (
            *(names("user", whole=1), names("id", whole=5), names("task"), words("when"), words("state")),
            *(words("next"), numbers("runs", 2), numbers("skipped", 3), numbers("missed", 3)),
        )
        print_table(columns, [_row(schedule, now) for schedule in found])
        if len(found) == limit:
            typer.echo(f"the first {limit}; --limit shows more", err=True)
    return 0


@app.command()
def add(
    target: Annotated[str | None, typer.Argument(metavar="MODULE:NAME", help="The task.", show_default=False)] = None,
    cron: Annotated[
        str | None, typer.Option(metavar="EXPR", help="Such as '0 9 * * MON-FRI'; with six fields, seconds come first.")
    ] = None,
    every: Annotated[float | None, typer.Option(metavar="SECONDS", help="Instead: at this interval.")] = None,
    at: Annotated[str | None, typer.Option(metavar="ISO", help="Instead: once, at this moment.")] = None,
    timezone: Annotated[str, typer.Option(metavar="NAME", help="What --cron is about.")] = "UTC",
    schedule_id: Annotated[str | None, typer.Option("--id", metavar="ID", help="Its id, else a random one.")] = None,
    user: Annotated[
        str | None, typer.Option(metavar="USER", help="Whose tasks these are; default: whom the decorator names.")
    ] = None,
    args: Annotated[
        str | None, typer.Option(metavar="JSON", help="Positional arguments, an array; - reads it from stdin.")
    ] = None,
    kwargs: Annotated[
        str | None, typer.Option(metavar="JSON", help="Named arguments, an object; - reads it from stdin.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Instead of module:name: the name that workers know it by.")
    ] = None,
    payload: Annotated[
        str | None, typer.Option(metavar="JSON", help="Instead of module:name: an object for a TaskHandler.")
    ] = None,
    priority: Annotated[
        str | None, typer.Option(metavar="1..6|NAME", help="very-low, low, normal, high, very-high or critical.")
    ] = None,
    start: Annotated[str | None, typer.Option(metavar="ISO", help="No firing before this.")] = None,
    end: Annotated[str | None, typer.Option(metavar="ISO", help="No firing after this.")] = None,
    jitter: Annotated[float, typer.Option(metavar="SECONDS", help="Fire later by up to this.")] = 0.0,
    max_runs: Annotated[int | None, typer.Option(metavar="N", help="End after so many firings.")] = None,
    misfire: Annotated[str, typer.Option(metavar="HOW", help="After a downtime: once, skip or all.")] = "once",
    overlap: Annotated[
        str, typer.Option(metavar="HOW", help="While a task of it has not ended: allow, skip or cancel_running.")
    ] = "allow",
    url: Url = None,
    queue: QueueName = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> int:
    """Add or change a schedule, and print its id.

    Where the user has one with this id, that is the one that is changed.

    Example: fairque schedule add myapp.tasks:report --cron '0 9 * * MON-FRI' --timezone Europe/Berlin --user acme

    Exit codes: 0 added, 1 failed, 2 wrong usage.
    """
    task = make_task(target, name, payload, args, kwargs)
    if priority is not None:
        task = task.options(priority=parse_priority(priority))
    if user is None and task.task_options.user_id is None:
        raise CommandError("it is not said whose tasks these are", "add --user USER")
    options: dict[str, Any] = {
        "cron_expr": cron,
        "every": every,
        "at": _parsed("--at", at),
        "timezone": timezone,
        "user_id": user,
        "schedule_id": schedule_id,
        "start": _parsed("--start", start),
        "end": _parsed("--end", end),
        "jitter": jitter,
        "max_runs": max_runs,
        "misfire": misfire,
        "overlap": overlap,
    }

    async def put(opened: TaskQueue) -> ScheduledTask:
        scheduler = TaskScheduler(opened)
        return await scheduler.get_schedule(await scheduler.add_schedule(task=task, **options))

    added = on_queue(make_queue(url, queue, config), put, begins=True)
    if as_json:
        print_json(added)
    else:
        typer.echo(added.schedule_id)
    return 0


@app.command()
def remove(
    schedule_id: Id, url: Url = None, queue: QueueName = None, config: ConfigFile = None, as_json: AsJson = False
) -> int:
    """Remove a schedule. Tasks that it made stay.

    Example: fairque schedule remove report

    Exit codes: 0 removed, 1 failed, 2 wrong usage, 4 no such schedule.
    """
    was_there = on_queue(
        make_queue(url, queue, config), lambda opened: TaskScheduler(opened).remove_schedule(schedule_id)
    )
    if not was_there:
        raise CommandError(
            f"no schedule has the id {schedule_id!r}", "`fairque schedule list` shows what there is", UNKNOWN
        )
    if as_json:
        print_json({"schedule_id": schedule_id, "removed": True})
    else:
        typer.echo("removed")
    return 0


@app.command()
def pause(
    schedule_id: Id, url: Url = None, queue: QueueName = None, config: ConfigFile = None, as_json: AsJson = False
) -> int:
    """Fire no more until resumed.

    Example: fairque schedule pause report

    Exit codes: 0 paused, 1 failed, 2 wrong usage, 4 no such schedule.
    """
    paused = on_queue(make_queue(url, queue, config), lambda opened: TaskScheduler(opened).pause_schedule(schedule_id))
    if as_json:
        print_json(paused)
    else:
        typer.echo("paused")
    return 0


@app.command()
def resume(
    schedule_id: Id, url: Url = None, queue: QueueName = None, config: ConfigFile = None, as_json: AsJson = False
) -> int:
    """Go on with the next time from now.

    Example: fairque schedule resume report

    Exit codes: 0 resumed, 1 failed, 2 wrong usage, 4 no such schedule.
    """
    resumed = on_queue(
        make_queue(url, queue, config), lambda opened: TaskScheduler(opened).resume_schedule(schedule_id)
    )
    if as_json:
        print_json(resumed)
    else:
        typer.echo(f"fires next at {_at(resumed.next_run)}")
    return 0


@app.command("run")
def run_now(
    schedule_id: Id, url: Url = None, queue: QueueName = None, config: ConfigFile = None, as_json: AsJson = False
) -> int:
    """Enqueue the task of a schedule at once, and print its id.

    The next time stays.

    Example: fairque schedule run report

    Exit codes: 0 enqueued, 1 failed, 2 wrong usage, 4 no such schedule.
    """
    task_id = on_queue(make_queue(url, queue, config), lambda opened: TaskScheduler(opened).run_now(schedule_id))
    if as_json:
        print_json({"schedule_id": schedule_id, "task_id": task_id})
    else:
        typer.echo(task_id)
    return 0


@app.command("next")
def next_runs(
    schedule_id: Id,
    count: Annotated[int, typer.Option("--count", "-n", min=1, max=1000, metavar="N", help="How many.")] = 5,
    url: Url = None,
    queue: QueueName = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> int:
    """Show when a schedule fires next, in local time.

    Example: fairque schedule next report --count 3

    Exit codes: 0 shown, 1 failed, 2 wrong usage, 4 no such schedule.
    """
    found = on_queue(make_queue(url, queue, config), lambda opened: TaskScheduler(opened).next_runs(schedule_id, count))
    if as_json:
        print_json(found)
    else:
        for each in found:
            typer.echo(_at(each))
    return 0


def _parsed(option: str, text: str | None) -> datetime | None:
    return parse_moment(option, text) if text is not None else None


def _row(schedule: ScheduledTask, now: float) -> tuple[object, ...]:
    state = f"{schedule.state}, orphaned" if schedule.orphaned else schedule.state
    facts = (schedule.user_id, schedule.schedule_id, schedule.name, _when(schedule), state, _next(schedule, now))
    return (*facts, schedule.runs, schedule.skipped, schedule.misfired)


def _next(schedule: ScheduledTask, now: float) -> str:
    if schedule.next_run is None:
        return NOTHING
    left = schedule.next_run.timestamp() - now
    return f"in {span(left)}" if left > 0 else "now"


def _when(schedule: ScheduledTask) -> str:
    if schedule.cron is not None:
        return schedule.cron if schedule.timezone == "UTC" else f"{schedule.cron} ({schedule.timezone})"
    return f"every {span(schedule.every)}" if schedule.every is not None else f"once, {_at(schedule.at)}"


def _at(at: datetime | None) -> str:
    return moment(at.timestamp() if at is not None else None)


def scheduler(
    target: Annotated[
        str,
        typer.Argument(
            metavar="MODULE:NAME", help="The queue, as module:name: a TaskQueue, or a function that returns one."
        ),
    ],
    log_level: Annotated[
        LogLevel,
        typer.Option(case_sensitive=False, metavar="LEVEL", help="debug, info, warning (missed slots) or error."),
    ] = LogLevel.INFO,
    log_json: LogJson = False,
) -> int:
    """Fire the schedules of a queue until SIGTERM, SIGHUP or Ctrl-C.

    Workers do this as well, unless they are told not to. Any number may: each slot makes one task.
    Schedules that tasks of the module declare are registered at the start.

    Example: fairque scheduler myapp.tasks:queue

    Exit codes: 0 stopped by a signal, 1 failed, 2 wrong usage.
    """
    queue = load_queue(target)
    set_up_logging(LogSettings(log_level, log_json))
    return asyncio.run(_fire(queue))


async def _fire(queue: TaskQueue) -> int:
    firing = TaskScheduler(queue)
    loop = asyncio.get_running_loop()
    async with queue:
        with on_stop(lambda _: loop.create_task(firing.stop())):
            logger.info("fires the schedules of queue %r at %s", queue.name, queue.connector.safe_url)
            await firing.run()
    logger.info("stopped")
    return 0
