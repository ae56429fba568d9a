"""``fairque task``: everything known of one task."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
import typer

from fairque import TaskInfo, TaskQueue, TaskState
from fairque.cli.attempts import print_attempts
from fairque.cli.output import print_fields, print_json
from fairque.cli.reach import AsJson, ConfigFile, QueueName, Url, make_queue, on_queue
from fairque.cli.times import moment, span
from fairque.tasks.message import BadMessage, decode_body, decode_record, is_payload

__all__ = ["command"]


class Payload(msgspec.Struct, omit_defaults=True):
    """What a task was given and what it returned, as far as that is kept."""

    args: Any = msgspec.UNSET
    kwargs: Any = msgspec.UNSET
    payload: Any = msgspec.UNSET
    result: Any = msgspec.UNSET


def command(
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
    """Show everything known of one task: times, attempts, errors with tracebacks, dependencies.

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
        print_fields(_fields(info, found))
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
        _add_arguments(found, known.body)
    if known.record:
        state, record = decode_record(known.record)
        if record.kept and state is TaskState.FINISHED:
            found.result = msgspec.msgpack.decode(record.value)
    return found


def _add_arguments(found: Payload, body: bytes) -> None:
    try:
        message = decode_body(body)
    except BadMessage as error:
        found.payload = str(error)
        return
    if is_payload(message.args):
        found.payload = msgspec.msgpack.decode(message.args)
    else:
        found.args, found.kwargs = msgspec.msgpack.decode(message.args), msgspec.msgpack.decode(message.kwargs) or {}


def _readable(found: Payload) -> Any:
    """What JSON cannot hold, such as a map with keys of any kind, comes as its text."""
    return msgspec.to_builtins(found, str_keys=True, enc_hook=repr)


def _fields(task: TaskInfo, found: Payload | None) -> list[tuple[str, object]]:
    priority = task.priority.name.lower().replace("_", "-") if task.priority is not None else "-"
    given = [
        ("task", task.task_id),
        ("user", task.user_id),
        ("name", task.name or "?"),
        ("state", task.state),
        ("priority", priority),
        ("attempt", task.attempt),
        ("due at", moment(task.due_at)),
        ("queued at", moment(task.queued_at)),
        ("started at", moment(task.started_at)),
        ("ended at", moment(task.ended_at)),
        ("waited", span(task.wait_seconds)),
        ("ran", span(task.run_seconds)),
        ("worker", task.worker or "-"),
        ("progress", f"{task.progress:.0%}" if task.progress is not None else "-"),
        ("message", task.message or "-"),
        ("depends on", ", ".join(task.dependencies) or "-"),
        ("waited for by", ", ".join(task.dependents) or "-"),
    ]
    shown_fields = [(name, value) for name, value in given if value != "-"]
    return shown_fields + (_payload_fields(found) if found is not None else [])


def _payload_fields(found: Payload) -> list[tuple[str, object]]:
    readable = _readable(found)
    return [(name, msgspec.json.encode(value).decode()) for name, value in readable.items()] or [
        ("payload", "not kept")
    ]
