"""`PipelineHandle`: one run of a pipeline, seen from outside."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from fairque.checks import Duration, check_seconds
from fairque.errors import FairqueError, PipelineBlocked, ResultTimeout, TaskFailed, UnknownTask
from fairque.models import TaskInfo, TaskState
from fairque.queue.changes import Changes
from fairque.queue.handle import Cancellation, TaskHandle
from fairque.queue.source import Source

__all__ = ["PipelineHandle", "PipelineState"]

LOOKS_AT_ONCE = 50
"""Tasks of a run that are looked at in one moment: the connection is that of all who wait."""


class PipelineState(msgspec.Struct, frozen=True):
    """How far a run is: the number of tasks by state.

    `blocked` are the names of tasks that wait, in the end, for one that failed. `blockers` are ids of those that
    failed, at most 5: requeue them, or discard them, which cancels what waits for them.
    """

    tasks: dict[TaskState, int]
    blocked: tuple[str, ...] = ()
    blockers: tuple[str, ...] = ()

    @property
    def ended(self) -> bool:
        """Every task has ended. One that waits for a failed task has not: see `blocked`."""
        return all(state.ended for state in self.tasks)

    @property
    def failed(self) -> bool:
        """A task has failed for good, and waits to be requeued or discarded."""
        return TaskState.FAILED in self.tasks

    @property
    def stuck(self) -> bool:
        """Nothing goes on by itself: all that has not ended is `blocked`."""
        living = sum(count for state, count in self.tasks.items() if not state.ended)
        return 0 < living == len(self.blocked)


class PipelineHandle:
    """One run of a pipeline; ``handle["name"]`` is one of its tasks.

    Attributes:
        user_id: Whose run it is.
        run_id: Stands before the dot in the id of each task.
        tasks: The handles by name, dependencies first.
    """

    def __init__(
        self, source: Source, user_id: str, run_id: str, tasks: Mapping[str, TaskHandle[Any]], leaves: list[str]
    ) -> None:
        self._source = source
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

    async def result(self, timeout: Duration | None = None, *, raise_blocked: bool = False) -> Any:
        """Wait for the last tasks: the result of the one, or where there are several a list in their order.

        Args:
            timeout: Seconds to wait, or a timedelta; None waits for ever, 0 looks once.
            raise_blocked: Whether to give up as soon as a last task waits for one that failed. Otherwise it is waited
                on: somebody may requeue that one, or it is discarded or expires, which cancels what waits for it.

        Raises what `TaskHandle.result` raises, for the first leaf that has no value, and `PipelineBlocked`.
        """
        if not raise_blocked:
            return await self._results(timeout)
        results = asyncio.create_task(self._results(timeout))
        failures = {asyncio.create_task(_failed(handle)) for handle in self.tasks.values()}
        try:
            return await self._results_or_block(results, failures)
        finally:
            for task in (results, *failures):
                task.cancel()
            await asyncio.wait([results, *failures])

    async def _results_or_block(self, results: asyncio.Task[Any], failures: set[asyncio.Task[bool]]) -> Any:
        pending = {results, *failures}
        while True:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            if any(task is not results and task.result() for task in done):
                with contextlib.suppress(UnknownTask):  # one that has expired waits for nothing
                    state = await self.state()
                    if any(leaf in state.blocked for leaf in self._leaves):
                        raise _blocked(self, state) from await self._failure_of(state.blockers)
            if results in done:
                return results.result()

    async def _failure_of(self, task_ids: Sequence[str]) -> TaskFailed | None:
        """Of the first of them that failed, and is still kept."""
        for handle in self.tasks.values():
            if handle.task_id in task_ids:
                with contextlib.suppress(FairqueError):
                    try:
                        await handle.result(0)
                    except TaskFailed as failed:
                        return failed
        return None

    async def _results(self, timeout: Duration | None) -> Any:
        left: float | None = None
        seconds = check_seconds("timeout", timeout) if timeout is not None else None
        ends = time.monotonic() + seconds if seconds is not None else None
        results = []
        for name in self._leaves:
            if ends is not None:
                left = max(0.0, ends - time.monotonic())
            try:
                results.append(await self.tasks[name].result(left))
            except ResultTimeout:
                text = f"run {self.run_id} of user {self.user_id!r} has not ended within {seconds} s"
                raise ResultTimeout(text) from None
        return results[0] if len(results) == 1 else results

    async def state(self) -> PipelineState:
        """A summary, in one call. Raises `UnknownTask` when a result of the run has expired."""
        ids = [handle.task_id for handle in self.tasks.values()]
        found, blockers = await self._source.store.standings(self.user_id, ids)
        if gone := [name for name, (state, _) in zip(self.tasks, found, strict=True) if not state]:
            raise UnknownTask(f"the result of {gone[0]!r} in run {self.run_id} of user {self.user_id!r} has expired")
        blocked = tuple(name for name, (_, is_blocked) in zip(self.tasks, found, strict=True) if is_blocked)
        return PipelineState(dict(Counter(TaskState(state) for state, _ in found)), blocked, tuple(blockers))

    async def watch(self) -> AsyncIterator[tuple[str, TaskInfo]]:
        """The name of a task and what is known of it: of each as it is now, then of those that change, until all have
        ended. No polling.

        What waits for one that failed has not ended: see `state`, and what happens when somebody requeues that is told
        as well.

        Raises `UnknownTask`, where a result of the run has expired, and `QueueUnavailable`.
        """
        seen: asyncio.Queue[tuple[str, TaskInfo | Exception]] = asyncio.Queue()
        looking = asyncio.Semaphore(LOOKS_AT_ONCE)
        follows = [asyncio.create_task(self._follow(name, seen, looking)) for name in self.tasks]
        living = set(self.tasks)
        try:
            while living:
                name, info = await seen.get()
                if isinstance(info, Exception):
                    raise info
                yield name, info
                (living.discard if info.state.ended else living.add)(name)
        finally:
            for follow in follows:
                follow.cancel()
            await asyncio.wait(follows)

    async def _follow(
        self, name: str, seen: asyncio.Queue[tuple[str, TaskInfo | Exception]], looking: asyncio.Semaphore
    ) -> None:
        handle, last = self.tasks[name], None
        try:
            async with Changes(self._source, self.user_id, handle.task_id) as changes:
                async with looking:
                    await self._source.store.watch(self.user_id, handle.task_id)
                while True:
                    async with looking:
                        info = await handle.info()
                    if last is None or _is_news(info, last):
                        seen.put_nowait((name, info))
                    last = info
                    await changes.wait()
        except Exception as exc:
            seen.put_nowait((name, exc))

    async def cancel(self, reason: str = "") -> dict[str, Cancellation]:
        """Cancel every task that has not ended, the last ones first, and say what became of each."""
        return {name: await _cancel(handle, reason) for name, handle in reversed(self.tasks.items())}

    def __repr__(self) -> str:
        return f"<PipelineHandle {self.run_id} of {self.user_id!r}, {len(self.tasks)} tasks>"


async def _failed(handle: TaskHandle[Any]) -> bool:
    """Whether it failed, at its end."""
    with contextlib.suppress(FairqueError):
        try:
            await handle.result()
        except TaskFailed:
            return True
    return False


def _blocked(run: PipelineHandle, state: PipelineState) -> PipelineBlocked:
    failed = ", ".join(map(repr, state.blockers))
    text = f"run {run.run_id} of user {run.user_id!r} cannot end before what failed is requeued or discarded: {failed}"
    return PipelineBlocked(text, state.blockers)


def _is_news(info: TaskInfo, last: TaskInfo) -> bool:
    """What those that depend on a task do after its end is news of theirs."""
    has_ended_before = info.state.ended and (info.state, info.ended_at) == (last.state, last.ended_at)
    return info != last and not has_ended_before


async def _cancel(handle: TaskHandle[Any], reason: str) -> Cancellation:
    try:
        return await handle.cancel(reason)
    except UnknownTask:  # its result has expired
        return Cancellation.ENDED
