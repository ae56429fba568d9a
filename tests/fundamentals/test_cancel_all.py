"""Canceling all tasks of a user that match."""

import asyncio
import time

import pytest

from fairque import (
    InvalidInput,
    Priority,
    Retry,
    TaskCanceled,
    TaskFailed,
    TaskQueue,
    TaskState,
    Worker,
    current_task,
    task,
)
from tests.support.eventually import eventually


@pytest.fixture
def one():
    @task(name="one")
    async def one(value: int = 0) -> int:
        return value

    return one


@pytest.fixture
def other():
    @task(name="other")
    async def other() -> None:
        pass

    return other


async def test_everything_that_waits_ends_wherever_it_is(queue: TaskQueue, one):
    first = await queue.enqueue(one(), user_id="anna", delay=3600)
    handles = [
        first,
        *await queue.enqueue_many([one(at) for at in range(450)], user_id="anna"),
        *await queue.enqueue_many([one()] * 30, user_id="anna", priority=Priority.CRITICAL),
        *await queue.enqueue_many([one()] * 30, user_id="anna", depends_on=[first]),
    ]
    theirs = await queue.enqueue(one(7), user_id="ben")
    assert await queue.cancel_all("anna", reason="enough") == 511
    for handle in handles[::37]:
        with pytest.raises(TaskCanceled, match="enough"):
            await handle.result(0)
    async with Worker(queue):
        assert await theirs.result(20) == 7
    assert await queue.cancel_all("anna") == 0


async def test_only_what_has_the_name_ends(queue: TaskQueue, one, other):
    stays = await queue.enqueue_many([other()] * 250, user_id="anna")
    await queue.enqueue_many([one()] * 250, user_id="anna")
    more = await queue.enqueue_many([other()] * 3, user_id="anna", delay=0.01)
    await queue.enqueue_many([one()] * 3, user_id="anna", delay=3600)
    assert await queue.cancel_all("anna", name="one") == 253
    async with Worker(queue):
        await queue.results([*stays, *more], 30)


async def test_only_what_is_in_the_state_ends(queue: TaskQueue, one):
    queued = await queue.enqueue(one(), user_id="anna")
    later = await queue.enqueue(one(), user_id="anna", delay=3600)
    waits = await queue.enqueue(one(), user_id="anna", depends_on=[queued])
    assert await queue.cancel_all("anna", state="scheduled") == 1
    assert await later.state() is TaskState.CANCELED
    assert await queue.cancel_all("anna", state=TaskState.DEFERRED) == 1
    assert (await queued.state(), await waits.state()) == (TaskState.QUEUED, TaskState.CANCELED)
    await queued.cancel()


async def test_what_depends_on_something_that_is_canceled_ends_with_it(queue: TaskQueue, one):
    first = await queue.enqueue(one(), user_id="anna")
    second = await queue.enqueue(one(), user_id="anna", depends_on=[first])
    assert await queue.cancel_all("anna", state="queued") == 1
    with pytest.raises(TaskCanceled, match="dependency"):
        await second.result(0)


async def test_what_runs_is_told_once(queue: TaskQueue):
    started = asyncio.Event()

    @task
    async def wait() -> None:
        started.set()
        await asyncio.sleep(60)

    handle = await queue.enqueue(wait(), user_id="anna")
    async with Worker(queue):
        await asyncio.wait_for(started.wait(), 20)
        assert await queue.cancel_all("anna", state="started", reason="stop it") == 1
        with pytest.raises(TaskCanceled, match="stop it"):
            await handle.result(20)


async def test_only_what_was_put_in_long_enough_ago_ends(queue: TaskQueue):
    @task(max_retries=1)
    async def again() -> None:
        if current_task().attempt == 1:
            raise Retry(3600)

    kinds = [{}, {"priority": 6}, {"priority": 1}, {"delay": 3600}]
    old = [await queue.enqueue(again(), user_id="anna", **options) for options in kinds]
    async with Worker(queue):
        await eventually(lambda: _is_in(old[0], TaskState.SCHEDULED))
    began = time.monotonic()
    await eventually(lambda: time.monotonic() > began + 0.6)
    new = [await queue.enqueue(again(), user_id="anna", **options) for options in kinds]
    assert await queue.cancel_all("anna", older_than=0.5) == 4
    assert all([not (await handle.state()).ended for handle in new])
    assert await queue.cancel_all("anna") == 4


async def _is_in(handle, state: TaskState) -> bool:
    return await handle.state() is state


async def test_what_is_held_by_a_limit_ends_and_gives_its_place_back(queue: TaskQueue):
    started, end = asyncio.Event(), asyncio.Event()

    @task(name="limited", max_running=1)
    async def limited() -> None:
        started.set()
        await end.wait()

    handles = await queue.enqueue_many([limited()] * 5, user_id="anna")
    theirs = await queue.enqueue(limited(), user_id="ben")
    async with Worker(queue):
        await asyncio.wait_for(started.wait(), 20)
        await eventually(lambda: _all_held(queue))
        assert await queue.cancel_all("anna", name="limited", state="queued") >= 4
        end.set()
        await theirs.result(20)
        await eventually(lambda: _all_ended(handles))
    await queue.clear_limit("limited", declared=True)


async def _all_held(queue: TaskQueue) -> bool:
    return (await queue.user("anna")).held + (await queue.user("ben")).held == 5


async def _all_ended(handles) -> bool:
    return all([(await handle.state()).ended for handle in handles])


async def test_what_is_put_in_meanwhile_stays_and_the_call_ends(queue: TaskQueue, one):
    """Somebody who puts in without end must not keep the call busy."""
    await queue.enqueue_many([one()] * 1000, user_id="anna")
    going = True

    async def flood() -> None:
        while going:
            await queue.enqueue_many([one()] * 20, user_id="anna")

    flooding = asyncio.create_task(flood())
    try:
        assert await asyncio.wait_for(queue.cancel_all("anna"), 30) >= 1000
    finally:
        going = False
        await flooding
    await queue.cancel_all("anna")


async def test_bad_matches_are_refused(queue: TaskQueue):
    for wrong in ({"state": "finished"}, {"state": "gone"}, {"older_than": -1}, {"name": ""}, {"reason": "x" * 2001}):
        with pytest.raises(InvalidInput):
            await queue.cancel_all("anna", **wrong)
    with pytest.raises(InvalidInput):
        await queue.cancel_all("*")


@pytest.mark.parametrize("delay", [0, 0.01])
async def test_what_was_requeued_was_put_in_at_that_moment(queue: TaskQueue, delay: float):
    @task(name="broken", max_retries=0)
    async def broken() -> None:
        raise OSError("the disk")

    handle = await queue.enqueue(broken(), user_id="anna", delay=delay)
    async with Worker(queue):
        with pytest.raises(TaskFailed):
            await handle.result(20)
    ended_at = (await handle.info()).ended_at
    assert ended_at is not None
    await eventually(lambda: time.time() > ended_at + 1)
    await queue.requeue(handle)
    assert await queue.cancel_all("anna", older_than=1) == 0
    assert await queue.cancel_all("anna") == 1
