"""What waits can be changed: started now, put off, or given another priority."""

import asyncio
import time
from datetime import UTC, datetime, timedelta

import pytest

from fairque import InvalidInput, Retry, TaskQueue, TaskState, UnknownTask, Worker, current_task, task
from tests.support.eventually import eventually

ran: list[object] = []


@pytest.fixture(autouse=True)
def note():
    ran.clear()

    @task
    async def note(what: object) -> None:
        ran.append(what)

    return note


async def serve(queue: TaskQueue) -> list[object]:
    await Worker(queue, concurrency=1).run_until_idle()
    return ran


# promote


async def test_a_promoted_task_wakes_an_idle_worker(queue: TaskQueue, note):
    handle = await queue.enqueue(note("now"), user_id="anna", delay=3600)
    async with Worker(queue, poll_interval=300):
        assert await handle.promote()
        await handle.result(20)
    assert not await handle.promote(), "it has ended"


async def test_a_retry_can_be_brought_forward(queue: TaskQueue):
    @task(max_retries=1)
    async def twice() -> int:
        if current_task().attempt == 1:
            raise Retry(3600)
        return current_task().attempt

    handle = await queue.enqueue(twice(), user_id="anna")
    async with Worker(queue):
        await eventually(lambda: _is_in(handle, TaskState.SCHEDULED))
        assert await handle.promote()
        assert await handle.result(20) == 2


async def _is_in(handle, state: TaskState) -> bool:
    return await handle.state() is state


async def test_what_waits_for_its_turn_is_not_promoted(queue: TaskQueue, note):
    handle = await queue.enqueue(note(1), user_id="anna")
    assert not await handle.promote()
    assert await serve(queue) == [1]


async def test_who_waits_for_others_loses_its_delay_only(queue: TaskQueue, note):
    first = await queue.enqueue(note("first"), user_id="anna", delay=3600)
    second = await queue.enqueue(note("second"), user_id="anna", depends_on=[first], delay=3600)
    assert await second.promote()
    assert not await second.promote(), "it waits for no moment any more"
    assert await second.state() is TaskState.DEFERRED
    await first.promote()
    assert await serve(queue) == ["first", "second"]


async def test_an_unknown_task_is_no_task_to_change(queue: TaskQueue):
    nobody = queue.handle("anna", "nobody")
    for change in (nobody.promote(), nobody.reschedule(1), nobody.set_priority(1)):
        with pytest.raises(UnknownTask):
            await change


# reschedule


async def test_a_queued_task_is_put_off_and_comes_back_to_its_place(queue: TaskQueue, note):
    first = await queue.enqueue(note("first"), user_id="anna")
    await queue.enqueue(note("second"), user_id="anna")
    assert await first.reschedule(timedelta(hours=1))
    info = await first.info()
    assert info.state is TaskState.SCHEDULED
    assert info.due_at is not None
    assert 3500 < info.due_at - time.time() < 3700
    assert await first.promote()
    assert await serve(queue) == ["first", "second"]


async def test_a_scheduled_task_is_moved(queue: TaskQueue, note):
    handle = await queue.enqueue(note(1), user_id="anna", delay=3600)
    assert await handle.reschedule(7200)
    due = (await handle.info()).due_at
    assert due is not None
    assert 7100 < due - time.time() < 7300
    assert await handle.reschedule(at=datetime.now(UTC) + timedelta(milliseconds=20))
    async with Worker(queue):
        await handle.result(20)


async def test_the_last_task_of_a_user_that_is_put_off_leaves_the_line(queue: TaskQueue, note):
    handle = await queue.enqueue(note(1), user_id="anna")
    await handle.reschedule(0.02)
    assert (await queue.stats()).users_ready == 0
    async with Worker(queue):
        await handle.result(20)


async def test_who_waits_for_others_starts_at_that_moment_at_the_earliest(queue: TaskQueue, note):
    first = await queue.enqueue(note("first"), user_id="anna")
    second = await queue.enqueue(note("second"), user_id="anna", depends_on=[first])
    assert await second.reschedule(3600)
    assert await serve(queue) == ["first"]
    assert await second.state() is TaskState.SCHEDULED
    await second.cancel()


