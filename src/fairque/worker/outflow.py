"""`Outflow`: what one run has yielded, until Redis has it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import msgspec

from fairque.redis.delivery import Delivery
from fairque.redis.store_chunks import Batch

__all__ = ["Outflow"]

MOST_WAITING = 1_000
MOST_WAITING_BYTES = 128 * 1024
BATCH_BYTES = 64 * 1024


class Outflow:
    """Filled by a generator, on the loop or in a thread, and emptied on the loop. The generator waits where it is full,
    so that what it yields is bounded in memory, and by what Redis takes.

    Args:
        delivery: Whose chunks these are.
        on_chunks: Told on the loop when there is something to send; True: the generator waits for that.
    """

    def __init__(self, delivery: Delivery, on_chunks: Callable[[Outflow, bool], None]) -> None:
        self.delivery = delivery
        self.on_chunks = on_chunks
        self.many = 0
        """How many chunks were yielded."""
        self._taken = self._kept = 0  # how many of them are on their way, or there; and how many are there
        self._returned: list[Batch] = []
        self._waiting: list[bytes] = []
        self._size = 0
        self._error: Exception | None = None
        self._lock = threading.Condition()
        self._moved = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    async def put(self, chunk: bytes) -> None:
        """Raises what `fail` was given."""
        if self._add(chunk):
            self.on_chunks(self, self._is_full)
        while self._is_full and self._error is None:
            await self._move()
        self._check()

    def put_from_thread(self, chunk: bytes) -> None:
        """The same in a thread."""
        if self._add(chunk):
            self._loop.call_soon_threadsafe(self.on_chunks, self, self._is_full)
        with self._lock:
            self._lock.wait_for(lambda: not self._is_full or self._error is not None)
        self._check()

    async def flush(self) -> None:
        """Until Redis has all of it."""
        while self._kept < self.many and self._error is None:
            self.on_chunks(self, True)
            await self._move()
        self._check()

    def take(self) -> Batch | None:
        """What may be sent at once; None: there is nothing."""
        with self._lock:
            size = many = 0
            while many < len(self._waiting) and (not many or size + len(self._waiting[many]) <= BATCH_BYTES):
                size += len(self._waiting[many])
                many += 1
            chunks, self._waiting = self._waiting[:many], self._waiting[many:]
            self._size -= size
            first = self._taken + 1
            self._taken += many
        return Batch(self.delivery, first, many, _array(chunks)) if many else None

    def take_back(self) -> Batch | None:
        """One that was given back, which goes first."""
        return self._returned.pop(0) if self._returned else None

    def give_back(self, batches: list[Batch]) -> None:
        """They were not taken where they were sent, and are to be sent again, as they are."""
        self._returned[:0] = batches

    @property
    def has_more(self) -> bool:
        return bool(self._returned or self._waiting)

    def keep(self, batch: Batch) -> None:
        """Redis has it."""
        self._kept += batch.many
        self._tell()

    def fail(self, error: Exception) -> None:
        """No more is taken. The first error counts."""
        with self._lock:
            self._error = self._error or error
            self._waiting.clear()
        self._tell()

    def _tell(self) -> None:
        self._moved.set()
        with self._lock:
            self._lock.notify_all()

    def _add(self, chunk: bytes) -> bool:
        """Whether the sender has to be told of it."""
        with self._lock:
            self._check()
            self._waiting.append(chunk)
            self._size += len(chunk)
            self.many += 1
            return len(self._waiting) == 1 or self._is_full

    @property
    def _is_full(self) -> bool:
        return len(self._waiting) >= MOST_WAITING or self._size >= MOST_WAITING_BYTES

    async def _move(self) -> None:
        self._moved.clear()
        await self._moved.wait()

    def _check(self) -> None:
        if self._error is not None:
            raise self._error


def _array(chunks: list[bytes]) -> bytes:
    return msgspec.msgpack.encode([msgspec.Raw(chunk) for chunk in chunks])
