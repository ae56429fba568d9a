"""Tasks of one name are paused, of all users."""

import asyncio

import pytest

from fairque import InvalidInput, Reason, TaskQueue, Worker, task
from tests.support.core import outcome
from tests.support.eventually import eventually


@pytest.fixture
def invoice():
    @task(name="billing.invoice")
    async def invoice(number: int = 0) -> int:
        return number

    return invoice


@pytest.fixture
def other():
    @task(name="other")
    async def other() -> str:
        return "done"

    return other


async def test_nothing_of_it_starts_and_everything_else_goes_on(queue: TaskQueue, invoice, other):
    await queue.pause_task("billing.invoice")
    paused = [await queue.enqueue(invoice(at), user_id=user) for at, user in enumerate(("anna", "anna", "ben"))]
    behind = [await queue.enqueue(other(), user_id=user) for user in ("anna", "ben")]
    async with Worker(queue):
        assert await queue.results(behind, 20) == ["done", "done"]
        for handle in paused:
            assert (await handle.info()).held_by == "billing.invoice"
        await queue.resume_task("billing.invoice")
        assert await queue.results(paused, 20) == [0, 1, 2]


async def test_an_idle_worker_is_told_when_it_goes_on(queue: TaskQueue, invoice):
    await queue.pause_task("billing.invoice")
    handle = await queue.enqueue(invoice(1), user_id="anna")
    async with Worker(queue, poll_interval=300):
        await eventually(lambda: _is_held(queue, "anna"))
        await queue.resume_task("billing.invoice")
        assert await handle.result(10) == 1


async def _is_held(queue: TaskQueue, user_id: str) -> bool:
    return (await queue.user(user_id)).held > 0


async def test_what_runs_goes_on_and_a_limit_of_the_name_stays(queue: TaskQueue):
    started, end, ran = asyncio.Event(), asyncio.Event(), []

    @task(name="limited", max_running=1)
    async def limited(number: int) -> int:
        started.set()
        ran.append(number)
        await end.wait()
        return number

    handles = await queue.enqueue_many([limited(at) for at in range(4)], user_id="anna")
    async with Worker(queue):
        await asyncio.wait_for(started.wait(), 20)
        await queue.pause_task("limited")
        end.set()
        assert await handles[0].result(20) == 0
        await eventually(lambda: _is_held(queue, "anna"))
        [limit] = await queue.limits()
        assert (limit.paused, limit.max_running) == (True, 1)
        assert ran == [0]
        await queue.resume_task("limited")
        assert await queue.results(handles, 20) == [0, 1, 2, 3]
    await queue.clear_limit("limited", declared=True)
    assert await queue.limits() == []


async def test_a_task_that_was_let_in_already_waits_as_well(queue: TaskQueue):
    @task(name="limited", max_running=1)
    async def limited() -> None:
        pass

    handles = await queue.enqueue_many([limited()] * 2, user_id="anna")
    await queue.set_limit("limited", max_running=1)
    store = queue.store()
    [first] = (await store.claim("ghost", 2)).deliveries
    assert await store.settle("ghost", [outcome(first, "finished")]) == [True]
    await queue.pause_task("limited")
    assert not (await store.claim("ghost", 2)).deliveries
    await queue.resume_task("limited")
    [second] = (await store.claim("ghost", 2)).deliveries
    assert second.id == handles[1].task_id
    await store.settle("ghost", [outcome(second, "finished")])
    await store.leave("ghost", [["*"]])
    await store.close()
    await queue.clear_limit("limited")


async def test_it_is_said_wherever_one_looks(queue: TaskQueue, invoice):
    await queue.pause_task("billing.invoice")
    handle = await queue.enqueue(invoice(), user_id="anna")
    assert (await queue.stats()).paused_tasks == ("billing.invoice",)
    assert (await queue.health()).stats.paused_tasks == ("billing.invoice",)
    told = await queue.explain("anna", handle.task_id)
    assert Reason.PAUSED in [each.reason for each in told.waiting]
    assert "tasks 'billing.invoice' are paused, of all users" in str(told)
    assert told.starts_in is None
    async with Worker(queue):
        await eventually(lambda: _is_held(queue, "anna"))
        assert "are paused" in str(await queue.explain("anna", handle.task_id))
    await queue.resume_task("billing.invoice")
    assert (await queue.stats()).paused_tasks == ()
    assert await queue.limits() == []
    await handle.cancel()


async def test_to_pause_and_resume_twice_changes_nothing(queue: TaskQueue, invoice):
    for _ in range(2):
        await queue.pause_task("billing.invoice")
    for _ in range(2):
        await queue.resume_task("billing.invoice")
    handle = await queue.enqueue(invoice(3), user_id="anna")
    async with Worker(queue):
        assert await handle.result(20) == 3


async def test_a_paused_backlog_costs_idle_workers_nothing(queue: TaskQueue, invoice):
    """Nobody looks at it before it is resumed: its next look is not within the minute."""
    await queue.pause_task("billing.invoice")
    await queue.enqueue_many([invoice(at) for at in range(300)], user_id="anna")
    store = queue.store()
    sleeps = [(await store.claim("ghost", 5)).sleep for _ in range(6)]
    assert sleeps[-1] is not None
    assert sleeps[-1] > 60
    await store.leave("ghost", [["*"]])
    await store.close()
    await queue.resume_task("billing.invoice")
    await queue.cancel_all("anna")


async def test_a_name_is_a_name(queue: TaskQueue):
    for wrong in ("", 3, "x" * 513):
        with pytest.raises(InvalidInput, match="name"):
            await queue.pause_task(wrong)
