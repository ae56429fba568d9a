"""``fairque policy``: what governs users and groups."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from fairque import Policy, TaskQueue
from fairque.cli.errors import CommandError
from fairque.cli.options import AsJson, ConfigFile, QueueName, Url, load_config, make_queue, on_queue
from fairque.cli.output import print_fields, print_json
from fairque.cli.screens.policies import Governed, Rules, print_governed, print_rules
from fairque.everybody import whom

__all__ = ["app"]

app = typer.Typer(
    help="What governs users and groups: look, and change it.\n\nExample: fairque policy set acme --weight 2",
    no_args_is_help=True,
)
Whose = Annotated[str, typer.Argument(metavar="USER", help="The id of the user; '*' is what governs all others.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="Of the group.", show_default=False)]
Weight = Annotated[float | None, typer.Option(metavar="X", help="Share in relation to others; 1 without.")]
MaxRunning = Annotated[int | None, typer.Option(metavar="N", help="Most tasks that run at once, on all workers.")]
Starts = Annotated[
    str | None, typer.Option("--rate", metavar="RATE", help="Starts per time: 5/s, 100/m, 10/30s, '100/m burst 20'.")
]


@app.command("show")
def show(
    user: Annotated[
        str | None, typer.Argument(metavar="USER", help="The id of the user; without it: all that was set.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="Most users, groups and limits to list.")] = 100,
    url: Url = None,
    queue: QueueName = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> int:
    """Show what governs a user, or all that was set.

    With where it comes from; without a user, all that was set in the queue.

    Example: fairque policy show acme

    Exit codes: 0 shown, 1 failed, 2 wrong usage.
    """
    opened = make_queue(url, queue, config)
    if user is None:
        rules = on_queue(opened, lambda each: Rules.read(each, limit))
        print_json(rules) if as_json else print_rules(rules)
    else:
        _print(on_queue(opened, lambda each: Governed.read(each, user)), as_json)
    return 0


@app.command("set")
def change(
    user: Whose,
    weight: Weight = None,
    max_running: MaxRunning = None,
    max_share: Annotated[
        float | None, typer.Option(metavar="PART", help="Most of the slots of all workers, like 0.8; one at least.")
    ] = None,
    min_running: Annotated[int | None, typer.Option(metavar="N", help="Slots that it gets before all others.")] = None,
    rate: Starts = None,
    max_queued: Annotated[int | None, typer.Option(metavar="N", help="Most tasks that wait.")] = None,
    overflow: Annotated[
        str | None,
        typer.Option(metavar="HOW", help="What happens beyond that: reject (default) or drop_oldest."),
    ] = None,
    max_bytes: Annotated[
        int | None, typer.Option(metavar="N", help="Most bytes in Redis: bodies, results, errors, XCom values.")
    ] = None,
    group: Annotated[str | None, typer.Option(metavar="NAME", help="Shares as a part of this group.")] = None,
    breaker: Annotated[
        str | None,
        typer.Option(metavar="N/WINDOW/REST", help="Park it after N failures within WINDOW, for REST: 5/60s/30s."),
    ] = None,
    unset: Annotated[list[str] | None, typer.Option(metavar="FIELD", help="Forget this field. Repeatable.")] = None,
    url: Url = None,
    queue: QueueName = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> int:
    """Change what governs a user; what is not named stays.

    It holds from the next claim on, for tasks that wait already as well. Shows what governs the user then.
    Users are stopped and let go on by fairque pause and fairque resume.

    Example: fairque policy set acme --weight 2 --max-running 10 --rate 100/m

    Example: fairque policy set acme --unset rate

    Exit codes: 0 changed, 1 failed, 2 wrong usage.
    """
    given = {
        "weight": weight,
        "max_running": max_running,
        "max_share": max_share,
        "min_running": min_running,
        "rate": rate,
        "max_queued": max_queued,
        "overflow": overflow,
        "max_bytes": max_bytes,
        "group": group,
        "breaker": breaker,
    }
    changes = _changes(given, unset or ())

    async def apply(opened: TaskQueue) -> Governed:
        await opened.set_policy(whom(user), **changes)
        return await Governed.read(opened, user)

    _print(on_queue(make_queue(url, queue, config), apply, begins=True), as_json)
    return 0


@app.command("clear")
def clear(
    user: Whose, url: Url = None, queue: QueueName = None, config: ConfigFile = None, as_json: AsJson = False
) -> int:
    """Forget all that was set for a user.

    A pause as well. What governs all others governs it then.

    Example: fairque policy clear acme

    Exit codes: 0 cleared, 1 failed, 2 wrong usage.
    """

    async def apply(opened: TaskQueue) -> Governed:
        await opened.clear_policy(whom(user))
        return await Governed.read(opened, user)

    _print(on_queue(make_queue(url, queue, config), apply), as_json)
    return 0


@app.command("group")
def group(
    name: Name,
    weight: Weight = None,
    clear: Annotated[bool, typer.Option("--clear", help="Back to a weight of 1.")] = False,
    url: Url = None,
    queue: QueueName = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> int:
    """Show or change the weight of a group.

    Groups share with each other, and with users that have none; then the users of a group share what it gets.
    acme/europe is a group in a group, which shares what acme gets.
    A user joins one by fairque policy set USER --group NAME.

    Example: fairque policy group gold --weight 3

    Exit codes: 0 shown or changed, 1 failed, 2 wrong usage.
    """
    if clear and weight is not None:
        raise CommandError("--clear and --weight exclude each other", "leave one out")
    changes = clear or weight is not None

    async def apply(opened: TaskQueue) -> float:
        if changes:
            await opened.set_group(name, weight=weight)
        return await opened.get_group(name)

    found = on_queue(make_queue(url, queue, config), apply, begins=changes)
    if as_json:
        print_json({"group": name, "weight": found})
    else:
        print_fields((("group", name), ("weight", f"{found:g}")))
    return 0


@app.command("apply")
def apply_files(
    files: Annotated[list[str], typer.Argument(metavar="FILE", help="Configuration files: later ones win.")],
    url: Url = None,
    queue: QueueName = None,
    as_json: AsJson = False,
) -> int:
    """Set the policies, groups and limits of configuration files.

    That is, what the sections of these names say.
    All else stays as it is, also what a file said once and says no longer.
    fairque worker --config does the same when it starts.

    Example: fairque policy apply config/production.yaml

    Exit codes: 0 set, 1 failed, 2 wrong usage.
    """
    loaded = load_config(files)
    on_queue(make_queue(url, queue, files), lambda opened: opened.apply_policies(loaded), begins=True)
    counts = {"policies": len(loaded.policies), "groups": len(loaded.groups), "limits": len(loaded.limits)}
    if as_json:
        print_json(counts)
    else:
        print_fields(counts.items())
    return 0


def _changes(given: dict[str, Any], unset: Any) -> dict[str, Any]:
    changes = {name: value for name, value in given.items() if value is not None}
    forgotten = {name.replace("-", "_") for name in unset}
    if unknown := forgotten - set(Policy.__struct_fields__):
        raise CommandError(
            f"a policy has no field {min(unknown)!r}", f"there are {', '.join(Policy.__struct_fields__)}"
        )
    if both := forgotten & changes.keys():
        raise CommandError(f"{min(both)!r} is set and forgotten at once", "leave one out")
    if not changes and not forgotten:
        raise CommandError("nothing to change", "fairque policy set --help shows what there is")
    return changes | dict.fromkeys(forgotten, None)


def _print(governed: Governed, as_json: bool) -> None:
    if as_json:
        print_json(governed)
    else:
        print_governed(governed)