async def test_what_runs_is_not_changed(queue: TaskQueue):
    started, end = asyncio.Event(), asyncio.Event()

    @task
    async def hold() -> int:
        started.set()
        await end.wait()
        return current_task().attempt

    handle = await queue.enqueue(hold(), user_id="anna")
    async with Worker(queue):
        await asyncio.wait_for(started.wait(), 20)
        assert not await handle.promote()
        assert not await handle.reschedule(10)
        assert not await handle.set_priority(6)
        end.set()
        assert await handle.result(20) == 1


async def test_a_moment_is_a_delay_or_a_datetime(queue: TaskQueue, note):
    handle = await queue.enqueue(note(1), user_id="anna")
    for wrong in ({}, {"delay": 1, "at": datetime.now(UTC)}, {"delay": -1}, {"at": 3}):
        with pytest.raises(InvalidInput):
            await handle.reschedule(**wrong)
    for priority in (0, 7, None, "high"):
        with pytest.raises(InvalidInput, match="priority"):
            await handle.set_priority(priority)
    assert await serve(queue) == [1]


# set_priority


async def test_a_raised_task_goes_before_those_that_came_earlier(queue: TaskQueue, note):
    handles = [await queue.enqueue(note(at), user_id="anna") for at in range(4)]
    assert await handles[3].set_priority(6)
    assert await handles[2].set_priority(5)
    assert await handles[0].set_priority(1)
    assert (await handles[3].info()).priority == 6
    assert (await queue.stats()).critical == 1
    assert await serve(queue) == [3, 2, 1, 0]


async def test_a_lowered_critical_task_has_the_place_that_it_would_have_had(queue: TaskQueue, note):
    handle = await queue.enqueue(note("critical"), user_id="anna", priority=6)
    await queue.enqueue(note("later"), user_id="anna")
    assert await handle.set_priority(3)
    assert await handle.set_priority(3)
    assert await serve(queue) == ["critical", "later"]


async def test_a_task_has_its_new_priority_when_its_moment_has_come(queue: TaskQueue, note):
    late = await queue.enqueue(note("late"), user_id="anna", delay=3600)
    first = await queue.enqueue(note("first"), user_id="anna")
    after = await queue.enqueue(note("after"), user_id="anna", depends_on=[first])
    assert await late.set_priority(6)
    assert await after.set_priority(5)
    await queue.enqueue(note("second"), user_id="anna")
    await late.promote()
    assert await serve(queue) == ["late", "first", "after", "second"]


async def test_a_task_that_is_held_by_a_limit_is_changed_where_it_is_held(queue: TaskQueue):
    started, end = asyncio.Event(), asyncio.Event()

    @task(max_running=1)
    async def one(what: int) -> None:
        ran.append(what)
        started.set()
        await end.wait()

    handles = [await queue.enqueue(one(at), user_id="anna") for at in range(4)]
    async with Worker(queue):
        await asyncio.wait_for(started.wait(), 20)
        await eventually(lambda: _holds(queue, 3))
        assert await handles[3].set_priority(5)
        assert await handles[2].set_priority(4)
        assert await handles[1].reschedule(0.05)
        await queue.check()
        end.set()
        for handle in handles:
            await handle.result(20)
    assert ran[:3] == [0, 3, 2]
    await queue.clear_limit(one.name, declared=True)


async def _holds(queue: TaskQueue, count: int) -> bool:
    return (await queue.user("anna")).held == count


async def test_a_requeued_task_keeps_the_priority_that_it_was_given(queue: TaskQueue):
    @task
    async def fail() -> None:
        raise ValueError

    handle = await queue.enqueue(fail(), user_id="anna")
    await handle.set_priority(5)
    await serve(queue)
    await queue.requeue(handle)
    assert (await handle.info()).priority == 5
    await handle.cancel()


async def test_nobody_gets_before_others_by_changing_what_waits(queue: TaskQueue, note):
    """An attacker that promotes, puts off and raises its tasks in a loop is served no more than its share."""
    theirs = [await queue.enqueue(note("attacker"), user_id="attacker", delay=3600 * (at % 2)) for at in range(20)]
    for handle in theirs:
        await handle.reschedule(3600)
        await handle.set_priority(6)
        await handle.promote()
    for _ in range(3):
        await queue.enqueue(note("quiet"), user_id="quiet")
    order = await serve(queue)
    assert max(at for at, what in enumerate(order) if what == "quiet") <= 7
