"""``fairque cancel``: cancel a task."""

from __future__ import annotations

import contextlib
from typing import Annotated, Any

import typer

from fairque import Cancellation, ResultTimeout, TaskHandle, TaskState
from fairque.cli.output import print_json
from fairque.cli.problem import ENDED, UNFINISHED, Problem
from fairque.cli.reach import AsJson, ConfigFile, QueueName, Url, make_queue, on_queue
from fairque.cli.values import check_timeout
from fairque.errors import TaskEnded

__all__ = ["command"]


def command(
    user: Annotated[str, typer.Argument(metavar="USER", help="Whose task it is.")],
    task_id: Annotated[str, typer.Argument(metavar="ID", help="The id of the task.")],
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Kept with the task.", show_default=False)] = "",
    wait: Annotated[bool, typer.Option("--wait", "-w", help="Wait until a running task has stopped.")] = False,
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
        raise Problem(f"{task} had ended before: {state}", "there is nothing to cancel", ENDED)
    if state.ended and state is not TaskState.CANCELED:
        raise Problem(f"{task} ended before it could be stopped: {state}", "there is nothing more to cancel", ENDED)
    if waited and not state.ended:
        raise Problem(f"{task} has not stopped yet", "its worker was told; give a longer --timeout", UNFINISHED)
    if not quiet:
        typer.echo("canceled" if state is TaskState.CANCELED else "its worker was told to stop it")
    return 0
