"""``fairque dead``: look at failed tasks, run them again, give them up."""

from __future__ import annotations

import contextlib
import sys
from typing import Annotated, Any

import msgspec
import typer

from fairque import DeadGroups, DeadLetter, TaskInfo, TaskQueue, TaskState, UnknownTask
from fairque.cli.clock import now_of
from fairque.cli.errors import UNKNOWN, CommandError
from fairque.cli.input import confirm
from fairque.cli.options import AsJson, ConfigFile, QueueName, Url, make_queue, on_queue
from fairque.cli.output import ago, moment, print_json, shown
from fairque.cli.screens.tasks import print_attempts
from fairque.cli.table import names, numbers, print_table, words
from fairque.models import FailureKind

__all__ = ["app"]

app = typer.Typer(
    help="Failed tasks: list and show them, run them again, give them up.\n\nExample: fairque dead list acme",
    no_args_is_help=True,
)
PAGE = 1000

OfUser = Annotated[str | None, typer.Argument(metavar="USER", help="Only those of this user.", show_default=False)]
OfKind = Annotated[
    FailureKind | None,
    typer.Option("--kind", metavar="KIND", help=f"Only those that failed so: {', '.join(FailureKind)}."),
]
OfName = Annotated[str | None, typer.Option("--name", metavar="NAME", help="Only calls of the task of this name.")]
_AT_MOST = typer.Option("--limit", min=1, metavar="N", help="At most so many, the oldest first.")
User = Annotated[str | None, typer.Argument(metavar="USER", help="Whose task it is.", show_default=False)]
Id = Annotated[str | None, typer.Argument(metavar="ID", help="The id of the task.", show_default=False)]
All = Annotated[
    bool, typer.Option("--all", help="Instead of an ID: all, of USER or of all users, that the options leave.")
]


class Filters(msgspec.Struct, frozen=True):
    """Which dead letters a command is about; None takes all."""

    user_id: str | None
    kind: FailureKind | None
    name: str | None
    limit: int = sys.maxsize

    def matches(self, letter: DeadLetter) -> bool:
        return self.kind in (None, letter.kind) and self.name in (None, letter.name)


