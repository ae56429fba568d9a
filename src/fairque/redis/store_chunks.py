"""The scripts about what tasks yield while they run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

from fairque.errors import StoreError, UserFrozen
from fairque.redis.arguments import Append, Chunks, Values, YieldedChunks
from fairque.redis.delivery import Delivery, Refusal
from fairque.redis.frozen import FROZEN, frozen_in
from fairque.redis.keys import encode_user
from fairque.redis.places import ELSEWHERE, moved_in
from fairque.redis.script_caller import ScriptCaller

__all__ = ["MOST_CHUNK_BYTES", "Appended", "Batch", "ChunkPage", "ChunkScripts", "NoRoom", "Told", "batch_told"]

MOST_CHUNK_BYTES = 16 * 1024 * 1024
"""Of all that a task yields."""
PAGE_BYTES = 256 * 1024


class Batch(NamedTuple):
    """Chunks that one delivery has yielded: the number of the first, how many, and a msgpack array of them."""

    delivery: Delivery
    first: int
    many: int
    chunks: bytes

    def __repr__(self) -> str:  # without the chunks, which a traceback with local variables would show
        return f"<Batch of {self.delivery!r}: {self.many} from {self.first} on>"


class NoRoom(NamedTuple):
    """Why chunks were not kept: the limit of a task, or that of its user. In bytes."""

    of_task: bool
    limit: int
    used: int
    asked: int


Appended: TypeAlias = Literal[True] | Refusal | NoRoom | StoreError | UserFrozen
"""To a batch: that it is kept, or why it is not."""


class Told(NamedTuple):
    """A batch: the position of its last chunk, how many there are, and a msgpack array of them."""

    position: str
    many: int
    chunks: bytes


def batch_told(message: bytes) -> Told | None:
    """The batch that a message on the channel of a task has, if it is small enough to have one."""
    head, has_batch, chunks = message.partition(b"=")
    if not has_batch:
        return None
    position, many = head.decode().split()
    return Told(position, int(many), chunks)


class ChunkPage(NamedTuple):
    """What chunks.lua finds.

    `batches` are positions of last chunks, deliveries, and arrays of chunks; `is_all`: there is none behind them.
    `is_anew`: the position is behind all there is, so it is of an earlier task of this id, and these are from the
    beginning of the last run on. `record` is empty while the task has not ended, or there are more.
    """

    batches: list[tuple[str, bytes, bytes]]
    is_all: bool
    is_anew: bool
    record: bytes
    lives: bool


class ChunkScripts(ScriptCaller):
    """The part of a `Store` that is about what tasks yield."""

    async def append(self, worker: str, batches: Sequence[Batch]) -> list[Appended]:
        """Per batch, whether it is kept. One that was kept by an earlier try is."""
        values = Values()
        told = [_told(batch, values) for batch in batches]
        answers = await self.call(Append(worker, MOST_CHUNK_BYTES, told), values)
        return [self._appended(answer) for answer in answers]

    def _appended(self, answer: int | bytes | list[int | bytes]) -> Appended:
        if isinstance(answer, int):
            return True if answer == 1 else Refusal(answer)
        if isinstance(answer, bytes) and answer.startswith(ELSEWHERE.encode()):
            return moved_in(answer.decode())
        if isinstance(answer, bytes) and answer.startswith(FROZEN.encode()):
            return frozen_in(answer.decode())
        if isinstance(answer, bytes):
            return StoreError(f"Redis at {self.backend.connector.safe_url}: {answer.decode('utf-8', 'replace')}")
        if answer[0] == b"full":
            return NoRoom(True, MOST_CHUNK_BYTES, 0, int(answer[1]))
        return NoRoom(False, int(answer[3]), int(answer[2]), int(answer[4]))

    async def chunks(self, user_id: str, task_id: str, after: str) -> ChunkPage:
        """What is behind a position, from the beginning of the last run on where that is empty."""
        found, is_more, is_anew, record, lives = await self.call(
            Chunks(encode_user(user_id), task_id, after, PAGE_BYTES)
        )
        batches = [(at.decode(), delivery, packed) for at, delivery, packed in found]
        return ChunkPage(batches, not is_more, bool(is_anew), record, bool(lives))


def _told(batch: Batch, values: Values) -> YieldedChunks:
    of, chunks = batch.delivery, values.put(batch.chunks)
    place = of.user.decode(), of.id, of.stream_id.decode()
    return YieldedChunks(*place, of.attempt, of.queued_ms, batch.first, batch.many, chunks)
