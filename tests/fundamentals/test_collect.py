"""Grouped work: a body that serves many calls at once, of one user."""

import asyncio
import time

import pytest

from fairque import (
    Collect,
    InvalidInput,
    RetryPolicy,
    TaskCanceled,
    TaskFailed,
    TaskQueue,
    TaskState,
    Worker,
    current_task,
    task,
)

calls: list[list[int]] = []


@pytest.fixture(autouse=True)
def _fresh():
    calls.clear()


def doubled(size: int = 5, within: float = 3600, **options):
    @task(name="doubled", collect=Collect(size, within=within), **options)
    async def double(numbers: list[int]) -> list[int | Exception]:
        calls.append(list(numbers))
        return [2 * n if n >= 0 else ValueError(f"{n} is negative") for n in numbers]

    return double


async def test_as_many_as_fit_run_together_when_they_wait(queue: TaskQueue):
    double = doubled(5)
    async with Worker(queue):
        handles = await queue.enqueue_many([double(n) for n in range(5)], user_id="anna")
        assert await queue.results(handles, 20) == [0, 2, 4, 6, 8]
    assert calls == [[0, 1, 2, 3, 4]]


async def test_those_that_wait_run_when_the_time_has_passed(queue: TaskQueue):
    double = doubled(100, within=0.2)
    began = time.monotonic()
    async with Worker(queue, poll_interval=300):
        handles = [await queue.enqueue(double(n), user_id="anna") for n in range(12)]
        assert await queue.results(handles, 20) == [2 * n for n in range(12)]
    assert time.monotonic() - began >= 0.2
    assert sum(map(len, calls)) == 12
    assert len(calls) <= 2


async def test_until_then_no_slot_waits_for_them(queue: TaskQueue):
    double = doubled(100)

    @task
    async def other() -> str:
        return "done"

    waiting = await queue.enqueue_many([double(n) for n in range(3)], user_id="anna")
    async with Worker(queue, concurrency=1):
        assert await (await queue.enqueue(other(), user_id="anna")).result(20) == "done"
        assert [await handle.state() for handle in waiting] == [TaskState.SCHEDULED] * 3
    await queue.cancel_all("anna")
    assert (await queue.purge("anna")).complete


async def test_users_and_names_do_not_mix(queue: TaskQueue):
    double = doubled(4)
    async with Worker(queue):
        made = [await queue.enqueue(double(n), user_id=user) for n in range(4) for user in ("anna", "ben")]
        await queue.results(made, 20)
    assert calls == [[0, 1, 2, 3]] * 2


async def test_they_are_one_service_that_costs_what_all_of_them_do(queue: TaskQueue):
    double = doubled(4, cost=3)
    handles = await queue.enqueue_many([double(n) for n in range(8)], user_id="anna")
    await Worker(queue, concurrency=1).run_until_idle()
    await queue.results(handles, 20)
    assert [len(call) for call in calls] == [4, 4]
    assert (await queue.user("anna")).metrics.cost == 24
    stats = await queue.stats()
    assert (stats.started, stats.scheduled, stats.queued, stats.finished) == (0, 0, 0, 8)


async def test_a_user_with_groups_gets_no_more_than_its_share(queue: TaskQueue):
    """A group of ten is charged as ten: an attacker gains nothing by collecting."""
    order: list[str] = []

    @task(name="grouped", collect=Collect(10, within=3600))
    async def grouped(numbers: list[int]) -> list[int | Exception]:
        order.extend(["attacker"] * len(numbers))
        return list(numbers)

    @task(name="single")
    async def single() -> None:
        order.append("quiet")

    await queue.enqueue_many([grouped(n) for n in range(200)], user_id="attacker")
    await queue.enqueue_many([single()] * 50, user_id="quiet")
    await Worker(queue, concurrency=1).run_until_idle()
    at = [index for index, who in enumerate(order) if who == "quiet"][-1]
    assert order[:at].count("attacker") <= 70


