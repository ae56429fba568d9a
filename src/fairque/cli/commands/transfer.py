"""A user carried elsewhere: ``fairque export-user``, ``import-user`` and ``move``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, BinaryIO

import typer

from fairque import Imported, TaskQueue
from fairque.cli.errors import FAILED, CommandError
from fairque.cli.options import AsJson, ConfigFile, QueueName, Url, make_queue, on_queue
from fairque.cli.output import print_json, shown
from fairque.counted import counted
from fairque.everybody import check_user
from fairque.transfer.file import MARK, framed, records_in

__all__ = ["export_user", "import_user", "move", "move_group"]

File = Annotated[Path, typer.Argument(metavar="FILE", help="Where the records are.")]


def export_user(
    user: Annotated[str, typer.Argument(metavar="USER", help="Whose things are written.")],
    file: File,
    url: Url = None,
    queue: QueueName = None,
    config: ConfigFile = None,
) -> int:
    """Write everything of a user into a file.

    That is: tasks and their results, XCom values, schedules, policy, limits and usage. Nothing is erased. The user
    stands still meanwhile, others do not. The file has all that the user's tasks were given, and is readable by its
    owner alone. It appears when it is complete.

    Example: fairque export-user acme acme.fairque

    Exit codes: 0 written, 1 failed, 2 wrong usage, also for a user of whom nothing is known.
    """
    check_user("user_id", user)

    async def write(opened: TaskQueue) -> int:
        count = 0
        with _new(file) as output:
            async for record in opened.export_user(user):
                output.write(framed(record))
                count += 1
        return count

    count = on_queue(make_queue(url, queue, config), write)
    typer.echo(f"user {shown(user)} is in {file}: {counted(count, 'record')}")
    return 0


def import_user(
    file: File, url: Url = None, queue: QueueName = None, config: ConfigFile = None, as_json: AsJson = False
) -> int:
    """Make a user of a file that `fairque export-user` wrote.

    The user must be unknown in the queue: nothing is merged. It is served from the end of the import on. Where that is
    broken off, run the command again with the same file; `fairque purge` gives it up.

    Example: fairque import-user acme.fairque --queue new

    Exit codes: 0 imported, 1 failed, 2 wrong usage, also for a file that cannot be imported.
    """
    try:
        with file.open("rb") as records:
            imported = on_queue(make_queue(url, queue, config), lambda opened: _take(opened, records), begins=True)
    except OSError as error:
        raise _unusable(file, error) from None
    if as_json:
        print_json(imported)
    else:
        typer.echo(f"user {shown(imported.user_id)} is here: {counted(imported.records, 'record')}")
    return 0


def move(
    user: Annotated[str, typer.Argument(metavar="USER", help="Who is moved.")],
    partition: Annotated[int, typer.Argument(metavar="PARTITION", help="Where to: its number, from 0.")],
    url: Url = None,
    queue: QueueName = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> int:
    """Carry a user to another partition of its queue, while that works.

    All that it has goes along, also what runs, which goes on. The user stands still meanwhile, others do not. Where
    this process dies in the middle, the user goes on where it was after half a minute, or is carried to the end by the
    workers.

    Example: fairque move acme 3

    Exit codes: 0 it lives there, 1 failed, 2 wrong usage, also for a partition that there is not.
    """
    check_user("user_id", user)
    moved = on_queue(make_queue(url, queue, config), lambda opened: opened.move(user, partition))
    if as_json:
        print_json(moved)
    else:
        how = f"{counted(moved.records, 'page')} carried" if moved.records else "nothing had to be carried"
        typer.echo(f"user {shown(user)} lives in partition {partition}: {how}")
    return 0


def move_group(
    group: Annotated[str, typer.Argument(metavar="GROUP", help="Which one is moved, with all that is in it.")],
    partition: Annotated[int, typer.Argument(metavar="PARTITION", help="Where to: its number, from 0.")],
    url: Url = None,
    queue: QueueName = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> int:
    """Carry a group and all of its users to another partition.

    One user after the other, each as fairque move does it. Until the last of them has come, those who have and those
    who have not are two groups, each with its weight. Where this process dies in the middle, run it again.

    Example: fairque move-group plan-a 3

    Exit codes: 0 it lives there, 1 failed, 2 wrong usage, also for a partition that there is not.
    """
    users = on_queue(make_queue(url, queue, config), lambda opened: opened.move_group(group, partition))
    if as_json:
        print_json({"group": group, "partition": partition, "users": users})
    else:
        typer.echo(f"group {shown(group)} lives in partition {partition}: {counted(users, 'user')} carried")
    return 0


async def _take(queue: TaskQueue, records: BinaryIO) -> Imported:
    return await queue.import_user(records_in(records))


@contextmanager
def _new(file: Path) -> Iterator[BinaryIO]:
    """A file that is there when all has been written."""
    part = file.with_name(f"{file.name}.{os.getpid()}.part")
    try:
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise _unusable(file, error) from None
    try:
        with os.fdopen(descriptor, "wb") as output:
            output.write(MARK)
            yield output
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)


def _unusable(file: Path, error: OSError) -> CommandError:
    return CommandError(f"{file}: {error.strerror or error}", "name a file that can be used", FAILED)
