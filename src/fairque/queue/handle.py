"""`TaskHandle`: a task that was enqueued, seen from outside."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from datetime import datetime
from enum import StrEnum
from typing import Generic, TypeVar

import msgspec

from fairque.backoff import Backoff
from fairque.checks import Duration, check_seconds, check_text
from fairque.errors import (
    FairqueError,
    InvalidInput,
    QueueUnavailable,
    ResultNotKept,
    ResultTimeout,
    TaskCanceled,
    TaskFailed,
    UnknownTask,
)
from fairque.models import Enqueued, Priority, Streamed, TaskInfo, TaskState
from fairque.queue.changes import Changes
from fairque.queue.ends import check_finished, failed, unknown
from fairque.queue.looks import Sight
from fairque.queue.source import Source
from fairque.queue.stream import TaskStream
from fairque.queue.task_info import ended_info, living_info, told_by
from fairque.tasks.message import Record, decode_record, record_state
from fairque.tasks.options import NO_OPTIONS, start_of
from fairque.tasks.registry import get_function
from fairque.tasks.sealed import open_record, read_record, seal_reason
from fairque.tasks.signature import Signature

__all__ = ["Cancellation", "TaskHandle"]

logger = logging.getLogger("fairque.handle")

R_co = TypeVar("R_co", covariant=True)
T = TypeVar("T")
LAST_LOOK_SECONDS = 1.0
_WAITS = ("changed", "same")
"""Answers to a change of what waits."""


class Cancellation(StrEnum):
    """What a call of `cancel` meant."""

    CANCELED = "done"  # it waited, and has ended now
    CANCELING = "canceling"  # it runs; its worker was told
    ENDED = "ended"  # it had ended before, nothing was changed


class TaskHandle(Generic[R_co]):
    """A task in a queue.

    Attributes:
        user_id: Whose task it is.
        task_id: Its id, unique per user.
        enqueued: What the call did, in one word; None for a handle that was made without putting a task in.
    """

    __slots__ = ("_signature", "_source", "enqueued", "task_id", "user_id")

    def __init__(
        self,
        source: Source,
        user_id: str,
        task_id: str,
        *,
        enqueued: Enqueued | None = None,
        signature: Signature | None = None,
    ) -> None:
        self._source = source
        self._signature = signature
        self.user_id = user_id
        self.task_id = task_id
        self.enqueued = enqueued

    @property
    def created(self) -> bool:
        """False when a living task had this id already and was kept, so that the call added none."""
        return self.enqueued is Enqueued.CREATED or self.enqueued is Enqueued.REPLACED

    async def result(self, timeout: Duration | None = None) -> R_co:
        """Wait for the end and return the value, converted to the function's return annotation where it fits.

        Args:
            timeout: Seconds to wait, or a timedelta; None waits for ever, 0 looks once.

        Raises:
            TaskFailed: The task failed for good.
            TaskCanceled: It was canceled.
            ResultNotKept: It finished, with a `result_ttl` of 0.
            SealError: The result cannot be read here; see `TaskQueue`, `codec`.
            ResultTimeout: It has not ended in time.
            UnknownTask: It was never enqueued, or its result has expired.
            QueueUnavailable: Redis cannot be reached at the start. Later outages are waited out.

        Messages of the end may be lost, so it looks by itself as well: now and then, and a last time, for a second at
        most, when the time is over.
        """
        if timeout is not None:
            timeout = check_seconds("timeout", timeout)
        record = await self._ended(timeout) if timeout != 0 else (await self._look()).record
        if not record:
            raise ResultTimeout(f"task {self.task_id!r} of user {self.user_id!r} has not ended within {timeout} s")
        try:
            return self._value(*self._opened(record))
        except TaskCanceled as canceled:
            if canceled.root is not None:
                canceled.__cause__ = await self._failure_of(canceled.root)
            raise

    def _opened(self, record: bytes) -> tuple[TaskState, Record]:
        return open_record(self._source.store.sealer, self.user_id, self.task_id, record)

    async def _failure_of(self, task_id: str) -> TaskFailed | None:
        """Of the task with which it began, where that failed, is still kept, and can be looked at."""
        with contextlib.suppress(FairqueError):
            record = (await self._source.look(self.user_id, task_id)).record
            if record and record_state(record) is TaskState.FAILED:
                return failed(read_record(self._source.store.sealer, self.user_id, task_id, record)[1])
        return None

    async def state(self) -> TaskState:
        """Raises `UnknownTask` and `QueueUnavailable`."""
        seen = await self._look()
        return TaskState(seen.state.decode()) if seen.state is not None else record_state(seen.record)

    async def cancel(self, reason: str = "") -> Cancellation:
        """Cancel the task, and say what that meant.

        What waits ends at once. A running async body is cancelled, and may clean up for the
        `cancel_grace` of its worker; a thread is told by `current_task().canceled`. Those that depend on it follow
        their `on_dependency_failure`.

        Raises `UnknownTask`, `QueueUnavailable`, and `InvalidInput` for a reason of more than 2,000 characters.
        """
        check_text("the reason", reason)
        sealed = seal_reason(self._source.store.sealer, self.user_id, self.task_id, reason)
        answer = await self._source.store.cancel(self.user_id, self.task_id, sealed)
        if answer is None:
            raise self._unknown()
        return Cancellation(answer)

    async def promote(self) -> bool:
        """Let it start now, if it waits for a moment: for its delay, its next attempt, or the end of a snooze.

        It is served when its turn has come. One that waits for others as well starts when those have finished, without
        its delay. Nothing changes, and False is returned, where it waits for no moment, runs, or has ended.

        Raises `UnknownTask` and `QueueUnavailable`.
        """
        return await self._change(start="now+0") == "changed"

    async def reschedule(self, delay: Duration | None = None, *, at: datetime | None = None) -> bool:
        """Let it start later, or sooner, than it would: as if it had been put in now with that delay.

        What waits for its turn is taken out of line until then, and comes back to the place that it had. What waits for
        others starts at that moment at the earliest. False: it runs, or has ended, and nothing was changed.

        Args:
            delay: Seconds from now on, or a timedelta.
            at: Instead of `delay`: the earliest moment of its start; naive datetimes are local time.

        Raises `UnknownTask`, `QueueUnavailable`, and `InvalidInput` for what is neither or both.
        """
        if (delay is None) == (at is None):
            raise InvalidInput("give either a delay or a moment (at=…)")
        start = start_of(NO_OPTIONS.merged({"delay": delay, "delay_from": "enqueue", "execute_after": at}))
        return await self._change(start=start or "now+0") in _WAITS

    async def set_priority(self, priority: Priority | int) -> bool:
        """Change the priority of what waits. Its place is the one that it would have if it had been put in with that.

        False: it runs, or has ended, and nothing was changed.

        Raises `UnknownTask`, `QueueUnavailable`, and `InvalidInput` for what is no priority.
        """
        if priority is None:
            raise InvalidInput("priority must be 1 to 6, not None")
        checked = NO_OPTIONS.merged({"priority": priority}).priority
        assert checked is not None
        return await self._change(priority=int(checked)) in _WAITS

    async def _change(self, *, start: str = "", priority: int = 0) -> str:
        answer = await self._source.store.change(self.user_id, self.task_id, start=start, priority=priority)
        if answer is None:
            raise self._unknown()
        return answer

    async def watch(self) -> AsyncIterator[TaskInfo]:
        """What is known of the task, now and after each change of its state or progress, until it has ended.

        No polling. Changes that follow each other closely may come as one.

        Raises `UnknownTask` and `QueueUnavailable`.
        """
        async with Changes(self._source, self.user_id, self.task_id) as changes:
            await self._source.store.watch(self.user_id, self.task_id)
            last = None
            while True:
                info = await self.info()
                if info != last:
                    yield info
                if info.state.ended:
                    return
                last = info
                await changes.wait()

    def stream(self: TaskHandle[Streamed[T]], after: str | None = None) -> TaskStream[T]:
        """What the task yields, while it runs or afterwards: ``async for chunk in handle.stream()``.

        Args:
            after: The `position` behind which to begin. Without it, at the beginning of the run that yields now, or
                did so last; with ``"1-0"`` at the first chunk of all that is kept.

        Raises `InvalidInput` for a text that is no position, and where the task is known here to be no generator.
        """
        if self._signature is not None:
            self._signature.chunk_decoder()
        return TaskStream(self._source, self.user_id, self.task_id, self._signature, after)

    async def info(self) -> TaskInfo:
        """Times, attempts, errors, headers and who waits for whom. Raises `UnknownTask` and `QueueUnavailable`."""
        sealer = self._source.store.sealer
        known = await self._source.store.info(self.user_id, self.task_id)
        if not known.body and not known.record:
            raise self._unknown()
        name, dependencies, limits, headers = told_by(known.body)
        if known.record:
            return ended_info(self.user_id, self.task_id, *decode_record(known.record), known, sealer, headers)
        step = self._source.store.settings.priority_step_ms
        return living_info(self.user_id, self.task_id, known, step, sealer, name, dependencies, limits, headers)

    def __repr__(self) -> str:
        return f"<TaskHandle {self.user_id!r} {self.task_id!r}>"

    async def _look(self) -> Sight:
        seen = await self._source.look(self.user_id, self.task_id)
        if not seen.record and seen.state is None:
            raise self._unknown()
        return seen

    async def _ended(self, timeout: float | None) -> bytes:
        """The record, or nothing when the time is over."""
        if timeout is None:
            return await self._wait()
        limit = asyncio.timeout(timeout)
        try:
            async with limit:
                return await self._wait()
        except TimeoutError:
            if not limit.expired():
                raise
        with contextlib.suppress(QueueUnavailable, TimeoutError):  # a message may have been lost
            async with asyncio.timeout(LAST_LOOK_SECONDS):
                return (await self._look()).record
        return b""

    async def _wait(self) -> bytes:
        """An outage is waited out, once it was there: when Redis is back, so is what it knew."""
        was_there = False
        backoff = Backoff()
        while True:
            try:
                async with Changes(self._source, self.user_id, self.task_id) as changes:
                    was_there = True
                    while not changes.record:
                        if record := (await self._look()).record:
                            return record
                        await changes.wait()
                    return changes.record
            except QueueUnavailable:
                if not was_there:
                    raise
                await asyncio.sleep(backoff.next())

    def _value(self, state: TaskState, record: Record) -> R_co:
        check_finished(state, record)
        if not record.kept:
            raise ResultNotKept(f"task {self.task_id!r} of user {self.user_id!r} finished, its result was not kept")
        try:
            if (signature := self._signature or _registered(record.name)) is not None:
                return signature.result_decoder().decode(record.value)  # type: ignore[no-any-return]
        except Exception:
            # The function did not keep its word: the value is given as it came. (Code of its class may raise anything.)
            logger.debug("the result of task %s does not fit its annotation", self.task_id)
        return msgspec.msgpack.decode(record.value)  # type: ignore[no-any-return]

    def _unknown(self) -> UnknownTask:
        return unknown(self.user_id, self.task_id)


def _registered(name: str) -> Signature | None:
    """Of the function that has this name here, where a handle was made without one."""
    function = get_function(name)
    return function.signature if function is not None else None
