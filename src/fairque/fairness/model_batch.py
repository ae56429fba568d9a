"""Batches of the model: tasks of one user that are counted together, with callbacks when all have ended."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from fairque.fairness.model_task import ModelCallback
from fairque.models import BatchState, TaskState

__all__ = ["Batches", "ModelBatch"]

Key = tuple[str, str]
Opened = Literal["new", "joined", "over"]


@dataclass(slots=True, eq=False)
class ModelBatch:
    """A batch of a user. `ends_ms`: while it is open, when it is abandoned; `ttl_ms` after the last task came."""

    user_id: str
    batch_id: str
    ttl_ms: int
    on_complete: tuple[ModelCallback, ...] = ()  # until they are put in
    on_success: tuple[ModelCallback, ...] = ()
    complete_bytes: int = 0  # of these
    success_bytes: int = 0

    state: BatchState = BatchState.OPEN
    ends_ms: int = 0
    total: int = 0
    finished: int = 0
    failed: int = 0
    canceled: int = 0
    pending: set[str] = field(default_factory=set)
    was_complete: bool = False
    expires: bool = False

    @property
    def bytes(self) -> int:
        """Of the callbacks that are not put in yet."""
        return (self.complete_bytes if self.on_complete else 0) + (self.success_bytes if self.on_success else 0)

    @property
    def key(self) -> Key:
        return self.user_id, self.batch_id


class Batches:
    """All batches that are remembered.

    Args:
        put_in: Puts the callbacks of a batch in, at a time in microseconds.

    Attributes:
        of: By user and id.
    """

    def __init__(self, put_in: Callable[[int, ModelBatch, tuple[ModelCallback, ...]], None]) -> None:
        self.of: dict[Key, ModelBatch] = {}
        self._put_in = put_in

    def open(self, now_us: int, batch: ModelBatch) -> Opened:
        """One that is open is joined."""
        if known := self.of.get(batch.key):
            return "joined" if known.state is BatchState.OPEN else "over"
        batch.ends_ms = now_us // 1000 + batch.ttl_ms
        self.of[batch.key] = batch
        return "new"

    def takes_more(self, key: Key, adder: str) -> bool:
        """From anybody while it is open, and from its own tasks that have not ended once it is closed."""
        batch = self.of.get(key)
        if batch is None:
            return False
        return batch.state is BatchState.OPEN or (batch.state is BatchState.CLOSED and adder in batch.pending)

    def add(self, now_us: int, key: Key, task_id: str) -> None:
        batch = self.of[key]
        batch.pending.add(task_id)
        batch.total += 1
        batch.ends_ms = max(batch.ends_ms, now_us // 1000 + batch.ttl_ms)

    def drop(self, key: Key, task_id: str) -> None:
        """It had not ended, and is no task of the batch any more."""
        batch = self.of.get(key)
        if batch and task_id in batch.pending:
            batch.pending.remove(task_id)
            batch.total -= 1

    def note_end(self, now_us: int, key: Key, task_id: str, state: TaskState) -> None:
        batch = self.of.get(key)
        if batch and task_id in batch.pending:
            batch.pending.remove(task_id)
            setattr(batch, state.value, getattr(batch, state.value) + 1)
            self.complete_if_over(now_us, key)

    def note_requeue(self, key: Key, task_id: str) -> None:
        """One that had failed has not ended."""
        if batch := self.of.get(key):
            batch.pending.add(task_id)
            batch.failed -= 1
            batch.expires = False

    def end_adding(self, now_us: int, key: Key, state: BatchState) -> None:
        """What is over stays as it is; while some have not ended it can still be canceled."""
        batch = self.of[key]
        if batch.state is BatchState.OPEN or (state is BatchState.CANCELED and batch.pending):
            batch.state = state
            self.complete_if_over(now_us, key)

    def complete_if_over(self, now_us: int, key: Key) -> None:
        """Nobody adds to it any more, and all have ended: each of its callbacks is put in once."""
        batch = self.of.get(key)
        if batch is None or batch.state is BatchState.OPEN or batch.pending:
            return
        batch.was_complete = batch.expires = True
        callbacks, batch.on_complete = batch.on_complete, ()
        self._put_in(now_us, batch, callbacks)
        if batch.state is BatchState.CLOSED and not (batch.failed or batch.canceled):
            callbacks, batch.on_success = batch.on_success, ()
            self._put_in(now_us, batch, callbacks)

    def due(self, now_ms: int) -> list[ModelBatch]:
        """Open ones to which nobody has added for too long, of each user the first ones first."""
        due = [batch for batch in self.of.values() if batch.state is BatchState.OPEN and batch.ends_ms <= now_ms]
        return sorted(due, key=lambda batch: (batch.ends_ms, batch.batch_id.encode()))

    def purge(self, user_id: str, left: set[Key]) -> None:
        """Open ones of a user are erased, and of those that tasks have `left` such as have none any more."""
        for key in [key for key, batch in self.of.items() if key[0] == user_id]:
            batch = self.of[key]
            if batch.state is BatchState.OPEN or (key in left and not batch.pending):
                del self.of[key]

    def erase_ended(self, user_id: str) -> None:
        for key in [key for key, batch in self.of.items() if key[0] == user_id and batch.expires]:
            del self.of[key]
