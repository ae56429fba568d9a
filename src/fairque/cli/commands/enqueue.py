"""``fairque enqueue``: add a task, and wait for its result."""

from __future__ import annotations

import shlex
from datetime import datetime
from typing import Annotated, Any

import msgspec
import typer

from fairque import ResultNotKept, ResultTimeout, Task, TaskCanceled, TaskFailed, TaskHandle, TaskQueue
from fairque.cli.errors import FAILED, UNFINISHED, CommandError
from fairque.cli.imports import load_task
from fairque.cli.input import check_timeout, parse_json, parse_moment, parse_priority
from fairque.cli.options import AsJson, ConfigFile, QueueName, Url, make_queue, on_queue
from fairque.cli.output import print_json, shown
from fairque.cli.processes import Interrupted, stop_on_signal
from fairque.errors import FairqueError

__all__ = ["command", "make_task"]


class Choices(msgspec.Struct, frozen=True, kw_only=True):
    """What is decided about the task, and how its caller waits."""

    user_id: str | None
    options: dict[str, Any]
    wait: bool
    timeout: float | None
    as_json: bool


def command(
    target: Annotated[
        str | None, typer.Argument(metavar="MODULE:NAME", help="The task, such as myapp.tasks:resize.")
    ] = None,
    user: Annotated[
        str | None, typer.Option(metavar="USER", help="Whose task it is, unless its decorator says so.")
    ] = None,
    args: Annotated[
        str | None, typer.Option(metavar="JSON", help="Positional arguments, an array; - reads it from stdin.")
    ] = None,
    kwargs: Annotated[
        str | None, typer.Option(metavar="JSON", help="Named arguments, an object; - reads it from stdin.")
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Instead of MODULE:NAME: what workers know it by, such as myapp.tasks.resize."
        ),
    ] = None,
    payload: Annotated[
        str | None,
        typer.Option(metavar="JSON", help="Instead of MODULE:NAME: an object for a TaskHandler; - reads stdin."),
    ] = None,
    priority: Annotated[
        str | None, typer.Option(metavar="1..6|NAME", help="very-low, low, normal, high, very-high or critical.")
    ] = None,
    delay: Annotated[float | None, typer.Option(metavar="SECONDS", help="Start no sooner than in so long.")] = None,
    at: Annotated[
        str | None, typer.Option(metavar="ISO", help="Start no sooner than then; local time unless it has an offset.")
    ] = None,
    task_id: Annotated[
        str | None,
        typer.Option(
            "--id", metavar="ID", help="Its id. While a task of the user with this id has not ended, none is added."
        ),
    ] = None,
    expires: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="If it has not begun by then, it ends as canceled.")
    ] = None,
    header: Annotated[
        list[str] | None, typer.Option(metavar="NAME=TEXT", help="A header of the task; may be given again.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", "-w", help="Wait for its end, and print its result as JSON.")] = False,
    timeout: Annotated[float | None, typer.Option(metavar="SECONDS", help="With --wait: no longer than this.")] = None,
    url: Url = None,
    queue: QueueName = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> int:
    """Add a task for a user, and print its id.

    The function is imported from the current directory or the Python path.
    The arguments are checked against its annotations.
    With --name or --payload, no code is needed here, and nothing is checked.

    Example: fairque enqueue myapp.tasks:resize --user acme --args '[42]' --wait

    Exit codes: 0 added, or finished with --wait, 1 failed or canceled, 2 wrong usage, 5 not ended within
    --timeout, 130 interrupted by Ctrl-C: the task goes on.
    """
    check_timeout(timeout, wait)
    task = make_task(target, name, payload, args, kwargs)
    if user is None and task.task_options.user_id is None:
        raise CommandError("it is not said whose task it is", "add --user USER")
    options = _options(priority, delay, at, task_id, expires, header)
    choices = Choices(user_id=user, options=options, wait=wait, timeout=timeout, as_json=as_json)
    return on_queue(make_queue(url, queue, config), lambda opened: _enqueue(opened, task, choices), begins=True)


