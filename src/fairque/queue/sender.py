"""`Sender`: sends new tasks, sharing round trips among the calls of a process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from itertools import islice
from typing import NamedTuple

from fairque.backoff import Backoff
from fairque.errors import FairqueError, QueueUnavailable, UserFrozen
from fairque.redis.delivery import NewTask, Put
from fairque.redis.requester import LONGEST_PAUSE
from fairque.redis.store import Store
from fairque.round_robin import RoundRobin

__all__ = ["BATCH", "LARGE", "Sender"]

BATCH = 500
LARGE = 1 << 17
"""Bytes of a call that goes over the connection for what is large."""
LAST_PATIENCE = 0.1  # the share of the timeout that is too short for another try


class UnsentCall(NamedTuple):
    """Tasks of one call, sent with the next batch, or the one after that when Redis does not answer."""

    new: Sequence[NewTask]
    created: asyncio.Future[list[Put]]
    deadline: float

    @property
    def user_id(self) -> str:
        """Whose turn it takes among those that wait."""
        return self.new[0].user_id


class Sender:
    """Of a queue; of one with partitions there is one for each, so that who puts into another one is not kept waiting.

    Args:
        store: The connection of the queue's own calls.
        bulk: One that is made when it is needed: what is large is not to stand in the way of others' small calls.
        timeout: Seconds within which a task is sent, or its caller told that it was not.
    """

    def __init__(self, store: Store, bulk: Store, timeout: float) -> None:
        self._store = store
        self._bulk = bulk
        self._timeout = timeout
        self._home = store.backend.connector.home
        self.abandon()
        self._home.add(self)

    def abandon(self) -> None:
        """What another process, or a loop that does not run any more, was sending is theirs."""
        self._waiting: RoundRobin[UnsentCall] = RoundRobin()  # who puts in very much delays only its own
        self._in_flight = False
        self._flusher: asyncio.Task[None] | None = None  # held, or it might be collected
        self._batches = 0
        self._quiet: asyncio.Event | None = None  # somebody waits for the end of what is being sent

    async def send(self, tasks: Sequence[NewTask], patience: float | None = None) -> list[Put]:
        """In one round trip, all or nothing."""
        store = self._bulk if sum(len(task.body) for task in tasks) > LARGE else self._store
        return await store.enqueue(tasks, patience)

    async def submit(self, new: Sequence[NewTask]) -> list[Put]:
        """Send them together: at once when nothing is under way, else with whatever else comes meanwhile.

        Where a user of theirs stands still, this call alone waits for it.
        """
        return await self._when_thawed(self._submit, new)

    async def _when_thawed(
        self, send: Callable[[Sequence[NewTask]], Awaitable[list[Put]]], new: Sequence[NewTask]
    ) -> list[Put]:
        try:
            return await send(new)
        except UserFrozen as exc:
            error = exc
        backoff, until = Backoff(), time.monotonic() + self._timeout
        while (left := until - time.monotonic()) > 0:
            await asyncio.sleep(min(left, backoff.next(LONGEST_PAUSE)))
            try:
                return await send(new)
            except UserFrozen as exc:
                error = exc
        raise error

    async def _submit(self, new: Sequence[NewTask]) -> list[Put]:
        self._home.enter()
        if self._in_flight:
            future: asyncio.Future[list[Put]] = asyncio.get_running_loop().create_future()
            call = UnsentCall(new, future, time.monotonic() + self._timeout)
            self._waiting.put(call.user_id, call)
            return await future
        self._in_flight = True
        try:
            return await self.send(new)
        except QueueUnavailable as exc:
            self._expire(exc)
            raise
        finally:
            self._in_flight = False
            if self._waiting:
                self._in_flight = True
                self._flusher = asyncio.create_task(self._flush(), name="fairque-enqueue")
            else:
                self._note_quiet()

    async def send_all(self, tasks: Sequence[NewTask]) -> list[Put]:
        """In as many round trips as it takes."""
        self._home.enter()
        created: list[Put] = []
        self._batches += 1
        try:
            for at in range(0, len(tasks), BATCH):
                created += await self._when_thawed(self.send, tasks[at : at + BATCH])
        finally:
            self._batches -= 1
            self._note_quiet()
        return created

    async def drain(self) -> None:
        """Wait for what is being sent."""
        if self._is_sending():
            self._quiet = self._quiet or asyncio.Event()
            await self._quiet.wait()

    def _is_sending(self) -> bool:
        return self._in_flight or self._batches > 0

    def _note_quiet(self) -> None:
        if self._quiet is not None and not self._is_sending():
            self._quiet.set()
            self._quiet = None

    async def _flush(self) -> None:
        try:
            while self._waiting:
                if batch := self._next_batch():
                    await self._send_batch(batch)
        finally:
            self._in_flight = False
            self._flusher = None
            self._note_quiet()

    def _next_batch(self) -> list[UnsentCall]:
        """The first call, and as many more as it has room for."""
        batch: list[UnsentCall] = []
        tasks = 0
        while entries := self._waiting.take(1):
            [entry] = entries
            if entry.created.done():  # whose caller gave up
                continue
            tasks += len(entry.new)
            if batch and tasks > BATCH:
                self._waiting.put_back(entry.user_id, entry)
                break
            batch.append(entry)
        return batch

    async def _send_batch(self, batch: list[UnsentCall]) -> None:
        patience = max(batch[0].deadline - time.monotonic(), self._timeout * LAST_PATIENCE)
        try:
            created = await self.send([new for entry in batch for new in entry.new], patience)
        except QueueUnavailable as exc:
            for entry in reversed(batch):
                self._waiting.put_back(entry.user_id, entry)
            self._expire(exc)
        except FairqueError as exc:
            await self._send_apart(batch, exc)
        except BaseException as exc:
            for entry in batch:
                _fail(entry.created, exc)
            if not isinstance(exc, Exception):
                raise
        else:
            answers = iter(created)
            for entry in batch:
                own = list(islice(answers, len(entry.new)))
                if not entry.created.done():
                    entry.created.set_result(own)

    async def _send_apart(self, batch: list[UnsentCall], error: FairqueError) -> None:
        """The fault may be with one of them: nobody fails for another. Those of a user stay together, so that where one
        user is at fault, few calls tell."""
        if len(batch) == 1:
            _fail(batch[0].created, error)
            return
        batch = sorted(batch, key=lambda entry: entry.user_id)
        half = len(batch) // 2
        await self._send_batch(batch[:half])
        await self._send_batch(batch[half:])

    def _expire(self, error: QueueUnavailable) -> None:
        """Whose time is as good as over is told; the others are tried again."""
        soon = time.monotonic() + self._timeout * LAST_PATIENCE

        def is_over(entry: UnsentCall) -> bool:
            if entry.deadline > soon:
                return False
            _fail(entry.created, error)
            return True

        self._waiting.drop(is_over)


def _fail(future: asyncio.Future[list[Put]], error: BaseException) -> None:
    if future.done():
        return
    if isinstance(error, Exception):
        future.set_exception(error)
    else:
        future.cancel()
