"""`TaskStream`: what a task yields, read from outside."""

from __future__ import annotations

import asyncio
import logging
import re
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import Generic, NamedTuple, Self, TypeVar

import msgspec

from fairque.backoff import Backoff
from fairque.codec.codec import Kind
from fairque.errors import InvalidInput, QueueUnavailable, Restarted
from fairque.queue.changes import Changes
from fairque.queue.ends import check_finished, unknown
from fairque.queue.source import Source
from fairque.redis.delivery import StoredTask
from fairque.redis.keys import Keys
from fairque.redis.store_chunks import ChunkPage, Told, batch_told
from fairque.tasks.message import decode_record, name_in
from fairque.tasks.registry import get_function
from fairque.tasks.sealed import chunks_place, open_value, read_record
from fairque.tasks.signature import Signature

__all__ = ["TaskStream"]

logger = logging.getLogger("fairque.handle")
T_co = TypeVar("T_co", covariant=True)
MOST_TOLD = 64
"""Batches that a slow reader keeps; then it asks for them."""
_POSITION = re.compile(r"([1-9][0-9]{0,14})-(0|[1-9][0-9]{0,14})")


class _Position(NamedTuple):
    """The number of a run, and of a chunk in it; 0-0 is before all."""

    run: int
    number: int

    @classmethod
    def of(cls, text: str) -> Self:
        """Raises `InvalidInput`."""
        found = _POSITION.fullmatch(text) if isinstance(text, str) else None
        if found is None:
            raise InvalidInput(
                f"a position in a stream is the number of a run and of a chunk, as in '1-20', not {text!r}"
            )
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"{self.run}-{self.number}"


class _Arrivals(Changes):
    """Small batches come with their messages, so that a reader that keeps up need not ask for them."""

    __slots__ = ("_told",)

    def __init__(self, source: Source, user_id: str, task_id: str) -> None:
        super().__init__(source, user_id, task_id)
        self._told: deque[Told] = deque()

    def channels(self, keys: Keys) -> dict[str, Callable[[bytes | None], None]]:
        return {**super().channels(keys), keys.chunks_channel(self._user_id, self._whom): self._on_chunks}

    async def next_behind(self, at: _Position | None) -> Told | None:
        """The batch that comes next. None: it has to be asked for, or something else has happened."""
        while self._told or not self._is_changed:
            if not self._told:
                await self._sleep()
                continue
            told = self._told.popleft()
            last = _Position.of(told.position)
            if at is None or at.run != last.run or last.number - told.many > at.number:
                return None
            if last.number > at.number:
                return told
        await self.wait()  # it need not
        return None

    def _on_chunks(self, message: bytes | None) -> None:
        told = batch_told(message) if message is not None else None
        if told is None or len(self._told) == MOST_TOLD:
            self._told.clear()
            self._change()
        else:
            self._told.append(told)
            self._wake()