def make_task(target: str | None, name: str | None, payload: str | None, args: str | None, kwargs: str | None) -> Any:
    """The task that the options of a command say. Raises `CommandError` and `InvalidInput`."""
    if target is not None and (name is not None or payload is not None):
        raise CommandError("MODULE:NAME says which task it is, and so does --name or --payload", "give one of them")
    if payload is not None:
        if args is not None or kwargs is not None:
            raise CommandError("--payload is all that a TaskHandler is given", "leave out --args and --kwargs")
        return Task.create(payload=parse_json("--payload", payload, dict, "'{\"n\": 1}'"), name=name or "")
    if args == kwargs == "-":
        raise CommandError("--args and --kwargs cannot both come from stdin", "give one of them on the command line")
    if target is not None:
        function = load_task(target)
        return function(*_given_args(args), **_given_kwargs(kwargs))
    if name is None:
        raise CommandError("it is not said which task", "name it as MODULE:NAME, or with --name or --payload")
    return Task.by_name(name, _given_args(args), _given_kwargs(kwargs))


def _given_args(text: str | None) -> list[Any]:
    return parse_json("--args", text, list, "'[42, \"a\"]'") if text is not None else []


def _given_kwargs(text: str | None) -> dict[str, Any]:
    return parse_json("--kwargs", text, dict, "'{\"width\": 5}'") if text is not None else {}


def _options(
    priority: str | None,
    delay: float | None,
    at: str | None,
    task_id: str | None,
    expires: float | None,
    headers: list[str] | None,
) -> dict[str, Any]:
    if delay is not None and at is not None:
        raise CommandError("--delay and --at both say when it may start", "give one of them")
    execute_after: datetime | None = parse_moment("--at", at) if at is not None else None
    given = {
        "priority": parse_priority(priority) if priority is not None else None,
        "delay": delay,
        "execute_after": execute_after,
        "task_id": task_id,
        "expires": expires,
        "headers": dict(_header(each) for each in headers) if headers else None,
    }
    return {name: value for name, value in given.items() if value is not None}


def _header(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise CommandError(f"--header {text!r} has no value", "write it like --header request-id=7f3a")
    return name, value


async def _enqueue(queue: TaskQueue, task: Task[Any], choices: Choices) -> int:
    handle = await queue.enqueue(task, user_id=choices.user_id, **choices.options)
    if not handle.created:
        typer.echo(f"user {handle.user_id!r} has a living task {handle.task_id!r}: none was added", err=True)
    if choices.wait:
        return await _wait(handle, choices)
    if choices.as_json:
        print_json(_facts(handle))
    else:
        typer.echo(shown(handle.task_id))
    return 0


async def _wait(handle: TaskHandle[Any], choices: Choices) -> int:
    if not choices.as_json:
        typer.echo(f"waiting for task {handle.task_id!r} of user {handle.user_id!r}", err=True)
    try:
        with stop_on_signal():
            value = await handle.result(choices.timeout)
    except Interrupted as stop:
        typer.echo(f"interrupted: task {handle.task_id!r} of user {handle.user_id!r} goes on", err=True)
        return stop.code
    except (TaskFailed, TaskCanceled, ResultTimeout, ResultNotKept) as end:
        return _without_result(handle, end, choices.as_json)
    if choices.as_json:
        print_json({**_facts(handle), "state": "finished", "result": _printable(value)})
    else:
        print_json(_printable(value))
    return 0


def _without_result(handle: TaskHandle[Any], end: FairqueError, as_json: bool) -> int:
    task = f"task {handle.task_id!r} of user {handle.user_id!r}"
    state, problem = "finished", None
    if isinstance(end, TaskFailed):
        state, problem = (
            "failed",
            CommandError(f"{task} failed: {end}", f"fairque task {_words(handle)} says more", FAILED),
        )
    elif isinstance(end, TaskCanceled):
        state, problem = "canceled", CommandError(f"{task} was canceled: {end}", "enqueue it again", FAILED)
    elif isinstance(end, ResultTimeout):
        state, problem = (
            "unfinished",
            CommandError(str(end), "it goes on; give a longer --timeout, or none", UNFINISHED),
        )
    if as_json:
        print_json({**_facts(handle), "state": state, "error": str(end)})
    elif problem is None:
        typer.echo(f"{task} finished, and keeps no result", err=True)
    if problem is not None:
        raise problem
    return 0


def _words(handle: TaskHandle[Any]) -> str:
    """As a shell reads them."""
    return f"{shlex.quote(handle.user_id)} {shlex.quote(handle.task_id)}"


def _facts(handle: TaskHandle[Any]) -> dict[str, Any]:
    return {"user_id": handle.user_id, "task_id": handle.task_id, "created": handle.created}


def _printable(value: Any) -> Any:
    """A result may be what JSON cannot hold."""
    try:
        return msgspec.Raw(msgspec.json.encode(value, enc_hook=repr))
    except (TypeError, ValueError, RecursionError):
        return repr(value)