async def test_each_has_an_outcome_and_retries_of_its_own(queue: TaskQueue):
    attempts: list[list[tuple[int, int]]] = []

    @task(name="picky", collect=Collect(3, within=0.05), retry=RetryPolicy(max=1, base=0.01))
    async def picky(numbers: list[int]) -> list[int | Exception]:
        attempts.append([(n, current_task().attempt) for n in numbers])
        return [n if n != 1 or current_task().attempt == 2 else KeyError("not yet") for n in numbers]

    handles = await queue.enqueue_many([picky(n) for n in range(3)], user_id="anna")
    async with Worker(queue):
        assert await queue.results(handles, 20) == [0, 1, 2]
    assert attempts == [[(0, 1), (1, 1), (2, 1)], [(1, 2)]]


async def test_what_the_body_raises_is_for_all_of_them(queue: TaskQueue):
    @task(name="broken", collect=Collect(2, within=3600))
    async def broken(numbers: list[int]) -> list[int | Exception]:
        if len(numbers) > 1:
            raise ValueError("as ordered")
        return []

    handles = await queue.enqueue_many([broken(n) for n in range(2)], user_id="anna")
    single = await queue.enqueue(broken(1), user_id="ben", delay=0.001)
    async with Worker(queue):
        for handle in handles:
            with pytest.raises(TaskFailed, match="as ordered"):
                await handle.result(20)
        with pytest.raises(TaskFailed, match="was given 1 arguments, and returned 0 results"):
            await single.result(20)
    for user in ("anna", "ben"):
        await queue.purge(user)


async def test_a_failed_one_that_is_requeued_runs_alone(queue: TaskQueue):
    double = doubled(3)
    handles = await queue.enqueue_many([double(n) for n in (1, -1, 2)], user_id="anna")
    async with Worker(queue):
        with pytest.raises(TaskFailed, match="-1 is negative"):
            await handles[1].result(20)
        await queue.requeue(handles[1])
        with pytest.raises(TaskFailed):
            await handles[1].result(20)
    assert calls == [[1, -1, 2], [-1]]
    await queue.purge("anna")


async def test_one_that_is_canceled_leaves_the_others_together(queue: TaskQueue):
    double = doubled(4)
    handles = await queue.enqueue_many([double(n) for n in range(3)], user_id="anna")
    await handles[0].cancel()
    more = await queue.enqueue(double(7), user_id="anna")
    async with Worker(queue):
        assert await queue.results([*handles[1:], more], 20) == [2, 4, 14]
    assert calls == [[1, 2, 7]]


async def test_one_that_is_promoted_takes_the_others_along(queue: TaskQueue):
    double = doubled(10)
    handles = await queue.enqueue_many([double(n) for n in range(3)], user_id="anna")
    assert await handles[1].promote()
    async with Worker(queue):
        assert await queue.results(handles, 20) == [0, 2, 4]
    assert [sorted(call) for call in calls] == [[0, 1, 2]]


async def test_one_that_is_canceled_while_it_runs_harms_no_other(queue: TaskQueue):
    started, end = asyncio.Event(), asyncio.Event()

    @task(name="slow", collect=Collect(3, within=3600))
    async def slow(numbers: list[int]) -> list[int | Exception]:
        started.set()
        await end.wait()
        return list(numbers)

    handles = await queue.enqueue_many([slow(n) for n in range(3)], user_id="anna")
    async with Worker(queue, cancel_grace=0.05) as worker:
        await asyncio.wait_for(started.wait(), 20)
        assert len(worker._parts.runner) == 1, "they take one slot"
        await handles[0].cancel("why")
        with pytest.raises(TaskCanceled, match="why"):
            await handles[0].result(20)
        end.set()
        assert await queue.results(handles[1:], 20) == [1, 2]


async def test_a_timeout_ends_all_of_them_and_their_body(queue: TaskQueue):
    ended = asyncio.Event()

    @task(name="hangs", collect=Collect(2, within=3600), timeout=0.1)
    async def hangs(numbers: list[int]) -> list[int | Exception]:
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()
        return list(numbers)

    handles = await queue.enqueue_many([hangs(n) for n in range(2)], user_id="anna")
    async with Worker(queue):
        for handle in handles:
            with pytest.raises(TaskFailed, match="ran longer than"):
                await handle.result(20)
        await asyncio.wait_for(ended.wait(), 20)
    await queue.purge("anna")