class TaskStream(Generic[T_co]):
    """What a task yields: ``async for chunk in handle.stream()``, while it runs or afterwards, in its order.

    The iteration ends when the task has finished, and raises `TaskFailed` or `TaskCanceled` where it ended so, behind
    what it had yielded by then. It raises `Restarted` where what was read counts no more, as another run of the task
    yields from the beginning: iterate over the same stream again to read on there.

    A reader that is slow, or gone, costs the task nothing: what it yields is kept for as long as its result is. An
    outage of Redis is waited out, once the stream was there.
    """

    def __init__(
        self, source: Source, user_id: str, task_id: str, signature: Signature | None, after: str | None = None
    ) -> None:
        self._source = source
        self._signature = signature
        self._is_typed = signature is not None
        self._at = _Position.of(after) if after is not None else None
        self._delivery = b""  # of the run in which that is; not known before something of it was read
        self.user_id = user_id
        self.task_id = task_id

    @property
    def position(self) -> str | None:
        """Of the last chunk that was read, to go on behind it: ``handle.stream(after=position)``. None before the
        first. The number of a run of the task, and that of the chunk in it, as in ``"1-20"``.
        """
        return str(self._at) if self._at is not None else None

    async def __aiter__(self) -> AsyncGenerator[T_co, None]:
        """Raises what the class says; `UnknownTask` for a task that was never enqueued or whose result has expired,
        `InvalidInput` for one that is known here to be no generator, `SealError` for what cannot be read here, and
        `QueueUnavailable` at the start.
        """
        was_there, backoff = False, Backoff()
        while True:
            try:
                async with _Arrivals(self._source, self.user_id, self.task_id) as arrivals:
                    was_there = True
                    while True:
                        page = await self._look()
                        for chunk in self._taken(page):
                            yield chunk
                        if page.is_all and self._has_ended(page):
                            return
                        while page.is_all and (told := await arrivals.next_behind(self._known())) is not None:
                            for chunk in self._read(_Position.of(told.position), told.chunks):
                                yield chunk
            except QueueUnavailable:
                if not was_there:
                    raise
                await asyncio.sleep(backoff.next())

    def _known(self) -> _Position | None:
        """Behind which a batch can be read that says nothing of its delivery."""
        return self._at if self._delivery else None

    async def _look(self) -> ChunkPage:
        store = self._source.store
        if not self._is_typed:
            self._signature = _registered(await store.info(self.user_id, self.task_id))
            self._is_typed = True
        return await store.chunks(self.user_id, self.task_id, str(self._at or ""))

    def _has_ended(self, page: ChunkPage) -> bool:
        if page.record:
            check_finished(*read_record(self._source.store.sealer, self.user_id, self.task_id, page.record))
        elif not page.lives:
            raise unknown(self.user_id, self.task_id)
        return bool(page.record)

    def _taken(self, page: ChunkPage) -> Iterator[T_co]:
        for at, delivery, packed in page.batches:
            last = _Position.of(at)
            if self._at is not None and (page.is_anew or self._at.run != last.run):
                self._at, self._delivery = _Position(last.run, 0), b""
                text = f"task {self.task_id!r} of user {self.user_id!r} yields from the beginning"
                raise Restarted(text, int(delivery.split()[1]))
            self._delivery = self._delivery or delivery
            yield from self._read(last, packed)

    def _read(self, last: _Position, packed: bytes) -> Iterator[T_co]:
        """What is behind the position, which goes on with each chunk."""
        chunks = self._decoded(self._opened(last, packed))
        first = last.number - len(chunks) + 1
        skipped = max(0, self._at.number + 1 - first) if self._at is not None else 0
        for number, chunk in enumerate(chunks[skipped:], first + skipped):
            self._at = _Position(last.run, number)
            yield chunk

    def _opened(self, last: _Position, packed: bytes) -> bytes:
        """They are bound to their place in what a run has yielded, and a run has one delivery."""
        sealer, place = self._source.store.sealer, chunks_place(self._delivery, last.number)
        return open_value(sealer, Kind.CHUNKS, self.user_id, self.task_id, packed, place)

    def _decoded(self, packed: bytes) -> list[T_co]:
        try:
            if self._signature is not None:
                return self._signature.chunk_decoder().decode(packed)  # type: ignore[no-any-return]
        except Exception:
            # The function did not keep its word: the values are given as they came. (A class may raise anything.)
            logger.debug("what task %s yields does not fit its annotation", self.task_id)
        return msgspec.msgpack.decode(packed)  # type: ignore[no-any-return]

    def __repr__(self) -> str:
        return f"<TaskStream of {self.task_id!r} of {self.user_id!r}, at {self.position}>"


def _registered(known: StoredTask) -> Signature | None:
    """Of the function that has this name here, where a handle was made without one. Raises `InvalidInput` for one that
    yields nothing.
    """
    name = decode_record(known.record)[1].name if known.record else name_in(known.body)
    if (function := get_function(name)) is None:
        return None
    function.signature.chunk_decoder()
    return function.signature
