"""A task with two timeouts is told at the first, and ended at the second."""

import asyncio
import time
from datetime import timedelta

import anyio
import pytest

from fairque import (
    FailureKind,
    InvalidInput,
    RetryPolicy,
    SoftTimeout,
    Task,
    TaskCanceled,
    TaskFailed,
    TaskHandler,
    TaskQueue,
    Worker,
    current_task,
    task,
)
from tests.fundamentals import in_processes

SOON = (0.05, 30)


async def ended(queue: TaskQueue, made: Task, **options: object) -> object:
    handle = await queue.enqueue(made, user_id="anna", **options)
    async with Worker(queue):
        try:
            return await handle.result(20)
        except TaskFailed as failed:
            return failed


async def test_it_is_told_once_and_may_end_well(queue: TaskQueue):
    @task(timeout=SOON)
    async def tidy() -> list[object]:
        assert not current_task().soft_timed_out
        seen: list[object] = []
        try:
            await asyncio.sleep(30)
        except SoftTimeout as told:
            seen.append(str(told))
        await asyncio.sleep(0.1)  # it is told once
        return [*seen, current_task().soft_timed_out, asyncio.current_task().cancelling()]

    assert await ended(queue, tidy()) == ["ran longer than its soft timeout", True, 0]


async def _in_a_sleep() -> None:
    await asyncio.sleep(30)


async def _in_a_group() -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(asyncio.sleep(30))


async def _behind_a_task() -> None:
    await asyncio.create_task(asyncio.sleep(30))


async def _in_a_gather() -> None:
    await asyncio.gather(asyncio.sleep(30), asyncio.sleep(30))


async def _in_a_timeout() -> None:
    async with asyncio.timeout(20):
        await asyncio.wait_for(asyncio.sleep(30), 25)


async def _in_a_scope() -> None:
    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.sleep, 30)


async def _in_a_loop_that_catches_errors() -> None:
    while True:
        try:
            await asyncio.sleep(30)
        except Exception:
            raise AssertionError("swallowed") from None


@pytest.mark.parametrize(
    "wait",
    [
        *(_in_a_sleep, _in_a_group, _behind_a_task, _in_a_gather, _in_a_timeout, _in_a_scope),
        _in_a_loop_that_catches_errors,
    ],
)
async def test_it_arrives_wherever_the_body_waits_and_leaves_nothing_running(queue: TaskQueue, wait):
    @task(timeout=SOON)
    async def waits() -> bool:
        before = asyncio.all_tasks()
        try:
            await wait()
        except SoftTimeout:
            return not {each for each in asyncio.all_tasks() - before if "fairque" not in each.get_name()}
        return False

    handle = await queue.enqueue(waits(), user_id="anna")
    async with Worker(queue, scheduler=False):
        assert await handle.result(20), "it left tasks of its own behind"


async def test_one_that_lets_it_through_has_failed_by_a_timeout(queue: TaskQueue):
    @task(timeout=SOON)
    async def careless() -> None:
        await asyncio.sleep(30)

    failed = await ended(queue, careless())
    assert isinstance(failed, TaskFailed)
    assert (failed.kind, failed.type_name) == (FailureKind.TIMEOUT, "SoftTimeout")


async def test_it_is_tried_again_as_its_policy_says(queue: TaskQueue):
    @task(timeout=SOON, retry=RetryPolicy(max=1, base=0, retry_on=(TimeoutError,)))
    async def second_time() -> int:
        if current_task().attempt == 1:
            await asyncio.sleep(30)
        return current_task().attempt

    assert await ended(queue, second_time()) == 2


async def test_the_second_time_ends_one_that_goes_on(queue: TaskQueue):
    @task(timeout=(0.05, 0.2))
    async def stubborn() -> None:
        try:
            await asyncio.sleep(30)
        except SoftTimeout:
            await asyncio.sleep(30)

    failed = await ended(queue, stubborn())
    assert isinstance(failed, TaskFailed)
    assert (failed.type_name, failed.message) == ("TimeoutError", "ran longer than 0.2 s")


async def test_a_cancellation_is_no_timeout(queue: TaskQueue):
    started, seen = asyncio.Event(), []

    @task(timeout=(25, 30))
    async def waits() -> None:
        started.set()
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError as exc:
            seen.append(type(exc))
            raise

    handle = await queue.enqueue(waits(), user_id="anna")
    async with Worker(queue):
        await asyncio.wait_for(started.wait(), 20)
        await handle.cancel()
        with pytest.raises(TaskCanceled):
            await handle.result(20)
    assert seen == [asyncio.CancelledError]


async def test_threads_and_subprocesses_look_at_a_flag(queue: TaskQueue):
    @task(timeout=SOON)
    def in_a_thread() -> str:
        while not current_task().soft_timed_out:
            time.sleep(0.01)
        return "in time"

    handles = await queue.enqueue_many([in_a_thread(), in_processes.look_at_the_clock()], user_id="anna")
    async with Worker(queue):
        assert await queue.results(handles, 30) == ["in time", "in time"]


async def test_a_handler_is_told_as_well(queue: TaskQueue):
    class Waits(TaskHandler):
        async def process_task(self, payload: object) -> object:
            try:
                await asyncio.sleep(30)
            except SoftTimeout:
                return payload

    handle = await queue.enqueue(Task.create(payload={"n": 1}, timeout=SOON), user_id="anna")
    async with Worker(queue, handler=Waits()):
        assert await handle.result(20) == {"n": 1}


async def test_a_call_replaces_both_times(queue: TaskQueue):
    @task(timeout=SOON)
    async def waits() -> float:
        await asyncio.sleep(0.2)
        return current_task().soft_ends

    assert await ended(queue, waits(), timeout=30) == float("inf")
    assert isinstance(await ended(queue, waits(), timeout=(timedelta(seconds=0.05), 30)), TaskFailed)


def test_the_first_time_is_the_shorter_one():
    for wrong in [(0, 1), (1, 1), (2, 1), (1,), (1, 2, 3), (-1, 2), ("a", 2)]:
        with pytest.raises(InvalidInput, match="timeout"):
            Task.create(payload={}, timeout=wrong)
