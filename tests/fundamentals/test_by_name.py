"""Calls of functions that only workers know."""

import asyncio

import pytest

from fairque import (
    BadArguments,
    FailureKind,
    InvalidInput,
    NotEncodable,
    Priority,
    Task,
    TaskFailed,
    TaskQueue,
    Worker,
    current_task,
    task,
)
from fairque.redis.delivery import Outcome
from fairque.tasks.message import decode_body
from fairque.tasks.registry import unregister
from tests.support.eventually import eventually

NAME = "billing.invoice"


async def test_a_worker_that_knows_the_code_runs_it(queue: TaskQueue):
    handle = await queue.enqueue_by_name(NAME, [42], {"draft": True}, user_id="anna")

    @task(name=NAME)
    async def invoice(number: int, *, draft: bool = False) -> list[object]:
        return [number, draft, current_task().attempt]

    async with Worker(queue):
        assert await handle.result(20) == [42, True, 1]


async def test_what_does_not_fit_fails_on_the_worker(queue: TaskQueue):
    @task(name=NAME, cost=lambda number: number)
    async def invoice(number: int) -> None:
        pass

    handles = [await queue.enqueue_by_name(NAME, args, user_id="anna") for args in (["x"], [], [0])]
    async with Worker(queue):
        for handle in handles:
            with pytest.raises(TaskFailed) as failed:
                await handle.result(20)
            assert failed.value.kind == FailureKind.BAD_ARGUMENTS
    await queue.purge("anna")


async def test_it_is_charged_what_its_code_says(queue: TaskQueue):
    @task(name=NAME, cost=lambda number: 2 * number)
    async def invoice(number: int) -> None:
        pass

    handles = [await queue.enqueue_by_name(NAME, [number], user_id="anna") for number in (1, 5, 10)]
    said = await queue.enqueue_by_name(NAME, [100], user_id="ben", cost=3)
    async with Worker(queue):
        await queue.results([*handles, said], 20)
    assert (await queue.user("anna")).metrics.cost == 32
    assert (await queue.user("ben")).metrics.cost == 3


async def test_its_share_is_as_if_its_producer_had_known_the_code(queue: TaskQueue):
    """Who leaves the cost unsaid gets no more than who says it."""
    ran: list[str] = []

    @task(name=NAME, cost=10)
    async def invoice() -> None:
        ran.append(current_task().user_id)

    for _ in range(20):
        await queue.enqueue_by_name(NAME, user_id="unsaid")
        await queue.enqueue(invoice(), user_id="said")
    await Worker(queue, concurrency=1).run_until_idle()
    assert len(ran) == 40
    for at in range(4, 36):
        assert abs(ran[:at].count("unsaid") - ran[:at].count("said")) <= 2


async def test_its_limits_hold(queue: TaskQueue):
    running, most, ended = 0, 0, 0

    @task(name=NAME, limits=["crm:{customer}"])
    async def invoice(customer: str) -> None:
        nonlocal running, most, ended
        assert customer == "acme"
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01)
        running -= 1
        ended += 1

    await queue.set_limit("crm:{customer}", max_running=1)
    handles = [await queue.enqueue_by_name(NAME, ["acme"], user_id="anna") for _ in range(6)]
    async with Worker(queue):
        await queue.results(handles, 30)
    assert (most, ended) == (1, 6)
    await queue.clear_limit("crm:{customer}")


async def test_its_priority_is_that_of_its_code(queue: TaskQueue):
    ran: list[int] = []

    @task(name=NAME, priority=Priority.CRITICAL)
    async def invoice(number: int) -> None:
        ran.append(number)

    @task(name="other")
    async def other(number: int) -> None:
        ran.append(number)

    first = await queue.enqueue_by_name(NAME, [1], user_id="anna")
    await queue.enqueue(other(2), user_id="anna")
    store = queue.store()
    await Worker(queue, concurrency=1).run_until_idle()
    assert ran == [1, 2]
    assert (await first.info()).attempt == 1
    await store.close()


async def test_it_goes_back_once_and_only_where_its_code_says_something_else(queue: TaskQueue):
    @task(name="plain")
    async def plain() -> int:
        return current_task().delivery.attempt

    @task(name=NAME, cost=2, priority=5)
    async def invoice() -> None:
        message = decode_body(current_task().delivery.body)
        assert message.overrides is None or not message.overrides.unsaid

    handles = [await queue.enqueue_by_name(name, user_id="anna") for name in ("plain", NAME)]
    async with Worker(queue):
        await queue.results(handles, 20)


async def test_one_that_no_worker_knows_yet_waits_for_a_worker_that_does(queue: TaskQueue):
    handle = await queue.enqueue_by_name(NAME, [7], user_id="anna")
    async with Worker(queue):
        await eventually(lambda: _was_returned(handle))

        @task(name=NAME, cost=5)
        async def invoice(number: int) -> int:
            return number

        assert await handle.result(20) == 7


async def _was_returned(handle) -> bool:
    return (await handle.info()).due_at is not None


async def test_outputs_of_others_are_arguments_as_well(queue: TaskQueue):
    @task(name="one")
    async def one() -> int:
        return 20

    @task(name=NAME, cost=5)
    async def invoice(number: int, *, more: int = 0) -> int:
        return number + more

    first = Task.by_name("one")
    handle = await queue.enqueue(Task.by_name(NAME, [first.output], {"more": 1}), user_id="anna")
    async with Worker(queue):
        assert await handle.result(20) == 21
    assert (await queue.user("anna")).metrics.cost == 6


async def test_one_that_is_canceled_as_it_goes_back_ends(queue: TaskQueue):
    @task(name=NAME, cost=5)
    async def invoice() -> None:
        raise AssertionError("it must not run")

    handle = await queue.enqueue_by_name(NAME, user_id="anna")
    store = queue.store()
    [taken] = (await store.claim("ghost", 1)).deliveries
    await handle.cancel()
    assert await store.settle("ghost", [Outcome(taken, "restated", record=taken.body)]) == [True]
    assert (await handle.info()).state.value == "canceled"
    await store.leave("ghost", [["*"]])
    await store.close()


async def test_by_time_it_is_charged_for_what_it_runs(server, queue_name: str):
    @task(name=NAME, cost=1000, limits=["{number}"])
    async def invoice(number: int) -> None:
        pass

    async with TaskQueue(server.url, name=queue_name, fairness="time") as queue:
        handle = await queue.enqueue_by_name(NAME, [1], user_id="anna")
        async with Worker(queue):
            await handle.result(20)
        assert (await queue.user("anna")).metrics.cost < 1000


async def test_what_cannot_be_sent_is_refused(queue: TaskQueue):
    with pytest.raises(NotEncodable):
        Task.by_name(NAME, [object()])
    with pytest.raises(InvalidInput):
        Task.by_name("")
    with pytest.raises(BadArguments):
        await queue.enqueue_by_name(NAME, [{1: object()}], user_id="anna")


def test_a_limit_is_filled_from_arguments_that_have_names():
    made = Task.by_name(NAME, [], {"customer": "acme"}, limits=["crm:{customer}"])
    [key] = made.message().limits
    assert key.text == "crm:acme"
    assert made.message().overrides.unsaid == ["cost", "priority"]
    with pytest.raises(InvalidInput, match="customer"):
        Task.by_name(NAME, ["acme"], limits=["crm:{customer}"]).message()


def test_one_that_says_everything_says_nothing_more_on_the_wire():
    made = Task.by_name(NAME, [], cost=1, limits=[], priority=3)
    assert made.message().overrides is None
    unregister(NAME)
