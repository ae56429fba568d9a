"""``fairque limits``: how many tasks of a key run at once, and how often they start."""

from __future__ import annotations

from typing import Annotated

import typer

from fairque import TaskQueue
from fairque.cli.errors import CommandError
from fairque.cli.options import AsJson, ConfigFile, QueueName, Url, make_queue, on_queue
from fairque.cli.output import print_fields, print_json, shown
from fairque.cli.screens.policies import fields_of, print_limits, read_limits
from fairque.counted import counted

__all__ = ["app"]

app = typer.Typer(
    help="How many tasks of a key run at once, and how often they start.\n\n"
    "Example: fairque limits set openai --max-running 50 --rate 500/m",
    no_args_is_help=True,
)
Key = Annotated[
    str,
    typer.Argument(
        metavar="KEY",
        help="The name of a task, or a limit key: openai, 'crm:{customer}', crm:acme.",
        show_default=False,
    ),
]
OfUser = Annotated[
    str | None, typer.Option("--user", metavar="ID", help="Of a key that is of each user: for this one alone.")
]
EachUser = Annotated[
    bool, typer.Option("--each-user", help="Of a key without braces that is of each user (shared=False).")
]


@app.command("list")
def list_limits(
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="Most limits to list.")] = 100,
    url: Url = None,
    queue: QueueName = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> int:
    """List the limits that are set, by code (@task) or by hand.

    A template with braces stands for all the keys that are made of it.

    Example: fairque limits list

    Exit codes: 0 listed, 1 failed, 2 wrong usage.
    """
    found = on_queue(make_queue(url, queue, config), lambda opened: read_limits(opened, limit + 1))
    if as_json:
        print_json(found[:limit])
    elif found:
        print_limits(found[:limit])
    else:
        typer.echo("no limits")
    if len(found) > limit:
        typer.echo("there are more: see --limit", err=True)
    return 0


@app.command("set")
def set_limit(
    key: Key,
    max_running: Annotated[
        int | None, typer.Option(metavar="N", help="Most tasks that run at once, on all workers.")
    ] = None,
    rate: Annotated[
        str | None, typer.Option(metavar="RATE", help="Starts per time: 5/s, 100/m, 10/30s, '100/m burst 20'.")
    ] = None,
    unlimited: Annotated[bool, typer.Option("--unlimited", help="No limit, whatever the code says.")] = False,
    user: OfUser = None,
    each_user: EachUser = False,
    url: Url = None,
    queue: QueueName = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> int:
    """Limit the tasks that have a key; what is not named is not limited.

    It holds at once, for tasks that wait already as well, and goes before what the code says, until it is cleared.
    What waits for a limit blocks nothing behind it.

    Example: fairque limits set openai --max-running 50 --rate 500/m

    Example: fairque limits set 'crm:{customer}' --max-running 5 --user acme

    Exit codes: 0 set, 1 failed, 2 wrong usage.
    """
    if unlimited == (max_running is not None or rate is not None):
        raise CommandError(
            "--unlimited lifts the limit" if unlimited else "nothing to change",
            "give either --unlimited, or --max-running and --rate",
        )

    async def apply(opened: TaskQueue) -> None:
        await opened.set_limit(
            key, max_running=max_running, rate=rate, user_id=user, shared=False if each_user else None
        )

    on_queue(make_queue(url, queue, config), apply, begins=True)
    rules = {"max_running": max_running, "rate": rate}
    if as_json:
        print_json({"limit": key, **rules})
    else:
        print_fields((("limit", key), *fields_of(rules)))
    return 0


@app.command("pause")
def pause_task(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The name of a task.", show_default=False)],
    url: Url = None,
    queue: QueueName = None,
    config: ConfigFile = None,
) -> int:
    """Start no more tasks of a name, of all users, until resumed.

    What runs goes on, what waits keeps its place and blocks nothing behind it.

    Example: fairque limits pause billing.invoice

    Exit codes: 0 done, also when it was paused before, 1 failed, 2 wrong usage.
    """
    on_queue(make_queue(url, queue, config), lambda opened: opened.pause_task(name), begins=True)
    typer.echo(f"tasks {shown(name)} are paused until resumed")
    return 0


@app.command("resume")
def resume_task(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The name of a task.", show_default=False)],
    url: Url = None,
    queue: QueueName = None,
    config: ConfigFile = None,
) -> int:
    """Go on with the tasks of a name that is paused.

    Example: fairque limits resume billing.invoice

    Exit codes: 0 done, also when it was not paused, 1 failed, 2 wrong usage.
    """
    on_queue(make_queue(url, queue, config), lambda opened: opened.resume_task(name))
    typer.echo(f"tasks {shown(name)} go on")
    return 0


@app.command("forfeit")
def forfeit_places(
    partition: Annotated[
        int, typer.Argument(min=0, metavar="PARTITION", help="The number of one that is gone.", show_default=False)
    ],
    url: Url = None,
    queue: QueueName = None,
    config: ConfigFile = None,
) -> int:
    """Give the places of a partition that is gone to the others.

    Of limits over all users, in a queue with partitions, for an outage that lasts. What still runs of it is not counted
    any more, and when it is back, it starts nothing with what it had.

    Example: fairque limits forfeit 3 --queue images

    Exit codes: 0 done, 1 failed, 2 wrong usage.
    """
    places = on_queue(make_queue(url, queue, config), lambda opened: opened.forfeit_places(partition))
    typer.echo(f"{counted(places, 'place')} of partition {partition} may be used by others")
    return 0


@app.command("clear")
def clear_limit(
    key: Key,
    user: OfUser = None,
    each_user: EachUser = False,
    declared: Annotated[
        bool, typer.Option("--declared", help="Forget what code said as well, until a worker says it again.")
    ] = False,
    url: Url = None,
    queue: QueueName = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> int:
    """Forget what was set by hand: what the code says holds again.

    Example: fairque limits clear openai

    Exit codes: 0 cleared, 1 failed, 2 wrong usage.
    """

    async def apply(opened: TaskQueue) -> None:
        await opened.clear_limit(key, user_id=user, shared=False if each_user else None, declared=declared)

    on_queue(make_queue(url, queue, config), apply)
    if as_json:
        print_json({"limit": key, "cleared": True})
    else:
        print_fields((("limit", key), ("cleared", "yes")))
    return 0
