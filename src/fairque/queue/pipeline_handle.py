"""`PipelineHandle`: one run of a pipeline, seen from outside."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from fairque.checks import Duration, check_seconds
from fairque.errors import ResultTimeout, UnknownTask
from fairque.models import TaskState
from fairque.queue.handle import Cancellation, TaskHandle

__all__ = ["PipelineHandle", "PipelineState"]


class PipelineState(msgspec.Struct, frozen=True):
    """How far a run is: the number of tasks by state."""

    tasks: dict[TaskState, int]

    @property
    def ended(self) -> bool:
        """Every task has ended. One that waits for a failed task has not: see `stuck`."""
        return all(state.ended for state in self.tasks)

    @property
    def failed(self) -> bool:
        """A task has failed for good, and waits to be requeued or discarded."""
        return TaskState.FAILED in self.tasks

    @property
    def stuck(self) -> bool:
        """Nothing goes on by itself: what has not ended is deferred, behind something that failed or was canceled."""
        return set(self.tasks) <= {*_ENDED, TaskState.DEFERRED} and TaskState.DEFERRED in self.tasks


_ENDED = tuple(state for state in TaskState if state.ended)


class PipelineHandle:
    """One run of a pipeline; ``handle["name"]`` is one of its tasks.

    Attributes:
        user_id: Whose run it is.
        run_id: Stands before the dot in the id of each task.
        tasks: The handles by name, dependencies first.
    """

    def __init__(self, user_id: str, run_id: str, tasks: Mapping[str, TaskHandle[Any]], leaves: list[str]) -> None:
        self.user_id = user_id
        self.run_id = run_id
        self.tasks = dict(tasks)
        self._leaves = leaves

    def __getitem__(self, name: str) -> TaskHandle[Any]:
        return self.tasks[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tasks)

    def __len__(self) -> int:
        return len(self.tasks)

    async def result(self, timeout: Duration | None = None) -> Any:
        """Wait for the last tasks: the result of the one, or where there are several a list in their order.

        A run that is `stuck` has not ended: somebody may requeue the task that failed.

        Raises what `TaskHandle.result` raises, for the first leaf that has no value.
        """
        left: float | None = None
        ends = time.monotonic() + check_seconds("timeout", timeout) if timeout is not None else None
        results = []
        for name in self._leaves:
            if ends is not None:
                left = max(0.0, ends - time.monotonic())
            try:
                results.append(await self.tasks[name].result(left))
            except ResultTimeout:
                text = f"run {self.run_id} of user {self.user_id!r} has not ended within {timeout} s"
                raise ResultTimeout(text) from None
        return results[0] if len(results) == 1 else results

    async def state(self) -> PipelineState:
        """A summary. Raises `UnknownTask` when the results of the run have expired."""
        return PipelineState(dict(Counter([await handle.state() for handle in self.tasks.values()])))

    async def cancel(self, reason: str = "") -> dict[str, Cancellation]:
        """Cancel every task that has not ended, the last ones first, and say what became of each."""
        return {name: await _cancel(handle, reason) for name, handle in reversed(self.tasks.items())}

    def __repr__(self) -> str:
        return f"<PipelineHandle {self.run_id} of {self.user_id!r}, {len(self.tasks)} tasks>"


async def _cancel(handle: TaskHandle[Any], reason: str) -> Cancellation:
    try:
        return await handle.cancel(reason)
    except UnknownTask:  # its result has expired
        return Cancellation.ENDED
