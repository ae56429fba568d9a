"""The tasks of a user: ``fairque tasks``, ``task``, ``explain`` and ``cancel``."""

from __future__ import annotations

import contextlib
from typing import Annotated, Any

import msgspec
import typer

from fairque import Cancellation, ResultTimeout, TaskHandle, TaskInfo, TaskQueue, TaskState
from fairque.cli.clock import now_of
from fairque.cli.commands.users import known_user
from fairque.cli.errors import ENDED, UNFINISHED, CommandError
from fairque.cli.input import check_timeout, confirm
from fairque.cli.options import AsJson, ConfigFile, QueueName, Url, make_queue, on_queue
from fairque.cli.output import print_fields, print_json
from fairque.cli.screens.tasks import explanation_fields, print_attempts, print_tasks, task_fields
from fairque.codec.codec import Sealer
from fairque.counted import counted
from fairque.errors import SealError, TaskEnded
from fairque.queue.cancel_all import checked_matches
from fairque.tasks.message import BadMessage, is_payload
from fairque.tasks.sealed import open_record, open_task

__all__ = ["cancel", "cancel_all", "explain", "list_tasks", "show_task"]


def list_tasks(
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
        return found, await now_of(opened, user)

    found, now = on_queue(make_queue(url, queue, config), find)
    if as_json:
        print_json([_without_texts(task) for task in found])
    else:
        print_tasks(found, now)
        if len(found) == limit:
            typer.echo(f"the first {limit}; --limit or --after {found[-1].task_id!r} shows more", err=True)
    return 0


def _without_texts(task: TaskInfo) -> TaskInfo:
    errors = (msgspec.structs.replace(error, message="", traceback="") for error in task.errors)
    return msgspec.structs.replace(task, errors=tuple(errors))


class Payload(msgspec.Struct, omit_defaults=True):
    """What a task was given and what it returned, as far as that is kept."""

    args: Any = msgspec.UNSET
    kwargs: Any = msgspec.UNSET
    payload: Any = msgspec.UNSET
    result: Any = msgspec.UNSET


def show_task(
    user: Annotated[str, typer.Argument(metavar="USER", help="Whose task it is.")],
    task_id: Annotated[str, typer.Argument(metavar="ID", help="The id of the task.")],
    payload: Annotated[
        bool, typer.Option("--payload", help="Show the arguments and the result as well, where they are kept.")
    ] = False,
    url: Url = None,
    queue: QueueName = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> int:
    """Show one task: times, attempts, errors, dependencies.

    Arguments are kept until a task finishes, results for as long as the task says.

    Example: fairque task acme 5f1c1a7e --payload

    Exit codes: 0 shown, 1 failed, 2 wrong usage, 4 no such task.
    """

    async def find(opened: TaskQueue) -> tuple[TaskInfo, Payload | None]:
        info = await opened.handle(user, task_id).info()
        return info, await _payload(opened, user, task_id) if payload else None

    info, found = on_queue(make_queue(url, queue, config), find)
    if as_json:
        print_json({**msgspec.structs.asdict(info), **({"payload": _readable(found)} if found is not None else {})})
    else:
        print_fields([*task_fields(info), *(_payload_fields(found) if found is not None else ())])
        print_attempts(info.errors)
    return 0


async def _payload(queue: TaskQueue, user_id: str, task_id: str) -> Payload:
    store = queue.store()
    try:
        known = await store.info(user_id, task_id)
    finally:
        await store.close()
    found = Payload()
    if known.body:
        _add_arguments(found, store.sealer, user_id, task_id, known.body)
    if known.record:
        _add_result(found, store.sealer, user_id, task_id, known.record)
    return found


def _add_result(found: Payload, sealer: Sealer | None, user_id: str, task_id: str, data: bytes) -> None:
    try:
        state, record = open_record(sealer, user_id, task_id, data)
    except SealError as error:
        found.result = f"({error})"
        return
    if record.kept and state is TaskState.FINISHED:
        found.result = msgspec.msgpack.decode(record.value)


def _add_arguments(found: Payload, sealer: Sealer | None, user_id: str, task_id: str, body: bytes) -> None:
    try:
        message = open_task(sealer, user_id, task_id, body)
    except (BadMessage, SealError) as error:
        found.payload = f"({error})" if isinstance(error, SealError) else str(error)
        return
    if is_payload(message.args):
        found.payload = msgspec.msgpack.decode(message.args)
    else:
        found.args, found.kwargs = msgspec.msgpack.decode(message.args), msgspec.msgpack.decode(message.kwargs) or {}


def _readable(found: Payload) -> Any:
    """What JSON cannot hold, such as a map with keys of any kind, comes as its text."""
    return msgspec.to_builtins(found, str_keys=True, enc_hook=repr)


def _payload_fields(found: Payload) -> list[tuple[str, object]]:
    readable = _readable(found)
    return [(name, msgspec.json.encode(value).decode()) for name, value in readable.items()] or [
        ("payload", "not kept")
    ]


def explain(
    user: Annotated[str, typer.Argument(metavar="USER", help="The id of the user.")],
    task_id: Annotated[
        str | None, typer.Argument(metavar="ID", help="The id of the task; without it: the next one of the user.")
    ] = None,
    url: Url = None,
    queue: QueueName = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> int:
    """Tell why a task waits, what is ahead of it, when it may start.

    The estimate is good when the speed of the queue has been measured. It is rough when little was,
    or when something else than its turn holds the task back.

    Example: fairque explain acme 5f1c1a7e

    Exit codes: 0 told, 1 failed, 2 wrong usage, 4 no such task.
    """
    found = on_queue(make_queue(url, queue, config), lambda opened: opened.explain(user, task_id))
    if as_json:
        print_json(found)
    else:
        print_fields(explanation_fields(found))
    return 0


def cancel(
    user: Annotated[str, typer.Argument(metavar="USER", help="Whose task it is.")],
    task_id: Annotated[str, typer.Argument(metavar="ID", help="The id of the task.")],
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Kept with the task.", show_default=False)] = "",
    wait: Annotated[bool, typer.Option("--wait", "-w", help="Wait until a started task has stopped.")] = False,
    timeout: Annotated[float | None, typer.Option(metavar="SECONDS", help="With --wait: no longer than this.")] = None,
    url: Url = None,
    queue: QueueName = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> int:
    """Cancel a task.

    One that waits ends at once. Of one that runs, the worker is told:
    an async function is cancelled, a plain one has to look whether it was.

    Example: fairque cancel acme 5f1c1a7e --reason "wrong file" --wait

    Exit codes: 0 canceled, or its worker was told, 1 failed, 2 wrong usage,
    3 it had ended before, or ended in another way, 4 no such task, 5 it still runs after --timeout.
    """
    check_timeout(timeout, wait)
    return on_queue(
        make_queue(url, queue, config),
        lambda opened: _cancel(opened.handle(user, task_id), reason, timeout if wait else 0, as_json),
    )


def cancel_all(
    user: Annotated[str, typer.Argument(metavar="USER", help="Whose tasks.")],
    name: Annotated[str | None, typer.Option(metavar="NAME", help="Only tasks of this name.")] = None,
    state: Annotated[
        TaskState | None,
        typer.Option(
            "--state", "-s", metavar="STATE", help="Only those that are queued, scheduled, deferred or started."
        ),
    ] = None,
    older_than: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Only those that were put in longer ago.")
    ] = None,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Kept with each task.", show_default=False)] = "",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    url: Url = None,
    queue: QueueName = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> int:
    """Cancel the tasks of a user that match.

    What waits ends, what runs is told to stop. Tasks that are put in meanwhile stay.

    It cannot be undone, and asks first.

    Example: fairque cancel-all acme --name billing.invoice --state queued --older-than 3600

    Exit codes: 0 canceled, also when none matched, 1 failed or not confirmed, 2 wrong usage.
    """
    checked_matches(user, name, state, older_than, reason)
    opened = make_queue(url, queue, config)
    confirm(f"Cancel the tasks of user {user!r} in queue {opened.name!r} that match?", yes)
    count = on_queue(
        opened,
        lambda opened: opened.cancel_all(user, name=name, state=state, older_than=older_than, reason=reason),
    )
    if as_json:
        print_json({"user_id": user, "canceled": count})
    else:
        typer.echo(f"canceled, or told to stop: {counted(count, 'task')}")
    return 0


async def _cancel(handle: TaskHandle[Any], reason: str, timeout: float | None, as_json: bool) -> int:
    answer = await handle.cancel(reason)
    if answer is Cancellation.CANCELING:
        with contextlib.suppress(TaskEnded, ResultTimeout):
            await handle.result(timeout)
    state = await handle.state()
    if as_json:
        print_json(
            {"user_id": handle.user_id, "task_id": handle.task_id, "outcome": answer.name.lower(), "state": state}
        )
    return _conclude(handle, answer, state, waited=timeout != 0, quiet=as_json)


def _conclude(handle: TaskHandle[Any], answer: Cancellation, state: TaskState, *, waited: bool, quiet: bool) -> int:
    task = f"task {handle.task_id!r} of user {handle.user_id!r}"
    if answer is Cancellation.ENDED:
        raise CommandError(f"{task} had ended before: {state}", "there is nothing to cancel", ENDED)
    if state.ended and state is not TaskState.CANCELED:
        raise CommandError(
            f"{task} ended before it could be stopped: {state}", "there is nothing more to cancel", ENDED
        )
    if waited and not state.ended:
        raise CommandError(f"{task} has not stopped yet", "its worker was told; give a longer --timeout", UNFINISHED)
    if not quiet:
        typer.echo("canceled" if state is TaskState.CANCELED else "its worker was told to stop it")
    return 0
