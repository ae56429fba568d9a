"""`TaskHandle`, `TaskStream` and `PipelineHandle` without await."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, cast

from fairque import Streamed
from fairque.checks import Duration
from fairque.models import Enqueued
from fairque.queue import handle, pipeline_handle, stream
from fairque.sync.face import Face, blocking, faced, iterating

__all__ = ["PipelineHandle", "TaskHandle", "TaskStream", "with_handles"]

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


Many = Callable[Concatenate[Any, P], Coroutine[Any, Any, list[handle.TaskHandle[R]]]]


class TaskHandle(Face["handle.TaskHandle[R_co]"], Generic[R_co], of=handle.TaskHandle):
    """A task in a queue, see `fairque.TaskHandle`."""

    state = blocking(handle.TaskHandle.state)
    info = blocking(handle.TaskHandle.info)
    cancel = blocking(handle.TaskHandle.cancel)
    promote = blocking(handle.TaskHandle.promote)
    reschedule = blocking(handle.TaskHandle.reschedule)
    set_priority = blocking(handle.TaskHandle.set_priority)
    watch = iterating(handle.TaskHandle.watch)

    def result(self, timeout: Duration | None = None) -> R_co:
        """Wait for the end and return the value, see `fairque.TaskHandle.result`.

        An interrupt (Ctrl-C) ends the wait, not the task.
        """
        return self._session.run(self._inner.result, timeout)

    def stream(self: TaskHandle[Streamed[T]], after: str | None = None) -> TaskStream[T]:
        """What the task yields, ``for chunk in handle.stream()``, see `fairque.TaskHandle.stream`."""
        return TaskStream(self._session, self._inner.stream(after))

    @property
    def user_id(self) -> str:
        """Whose task it is."""
        return self._inner.user_id

    @property
    def task_id(self) -> str:
        """Its id, unique per user."""
        return self._inner.task_id

    @property
    def created(self) -> bool:
        """False when a living task had this id already and was kept, so that the call added none."""
        return self._inner.created

    @property
    def enqueued(self) -> Enqueued | None:
        """What the call did, in one word; None for a handle that was made without putting a task in."""
        return self._inner.enqueued


class TaskStream(Face["stream.TaskStream[T_co]"], Generic[T_co], of=stream.TaskStream):
    """What a task yields, see `fairque.TaskStream`."""

    def __iter__(self) -> Iterator[T_co]:
        """Wait for each chunk."""
        return _chunks(self)

    @property
    def position(self) -> str | None:
        """Of the last chunk that was read, see `fairque.TaskStream.position`."""
        return self._inner.position

    @property
    def user_id(self) -> str:
        """Whose task it is."""
        return self._inner.user_id

    @property
    def task_id(self) -> str:
        """Its id, unique per user."""
        return self._inner.task_id


_chunks = iterating(stream.TaskStream.__aiter__)


class PipelineHandle(Face[pipeline_handle.PipelineHandle], of=pipeline_handle.PipelineHandle):
    """One run of a pipeline, see `fairque.PipelineHandle`; ``handle["name"]`` is one of its tasks."""

    result = blocking(pipeline_handle.PipelineHandle.result)
    state = blocking(pipeline_handle.PipelineHandle.state)
    cancel = blocking(pipeline_handle.PipelineHandle.cancel)
    watch = iterating(pipeline_handle.PipelineHandle.watch)

    @property
    def user_id(self) -> str:
        """Whose run it is."""
        return self._inner.user_id

    @property
    def run_id(self) -> str:
        """Stands before the dot in the id of each task."""
        return self._inner.run_id

    @property
    def tasks(self) -> dict[str, TaskHandle[Any]]:
        """The handles by name, dependencies first."""
        return {name: self[name] for name in self}

    def __getitem__(self, name: str) -> TaskHandle[Any]:
        return cast("TaskHandle[Any]", faced(self._session, self._inner[name]))

    def __iter__(self) -> Iterator[str]:
        return iter(self._inner)

    def __len__(self) -> int:
        return len(self._inner)


def with_handles(method: Many[P, R]) -> Callable[Concatenate[Any, P], list[TaskHandle[R]]]:
    """The same method, whose handles block."""
    return cast("Callable[Concatenate[Any, P], list[TaskHandle[R]]]", blocking(method))
