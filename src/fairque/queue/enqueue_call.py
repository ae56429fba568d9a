"""`EnqueueDoor`: where middlewares stand around each call that puts tasks in. They see it as an `EnqueueCall`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Generic, Literal, Protocol, TypeAlias, TypeVar

from fairque.errors import FairqueError, InvalidInput, MessageTooLarge
from fairque.middleware import CallNext, chained
from fairque.redis.connector import Connector
from fairque.tasks.task import Task

__all__ = ["EnqueueCall", "EnqueueDoor", "EnqueueMiddleware", "for_user", "with_headers"]

T = TypeVar("T")
TWICE = "a middleware around an enqueue awaits call_next() once: the second time might put the tasks in again"
Kind: TypeAlias = Literal["task", "tasks", "pipeline", "schedules", "batch"]
PutIn: TypeAlias = Callable[[list[Task[Any]]], Awaitable[tuple[list[str], T]]]
"""Puts tasks in, and returns their ids and what the caller is told."""


class EnqueueCall:
    """A call that puts tasks in, as the middlewares around it see it.

    Attributes:
        kind: ``"task"`` or ``"pipeline"`` of `TaskQueue.enqueue`, ``"tasks"`` of `TaskQueue.enqueue_many`, and
            ``"schedules"`` where schedules are added, changed or declared, whose tasks are put in later, and
            ``"batch"`` where a batch is opened that has callbacks.
        tasks: What is put in, with the user of the call among their options (`Task.task_options`). A middleware may
            replace them by copies with other options: ``call.tasks = [each.options(cost=2) for each in call.tasks]``.
            Which tasks they are, in which order, with which arguments and `task_id`, stays. Callbacks of tasks are
            among their options; those of a batch are its tasks here.
        queue_name: Of the queue that is called.
        server: Where that is: host and port, or the path of a socket and None; None while nobody knows, as before the
            first call by sentinels.
        ids: Of the tasks, or of the schedules, in the same order. Empty until they have been put in, and for a batch.
    """

    __slots__ = ("ids", "kind", "queue_name", "server", "tasks")

    def __init__(
        self, kind: Kind, tasks: list[Task[Any]], queue_name: str, server: tuple[str, int | None] | None = None
    ) -> None:
        self.kind = kind
        self.queue_name = queue_name
        self.server = server
        self.tasks = tasks
        self.ids: list[str] = []

    def add_headers(self, headers: Mapping[str, str]) -> None:
        """Give each task, and its callbacks, these headers as well. Where a task has one of that name, its own stays.

        Raises:
            InvalidInput: They are no headers, or with those that a task has, too many.
        """
        if headers:
            self.tasks = [with_headers(each, lambda own: {**headers, **own}) for each in self.tasks]

    def __repr__(self) -> str:
        return f"<EnqueueCall {self.kind!r} of {len(self.tasks)}>"


def with_headers(task: Task[Any], change: Callable[[Mapping[str, str]], Mapping[str, str]]) -> Task[Any]:
    """A copy with the headers that `change` makes of its own.

    Callbacks as well: nobody calls when they are put in, so no other middleware ever sees them.
    """
    options = task.task_options
    kinds = {kind for kind, _ in options.callbacks()}
    callbacks: Any = {kind: [with_headers(each, change) for each in getattr(options, kind)] for kind in kinds}
    return task.options(headers=change(options.headers or {}), **callbacks)


class EnqueueMiddleware(Protocol):
    """An async function around each call that puts tasks in: ``async def tagged(call, call_next): …``.

    ``await call_next()`` puts them in. What is raised before that refuses the call: nothing is written, and its caller
    gets the error. It is awaited once; after a `MessageTooLarge`, which comes before anything is written, it may be
    awaited again, with less.
    """

    def __call__(self, call: EnqueueCall, call_next: CallNext, /) -> Awaitable[Any]: ...


class EnqueueDoor:
    """Through which all calls of a queue go that put tasks in, where it has middlewares."""

    def __init__(self, middleware: tuple[EnqueueMiddleware, ...], queue_name: str, connector: Connector) -> None:
        self._middleware = middleware
        self._queue_name = queue_name
        self._connector = connector

    async def through(self, kind: Kind, tasks: Sequence[Task[Any]], put_in: PutIn[T]) -> T:
        """What `put_in` tells of the tasks as the middlewares leave them. Raises what they and it raise."""
        call = EnqueueCall(kind, list(tasks), self._queue_name, self._connector.server)
        last = _PuttingIn(call, put_in)
        await chained(self._middleware, call, last)()
        return last.told()


class _PuttingIn(Generic[T]):
    """What is behind the last middleware. It puts in once: what is too large is found before anything is written, so
    that may be tried again, with less.
    """

    def __init__(self, call: EnqueueCall, put_in: PutIn[T]) -> None:
        self._call = call
        self._put_in = put_in
        self._given = tuple(call.tasks)
        self._was_called = False
        self._error: BaseException | None = None
        self._told: tuple[T] | None = None

    async def __call__(self) -> None:
        if self._was_called and not isinstance(self._error, MessageTooLarge):
            raise FairqueError(TWICE)
        self._was_called, self._error = True, None
        try:
            _check_same(self._given, self._call.tasks)
            ids, told = await self._put_in(self._call.tasks)
        except BaseException as exc:
            self._error = exc
            raise
        self._call.ids = ids
        self._told = (told,)

    def told(self) -> T:
        """The caller gets what became of it, also where a middleware swallows an error."""
        if isinstance(self._error, asyncio.CancelledError) and not _is_cancelled():
            raise FairqueError("a middleware cancelled its call_next(): the tasks may or may not have been put in")
        if self._error is not None:
            raise self._error
        if self._told is None:
            raise FairqueError("a middleware returned, and call_next() had not: to refuse a call, raise an error")
        return self._told[0]


def _is_cancelled() -> bool:
    """Whether the caller is, and not only what a middleware has awaited."""
    current = asyncio.current_task()
    return current is not None and current.cancelling() > 0


def _check_same(given: Sequence[Task[Any]], changed: Sequence[Task[Any]]) -> None:
    if len(changed) != len(given) or not all(_is_copy(*each) for each in zip(given, changed, strict=True)):
        raise InvalidInput("a middleware may change options of tasks by task.options(…), not what a call puts in")


def _is_copy(given: Task[Any], changed: object) -> bool:
    return changed is given or (isinstance(changed, Task) and _identity(given) == _identity(changed))


def _identity(task: Task[Any]) -> tuple[object, ...]:
    return task.name, task.args, task.kwargs, task.upstream, task.task_options.task_id


def for_user(task: Task[Any], user_id: str | None) -> Task[Any]:
    """With the user that a call names, if it names one."""
    return task if user_id is None else task.options(user_id=user_id)