async def test_a_worker_that_stops_puts_all_of_them_back(queue: TaskQueue):
    started = asyncio.Event()
    stays = True

    @task(name="stays", collect=Collect(2, within=3600))
    async def stay(numbers: list[int]) -> list[int | Exception]:
        started.set()
        if stays:
            await asyncio.sleep(60)
        return list(numbers)

    handles = await queue.enqueue_many([stay(n) for n in range(2)], user_id="anna")
    async with Worker(queue, shutdown_timeout=0):
        await asyncio.wait_for(started.wait(), 20)
    assert (await queue.stats()).started == 0
    stays = False
    async with Worker(queue):
        assert await queue.results(handles, 20) == [0, 1]
    assert (await handles[0].info()).attempt == 1


@pytest.mark.leaves_keys
async def test_what_a_dead_worker_had_runs_one_by_one(server, queue_name: str):
    double = doubled(3)
    async with TaskQueue(server.url, name=queue_name, lease=1) as queue:
        handles = await queue.enqueue_many([double(n) for n in range(3)], user_id="anna")
        store = queue.store()
        [taken] = (await store.claim("ghost", 1)).deliveries
        assert len(taken.followers) == 2
        await store.close()
        async with Worker(queue):
            assert await queue.results(handles, 60) == [0, 2, 4]
    assert sorted(calls) == [[0], [1], [2]]


async def test_a_plain_function_collects_as_well(queue: TaskQueue):
    @task(name="plain", collect=Collect(3, within=3600))
    def lengths(texts: list[str]) -> list[int]:
        calls.append([len(texts)])
        return [len(text) for text in texts]

    handles = await queue.enqueue_many([lengths(text) for text in ("a", "bb", "ccc")], user_id="anna")
    async with Worker(queue):
        assert await queue.results(handles, 20) == [1, 2, 3]
    assert calls == [[3]]


async def test_one_with_a_delay_or_behind_others_runs_alone(queue: TaskQueue):
    double = doubled(2)
    first = await queue.enqueue(double(1), user_id="anna", delay=0.001)
    second = await queue.enqueue(double(2), user_id="anna", depends_on=[first])
    async with Worker(queue):
        assert await queue.results([first, second], 20) == [2, 4]
    assert calls == [[1], [2]]


async def test_arguments_are_those_of_one_call(queue: TaskQueue):
    double = doubled(2)
    for wrong in (["x"], [[1, 2]], [], [1, 2]):
        with pytest.raises(InvalidInput):
            double(*wrong)
    handle = await queue.enqueue(double(numbers=3).options(delay=0.001), user_id="anna")
    async with Worker(queue):
        assert await handle.result(20) == 6


async def test_what_is_purged_leaves_nothing(queue: TaskQueue):
    double = doubled(3)
    await queue.enqueue_many([double(n) for n in range(10)], user_id="anna")
    await queue.purge("anna")


def test_what_cannot_collect_is_refused_at_decoration():
    async def two(a: list[int], b: list[int]) -> list[int]:
        return a + b

    async def one(a: int) -> list[int]:
        return [a]

    async def none(a: list[int]) -> int:
        return a[0]

    async def lengths(a: list[int]) -> list[int]:
        return a

    for wrong in (two, one, none):
        with pytest.raises(InvalidInput, match="collects its calls"):
            task(name="wrong", collect=Collect(2, within=1))(wrong)
    for size, within in ((1, 1), (1001, 1), (2, 0), (2, 4000)):
        with pytest.raises(InvalidInput):
            Collect(size, within=within)
    with pytest.raises(InvalidInput, match="collect"):
        task(name="wrong", collect=5)(none)
    for options in ({"auto_xcom": True}, {"push_key": "a"}):
        with pytest.raises(InvalidInput, match="collects its calls"):
            task(name="wrong", collect=Collect(2, within=1), **options)(lengths)
