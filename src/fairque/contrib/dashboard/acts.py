"""What viewers may do, each by a form that is sent to ``act/<name>``."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from fairque import Cancellation, InvalidInput, TaskQueue

__all__ = ["ACTS", "Act"]


@dataclass(frozen=True)
class Act:
    """One thing that can be done.

    Attributes:
        arguments: What it is about, as named in the address of its form, or in its fields; the user first where it is
            about one.
        do: Does it; raises errors of fairque.
        says: What has been done then.
        page: Where one is led then, with those of its arguments that the page has as well.
        is_for_customers: Whether a viewer of some users only may do it, to one of these.
    """

    arguments: Sequence[str]
    do: Callable[..., Awaitable[object]]
    says: str
    page: str
    is_for_customers: bool = False


async def _pause(queue: TaskQueue, user: str) -> None:
    await queue.pause(user)


async def _resume(queue: TaskQueue, user: str) -> None:
    await queue.resume(user)


async def _cancel(queue: TaskQueue, user: str, task: str) -> None:
    if await queue.handle(user, task).cancel("canceled in the dashboard") is Cancellation.ENDED:
        raise InvalidInput("The task had ended before: nothing was changed.")


async def _start_now(queue: TaskQueue, user: str, task: str) -> None:
    if not await queue.handle(user, task).promote():
        raise InvalidInput("The task does not wait for a moment: nothing was changed.")


async def _requeue(queue: TaskQueue, user: str, task: str) -> None:
    await queue.requeue(queue.handle(user, task))


async def _discard(queue: TaskQueue, user: str, task: str) -> None:
    await queue.discard(queue.handle(user, task))


ACTS: Mapping[str, Act] = {
    "pause": Act(("user",), _pause, "The user is paused: what runs goes on, nothing more is started.", "user"),
    "resume": Act(("user",), _resume, "The user goes on.", "user"),
    "cancel": Act(("user", "task"), _cancel, "The task is canceled, or told to stop.", "task", True),
    "start-now": Act(("user", "task"), _start_now, "The task may start now.", "task", True),
    "requeue": Act(("user", "task"), _requeue, "The task waits for its turn again.", "task", True),
    "discard": Act(("user", "task"), _discard, "The dead letter is gone.", "user", True),
}
