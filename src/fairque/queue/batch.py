"""`Batch`: any number of tasks of one user that are counted together."""

from __future__ import annotations

import asyncio
import logging
import math
import os
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar, Unpack, overload

import msgspec

from fairque.backoff import Backoff
from fairque.checks import Duration, check_id, check_seconds, check_text
from fairque.errors import BatchClosed, FairqueError, QueueUnavailable, ResultTimeout, UnknownBatch
from fairque.everybody import check_user
from fairque.models import BatchProgress
from fairque.queue.callbacks import callbacks_of
from fairque.queue.changes import Changes
from fairque.queue.enqueue_call import EnqueueDoor, for_user
from fairque.queue.handle import TaskHandle
from fairque.queue.pipeline_handle import PipelineHandle
from fairque.queue.source import Source
from fairque.redis.store import Store
from fairque.redis.store_batches import NewBatch
from fairque.tasks.message import new_nonce
from fairque.tasks.options import Options, OptionsOfMany, check_callbacks
from fairque.tasks.pipeline import Pipeline
from fairque.tasks.sealed import seal_reason
from fairque.tasks.task import Task

__all__ = ["Batch", "BlockingBatch"]

logger = logging.getLogger("fairque.batch")
R = TypeVar("R")
T = TypeVar("T")
LEAST_TTL = 1.0


class Queue(Protocol):
    """What a batch needs of its queue."""

    @property
    def reader(self) -> Store: ...
    @property
    def source(self) -> Source: ...
    @property
    def enqueue_door(self) -> EnqueueDoor | None: ...
    @property
    def enqueue(self) -> Callable[..., Awaitable[Any]]: ...
    @property
    def enqueue_many(self) -> Callable[..., Awaitable[Any]]: ...


