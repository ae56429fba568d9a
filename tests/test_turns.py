"""Reports and claims of a worker: calls that are slow, fail or are repeated, and outcomes that are not taken."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from fairque import TaskEvent, TaskQueue, Worker, task
from fairque.errors import StoreError
from fairque.models import ANY_USER
from fairque.redis.store import Store
from fairque.settings import QueueSettings
from tests.support.calls import call_of
from tests.support.core import Core, outcome
from tests.support.eventually import eventually
from tests.support.gate import Gate, new_gate, work

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fairque.redis.delivery import Answer, Claim, Delivery
    from tests.support.proxy import CuttingProxy
    from tests.support.servers import Server


@pytest.fixture
def gate() -> Gate:
    return new_gate()


@pytest.fixture
async def far(queue: TaskQueue, proxy: CuttingProxy, queue_name: str) -> AsyncIterator[TaskQueue]:
    """The queue as seen through the proxy."""
    async with TaskQueue(proxy.url, name=queue_name) as queue:
        yield queue


@pytest.fixture
async def core(server: Server, queue_name: str) -> AsyncIterator[Core]:
    async with Core(server.url, queue_name) as core:
        yield core
        core.forget()


@task(result_ttl=0)
async def nothing() -> None: ...


# The loop


async def finished(queue: TaskQueue) -> int:
    return (await queue.stats()).finished


@pytest.mark.parametrize("script", ["turn", "settle"])
async def test_a_worker_goes_on_after_a_report_that_took_long(
    queue: TaskQueue, far: TaskQueue, proxy: CuttingProxy, script: str
) -> None:
    total = 3000
    await queue.enqueue_many([nothing() for _ in range(total)], user_id="acme")
    if script == "settle":  # which is called alone after a turn that failed, until a claim succeeds
        for n in range(1, 11):
            proxy.cut_reply(call_of("turn"), nth=n)
    hold = proxy.hold(call_of(script))
    async with Worker(far, concurrency=10):
        await hold.reached.wait()
        await asyncio.sleep(3)  # while no report gets through; within the timeout of a request
        hold.released.set()
        await eventually(lambda: is_finished(queue, total), deadline=60)


async def test_a_worker_stops_when_its_tasks_have_taken_all_threads_of_the_loop(queue: TaskQueue, gate: Gate) -> None:
    loop, done = asyncio.get_running_loop(), threading.Event()
    loop.set_default_executor(ThreadPoolExecutor(1))
    blocked = loop.run_in_executor(None, done.wait)
    try:
        async with asyncio.timeout(10), Worker(queue):
            await queue.enqueue(work(1), user_id="acme")
            await eventually(lambda: gate.started)
            gate.open()
            await eventually(lambda: is_finished(queue, 1))
    finally:
        done.set()
        await blocked


@pytest.mark.leaves_keys
async def test_a_fault_of_the_worker_itself_beside_a_claim_ends_it_loudly(
    queue: TaskQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not an outage, and not a bad outcome: repeated for ever it would leave all that ran unreported."""

    async def settle(*_: object) -> None:
        raise RuntimeError("a fault of its own")

    await queue.enqueue_many([nothing() for _ in range(200)], user_id="acme")
    monkeypatch.setattr(Store, "settle", settle)
    with pytest.RaisesGroup(pytest.RaisesExc(RuntimeError, match="a fault of its own"), flatten_subgroups=True):
        await asyncio.wait_for(Worker(queue, concurrency=100, shutdown_timeout=0).run(), 20)


async def is_finished(queue: TaskQueue, tasks: int) -> bool:
    return await finished(queue) == tasks


async def test_a_worker_whose_reports_fail_goes_on_claiming_and_reports_when_they_do_not(
    queue: TaskQueue, far: TaskQueue, proxy: CuttingProxy, gate: Gate
) -> None:
    gate.open()
    async with Worker(far, concurrency=4, poll_interval=0.1):
        for n in range(1, 200):
            for script in ("turn", "settle"):
                proxy.cut_reply(call_of(script), nth=n)
        for n in range(8):  # more than there are slots
            await queue.enqueue(work(n), user_id="acme")
        await eventually(lambda: len(gate.started) == 8)
    await Worker(queue).run_until_idle()
    assert await finished(queue) == len(gate.started) == 8


# An outcome that Redis does not take


