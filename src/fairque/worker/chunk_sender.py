"""`ChunkSender`: sends what running generators yield to where their tasks are."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence

from fairque.backoff import Backoff
from fairque.codec.codec import Kind
from fairque.errors import FairqueError, QueueUnavailable, UnknownKey, UserFrozen
from fairque.models import FailureKind
from fairque.redis.delivery import Delivery, Refusal
from fairque.redis.places import UserElsewhere
from fairque.redis.store import Store
from fairque.redis.store_chunks import Appended, Batch, NoRoom
from fairque.round_robin import RoundRobin
from fairque.tasks.failure import Failure, Raised, RaisedElsewhere
from fairque.tasks.sealed import chunks_place, seal_value
from fairque.worker.outflow import Outflow

__all__ = ["ChunkSender", "final"]

logger = logging.getLogger("fairque.worker")
INTERVAL = 0.01
"""Seconds from one call to the next, in which chunks gather."""
CALL_BYTES = 1024 * 1024
PATIENCE = 0.1
"""Seconds until the next try while a user stands still."""


class ChunkSender:
    """Empties what has gathered, by turns of users, in one call; the next call is not before a hundredth of a second,
    unless a generator waits for it.

    Args:
        store: Of the queue, or of one partition.
        worker_id: Of the worker.
        find: The sender of the partition in which the user of a delivery lives by now.
    """

    def __init__(
        self, store: Store, worker_id: str, find: Callable[[Delivery, UserElsewhere], ChunkSender] | None = None
    ) -> None:
        self._store = store
        self._worker_id = worker_id
        self._find = find
        self._turns: RoundRobin[Outflow] = RoundRobin()
        self._listed: set[Outflow] = set()  # the same
        self._hurry = asyncio.Event()
        self._sent = 0.0
        self._sender: asyncio.Task[None] | None = None

    def note(self, outflow: Outflow, is_urgent: bool) -> None:
        if outflow not in self._listed:
            self._listed.add(outflow)
            self._turns.put(outflow.delivery.user_id, outflow)
        if is_urgent:
            self._hurry.set()
        if self._sender is None or self._sender.done():
            self._sender = asyncio.create_task(self._send_all(), name="fairque-chunks")

    async def _send_all(self) -> None:
        while self._turns:
            await self._gather()
            self._sent = time.monotonic()
            if batches := self._take():
                answers = await self._insist([batch for _, batch in batches])
                self._settle_all(batches, answers)

    def _settle_all(self, batches: list[tuple[Outflow, Batch]], answers: Sequence[Appended | FairqueError]) -> None:
        """What was not taken, as its user has moved, is sent where that lives: all of an outflow by one sender."""
        moved: dict[Outflow, tuple[list[Batch], UserElsewhere | UserFrozen]] = {}
        for (outflow, batch), answer in zip(batches, answers, strict=True):
            if isinstance(answer, (UserElsewhere, UserFrozen)):
                moved.setdefault(outflow, ([], answer))[0].append(batch)
            else:
                _settle(outflow, batch, answer)
        for outflow, (returned, why) in moved.items():
            outflow.give_back(returned)
            sender = self._find(outflow.delivery, why) if self._find and isinstance(why, UserElsewhere) else self
            if sender is self:  # it stands still, or is on its way
                asyncio.get_running_loop().call_later(PATIENCE, self.note, outflow, False)
            else:
                outflow.on_chunks = sender.note
                sender.note(outflow, False)

    async def _gather(self) -> None:
        left = self._sent + INTERVAL - time.monotonic()
        if left > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._hurry.wait()
        self._hurry.clear()

    def _take(self) -> list[tuple[Outflow, Batch]]:
        taken: list[tuple[Outflow, Batch]] = []
        size = 0
        while size < CALL_BYTES and self._turns:
            [outflow] = self._turns.take(1)
            if outflow.on_chunks != self.note:  # another one sends it by now
                self._listed.discard(outflow)
                continue
            if (batch := outflow.take_back() or self._sealed(outflow, outflow.take())) is not None:
                taken.append((outflow, batch))
                size += len(batch.chunks)
            if outflow.has_more:
                self._turns.put(outflow.delivery.user_id, outflow)
            else:
                self._listed.discard(outflow)
        return taken

    def _sealed(self, outflow: Outflow, batch: Batch | None) -> Batch | None:
        """As it goes to Redis; None where there is none, or no key to seal it with."""
        if batch is None or (sealer := self._store.sealer) is None:
            return batch
        of = batch.delivery
        place = chunks_place(of.mark, batch.first + batch.many - 1)
        try:
            chunks = seal_value(sealer, Kind.CHUNKS, of.user_id, of.id, batch.chunks, place)
        except UnknownKey as exc:
            text = f"what it yields cannot be sealed: {exc}"
            outflow.fail(final(Failure(FailureKind.ERROR, "UnknownKey", text)))
            return None
        return batch._replace(chunks=chunks)

    async def _insist(self, batches: list[Batch]) -> list[Appended] | list[FairqueError]:
        """An outage is waited out: it is not the task's fault. The task's timeout goes on."""
        backoff = Backoff()
        while True:
            try:
                return await self._store.append(self._worker_id, batches)
            except QueueUnavailable as exc:
                logger.warning("cannot send what tasks yield, trying again: %s", exc)
                await asyncio.sleep(backoff.next())
            except FairqueError as exc:
                return [exc] * len(batches)

    async def stop(self) -> None:
        """Nothing runs any more."""
        if self._sender is not None:
            self._sender.cancel()
            await asyncio.wait([self._sender])


def _settle(outflow: Outflow, batch: Batch, answer: Appended | FairqueError) -> None:
    if answer is True:
        outflow.keep(batch)
    elif isinstance(answer, NoRoom):
        outflow.fail(final(Failure(FailureKind.QUOTA, "QuotaExceeded", _why(answer))))
    elif isinstance(answer, Refusal):
        outflow.fail(FairqueError(f"what it yields is refused: {answer.text}"))
    else:
        outflow.fail(answer)


def _why(no_room: NoRoom) -> str:
    if no_room.of_task:
        return f"what it yields takes more than {no_room.limit:,} bytes, the most of a task"
    left = max(0, no_room.limit - no_room.used)
    return f"{no_room.asked:,} bytes more of what it yields do not fit: of max_bytes of its user {left:,} are left"


def final(failure: Failure) -> RaisedElsewhere:
    """Another try would come to the same."""
    return RaisedElsewhere(Raised(failure, is_final=True))