@app.command("list")
def list_letters(
    user: OfUser = None,
    kind: OfKind = None,
    name: OfName = None,
    limit: Annotated[int, _AT_MOST] = 100,
    url: Url = None,
    queue: QueueName = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> int:
    """List failed tasks, the oldest first.

    The texts of errors may quote arguments: fairque dead show has them.

    Example: fairque dead list acme --kind timeout

    Exit codes: 0 shown, also if there is none, 1 failed, 2 wrong usage.
    """
    filters = Filters(user, kind, name, limit)

    async def find(opened: TaskQueue) -> tuple[list[DeadLetter], float]:
        return await _find(opened, filters), await now_of(opened, user)

    letters, now = on_queue(make_queue(url, queue, config), find)
    if as_json:
        print_json([_row(letter) for letter in letters])
        return 0
    columns = (
        *(names("user", whole=6), names("id", whole=7), names("task"), words("failed", 4)),
        *(numbers("attempts", 1), words("kind", 3), names("error")),
    )
    print_table(columns, [_cells(letter, now) for letter in letters])
    if len(letters) == limit:
        typer.echo(f"these are the oldest {limit}, --limit shows more", err=True)
    return 0


@app.command()
def groups(
    user: OfUser = None,
    url: Url = None,
    queue: QueueName = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> int:
    """Count failed tasks by the kind of their error, frequent ones first.

    Of a user, 20 kinds are counted by themselves, of a queue 500: those that came first, until their letters are gone.

    Example: fairque dead groups acme

    Exit codes: 0 shown, also if there is none, 1 failed, 2 wrong usage.
    """

    async def find(opened: TaskQueue) -> tuple[DeadGroups, float]:
        return await opened.dead_groups(user), await now_of(opened, user)

    found, now = on_queue(make_queue(url, queue, config), find)
    if as_json:
        print_json(found)
        return 0
    columns = (names("error", whole=1), words("kind"), numbers("letters"), words("oldest", 2), words("latest"))
    rows: list[tuple[object, ...]] = [
        (group.type_name, group.kind, group.count, ago(group.oldest_at, now), ago(group.latest_at, now))
        for group in found.groups
    ]
    if found.others:
        rows.append(("(others)", "", found.others, "", ""))
    print_table(columns, rows)
    return 0


@app.command()
def show(
    user: Annotated[str, typer.Argument(metavar="USER", help="Whose task it is.")],
    task_id: Annotated[str, typer.Argument(metavar="ID", help="The id of the task.")],
    url: Url = None,
    queue: QueueName = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> int:
    """Show a failed task: every attempt with its error and its traceback.

    Example: fairque dead show acme 5f1c1a7e

    Exit codes: 0 shown, 1 failed, 2 wrong usage, 4 no such dead letter.
    """
    info = on_queue(make_queue(url, queue, config), lambda opened: opened.handle(user, task_id).info())
    if info.state is not TaskState.FAILED:
        raise CommandError(
            f"task {task_id!r} of user {user!r} is no dead letter: it is {info.state}",
            "fairque task USER ID shows any task",
            UNKNOWN,
        )
    if as_json:
        print_json(info)
    else:
        _print(info)
    return 0


@app.command()
def requeue(
    user: User = None,
    task_id: Id = None,
    everything: All = False,
    kind: OfKind = None,
    name: OfName = None,
    limit: Annotated[int | None, _AT_MOST] = None,
    url: Url = None,
    queue: QueueName = None,
    config: ConfigFile = None,
) -> int:
    """Run a failed task again, or all of them.

    Its attempts start anew, its old errors are kept.

    Example: fairque dead requeue acme 5f1c1a7e

    Example: fairque dead requeue acme --all --kind timeout

    Exit codes: 0 requeued, also if --all found none, 1 failed, 2 wrong usage, 4 no such dead letter.
    """
    filters = _chosen(user, task_id, everything, kind, name, limit)

    async def requeue_chosen(opened: TaskQueue) -> int:
        if filters is None:
            await opened.requeue(opened.handle(str(user), str(task_id)))
            return 1
        return await opened.requeue_all(filters.user_id, kind=filters.kind, task_name=filters.name, limit=filters.limit)

    typer.echo(f"{on_queue(make_queue(url, queue, config), requeue_chosen)} requeued")
    return 0


@app.command()
def discard(
    user: User = None,
    task_id: Id = None,
    everything: All = False,
    kind: OfKind = None,
    name: OfName = None,
    limit: Annotated[int | None, _AT_MOST] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="With --all: do not ask.")] = False,
    url: Url = None,
    queue: QueueName = None,
    config: ConfigFile = None,
) -> int:
    """Give a failed task up, or all of them.

    Nothing is left of it. With --all, it asks first.

    Example: fairque dead discard acme 5f1c1a7e

    Example: fairque dead discard --all --name myapp.tasks.resize --yes

    Exit codes: 0 discarded, also if --all found none, 1 failed or not confirmed, 2 wrong usage,
    4 no such dead letter.
    """
    filters = _chosen(user, task_id, everything, kind, name, limit)
    opened = make_queue(url, queue, config)

    async def discard_chosen(opened: TaskQueue) -> int:
        if filters is None:
            await opened.discard(opened.handle(str(user), str(task_id)))
            return 1
        return await _discard_all(opened, filters)

    if filters is not None:
        whose = f"user {user!r}" if user is not None else "all users"
        confirm(f"Give up failed tasks of {whose} in queue {opened.name!r}, as far as the options leave them?", yes)
    typer.echo(f"{on_queue(opened, discard_chosen)} discarded")
    return 0


def _chosen(
    user: str | None,
    task_id: str | None,
    everything: bool,
    kind: FailureKind | None,
    name: str | None,
    limit: int | None,
) -> Filters | None:
    """The filters of ``--all``, None where it is about one task. Raises `CommandError` for anything in between."""
    if everything:
        if task_id is not None:
            raise CommandError("an ID names one task, and --all is about all", "leave one of them out")
        return Filters(user, kind, name, limit or sys.maxsize)
    if user is None or task_id is None:
        raise CommandError("it is not said which task", "give USER and ID, or --all for all, of a USER or of all users")
    if (kind, name, limit) != (None, None, None):
        raise CommandError("--kind, --name and --limit choose among all, and an ID names one", "add --all")
    return None


async def _find(queue: TaskQueue, filters: Filters) -> list[DeadLetter]:
    found: list[DeadLetter] = []
    after = None
    while len(found) < filters.limit:
        page = await queue.dead_letters(filters.user_id, limit=PAGE, after=after)
        found += filter(filters.matches, page)
        if len(page) < PAGE:
            break
        after = page[-1]
    return found[: filters.limit]


async def _discard_all(queue: TaskQueue, filters: Filters) -> int:
    discarded = 0
    for letter in await _find(queue, filters):
        with contextlib.suppress(UnknownTask):  # somebody else was faster
            await queue.discard(letter)
            discarded += 1
    return discarded


def _row(letter: DeadLetter) -> dict[str, Any]:
    return {name: value for name, value in msgspec.structs.asdict(letter).items() if name != "message"}


def _cells(letter: DeadLetter, now: float) -> tuple[object, ...]:
    failed = ago(letter.at, now)
    return letter.user_id, letter.task_id, letter.name or "?", failed, letter.attempt, letter.kind, letter.type_name


def _print(info: TaskInfo) -> None:
    task, user, name = map(shown, (info.task_id, info.user_id, info.name))
    typer.echo(f"task {task} of user {user}, {name}, failed {moment(info.ended_at)} at attempt {info.attempt}")
    print_attempts(info.errors)