@pytest.mark.leaves_keys("leases")  # of the lane that is deleted: the next look finds that
@pytest.mark.damages
async def test_an_outcome_that_is_not_taken_keeps_nothing_from_the_others_and_is_taken_later(
    server: Server, queue: TaskQueue, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    lost: list[TaskEvent] = []
    stream = f"{queue.keys.prefix}normal-stream:broken"
    async with Worker(queue, on_lost=lost.append):
        users = ["acme", "broken", "other"]
        handles = [await queue.enqueue(work(n), user_id=user) for n, user in enumerate(users)]
        follower = await queue.enqueue(work(3), user_id="acme", depends_on=[handles[0]])
        await eventually(lambda: len(gate.started) == 3)
        server.execute("SET", stream, "no stream")
        gate.open()
        assert await handles[0].result(timeout=10) == 0
        assert await handles[2].result(timeout=10) == 2
        assert await follower.result(timeout=10) == 3
        await eventually(lambda: "cannot be reported, trying again" in caplog.text)
        assert "WRONGTYPE" in caplog.text
        assert await finished(queue) == 3
        server.execute("DEL", stream)
        assert await handles[1].result(timeout=10) == 1
    assert lost == []
    assert len(gate.started) == 4


async def test_an_error_in_the_middle_of_a_batch_loses_none_of_the_outcomes_around_it(core: Core) -> None:
    for user in ("a", "b", "c"):
        await core.enqueue(user, "1")
    taken = sorted(await core.take(3), key=lambda of: of.user)
    core.execute("SET", ":normal-stream:b", "no stream")
    first, second, third = await core.settle(taken)
    assert (first, third) == (True, True)
    assert isinstance(second, StoreError)
    assert "WRONGTYPE" in str(second)
    assert core.state()["finished"] == "2"
    dump = core.dump()
    assert {"metrics:a", "metrics:c", "result:a:1", "result:c:1", "task:b:1"} <= dump.keys()


async def test_an_outcome_that_stands_twice_in_one_report_is_taken_once(core: Core) -> None:
    for n in (1, 2, 3):
        await core.enqueue("a", str(n))
    first, second, _ = await core.take(3)
    assert await core.settle([first, first, second]) == [True, True, True]
    state = core.state()
    assert (state["finished"], state["started"]) == ("2", "1")
    assert core.execute("XLEN", ":normal-stream:a") == 1


async def test_a_failure_that_is_reported_again_was_taken_also_when_its_task_was_requeued_meanwhile(core: Core) -> None:
    await core.enqueue("a", "1")
    taken = await core.take()
    assert await core.settle(taken, "failed") == [True]
    assert await core.store.requeue("a", ["1"]) == [True]
    assert await core.settle(taken, "failed") == [True]
    [again] = await core.take()
    assert await core.settle(taken, "failed") == [True]
    assert await core.settle([again]) == [True]


async def test_a_user_whose_numbers_are_broken_costs_the_others_none_of_theirs(core: Core) -> None:
    for user in ("a", "b", "c"):
        await core.enqueue(user, "1")
    taken = await core.take(3)
    core.execute("RPUSH", ":metrics:b", "no string")
    assert await core.settle(taken) == [True] * 3
    assert core.state()["finished"] == "3"
    assert {"metrics:a", "metrics:c", "metrics:*"} <= core.dump().keys()


async def test_what_is_no_measure_of_a_user_is_not_taken_for_numbers(core: Core) -> None:
    junk = "text of more letters than there are numbers"
    core.execute("SET", ":metrics:a", junk)
    await core.enqueue("a", "1")
    assert await core.settle(await core.take()) == [True]
    assert core.execute("GET", ":metrics:a") == junk.encode()
    assert "metrics:*" in core.dump()
    core.execute("DEL", ":metrics:a")


# What is large


@task
async def measure(text: str) -> int:
    return len(text)


async def test_bodies_larger_than_the_link_carries_within_a_timeout_get_through(
    queue: TaskQueue, proxy: CuttingProxy, queue_name: str
) -> None:
    size, speed, timeout = 200_000, 400_000, 0.25
    assert size / speed > 1.5 * timeout
    handles = [await queue.enqueue(measure("x" * size), user_id="acme") for _ in range(4)]
    async with TaskQueue(proxy.url, name=queue_name, timeout=timeout) as far:
        await far.stats()
        proxy.slow_down(speed)
        async with Worker(far):
            assert [await handle.result(timeout=30) for handle in handles] == [size] * 4
    assert [(await handle.info()).attempt for handle in handles] == [1] * 4


# Two in one


async def turn(core: Core, deliveries: Sequence[Delivery], want: int, **options: bool) -> tuple[list[Answer], Claim]:
    outcomes = [outcome(of, "finished") for of in deliveries]
    how = {"steal": True, "repeats": False} | options
    answers, claim = await core.store.turn("w", outcomes, want, groups=ANY_USER, number=1, **how)
    assert not isinstance(claim, StoreError)
    return answers, claim


async def test_a_call_that_reports_the_end_of_a_task_is_given_what_that_makes_possible(core: Core) -> None:
    await core.store.set_policy("acme", {"max_running": 1}, ())
    await core.enqueue("acme", "1", "2")
    answers, claim = await turn(core, await core.take(2), 2)
    assert answers == [True]
    assert [of.id for of in claim.deliveries] == ["2"]


async def test_a_claim_that_fails_keeps_nothing_from_what_was_reported_with_it(core: Core) -> None:
    await core.enqueue("acme", "1", "2")
    taken = await core.take(1)
    core.execute("SET", ":due", "no sorted set")
    outcomes = [outcome(of, "finished") for of in taken]
    answers, claim = await core.store.turn("w", outcomes, 1, groups=ANY_USER, steal=True, number=1, repeats=False)
    assert answers == [True]
    assert isinstance(claim, StoreError)
    assert (core.state()["finished"], core.state()["started"]) == ("1", "0")


# A claim that is repeated


async def again(core: Core, want: int, *, number: int = 1, repeats: bool = True) -> list[Delivery]:
    claim = await core.store.claim("w", want, wait=False, number=number, repeats=repeats)
    return claim.deliveries


def named(deliveries: Sequence[Delivery]) -> list[tuple[str, bytes, int]]:
    return [(of.id, of.stream_id, of.attempt) for of in deliveries]


async def test_a_repeated_claim_is_given_the_same_deliveries_and_no_others(core: Core) -> None:
    await core.enqueue("acme", "1", "2", "3", "4", "5")
    first = await again(core, 3, repeats=False)
    second = await again(core, 3)
    assert named(second) == named(first)
    assert [of.body for of in second] == [of.body for of in first]
    assert [of.queued_ms for of in second] == [of.queued_ms for of in first]
    assert [of.id for of in await again(core, 3, number=2, repeats=False)] == ["4", "5"]


async def test_a_repeated_claim_whose_first_try_came_to_nothing_is_a_first_try(core: Core) -> None:
    await core.enqueue("acme", "1", "2")
    assert len(await again(core, 1, number=1)) == 1
    assert [of.id for of in await again(core, 1, number=2)] == ["2"]


async def test_a_repeated_claim_that_wants_less_keeps_the_first_ones_and_puts_the_others_back_uncharged(
    core: Core,
) -> None:
    await core.enqueue("acme", "1", "2", "3", "4")
    await core.enqueue("other", "1")
    first = await again(core, 5, repeats=False)
    tag = (await core.store.user("acme")).tag
    second = await again(core, 2)
    assert named(second) == named(first)
    assert [bool(of.body) for of in second] == [True, True, False, False, False]
    assert await core.settle(second[2:], "released") == [True] * 3
    assert core.state()["started"] == "2"
    third = await again(core, 5, number=2, repeats=False)
    assert sorted((of.user_id, of.id) for of in third) == sorted((of.user_id, of.id) for of in first[2:])
    assert {of.attempt for of in third} == {1}
    assert (await core.store.user("acme")).tag == tag, "paid for at the first delivery"


@pytest.mark.parametrize("is_empty", [False, True])
async def test_a_claim_that_arrives_after_its_repetition_was_answered_is_given_nothing(
    core: Core, is_empty: bool
) -> None:
    """The worker gave it up, and would not know of what it was handed."""
    if not is_empty:
        await core.enqueue("acme", "1")
    assert len(await again(core, 1, number=7, repeats=True)) == (not is_empty)
    await core.enqueue("acme", "2")
    assert await again(core, 1, number=7, repeats=False) == []
    assert [of.id for of in await again(core, 1, number=8, repeats=False)] == ["2"]
    await core.enqueue("acme", "3")
    assert await again(core, 1, number=7, repeats=True) == []
    assert [of.id for of in await again(core, 1, number=9, repeats=False)] == ["3"]


async def test_what_another_worker_has_by_now_is_not_delivered_again(core: Core) -> None:
    await core.enqueue("acme", "1", "2")
    first = await again(core, 2, repeats=False)
    core.execute("XCLAIM", ":normal-stream:acme", "workers", "w", 0, first[0].stream_id, "IDLE", 1000, "JUSTID")
    core.execute("ZADD", ":leases", 0, "normal:acme")
    assert [of.id for of in await core.take(1, worker="thief", lease_ms=1000)] == ["1"]
    assert [of.id for of in await again(core, 2)] == ["2"]


async def test_a_claim_carries_so_many_bytes_and_says_that_there_is_more(core: Core) -> None:
    body = b"x" * 300_000
    await core.enqueue("acme", *map(str, range(6)))
    for n in range(6):
        core.execute("SET", f":body:acme:{n}", body)
    settings = QueueSettings(max_message_bytes=1 << 20)
    claim = await core.store.claim("w", 6, settings=settings)
    assert len(claim.deliveries) == 4
    assert claim.sleep == 0
    assert len((await core.store.claim("w", 6, settings=settings)).deliveries) == 2


async def has_finished_one(queue: TaskQueue) -> bool:
    return await finished(queue) == 1


async def test_a_worker_that_lets_its_last_tasks_end_is_told_of_no_more_work(
    queue: TaskQueue, server: Server, gate: Gate
) -> None:
    """Else whoever idles would hear of it by its next look only."""

    def idle() -> int:
        return server.execute("SCARD", f"fairque:{{{queue.name}}}:waiting")

    async with Worker(queue, concurrency=2, poll_interval=60) as leaving:
        held = await queue.enqueue(work(1), user_id="anna")
        await eventually(lambda: gate.started and idle() == 1)
        async with Worker(queue, poll_interval=60):
            await eventually(lambda: idle() == 2)
            leaving.retire()
            await eventually(lambda: idle() == 1)
            await queue.enqueue(nothing(), user_id="ben")
            await eventually(lambda: has_finished_one(queue), 5)
            gate.open()
            assert await held.result(timeout=20) == 1
