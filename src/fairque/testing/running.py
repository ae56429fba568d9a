"""`run_all`: runs what waits, in the process of the test."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any

from fairque import (
    InvalidInput,
    RunMiddleware,
    TaskEvent,
    TaskFailed,
    TaskHandler,
    TaskInfo,
    TaskQueue,
    TaskState,
    UnknownTask,
    Worker,
)
from fairque.checks import Duration, check_seconds
from fairque.testing.waiting import enqueued, listing
from fairque.worker.lifespan import LifespanFunction

__all__ = ["run_all"]

Name = tuple[str, str]  # user and task


async def run_all(
    queue: TaskQueue,
    *,
    timeout: Duration = 10.0,
    raise_errors: bool = True,
    concurrency: int = 1,
    handler: TaskHandler | None = None,
    lifespan: LifespanFunction[Any] | None = None,
    run_middleware: Sequence[RunMiddleware] = (),
) -> list[TaskInfo]:
    """Run what waits until nothing is left: what those tasks enqueue, what depends on them, immediate retries.

    What is scheduled for later stays, see `advance`, and so does what a policy holds back. By default the tasks run one
    after the other, in the order in which a worker would start them, so that a test sees the same each time.

    Args:
        queue: An open queue that no other worker serves.
        timeout: Seconds for all of it. What has not ended by then is cancelled and put back.
        raise_errors: Raise when a task has failed for good, after all others have run.
        concurrency: Tasks that run at once; more than one where tasks wait for each other's results.
        handler, lifespan, run_middleware: See `Worker`.

    Returns:
        Those that ran, in the order in which they ended. One whose retry is due later is among them, as ``scheduled``.

    Raises:
        TaskFailed: The first failure. Its notes have the traceback, and name the others that failed.
        TimeoutError: It took longer than `timeout`.
        InvalidInput: Another worker serves the queue, or an argument breaks a rule.
    """
    timeout = check_seconds("timeout", timeout)
    await _refuse_company(queue)
    ran: dict[Name, None] = {}

    def note(event: TaskEvent) -> None:
        name = event.user_id, event.task_id
        ran.pop(name, None)
        ran[name] = None

    worker = Worker(
        queue,
        concurrency=concurrency,
        handler=handler,
        lifespan=lifespan,
        run_middleware=run_middleware,
        scheduler=False,
        stall_timeout=None,  # somebody may look around in a debugger
        on_success=note,
        on_failure=note,
        on_retry=note,
    )
    try:
        async with asyncio.timeout(timeout):
            await worker.run_until_idle()
    except TimeoutError:
        left = listing(await enqueued(queue))
        raise TimeoutError(f"queue {queue.name!r} is not empty after {timeout:g} s; {left}") from None
    infos = await _infos(queue, ran)
    if raise_errors:
        _raise_failure([info for info in infos if info.state is TaskState.FAILED])
    return infos


async def _refuse_company(queue: TaskQueue) -> None:
    workers = (await queue.stats()).workers
    if workers:
        raise InvalidInput(
            f"run_all cannot tell what ran while worker {workers[0].worker_id!r} serves queue {queue.name!r} as well: "
            "use one or the other"
        )


async def _infos(queue: TaskQueue, names: dict[Name, None]) -> list[TaskInfo]:
    infos = []
    for user_id, task_id in names:
        with contextlib.suppress(UnknownTask):  # purged or discarded meanwhile
            infos.append(await queue.handle(user_id, task_id).info())
    return infos


def _raise_failure(failed: list[TaskInfo]) -> None:
    if not failed:
        return
    first, *others = failed
    error = TaskFailed("error", "Exception", "")
    if first.error is not None:
        error = TaskFailed(first.error.kind, first.error.type_name, first.error.message, first.error.traceback)
    error.add_note(f"task {_told(first)}, attempt {first.attempt}")
    if error.traceback:
        error.add_note(error.traceback)
    for other in others:
        error.add_note(f"failed as well: {_told(other)}: {other.error.type_name if other.error else ''}")
    raise error


def _told(info: TaskInfo) -> str:
    return f"{info.name} ({info.task_id!r} of user {info.user_id!r})"