class Batch:
    """A batch of tasks; made by `TaskQueue.batch`.

    ``async with queue.batch(…) as batch`` opens it, and closes it at the end; where the block raises, it is canceled.
    While it is open anybody may add tasks to it, and after that its own tasks, by `current_task().batch`.

    Attributes:
        user_id: Whose tasks they are.
        batch_id: Its id, unique per user.
        adder: The task of it that adds, None where none does.
    """

    __slots__ = ("_callbacks", "_queue", "_ttl_ms", "adder", "batch_id", "user_id")

    def __init__(
        self,
        queue: Queue,
        user_id: str,
        batch_id: str | None,
        ttl: Duration,
        callbacks: Mapping[str, Any],
        adder: str | None = None,
    ) -> None:
        self._queue = queue
        self._callbacks = check_callbacks(callbacks)
        self._ttl_ms = math.ceil(check_seconds("ttl", ttl, LEAST_TTL) * 1000)
        self.user_id = check_user("user_id", user_id)
        self.batch_id = check_id("batch_id", batch_id) if batch_id is not None else os.urandom(10).hex()
        self.adder = check_id("adder", adder) if adder is not None else None

    async def open(self) -> Self:
        """Let tasks be added. One of this id that is open already is joined, with the callbacks that it has.

        Raises:
            BatchClosed: One of this id was there before, and takes no more.
            QuotaExceeded: Its callbacks do not fit into the `max_bytes` of the user.
            QueueUnavailable: Redis did not answer in time.
        """
        door, callbacks = self._queue.enqueue_door, [each for tasks in self._callbacks.values() for each in tasks]
        if door is None or not callbacks:
            await self._open(callbacks)
        else:
            await door.through("batch", [self._named(each) for each in callbacks], self._open)
        return self

    def _named(self, callback: Task[Any]) -> Task[Any]:
        """With the user of the batch. One that names another is refused later, with a text that says so."""
        return for_user(callback, self.user_id if callback.task_options.user_id is None else None)

    async def _open(self, callbacks: Sequence[Task[Any]]) -> tuple[list[str], None]:
        """With its callbacks as middlewares leave them, in the order of those that were given."""
        store, nonce = self._queue.reader, new_nonce()
        limit, sealer = store.settings.max_message_bytes, store.sealer
        left = iter(callbacks)
        made = {
            kind: callbacks_of([(kind, next(left)) for _ in given], self.user_id, self.batch_id, nonce, limit, sealer)
            for kind, given in self._callbacks.items()
        }
        new = NewBatch(self.user_id, self.batch_id, self._ttl_ms, made["on_complete"], made["on_success"])
        if await store.open_batch(new) == "over":
            raise BatchClosed(f"batch {self.batch_id!r} of user {self.user_id!r} is over, and takes no more tasks")
        return [], None

    async def close(self) -> None:
        """Nobody adds to it any more but its own tasks. Where all have ended, it ends now.

        Raises `UnknownBatch` and `QueueUnavailable`.
        """
        if not await self._queue.reader.close_batch(self.user_id, self.batch_id):
            raise self._unknown()

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            return await self.close()
        try:
            await self.cancel("what adds to its batch has failed")
        except FairqueError as exc:
            logger.warning("%r cannot be canceled, and ends as abandoned: %s", self, exc)

    @overload
    async def enqueue(self, task: Pipeline) -> PipelineHandle: ...
    @overload
    async def enqueue(self, task: Task[R], **options: Unpack[Options]) -> TaskHandle[R]: ...
    async def enqueue(self, task: Task[R] | Pipeline, **options: Any) -> TaskHandle[R] | PipelineHandle:
        """Add a task, or all tasks of a pipeline; see `TaskQueue.enqueue`.

        One whose `task_id` lives already is not added, and not counted.

        Raises:
            BatchClosed: It takes no more tasks.
        """
        made: TaskHandle[R] | PipelineHandle
        made = await self._queue.enqueue(task, user_id=self.user_id, batch=self, **options)
        return made

    async def enqueue_many(self, tasks: Iterable[Task[R]], **options: Unpack[OptionsOfMany]) -> list[TaskHandle[R]]:
        """Add many tasks; see `TaskQueue.enqueue_many`. Raises `BatchClosed` as well."""
        options["user_id"], options["batch"] = self.user_id, self
        made: list[TaskHandle[R]] = await self._queue.enqueue_many(tasks, **options)
        return made

    async def progress(self) -> BatchProgress:
        """How far it is, at the same cost for any number of tasks. Raises `UnknownBatch` and `QueueUnavailable`."""
        found = await self._queue.reader.batch(self.user_id, self.batch_id)
        if found is None:
            raise self._unknown()
        return found

    async def wait(self, timeout: Duration | None = None) -> BatchProgress:
        """Wait until all of its tasks have ended and nobody can add to it, and say how.

        Args:
            timeout: Seconds to wait, or a timedelta; None waits for ever.

        Raises:
            ResultTimeout: It has not ended in time.
            UnknownBatch: It was never opened, or ended long ago.
            QueueUnavailable: Redis cannot be reached at the start. Later outages are waited out.
        """
        seconds = check_seconds("timeout", timeout) if timeout is not None else None
        limit = asyncio.timeout(seconds)
        try:
            async with limit:
                return await self._wait()
        except TimeoutError:
            if not limit.expired():
                raise
        raise ResultTimeout(f"batch {self.batch_id!r} of user {self.user_id!r} has not ended within {seconds} s")

    async def _wait(self) -> BatchProgress:
        was_there, backoff = False, Backoff()
        while True:
            try:
                async with Changes(self._queue.source, self.user_id, f"batch:{self.batch_id}") as changes:
                    while not (found := await self.progress()).ended:
                        was_there = True
                        await changes.wait()
                    return found
            except QueueUnavailable:
                if not was_there:
                    raise
                await asyncio.sleep(backoff.next())

    async def cancel(self, reason: str = "") -> int:
        """Cancel all of its tasks that have not ended, in bounded steps, and let none be added any more.

        Returns how many were canceled, or run and were told to stop.

        Raises `UnknownBatch`, `QueueUnavailable`, and `InvalidInput` for a reason of more than 2,000 characters.
        """
        check_text("the reason", reason)
        store = self._queue.reader
        sealed = seal_reason(store.sealer, self.user_id, "", reason)
        answer = await store.cancel_batch(self.user_id, self.batch_id, sealed)
        if answer is None:
            raise self._unknown()
        return sum(answer)

    def _unknown(self) -> UnknownBatch:
        return UnknownBatch(
            f"no batch {self.batch_id!r} of user {self.user_id!r}: it was never opened, or ended long ago"
        )

    def __repr__(self) -> str:
        return f"<Batch {self.batch_id!r} of {self.user_id!r}>"


class BlockingBatch(msgspec.Struct, frozen=True, eq=False):
    """The batch of a plain function in its thread, without await: `current_task().batch`."""

    inner: Batch
    loop: asyncio.AbstractEventLoop

    @property
    def user_id(self) -> str:
        """Whose tasks they are."""
        return self.inner.user_id

    @property
    def batch_id(self) -> str:
        """Its id, unique per user."""
        return self.inner.batch_id

    @property
    def adder(self) -> str | None:
        """The task of it that adds."""
        return self.inner.adder

    def enqueue(self, task: Task[Any] | Pipeline, **options: Any) -> str:
        """See `Batch.enqueue`. Returns the id of the task, or of the run."""
        made: Any = self._wait(partial(self.inner.enqueue, task, **options))
        return str(made.run_id if isinstance(made, PipelineHandle) else made.task_id)

    def enqueue_many(self, tasks: Iterable[Task[Any]], **options: Unpack[OptionsOfMany]) -> list[str]:
        """See `Batch.enqueue_many`. Returns the ids of the tasks."""
        return [made.task_id for made in self._wait(partial(self.inner.enqueue_many, tasks, **options))]

    def progress(self) -> BatchProgress:
        """See `Batch.progress`."""
        return self._wait(self.inner.progress)

    def _wait(self, call: Callable[[], Coroutine[Any, Any, T]]) -> T:
        if not self.loop.is_running() or asyncio._get_running_loop() is self.loop:
            raise FairqueError("the batch of a plain task works in the task's own thread, while its worker runs")
        return asyncio.run_coroutine_threadsafe(call(), self.loop).result()

    def __repr__(self) -> str:
        return repr(self.inner)
