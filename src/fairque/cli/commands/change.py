"""``fairque change``: when a task that waits starts, and with which priority."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

import typer

from fairque import Priority, TaskHandle
from fairque.cli.errors import ENDED, CommandError
from fairque.cli.input import parse_moment, parse_priority
from fairque.cli.options import AsJson, ConfigFile, QueueName, Url, make_queue, on_queue
from fairque.cli.output import print_json

__all__ = ["command"]


def command(
    user: Annotated[str, typer.Argument(metavar="USER", help="Whose task it is.")],
    task_id: Annotated[str, typer.Argument(metavar="ID", help="The id of the task.")],
    now: Annotated[bool, typer.Option("--now", help="Wait for its turn alone.")] = False,
    delay: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Start no sooner than in so long, from now on.")
    ] = None,
    at: Annotated[
        str | None, typer.Option(metavar="ISO", help="Start no sooner than then; local time unless it has an offset.")
    ] = None,
    priority: Annotated[
        str | None, typer.Option(metavar="1..6|NAME", help="very-low, low, normal, high, very-high or critical.")
    ] = None,
    url: Url = None,
    queue: QueueName = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> int:
    """Change a task that waits: when it starts, its priority, or both.

    --now ends its delay, the pause before its next attempt, or its snooze. The order of the user's own
    tasks changes, and nothing gets a user before another one.

    Example: fairque change acme 5f1c1a7e --now --priority high

    Exit codes: 0 changed, 1 failed, 2 wrong usage, 3 not changed: it runs, has ended, or, with --now,
    waits for no moment, 4 no such task.
    """
    if now + (delay is not None) + (at is not None) > 1:
        raise CommandError("--now, --delay and --at all say when it starts", "give one of them")
    moment = parse_moment("--at", at) if at is not None else None
    wanted = parse_priority(priority) if priority is not None else None
    has_start = now or delay is not None or moment is not None
    if not has_start and wanted is None:
        raise CommandError("it is not said what to change", "add --now, --delay, --at or --priority")
    return on_queue(
        make_queue(url, queue, config),
        lambda opened: _change(opened.handle(user, task_id), delay, moment, wanted, has_start, as_json),
    )


async def _change(
    handle: TaskHandle[Any],
    delay: float | None,
    at: datetime | None,
    priority: Priority | None,
    has_start: bool,
    as_json: bool,
) -> int:
    """The priority first: a task that is to start may be gone a moment later."""
    changed = []
    if priority is not None and await handle.set_priority(priority):
        changed.append("priority")
    if has_start and await _move(handle, delay, at):
        changed.append("start")
    wanted = (priority is not None) + has_start
    if as_json:
        print_json({"user_id": handle.user_id, "task_id": handle.task_id, "changed": changed})
    elif changed:
        typer.echo(f"changed: {' and '.join(changed)} of task {handle.task_id!r} of user {handle.user_id!r}")
    if len(changed) == wanted:
        return 0
    missing = "start" if "start" not in changed and has_start else "priority"
    raise CommandError(
        f"the {missing} of task {handle.task_id!r} of user {handle.user_id!r} was not changed: it {await _why(handle)}",
        "fairque task shows how it is",
        ENDED,
    )


async def _move(handle: TaskHandle[Any], delay: float | None, at: datetime | None) -> bool:
    if delay is None and at is None:
        return await handle.promote()
    return await handle.reschedule(delay, at=at)


async def _why(handle: TaskHandle[Any]) -> str:
    state = await handle.state()
    return "waits for no moment" if state in ("queued", "deferred") else f"is {state}"
