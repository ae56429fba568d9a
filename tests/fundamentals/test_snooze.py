"""A task that puts itself off: it comes back later, and has used no attempt."""

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from fairque import (
    Breaker,
    Fail,
    InvalidInput,
    Retry,
    Snooze,
    TaskCanceled,
    TaskEvent,
    TaskFailed,
    TaskQueue,
    TaskState,
    Worker,
    current_task,
    task,
)
from fairque.tasks.failure import raised_by
from tests.fundamentals import in_processes
from tests.support.eventually import eventually


async def test_it_comes_back_without_using_an_attempt(queue: TaskQueue):
    seen = []

    @task(max_retries=0)
    async def look() -> str:
        me = current_task()
        seen.append((me.attempt, me.snoozed))
        if me.snoozed < 3:
            raise Snooze(0.001)
        return "there"

    handle = await queue.enqueue(look(), user_id="anna")
    async with Worker(queue):
        assert await handle.result(20) == "there"
    assert seen == [(1, 0), (1, 1), (1, 2), (1, 3)]
    info = await handle.info()
    assert (info.attempt, info.errors) == (1, ())


async def test_a_hook_is_told_of_it_and_once_how_long_the_task_had_waited(queue: TaskQueue):
    told: list[tuple[str, TaskEvent]] = []

    @task
    async def look() -> None:
        if current_task().snoozed < 2:
            raise Snooze(0.001)

    def tell(event: str) -> Callable[[TaskEvent], None]:
        return lambda about: told.append((event, about))

    handle = await queue.enqueue(look(), user_id="anna")
    async with Worker(queue, on_snooze=tell("snooze"), on_success=tell("success"), on_release=tell("release")):
        await handle.result(20)
    assert [event for event, _ in told] == ["snooze", "snooze", "success"]
    first, *later = [about.wait_seconds for _, about in told]
    assert first is not None
    assert first >= 0
    assert later == [None, None]


async def test_retries_are_all_left_after_it(queue: TaskQueue):
    @task(max_retries=1)
    async def unlucky() -> None:
        me = current_task()
        if me.snoozed < 2:
            raise Snooze(0.001)
        raise Retry(0.001)

    handle = await queue.enqueue(unlucky(), user_id="anna")
    async with Worker(queue):
        with pytest.raises(TaskFailed):
            await handle.result(20)
    assert [error.attempt for error in (await handle.info()).errors] == [1, 2]


async def test_what_is_put_off_is_scheduled_and_can_be_canceled(queue: TaskQueue):
    @task
    async def far_away() -> None:
        raise Snooze(timedelta(hours=1))

    handle = await queue.enqueue(far_away(), user_id="anna")
    async with Worker(queue):
        await eventually(lambda: _is_in(handle, TaskState.SCHEDULED))
        info = await handle.info()
        assert (info.attempt, info.snoozed) == (0, 1)
        assert info.due_at is not None
        assert 3500 < info.due_at - time.time() < 3700
        await handle.cancel("not needed")
    with pytest.raises(TaskCanceled):
        await handle.result(20)


async def _is_in(handle, state: TaskState) -> bool:
    return await handle.state() is state


async def test_one_that_is_canceled_while_it_runs_does_not_come_back(queue: TaskQueue):
    started = asyncio.Event()

    @task
    async def stubborn() -> None:
        started.set()
        try:
            await asyncio.sleep(60)
        finally:
            raise Snooze(0.001)

    handle = await queue.enqueue(stubborn(), user_id="anna")
    async with Worker(queue):
        await asyncio.wait_for(started.wait(), 20)
        await handle.cancel()
        with pytest.raises(TaskCanceled):
            await handle.result(20)


async def test_each_run_of_it_is_charged(queue: TaskQueue):
    @task(cost=5)
    async def look() -> None:
        if current_task().snoozed < 2:
            current_task().charge(1)
            raise Snooze(0.001)

    handle = await queue.enqueue(look(), user_id="anna")
    async with Worker(queue):
        await handle.result(20)
    assert (await queue.user("anna")).metrics.cost == 17


async def test_a_breaker_takes_it_neither_for_a_failure_nor_for_a_success(queue: TaskQueue):
    await queue.set_policy("anna", breaker=Breaker(failures=1, window=60, cooldown=60))

    @task
    async def look() -> int:
        if current_task().snoozed < 2:
            raise Snooze(0.001)
        return current_task().snoozed

    handle = await queue.enqueue(look(), user_id="anna")
    async with Worker(queue):
        assert await handle.result(20) == 2
    assert (await queue.user("anna")).breaker_open_until is None
    await queue.clear_policy("anna")


async def test_hooks_are_not_told(queue: TaskQueue):
    told = []

    @task
    async def look() -> None:
        if not current_task().snoozed:
            raise Snooze(0.001)

    handle = await queue.enqueue(look(), user_id="anna")
    hooks = {f"on_{event}": lambda _, event=event: told.append(event) for event in ("success", "retry", "failure")}
    async with Worker(queue, **hooks):
        await handle.result(20)
    assert told == ["success"]


async def test_a_subprocess_and_a_thread_put_themselves_off_as_well(queue: TaskQueue):
    @task
    def in_thread() -> int:
        if not current_task().snoozed:
            raise Snooze(0.001)
        return current_task().snoozed

    handles = await queue.enqueue_many([in_thread(), in_processes.late()], user_id="anna")
    async with Worker(queue):
        assert await queue.results(handles, 30) == [1, 1]


async def test_a_requeued_task_begins_to_count_anew(queue: TaskQueue):
    @task
    async def look() -> int:
        if not current_task().snoozed:
            raise Snooze(0.001)
        raise Fail

    handle = await queue.enqueue(look(), user_id="anna")
    async with Worker(queue):
        with pytest.raises(TaskFailed):
            await handle.result(20)
    await queue.requeue(handle)
    assert (await handle.info()).snoozed == 0
    await handle.cancel()


def test_in_a_group_a_retry_goes_before_it():
    def asked(*errors: Exception) -> tuple[float | None, bool, bool]:
        raised = raised_by(ExceptionGroup("", list(errors)))
        return raised.snooze, raised.retry_asked, raised.is_final

    assert asked(Snooze(1), Snooze(3)) == (3, False, False)
    assert asked(Snooze(1), Retry(2)) == (None, True, False)
    assert asked(Snooze(1), Fail()) == (None, False, True)
    assert asked(Snooze(1), ValueError()) == (None, False, False)


def test_it_takes_a_delay_or_a_moment():
    assert Snooze(timedelta(minutes=2)).delay == 120
    soon = datetime.fromtimestamp(time.time() + 60, UTC)
    delay = raised_by(Snooze(at=soon)).snooze
    assert delay is not None
    assert 50 < delay <= 60
    for wrong in ({}, {"delay": 1, "at": soon}, {"at": 3}, {"delay": 0}, {"delay": -1}, {"delay": float("nan")}):
        with pytest.raises(InvalidInput, match="Snooze"):
            Snooze(**wrong)
