"""`Batch` without await."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self, TypeVar, Unpack, cast, overload

from fairque import Pipeline, Task
from fairque.queue import batch
from fairque.sync.face import Face, blocking, faced
from fairque.sync.handle import PipelineHandle, TaskHandle, with_handles
from fairque.tasks.options import Options

__all__ = ["Batch"]

R = TypeVar("R")


class Batch(Face[batch.Batch], of=batch.Batch):
    """A batch of tasks, see `fairque.Batch`: ``with queue.batch(…) as batch``."""

    open = blocking(batch.Batch.open)
    close = blocking(batch.Batch.close)
    enqueue_many = with_handles(batch.Batch.enqueue_many)
    progress = blocking(batch.Batch.progress)
    wait = blocking(batch.Batch.wait)
    cancel = blocking(batch.Batch.cancel)

    @property
    def user_id(self) -> str:
        """Whose tasks they are."""
        return self._inner.user_id

    @property
    def batch_id(self) -> str:
        """Its id, unique per user."""
        return self._inner.batch_id

    @property
    def adder(self) -> str | None:
        """The task of it that adds, None where none does."""
        return self._inner.adder

    @overload
    def enqueue(self, task: Pipeline) -> PipelineHandle: ...
    @overload
    def enqueue(self, task: Task[R], **options: Unpack[Options]) -> TaskHandle[R]: ...
    def enqueue(self, task: Task[R] | Pipeline, **options: Any) -> TaskHandle[R] | PipelineHandle:
        """Add a task, or all tasks of a pipeline, see `fairque.Batch.enqueue`."""
        made = self._session.run(self._inner.enqueue, task, **options)
        return cast("TaskHandle[R] | PipelineHandle", faced(self._session, made))

    def __enter__(self) -> Self:
        self._session.run(self._inner.open)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._session.run(self._inner.__aexit__, kind, error, traceback)
