"""`enqueued` and `assert_enqueued`: what waits in a queue."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import msgspec

from fairque import InvalidInput, Priority, Task, TaskFunction, TaskQueue, TaskState
from fairque.checks import check_count
from fairque.codec.codec import Sealer
from fairque.everybody import check_user
from fairque.redis.keys import encode_user
from fairque.redis.store import Store
from fairque.tasks.message import head_of
from fairque.tasks.sealed import open_task
from fairque.testing.arguments import Waiting
from fairque.testing.call import Call, call_in

__all__ = ["EnqueuedTask", "assert_enqueued", "enqueued", "listing"]

PLACES = {
    "critical": TaskState.QUEUED,
    "normal": TaskState.QUEUED,
    "held": TaskState.QUEUED,  # by a limit
    "scheduled": TaskState.SCHEDULED,
    "deferred": TaskState.DEFERRED,
}
PAGE = 1000
MOST_SHOWN = 50
Wanted = Task[Any] | TaskFunction[..., Any] | str | None


class EnqueuedTask(msgspec.Struct, frozen=True, kw_only=True):
    """A task that waits. Its arguments are shown: this is for tests.

    Attributes:
        user_id, task_id, name, priority: As it was enqueued.
        args, kwargs: The arguments, converted to the annotations of the function; a payload is the one argument.
        state: ``queued``, ``scheduled`` or ``deferred``.
        due_in: Seconds until it is due, for what is scheduled.
        headers: What travels with it beside its arguments.
    """

    user_id: str
    task_id: str
    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    priority: Priority
    state: TaskState
    due_in: float | None = None
    headers: dict[str, str] = {}

    def __str__(self) -> str:
        due = "" if self.due_in is None else f", due in {self.due_in:.1f} s"
        return f"{self.user_id}: {Call(self.name, self.args, self.kwargs)}, {self.priority.name}, {self.state}{due}"


async def enqueued(
    queue: TaskQueue,
    task: Wanted = None,
    *,
    user_id: str | None = None,
    args: Sequence[Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    priority: Priority | int | None = None,
) -> list[EnqueuedTask]:
    """The tasks that wait in a queue and match: by user, what is served first coming first. What runs is not there.

    Args:
        queue: An open queue.
        task: A task, ``resize(42)``: exactly this call, defaults included, whatever its options. Or a function,
            ``resize``, or a registered name.
        user_id: Of this user only.
        args, kwargs: Arguments it must have, whether they were passed by position or by name. What is not given here
            may be anything.
        priority: Of this priority only.

    Raises:
        InvalidInput: A value breaks a rule, or the function takes no such arguments.
        SealError: Arguments are sealed, and the queue has no codec that opens them.
    """
    call = _wanted_call(task, args, kwargs)
    wanted = _priority(priority)
    found = await _waiting(queue, user_id)
    return [
        each
        for each in found
        if wanted in (None, each.priority) and call.matches(Call(each.name, each.args, each.kwargs))
    ]


async def assert_enqueued(
    queue: TaskQueue,
    task: Wanted = None,
    *,
    user_id: str | None = None,
    args: Sequence[Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    priority: Priority | int | None = None,
    count: int | None = None,
) -> list[EnqueuedTask]:
    """Assert that such a task waits, or exactly `count` of them, and return them. ``count=0``: none.

    For the other arguments see `enqueued`. Raises `AssertionError`, which says what waits instead, and `InvalidInput`.
    """
    __tracebackhide__ = True
    if count is not None:
        check_count("count", count, 0, 1_000_000)
    found = await enqueued(queue, task, user_id=user_id, args=args, kwargs=kwargs, priority=priority)
    if (count is None and found) or len(found) == count:
        return found
    expected = "at least 1" if count is None else f"exactly {count}"
    what = _described(_wanted_call(task, args, kwargs), user_id, priority)
    there = await _waiting(queue, None)
    raise AssertionError(f"expected {expected} of {what} in queue {queue.name!r}, found {len(found)}; {listing(there)}")


def listing(tasks: Sequence[EnqueuedTask]) -> str:
    """What waits, a line for each."""
    if not tasks:
        return "nothing waits"
    lines = [f"  {each}" for each in tasks[:MOST_SHOWN]]
    if len(tasks) > MOST_SHOWN:
        lines.append(f"  … and {len(tasks) - MOST_SHOWN} more")
    return "\n".join(["these wait:", *lines])


def _wanted_call(task: Wanted, args: Sequence[Any] | None, kwargs: Mapping[str, Any] | None) -> Call:
    if isinstance(args, str) or not isinstance(args, Sequence | None):
        raise InvalidInput(f"args must be a list or tuple of arguments, not {args!r}")
    if not isinstance(kwargs, Mapping | None):
        raise InvalidInput(f"kwargs must be a dict of arguments, not {kwargs!r}")
    if isinstance(task, Task):
        if args is not None or kwargs is not None:
            raise InvalidInput(f"{task!r} has its arguments already: give the function and args, or the task alone")
        return call_in(task.message(), is_exact=True)
    if task is not None and not isinstance(task, TaskFunction | str):
        raise InvalidInput(f"give a task, a function made by @task or a registered name, not {task!r}")
    name = task.name if isinstance(task, TaskFunction) else task
    return Call(name, tuple(args or ()), dict(kwargs or {})).checked()


def _priority(priority: Priority | int | None) -> Priority | None:
    return Priority(check_count("priority", priority, 1, 6)) if priority is not None else None


def _described(call: Call, user_id: str | None, priority: Priority | int | None) -> str:
    parts = [str(call)]
    if user_id is not None:
        parts.append(f"user {user_id!r}")
    if (wanted := _priority(priority)) is not None:
        parts.append(f"priority {wanted.name}")
    return ", ".join(parts)


async def _waiting(queue: TaskQueue, user_id: str | None) -> list[EnqueuedTask]:
    users = [check_user("user_id", user_id)] if user_id is not None else [each async for each in _users(queue)]
    store = queue.store(patience=queue.connector.timeout)
    try:
        return [each for user in sorted(users) for place in PLACES for each in await _in_place(store, user, place)]
    finally:
        await store.close()


async def _users(queue: TaskQueue) -> AsyncIterator[str]:
    offset = 0
    while page := await queue.users(offset=offset, limit=PAGE):
        for user in page:
            if user.queued or user.scheduled or user.deferred:
                yield user.user_id
        offset += PAGE


async def _in_place(store: Store, user_id: str, place: str) -> list[EnqueuedTask]:
    found: list[tuple[float, EnqueuedTask]] = []
    offset, is_last = 0, False
    while not is_last:
        now, entries = await _page(store, user_id, place, offset)
        found += [
            (score, _decoded(store.sealer, user_id, place, name, body, score - now))
            for name, body, score in entries
            if body
        ]
        offset, is_last = offset + PAGE, len(entries) < PAGE
    return [task for _, task in sorted(found, key=lambda entry: entry[0])]


async def _page(store: Store, user_id: str, place: str, offset: int) -> tuple[int, list[tuple[str, bytes, float]]]:
    """The server's ms, and a page of what waits in one place: id, body, empty when it is gone, and score."""
    now, *found = await store.call(Waiting(encode_user(user_id), place, offset, PAGE))
    each = iter(found)
    return now, [(name.decode(), body, float(score)) for name, body, score in zip(each, each, each, strict=True)]


def _decoded(
    sealer: Sealer | None, user_id: str, place: str, task_id: str, body: bytes, due_in_ms: float
) -> EnqueuedTask:
    message = open_task(sealer, user_id, task_id, body)
    call = call_in(message)
    return EnqueuedTask(
        user_id=user_id,
        task_id=task_id,
        name=call.name or "",
        args=call.args,
        kwargs=call.kwargs,
        priority=Priority(head_of(body)[2]),
        state=PLACES[place],
        due_in=due_in_ms / 1000 if place == "scheduled" else None,
        headers=message.overrides.headers if message.overrides is not None else {},
    )
