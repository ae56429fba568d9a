"""`TaskQueue` without await."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial, wraps
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar, Unpack, cast, overload

import anyio.to_thread

from fairque import ConfigError, DeadLetter, Imported, Pipeline, Task, TaskFunction, Worker
from fairque.checks import Duration, check_kind, check_list
from fairque.config.config import FairQueueConfig
from fairque.queue import handle, queue
from fairque.queue.xcom import DEFAULT_NAMESPACE
from fairque.sync.batch import Batch
from fairque.sync.face import blocking, faced, iterating
from fairque.sync.handle import PipelineHandle, TaskHandle, with_handles
from fairque.sync.session import Session, opening
from fairque.sync.xcom import XComManager
from fairque.tasks.options import BatchOption, Callbacks, Options

__all__ = ["TaskQueue"]

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


def _inner(task: DeadLetter | TaskHandle[Any]) -> DeadLetter | handle.TaskHandle[Any]:
    return task._inner if isinstance(task, TaskHandle) else task


async def _taken(records: Iterable[bytes]) -> AsyncIterator[bytes]:
    left = iter(records)
    while (record := await anyio.to_thread.run_sync(next, left, None)) is not None:
        yield record


def _like(model: Callable[Concatenate[Any, P], T]) -> Callable[[Callable[..., T]], Callable[Concatenate[Any, P], T]]:
    """A method with the arguments of another one."""

    def decorate(method: Callable[..., T]) -> Callable[Concatenate[Any, P], T]:
        return wraps(model, ())(method)

    return decorate


def _with_options_of(
    model: Callable[Concatenate[Any, queue.TaskQueue, P], None],
) -> Callable[[Callable[..., T]], Callable[Concatenate[Any, P], T]]:
    """A method with the arguments of what is made for a queue."""

    def decorate(method: Callable[..., T]) -> Callable[Concatenate[Any, P], T]:
        signature = inspect.signature(model)
        options = [each for name, each in signature.parameters.items() if name != "queue"]
        method.__signature__ = signature.replace(parameters=options)  # type: ignore[attr-defined]
        return method

    return decorate


class TaskQueue:
    """A queue that many users share, for blocking code. See `fairque.TaskQueue` for the arguments.

    Use it as ``with TaskQueue(...) as queue``, or just use it: the first call opens it, the end of the process closes
    it. Threads may share it. See `fairque.sync` for forks, notebooks and async functions.
    """

    @_like(queue.TaskQueue.__init__)
    def __init__(self, *args: Any, **options: Any) -> None:
        self._make = partial(queue.TaskQueue, *args, **options)
        self._inner = self._make()
        self._opened: Session | None = None
        self._is_closed = False

    @classmethod
    def from_config(cls, config: FairQueueConfig, **options: Any) -> Self:
        """The queue that a configuration describes, see `fairque.TaskQueue.from_config`."""
        made = vars(queue.TaskQueue)["from_config"].__func__(cls, config, **options)  # the same, of this class
        return cast("Self", made)

    @property
    def name(self) -> str:
        """Queues with different names know nothing of each other."""
        return self._inner.name

    def open(self) -> Self:
        """Connect, and look at the server. Raises `QueueUnavailable`, and `ConfigError` for one that is too old."""
        self._is_closed = False
        self._session.run(self._inner.open)
        return self

    def close(self) -> None:
        """Close every connection and stop an embedded server. Calls that wait in other threads raise `ConfigError`."""
        with opening():
            session, self._opened = self._opened, None
            self._is_closed = True
        if session is not None and not session.is_inherited:
            session.close()

    def __enter__(self) -> Self:
        try:
            return self.open()
        except BaseException:
            self.close()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__module__}.{type(self).__name__} {self.name!r}>"

    @overload
    def enqueue(self, task: Pipeline, *, user_id: str | None = None, batch: BatchOption = None) -> PipelineHandle: ...
    @overload
    def enqueue(
        self,
        task: Task[R],
        **options: Unpack[Options],
    ) -> TaskHandle[R]: ...
    def enqueue(
        self, task: Task[R] | Pipeline, *, user_id: str | None = None, **options: Any
    ) -> TaskHandle[R] | PipelineHandle:
        """Add a task, or all tasks of a pipeline in one step, see `fairque.TaskQueue.enqueue`."""
        session = self._session
        enqueued = session.run(self._inner.enqueue, task, user_id=user_id, **options)
        return cast("TaskHandle[R] | PipelineHandle", faced(session, enqueued))

    def enqueue_by_name(
        self,
        name: str,
        args: Iterable[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        **options: Unpack[Options],
    ) -> TaskHandle[Any]:
        """Add a call of a function that this process does not import, see `fairque.TaskQueue.enqueue_by_name`."""
        session = self._session
        made = session.run(self._inner.enqueue_by_name, name, args, kwargs, **options)
        return cast("TaskHandle[Any]", faced(session, made))

    enqueue_many = with_handles(queue.TaskQueue.enqueue_many)

    def batch(
        self,
        user_id: str,
        *,
        on_complete: Callbacks = None,
        on_success: Callbacks = None,
        ttl: Duration = 86_400.0,
        batch_id: str | None = None,
        adder: str | None = None,
    ) -> Batch:
        """A batch of tasks, to be opened by ``with``, see `fairque.TaskQueue.batch`."""
        session = self._session
        callbacks = {"on_complete": on_complete, "on_success": on_success}
        return Batch(session, self._inner.batch(user_id, ttl=ttl, batch_id=batch_id, adder=adder, **callbacks))

    def push_function_task(
        self,
        user_id: str,
        fn: Callable[..., Any],
        args: Iterable[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> str:
        """Add a call of a registered function, see `fairque.TaskQueue.push_function_task`. Returns the task's id."""
        return self._session.run(self._inner.push_function_task, user_id, fn, args, kwargs, **options)

    @overload
    def handle(self, user_id: str, task_id: str) -> TaskHandle[Any]: ...
    @overload
    def handle(self, user_id: str, task_id: str, *, task: TaskFunction[..., R]) -> TaskHandle[R]: ...
    def handle(self, user_id: str, task_id: str, *, task: TaskFunction[..., Any] | None = None) -> TaskHandle[Any]:
        """A handle for a task that was enqueued earlier, or elsewhere, see `fairque.TaskQueue.handle`."""
        return TaskHandle(self._session, self._inner.handle(user_id, task_id, task=cast("Any", task)))

    def results(self, handles: Iterable[TaskHandle[R]], timeout: Duration | None = None) -> list[R]:
        """Wait for the ends of many tasks, and return their values, see `fairque.TaskQueue.results`."""
        wanted = [check_kind("each of handles", each, TaskHandle) for each in check_list("handles", handles)]
        return self._session.run(self._inner.results, [each._inner for each in wanted], timeout)

    change_settings = blocking(queue.TaskQueue.change_settings)
    set_policy = blocking(queue.TaskQueue.set_policy)
    get_policy = blocking(queue.TaskQueue.get_policy)
    policies = blocking(queue.TaskQueue.policies)
    apply_policies = blocking(queue.TaskQueue.apply_policies)
    clear_policy = blocking(queue.TaskQueue.clear_policy)
    set_group = blocking(queue.TaskQueue.set_group)
    get_group = blocking(queue.TaskQueue.get_group)
    groups = blocking(queue.TaskQueue.groups)
    pause = blocking(queue.TaskQueue.pause)
    resume = blocking(queue.TaskQueue.resume)
    set_limit = blocking(queue.TaskQueue.set_limit)
    clear_limit = blocking(queue.TaskQueue.clear_limit)
    forfeit_places = blocking(queue.TaskQueue.forfeit_places)
    pause_task = blocking(queue.TaskQueue.pause_task)
    resume_task = blocking(queue.TaskQueue.resume_task)
    limits = blocking(queue.TaskQueue.limits)
    explain = blocking(queue.TaskQueue.explain)
    usage = blocking(queue.TaskQueue.usage)
    shares = blocking(queue.TaskQueue.shares)
    demand = blocking(queue.TaskQueue.demand)

    stats = blocking(queue.TaskQueue.stats)
    overview = blocking(queue.TaskQueue.overview)
    running = blocking(queue.TaskQueue.running)
    graph = blocking(queue.TaskQueue.graph)
    user_view = blocking(queue.TaskQueue.user_view)
    find_users = blocking(queue.TaskQueue.find_users)
    health = blocking(queue.TaskQueue.health)
    check = blocking(queue.TaskQueue.check)
    users = blocking(queue.TaskQueue.users)
    active_users = blocking(queue.TaskQueue.active_users)
    user = blocking(queue.TaskQueue.user)
    tasks = blocking(queue.TaskQueue.tasks)

    def xcom(self, user_id: str, namespace: str = DEFAULT_NAMESPACE) -> XComManager:
        """The values that the tasks of a user share, from outside."""
        return XComManager(self._session, self._inner.xcom(user_id, namespace))

    dead_letters = blocking(queue.TaskQueue.dead_letters)
    dead_groups = blocking(queue.TaskQueue.dead_groups)
    requeue_group = blocking(queue.TaskQueue.requeue_group)
    discard_group = blocking(queue.TaskQueue.discard_group)

    def requeue(self, task: DeadLetter | TaskHandle[Any]) -> TaskHandle[Any]:
        """Run a failed task again, see `fairque.TaskQueue.requeue`."""
        session = self._session
        return TaskHandle(session, session.run(self._inner.requeue, _inner(task)))

    requeue_all = blocking(queue.TaskQueue.requeue_all)

    def discard(self, task: DeadLetter | TaskHandle[Any]) -> None:
        """Give a failed task up, see `fairque.TaskQueue.discard`."""
        self._session.run(self._inner.discard, _inner(task))

    cancel_all = blocking(queue.TaskQueue.cancel_all)
    purge = blocking(queue.TaskQueue.purge)
    move = blocking(queue.TaskQueue.move)
    move_group = blocking(queue.TaskQueue.move_group)
    export_user = iterating(queue.TaskQueue.export_user)

    def import_user(self, records: AsyncIterable[bytes] | Iterable[bytes]) -> Imported:
        """Make a user of what `export_user` has yielded, see `fairque.TaskQueue.import_user`.

        Records are taken in a thread of their own: they may come from a blocking source, such as another queue.
        """
        return self._session.run(
            self._inner.import_user, records if isinstance(records, AsyncIterable) else _taken(records)
        )

    @contextmanager
    @_with_options_of(Worker.__init__)
    def worker(self, **options: Any) -> Iterator[None]:
        """Serve the queue meanwhile, ``with queue.worker(concurrency=4):``, in the background of this process.

        Takes what `Worker` takes. Async tasks run on the loop of the queue, where blocking calls raise `FairqueError`;
        plain ones in threads. The end stops the worker and gives running tasks its `shutdown_timeout`.
        """
        session = self._session

        async def make() -> Worker:
            return Worker(session.queue, **options)

        with session.entered(session.run(make)):
            yield

    @property
    def _session(self) -> Session:
        """The open queue; opened at the first use, and again in a forked child."""
        session = self._opened
        if session is not None and not session.is_inherited:
            return session
        with opening():
            session = self._opened
            if self._is_closed:
                raise ConfigError("the queue is closed")
            if session is None or session.is_inherited:
                if session is not None:
                    self._refuse_a_server_of_its_own()
                self._inner = self._make()
                session = self._opened = Session(self._inner)
            return session

    def _refuse_a_server_of_its_own(self) -> None:
        """Nobody would serve what is put in there."""
        if self._inner.connector.is_private:
            raise ConfigError(
                "the private server of embedded:// belongs to the process that opened the queue before this fork: "
                "use embedded:///some/dir"
            )
