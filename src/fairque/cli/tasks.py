"""``fairque tasks``: the tasks of a user."""

from __future__ import annotations

from typing import Annotated

import msgspec
import typer

from fairque import TaskInfo, TaskQueue, TaskState
from fairque.cli.output import print_json, print_table
from fairque.cli.reach import AsJson, ConfigFile, QueueName, Url, make_queue, on_queue
from fairque.cli.times import ago, span
from fairque.cli.user import known_user

__all__ = ["command"]


def command(
    user: Annotated[str, typer.Argument(metavar="USER", help="Whose tasks.")],
    state: Annotated[
        TaskState | None,
        typer.Option("--state", "-s", metavar="STATE", help=f"Only those that are {', '.join(TaskState)}."),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000, metavar="N", help="Most tasks to show.")] = 100,
    after: Annotated[str | None, typer.Option("--after", metavar="ID", help="Go on behind this task.")] = None,
    url: Url = None,
    queue: QueueName = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> int:
    """List the tasks of a user.

    Queued ones come in the order in which they will be served, failed ones the oldest first.
    Without --state, finished and canceled ones are left out: they are found by looking at every key of the server.
    Texts of errors may quote arguments: fairque task has them.

    Example: fairque tasks acme --state failed

    Exit codes: 0 shown, 1 failed, 2 wrong usage, 4 no such user, or no task --after.
    """

    async def find(opened: TaskQueue) -> tuple[list[TaskInfo], float]:
        behind = await opened.handle(user, after).info() if after is not None else None
        found = await opened.tasks(user, state=state, limit=limit, after=behind)
        if not found:
            await known_user(opened, user)
        return found, (await opened.stats()).at

    found, now = on_queue(make_queue(url, queue, config), find)
    if as_json:
        print_json([_without_texts(task) for task in found])
    else:
        print_table(("id", "state", "task", ">attempt", "when", "error"), [_row(task, now) for task in found])
        if len(found) == limit:
            typer.echo(f"the first {limit}; --limit or --after {found[-1].task_id!r} shows more", err=True)
    return 0


def _without_texts(task: TaskInfo) -> TaskInfo:
    errors = (msgspec.structs.replace(error, message="", traceback="") for error in task.errors)
    return msgspec.structs.replace(task, errors=tuple(errors))


def _row(task: TaskInfo, now: float) -> tuple[object, ...]:
    error = f"{task.error.kind}: {task.error.type_name}" if task.error is not None else ""
    return (task.task_id, task.state, task.name or "?", task.attempt, _when(task, now), error)


def _when(task: TaskInfo, now: float) -> str:
    if task.due_at is not None:
        return f"in {span(task.due_at - now)}"
    if task.state is TaskState.STARTED:
        return f"runs {span(now - task.started_at)}" if task.started_at is not None else "-"
    if task.state is TaskState.QUEUED:
        return f"waits {span(now - task.queued_at)}" if task.queued_at is not None else "-"
    return ago(task.ended_at, now)
