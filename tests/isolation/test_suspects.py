"""What runs in a process that dies may have killed it: it runs apart from then on, until one of it dies alone.

A killer is given up for that. Whoever ran beside it is never failed for it, and pays nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING

import pytest

from fairque import FailureKind, TaskFailed, TaskQueue, TaskState, Worker
from fairque.redis.arguments import Accuse
from fairque.redis.delivery import Delivery, Refusal
from fairque.redis.store import Store
from tests.support.core import Core
from tests.support.eventually import eventually
from tests.support.gate import new_gate, work
from tests.support.timed import TimedCore
from tests.support.together import store_of_all
from tests.support.workers import Fleet
from tests.workers import tasks

if TYPE_CHECKING:
    from tests.support.process import WorkerProcess
    from tests.support.servers import Server

SHORT = 20  # ms
LONG = 500

pytestmark = pytest.mark.leaves_keys()


@pytest.fixture
async def core(server: Server, queue_name: str) -> AsyncIterator[Core]:
    async with Core(server.url, queue_name) as core:
        core.renew("some", [], concurrency=100)  # ten suspects may run at once
        yield core


async def lose(core: Core, want: int, worker: str = "dead") -> list[Delivery]:
    """A worker takes so many, and is silent for longer than its lease."""
    taken = await core.take(want, worker=worker, lease_ms=SHORT, steal=False)
    await asyncio.sleep(2 * SHORT / 1000)
    return taken


async def steal(core: Core, worker: str, *, arrives: bool = True, **holds: int) -> Delivery | None:
    """What the worker gets of silent ones within fifty looks, at most one; afterwards it is silent as well."""
    for _ in range(50):
        taken = await core.take(1, worker=worker, lease_ms=SHORT, **holds)
        if taken:
            if arrives:
                assert await core.store.receive(worker, taken[0])
            await asyncio.sleep(2 * SHORT / 1000)
            return taken[0]
        await asyncio.sleep(SHORT / 1000)
    return None


async def test_a_claim_takes_one_suspect_however_much_it_wants(core: Core) -> None:
    for number in range(5):
        await core.enqueue(f"user {number}", "t")
    await lose(core, 5)
    assert [len(await core.take(5, worker=f"w {n}", lease_ms=SHORT)) for n in range(5)] == [1] * 5


async def test_a_worker_that_has_a_suspect_gets_no_second_one(core: Core) -> None:
    await core.enqueue("anna", "t")
    await lose(core, 1)
    assert await steal(core, "busy", holds=1, suspects=1) is None
    assert await steal(core, "free") is not None


async def test_all_workers_together_have_suspects_in_a_tenth_of_their_slots(core: Core) -> None:
    core.renew("some", [], concurrency=20)
    for number in range(4):
        await core.enqueue(f"user {number}", "t")
    await lose(core, 4)
    core.execute("ZADD", ":suspects", 2**50, "one:that runs")
    assert [len(await core.take(1, worker=f"w {n}", lease_ms=SHORT)) for n in range(3)] == [1, 0, 0]
    core.execute("DEL", ":suspects")


async def test_suspects_of_many_users_run_by_turns(core: Core) -> None:
    for number in range(50):
        await core.enqueue("many", f"t {number}")
    await core.enqueue("one", "t")
    await lose(core, 51)
    first = [await steal(core, f"w {n}", arrives=False) for n in range(3)]
    assert "one" in {delivery.user_id for delivery in first if delivery}


async def test_a_worker_does_not_take_its_own_late_deliveries_while_their_answer_may_be_on_its_way(core: Core) -> None:
    """It looks as others have fallen silent; what it does not renew for some leases, it knows nothing of."""
    for user, worker in (("late", "lives"), ("dead", "dies")):
        await core.enqueue(user, "t")
        assert len(await core.take(1, worker=worker, lease_ms=LONG, steal=False)) == 1
    await asyncio.sleep(1.2 * LONG / 1000)
    looks = [await core.take(1, worker="lives", lease_ms=LONG, holds=1) for _ in range(5)]
    assert [of.user_id for found in looks for of in found] == ["dead"]


async def test_a_delivery_that_never_arrived_says_nothing_of_its_task(core: Core) -> None:
    await core.enqueue("anna", "t")
    await lose(core, 1)
    for attempt in range(2, 8):
        taken = await steal(core, f"w {attempt}", arrives=False)
        assert taken is not None
        assert (taken.attempt, taken.deaths, taken.alone_ms) == (attempt, 0, 0)


async def test_who_died_as_the_only_suspect_runs_alone_and_only_such_deaths_count(core: Core) -> None:
    await many_workers(core)
    await core.enqueue("anna", "t")
    await lose(core, 1)
    found = [await steal(core, f"w {n}") for n in range(4)]
    assert [(of.alone_ms > 0, of.deaths) for of in found if of] == [(False, 0), (True, 0), (True, 1), (True, 2)]


async def many_workers(core: Core) -> None:
    """So many that one of them may run one alone at any time."""
    for number in range(10):
        core.renew(f"worker {number}", [], concurrency=10)


async def test_a_death_that_came_long_after_it_had_company_again_does_not_count(core: Core) -> None:
    await many_workers(core)
    await core.enqueue("anna", "t")
    await lose(core, 1)
    await steal(core, "first")
    alone = await steal(core, "second")
    assert alone is not None
    await asyncio.sleep(alone.alone_ms / 1000)
    assert core.renew("second", [alone]) == []
    await asyncio.sleep(2 * SHORT / 1000)
    again = await steal(core, "third")
    assert again is not None
    assert (again.deaths, again.alone_ms > alone.alone_ms) == (0, True)


async def test_tasks_that_kill_take_no_more_than_a_tenth_of_the_time_of_a_lone_worker(
    server: Server, queue_name: str
) -> None:
    """It has a long task, so that it never becomes empty, for which one that killed twice waits."""
    async with TimedCore(server.url, queue_name) as core:
        await core.enqueue("killer", "k")
        await core.take(1, worker="dead", lease_ms=1)
        core.rest()
        [killer] = await core.take(1, worker="dead too", lease_ms=1)
        assert await core.store.receive("dead too", killer)
        await core.enqueue("quiet", *(f"t {n}" for n in range(700)))
        served = []
        core.tick(60_000_000)  # those that died are forgotten
        for _ in range(600):
            core.rest()
            core.tick(1_000_000)
            taken = await core.take(1, worker="lone", lease_ms=1, holds=1)
            served.append(len(await core.settle(taken, worker="lone")))
        assert 538 <= sum(served) < 600, "it makes room now and then, and for a tenth of the time at most"


async def test_who_runs_alone_gets_an_empty_worker_and_nothing_comes_beside_it(core: Core) -> None:
    await core.enqueue("anna", "t")
    await lose(core, 1)
    await steal(core, "first")
    await core.enqueue("bob", *"abc")
    taken = await core.take(9, worker="empty", lease_ms=SHORT)
    assert [(of.user_id, of.alone_ms > 0) for of in taken] == [("anna", True)]


async def test_one_busy_worker_at_a_time_makes_room_and_gets_nothing_until_it_is_empty(core: Core) -> None:
    await core.enqueue("anna", "t")
    await lose(core, 1)
    await steal(core, "first")
    await core.enqueue("bob", *"abcdef")
    assert await core.take(9, worker="full", lease_ms=SHORT, holds=9) == []
    assert len(await core.take(1, worker="other", lease_ms=SHORT, holds=9)) == 1
    assert await core.take(9, worker="full", lease_ms=SHORT, holds=1) == []
    taken = await steal(core, "full", holds=0)
    assert taken is not None
    assert (taken.user_id, taken.alone_ms > 0) == ("anna", True)
    await core.settle([taken], worker="full")
    assert len(await core.take(1, worker="full", lease_ms=SHORT, holds=1)) == 1


async def test_an_innocent_is_never_given_up_however_often_its_worker_is_killed_by_others(core: Core) -> None:
    """Beside it runs a new killer each time, which is no suspect yet."""
    await core.enqueue("innocent", "t")
    await lose(core, 1)
    for number in range(8):
        await core.enqueue("killer", f"k {number}")
        for of in await core.take(2, worker=f"w {number}", lease_ms=SHORT, holds=1):
            assert of.deaths == 0
            if of.lost:
                assert await core.store.receive(f"w {number}", of)
        await asyncio.sleep(2 * SHORT / 1000)


async def test_a_worker_is_not_robbed_by_itself(core: Core) -> None:
    await core.enqueue("anna", "t")
    held = await lose(core, 1, worker="late")
    assert await core.take(1, worker="late", lease_ms=SHORT, holds=1) == []
    assert core.renew("late", held) == []
    assert await core.settle(held, worker="late") == [True]


async def test_a_retry_clears_the_name_of_a_suspect(core: Core) -> None:
    await core.enqueue("anna", "t")
    await lose(core, 1)
    await steal(core, "first")
    taken = await steal(core, "second")
    assert taken is not None
    assert taken.alone_ms
    assert await core.settle([taken], "retry", worker="second") == [True]
    [again] = await core.take(1, worker="third", lease_ms=SHORT)
    assert (again.lost, again.deaths, again.alone_ms) == (0, 0, 0)


async def test_what_ended_is_no_suspect_any_more(core: Core) -> None:
    await core.enqueue("anna", "t")
    await lose(core, 1)
    taken = await core.take(1, worker="w", lease_ms=SHORT)
    assert core.execute("ZCARD", ":suspects") == 1
    assert await core.settle(taken, worker="w") == [True]
    assert core.execute("EXISTS", ":suspects") == 0


# Real workers


async def test_who_runs_alone_for_long_gets_company_again(server: Server, queue_name: str) -> None:
    """Else a task that kills twice and then sleeps would have a lone worker for itself."""
    gate = new_gate()
    async with TaskQueue(server.url, name=queue_name, lease=0.2) as queue:
        killer = await queue.enqueue(work(1), user_id="killer")
        store = store_of_all(queue.store())
        for silent in ("as any other", "as the only suspect"):
            [delivery] = await eventually(lambda worker=silent: taken_by(store, worker))
            assert await store.receive(silent, delivery)
        await store.close()
        async with Worker(queue, concurrency=2):
            await eventually(lambda: gate.started)
            quiet = await queue.enqueue(tasks.add(1, 2), user_id="quiet")
            assert await quiet.result(timeout=10) == 3
            assert await killer.state() is TaskState.STARTED
            gate.open()
            assert await killer.result(timeout=10) == 1


async def taken_by(store: Store, worker: str) -> list[Delivery]:
    return (await store.claim(worker, 1, wait=False)).deliveries


# Real processes


@pytest.fixture
async def queue(server: Server, queue_name: str) -> AsyncIterator[TaskQueue]:
    async with TaskQueue(server.url, name=queue_name, lease=0.5) as queue:
        yield queue


@contextlib.asynccontextmanager
async def supervised(fleet: Fleet, processes: int) -> AsyncIterator[None]:
    """Workers that are started again when they die, a bounded number of times."""

    async def keep_running() -> None:
        for _ in range(20):
            process = await fleet.launch(concurrency=10, max_deliveries=2)
            await process.wait()

    supervisors = [asyncio.create_task(keep_running()) for _ in range(processes)]
    try:
        yield
    finally:
        for supervisor in supervisors:
            supervisor.cancel()
        await asyncio.gather(*supervisors, return_exceptions=True)


async def test_a_task_that_kills_its_worker_harms_none_of_those_beside_it(
    worker_process: Callable[..., Awaitable[WorkerProcess]], server: Server, queue: TaskQueue, queue_name: str
) -> None:
    fleet = Fleet(worker_process, server.url, queue_name, lease=0.5)
    killer = await queue.enqueue(tasks.kill_worker(), user_id="killer")
    healthy = [await queue.enqueue(tasks.nap(0.3), user_id=f"user {n}") for n in range(8)]
    async with supervised(fleet, 2):
        for handle in healthy:
            await handle.result(timeout=30)
        with pytest.raises(TaskFailed) as caught:
            await killer.result(timeout=30)
    assert caught.value.kind is FailureKind.LOST
    stats = await queue.stats()
    assert (stats.finished, stats.failed) == (8, 1)
    assert [user.metrics.finished for user in await queue.users() if user.user_id != "killer"] == [1] * 8


async def test_one_that_was_lost_before_its_worker_ended_because_of_it_runs_alone_from_then_on(core: Core) -> None:
    await many_workers(core)
    await core.enqueue("anna", "t")
    await lose(core, 1)
    blocks = await steal(core, "blocked")
    assert blocks is not None
    place = blocks.lane.decode(), blocks.user.decode(), blocks.id, blocks.stream_id.decode(), blocks.attempt
    assert await core.store.call(Accuse("blocked", *place)) == 1
    again = await steal(core, "next")
    assert again is not None
    assert (again.deaths, again.alone_ms > 0) == (1, True)


async def test_a_task_that_was_given_up_for_its_deaths_has_a_clean_name_when_it_is_brought_back(core: Core) -> None:
    await many_workers(core)
    await core.enqueue("anna", "t")
    await lose(core, 1)
    found = [await steal(core, f"w {n}") for n in range(4)]
    assert found[-1] is not None
    assert await core.settle([found[-1]], "failed", worker="w 3") == [True]
    assert await core.store.requeue("anna", ["t"]) == [True]
    await lose(core, 1)
    again = await steal(core, "next", holds=1)
    assert again is not None, "it waits for no empty worker"
    assert (again.deaths, again.alone_ms) == (0, 0)


async def test_a_late_report_of_a_suspect_lets_no_second_one_run_beside_it(server: Server, queue_name: str) -> None:
    """Its worker was silent, and another one has it by then."""
    async with TimedCore(server.url, queue_name) as core:
        await core.enqueue("anna", "1", "2")
        await core.take(2, worker="dead", lease_ms=SHORT)
        core.tick(SHORT * 2000)
        [late] = await core.take(1, worker="late", lease_ms=SHORT, holds=1)
        core.tick(SHORT * 2000)
        taken: list[Delivery] = []
        while not any(of.id == late.id for of in taken):
            core.tick(SHORT * 1000 + 1000)
            taken = await core.take(1, worker=f"thief {core.now_us()}", lease_ms=SHORT)
        assert await core.settle([late], worker="late") == [Refusal.ELSEWHERE]
        assert await core.take(1, worker="other", lease_ms=SHORT) == []
        core.forget()
