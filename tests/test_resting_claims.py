"""Claims of idle workers that rest in Redis, and are answered by whoever puts in a task."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from fairque import TaskQueue, Worker, task
from fairque.models import ANY_USER
from tests.support.calls import call_of
from tests.support.core import Core, new_task
from tests.support.eventually import eventually
from tests.support.gate import Gate, new_gate, work

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from fairque.redis.delivery import Claim, Delivery, NewTask
    from fairque.redis.store import Store
    from tests.support.proxy import CuttingProxy
    from tests.support.servers import Server

NAME = "w"
PATIENCE = 5.0


@pytest.fixture
def gate() -> Gate:
    return new_gate()


class IdleWorker:
    """Calls as a worker does that has a slot free, and hears its messages."""

    def __init__(self, queue: TaskQueue, store: Store, name: str = NAME) -> None:
        self._queue, self._store, self._name = queue, store, name
        self.heard: asyncio.Queue[bytes | None] = asyncio.Queue()

    async def listen(self) -> None:
        await self._queue.listener.subscribe(self._queue.keys.wake_channel(self._name), self.heard.put_nowait)

    async def claim(self, number: int, want: int = 5, *, rested: bool = False) -> list[Delivery]:
        claim = await self._store.claim(self._name, want, number=number, rests=True, rested=rested)
        return claim.deliveries

    async def message(self) -> bytes:
        message = await asyncio.wait_for(self.heard.get(), PATIENCE)
        assert message is not None
        return message

    async def answer(self) -> tuple[int, Claim]:
        return self._store.answer_in(await self.message())

    async def leave(self) -> None:
        await self._store.leave(self._name, ANY_USER)


@pytest.fixture
async def idle(queue: TaskQueue) -> AsyncIterator[IdleWorker]:
    store = queue.store()
    idle = IdleWorker(queue, store)
    yield idle
    await idle.leave()
    await store.close()
    await Worker(queue, scheduler=False).run_until_idle()  # what is left


@pytest.fixture
async def listening(idle: IdleWorker) -> IdleWorker:
    await idle.listen()
    return idle


@task
async def nothing() -> None: ...


@pytest.mark.leaves_keys
async def test_who_puts_in_answers_the_claim_of_who_is_idle(queue: TaskQueue, listening: IdleWorker) -> None:
    assert await listening.claim(7) == []
    handle = await queue.enqueue(nothing(), user_id="acme", task_id="first")
    number, claim = await listening.answer()
    assert (number, [of.id for of in claim.deliveries]) == (7, ["first"])
    assert (await handle.info()).worker == NAME
    assert [worker.id for worker in (await queue.stats()).workers if worker.id != NAME] == []


@pytest.mark.leaves_keys
async def test_what_it_was_handed_is_told_again_to_who_asks_again(queue: TaskQueue, listening: IdleWorker) -> None:
    """The message may have been lost."""
    await listening.claim(7)
    await queue.enqueue(nothing(), user_id="acme", task_id="first")
    _, claim = await listening.answer()
    [first] = claim.deliveries
    await eventually(lambda: time.time() * 1000 > first.started_ms + 5)
    [again] = await listening.claim(7, rested=True)
    assert (again.id, again.stream_id, again.attempt, again.body) == (first.id, first.stream_id, 1, first.body)
    assert again.started_ms == first.started_ms
    assert await listening.claim(8) == []


@pytest.mark.leaves_keys
async def test_one_that_found_nothing_goes_on_under_its_number(queue: TaskQueue, listening: IdleWorker) -> None:
    for _ in range(3):
        assert await listening.claim(7, rested=True) == []
    await queue.enqueue(nothing(), user_id="acme", task_id="first")
    number, claim = await listening.answer()
    assert (number, len(claim.deliveries)) == (7, 1)


@pytest.mark.leaves_keys
async def test_who_rests_is_handed_one_task_and_has_to_ask_for_more(queue: TaskQueue, listening: IdleWorker) -> None:
    """Should it stand still, it keeps no more than that from others."""
    await listening.claim(7)
    await queue.enqueue_many([nothing() for _ in range(3)], user_id="acme")
    _, claim = await listening.answer()
    assert len(claim.deliveries) == 1
    await queue.enqueue(nothing(), user_id="zoe")
    stats = await queue.stats()
    assert (stats.started, stats.queued) == (1, 3)
    assert listening.heard.empty()
    assert len(await listening.claim(8)) == 3


@pytest.mark.leaves_keys
async def test_a_call_answers_some_of_those_who_rest_and_tells_the_others_of_work(queue: TaskQueue) -> None:
    """Others wait for it meanwhile."""
    store = queue.store()
    try:
        idle = [IdleWorker(queue, store, f"w{n}") for n in range(12)]
        for each in idle:
            await each.listen()
            await each.claim(1)
        await queue.enqueue_many([nothing() for _ in idle], user_id="acme")
        told = [await each.message() for each in idle]
        assert Counter(message != b"" for message in told) == {True: 8, False: 4}
        assert (await queue.stats()).started == 8
        for each in idle:
            await each.leave()
    finally:
        await store.close()


@pytest.mark.leaves_keys
@pytest.mark.parametrize("held_back", ["until it is due", "by a pause"])
async def test_nobody_is_served_before_those_whose_time_has_come(
    queue: TaskQueue, listening: IdleWorker, held_back: str
) -> None:
    """They are let in by claims, and stand beside the others then."""
    at = datetime.now(UTC) + timedelta(seconds=0.1)
    if held_back == "by a pause":
        await queue.enqueue(nothing(), user_id="zoe")
        await queue.pause("zoe", until=at)
    else:
        await queue.enqueue(nothing(), user_id="zoe", execute_after=at)
    assert await listening.claim(7) == []
    await eventually(lambda: datetime.now(UTC) > at + timedelta(milliseconds=5))
    await queue.enqueue_many([nothing() for _ in range(3)], user_id="acme")
    assert await listening.message() == b""
    assert {of.user_id for of in await listening.claim(7, 2, rested=True)} == {"acme", "zoe"}


@pytest.mark.leaves_keys
async def test_nothing_is_handed_to_who_does_not_hear_of_it(queue: TaskQueue, idle: IdleWorker) -> None:
    await idle.claim(7)
    await queue.enqueue(nothing(), user_id="acme")
    stats = await queue.stats()
    assert (stats.started, stats.queued) == (0, 1)


@pytest.mark.leaves_keys
async def test_a_claim_is_not_answered_when_its_worker_has_gone_on(queue: TaskQueue, listening: IdleWorker) -> None:
    """What it were handed, nobody would run."""
    await listening.claim(7)
    await queue.enqueue(nothing(), user_id="acme", delay=0.001)
    taken: list[Delivery] = []

    async def takes() -> bool:
        taken.extend(await listening.claim(7, rested=True))
        return bool(taken)

    await eventually(takes)
    while not listening.heard.empty():
        listening.heard.get_nowait()
    assert len(taken) == 1
    await queue.enqueue(nothing(), user_id="acme", task_id="later")
    assert await listening.message() == b"", "it is to ask"
    assert [of.id for of in await listening.claim(8)] == ["later"]


@pytest.mark.leaves_keys
async def test_a_first_try_that_comes_late_takes_nothing(queue: TaskQueue, listening: IdleWorker) -> None:
    await listening.claim(7)
    await queue.enqueue_many([nothing() for _ in range(2)], user_id="acme")
    assert len((await listening.answer())[1].deliveries) == 1
    assert await listening.claim(7) == []


@pytest.mark.leaves_keys
async def test_a_claim_rests_for_a_while_only(server: Server, queue: TaskQueue, idle: IdleWorker) -> None:
    await idle.claim(7)
    resting = f"{queue.keys.prefix}resting:{NAME}"
    assert 5_000 < server.execute("PTTL", resting) <= 10_000
    await idle.leave()
    assert not server.execute("EXISTS", resting)


@pytest.mark.leaves_keys
async def test_a_claim_that_was_told_of_something_does_not_rest(
    server: Server, queue: TaskQueue, idle: IdleWorker
) -> None:
    """What it was told would be told no more, should it ask again."""
    await idle.claim(6)
    await queue.enqueue(nothing(), user_id="acme")
    assert len(await idle.claim(6, rested=True)) == 1
    assert not server.execute("EXISTS", f"{queue.keys.prefix}resting:{NAME}")


@pytest.mark.leaves_keys
async def test_who_may_not_be_served_now_is_not_handed_out(queue: TaskQueue, listening: IdleWorker) -> None:
    await queue.set_policy("acme", max_running=1)
    await listening.claim(7)
    await queue.enqueue(nothing(), user_id="acme")
    assert len((await listening.answer())[1].deliveries) == 1
    await listening.claim(8)
    await queue.enqueue(nothing(), user_id="acme")
    stats = await queue.stats()
    assert (stats.started, stats.queued) == (1, 1)
    await queue.clear_policy("acme")


@pytest.mark.leaves_keys
@pytest.mark.parametrize("garbage", [b"", b"\xc1 nothing that can be read"])
async def test_a_resting_claim_that_is_damaged_hurts_nobody_who_puts_in(
    server: Server, queue: TaskQueue, listening: IdleWorker, garbage: bytes
) -> None:
    await listening.claim(7)
    resting = f"{queue.keys.prefix}resting:{NAME}"
    server.execute("SET", resting, garbage)
    if not garbage:
        server.execute("DEL", resting)
        server.execute("SADD", resting, "of another type")
    assert (await queue.enqueue(nothing(), user_id="acme")).created
    assert await listening.message() == b""
    assert len(await listening.claim(7, rested=True)) == 1
    server.execute("DEL", resting)


# Workers


@asynccontextmanager
async def resting_worker(server: Server, queue: TaskQueue, far: TaskQueue) -> AsyncIterator[Worker]:
    async with Worker(far, concurrency=5, poll_interval=60, scheduler=False) as worker:
        channel = queue.keys.wake_channel(worker.worker_id)
        await eventually(lambda: server.execute("PUBSUB", "SHARDNUMSUB", channel)[1])
        resting = f"{queue.keys.prefix}resting:{worker.worker_id}"
        await eventually(lambda: server.execute("EXISTS", resting))
        yield worker


async def test_an_idle_worker_starts_a_task_without_a_call_of_its_own(
    server: Server, queue: TaskQueue, proxy: CuttingProxy, queue_name: str, gate: Gate
) -> None:
    async with TaskQueue(proxy.url, name=queue_name) as far, resting_worker(server, queue, far):
        held = [proxy.hold(call_of(script)) for script in ("claim", "turn")]
        handle = await queue.enqueue(work(1), user_id="acme")
        await eventually(lambda: gate.started == [handle.task_id])
        for each in held:
            each.released.set()
        gate.open()
        assert await handle.result(timeout=20) == 1
    assert gate.started == [handle.task_id]


async def test_a_worker_that_runs_something_leaves_no_claim_at_rest(
    server: Server, queue: TaskQueue, gate: Gate
) -> None:
    """What that does to the loop would be the matter of others."""
    resting, calls = f"{queue.keys.prefix}resting:{NAME}", Counter[str]()
    queue.time_calls(lambda script, _: calls.update([script]))
    async with Worker(queue, worker_id=NAME, scheduler=False, concurrency=5, poll_interval=0.1):
        await eventually(lambda: server.execute("EXISTS", resting))
        handle = await queue.enqueue(work(1), user_id="acme")
        await eventually(lambda: gate.started)
        before = calls["claim"]
        await eventually(lambda: calls["claim"] >= before + 3)
        assert not server.execute("EXISTS", resting)
        gate.open()
        await handle.result(timeout=PATIENCE)
        await eventually(lambda: server.execute("EXISTS", resting))


async def test_an_answer_that_comes_while_the_worker_asks_is_not_taken_twice(
    server: Server, queue: TaskQueue, proxy: CuttingProxy, queue_name: str, gate: Gate
) -> None:
    heard: asyncio.Queue[bytes | None] = asyncio.Queue()
    async with TaskQueue(proxy.url, name=queue_name) as far, resting_worker(server, queue, far) as worker:
        channel = queue.keys.wake_channel(worker.worker_id)
        await far.listener.subscribe(channel, heard.put_nowait)  # after the worker: by then, that has heard it as well
        asking = proxy.hold(call_of("claim"))
        server.execute("SPUBLISH", channel, "")
        await asking.reached.wait()
        handle = await queue.enqueue(work(1), user_id="acme")
        await eventually(lambda: not heard.empty() and heard.get_nowait())
        assert gate.started == []
        asking.released.set()
        await eventually(lambda: gate.started)
        gate.open()
        assert await handle.result(timeout=20) == 1
    assert gate.started == [handle.task_id]


async def test_a_worker_that_is_told_as_it_asks_runs_each_task_once(
    server: Server, queue: TaskQueue, proxy: CuttingProxy, queue_name: str, gate: Gate
) -> None:
    """Its call arrives behind the answer, which comes first."""
    gate.open()
    async with TaskQueue(proxy.url, name=queue_name) as far, resting_worker(server, queue, far):
        handles = []
        for n in range(30):
            handles.append(await queue.enqueue(work(n), user_id=f"user {n % 3}"))
            if n % 3:
                await handles[-1].result(timeout=20)
        assert [await handle.result(timeout=20) for handle in handles] == list(range(30))
    assert sorted(gate.started) == sorted(handle.task_id for handle in handles)
    assert {(await handle.info()).attempt for handle in handles} == {1}


async def test_a_worker_that_loses_its_connections_runs_what_it_was_handed_meanwhile(
    server: Server, queue: TaskQueue, proxy: CuttingProxy, queue_name: str, gate: Gate
) -> None:
    gate.open()
    async with TaskQueue(proxy.url, name=queue_name) as far, resting_worker(server, queue, far):
        handles = []
        for n in range(10):
            handles.append(await queue.enqueue(work(n), user_id="acme"))
            proxy.cut_all()
        assert [await handle.result(timeout=20) for handle in handles] == list(range(10))
    assert sorted(gate.started) == sorted(handle.task_id for handle in handles)


async def test_a_worker_that_stops_puts_back_what_it_is_handed_meanwhile(
    server: Server, queue: TaskQueue, proxy: CuttingProxy, queue_name: str, gate: Gate
) -> None:
    async with TaskQueue(proxy.url, name=queue_name) as far, resting_worker(server, queue, far) as worker:
        last = proxy.hold(call_of("claim"))
        stopping = asyncio.create_task(worker.stop())
        await last.reached.wait()
        handle = await queue.enqueue(work(1), user_id="acme")
        assert (await queue.stats()).started == 1
        last.released.set()
        await stopping
    assert gate.started == []
    info = await handle.info()
    assert (info.state.value, info.attempt) == ("queued", 0)
    gate.open()
    await Worker(queue, scheduler=False).run_until_idle()


# The same as if it had asked


class Twin:
    """A queue that is put in to and claimed from one task at a time, by one worker."""

    def __init__(self, core: Core, listening: asyncio.Queue[bytes | None] | None) -> None:
        self._core, self._messages = core, listening
        self._number, self._rests = 1, False
        self.running: list[Delivery] = []
        self.answers = 0

    async def claim(self) -> list[str]:
        claim = await self._core.store.claim(
            NAME, 1, number=self._number, rests=True, rested=self._rests, holds=len(self.running)
        )
        self._rests = not claim.deliveries
        return self._take(claim)

    async def put_in(self, tasks: list[NewTask]) -> list[str]:
        """And what its worker is handed by that, if it waits."""
        await self._core.enqueue_all(tasks)
        if not self._rests:
            return []
        answer = await self._answer() if self._messages is not None else None
        if answer is None:
            return await self.claim()
        self.answers += 1
        self._rests = False
        return self._take(answer)

    async def _answer(self) -> Claim | None:
        """None: it is told to ask. What it was told when it had asked by itself is left aside."""
        assert self._messages is not None
        while message := await asyncio.wait_for(self._messages.get(), PATIENCE):
            number, claim = self._core.store.answer_in(message)
            if number == self._number:
                return claim
        return None

    def _take(self, claim: Claim) -> list[str]:
        self._number += bool(claim.deliveries)
        self.running += claim.deliveries
        return [f"{of.user_id} {of.id} {of.attempt}" for of in claim.deliveries]

    async def settle(self, at: int) -> None:
        assert await self._core.settle([self.running.pop(at)]) == [True]

    def standings(self) -> tuple[dict[str, float], list[float]]:
        state, totals = self._core.state(), ("clock", "mean", "started", "normal", "critical")
        return self._core.ready(), [float(state.get(of, 0)) for of in totals]


@pytest.mark.parametrize("seed", range(4))
async def test_who_is_answered_is_handed_what_it_would_have_claimed(
    server: Server, queue: TaskQueue, queue_name: str, seed: int
) -> None:
    draw, heard = random.Random(seed), asyncio.Queue[bytes | None]()
    await queue.listener.subscribe(queue.keys.wake_channel(NAME), heard.put_nowait)
    async with Core(server.url, queue_name) as answered, Core(server.url, f"{queue_name}-asks") as asks:
        twins = Twin(answered, heard), Twin(asks, None)
        for core in (answered, asks):
            for user, weight in (("user1", 3.0), ("user2", 0.5)) if seed % 2 else ():
                await core.store.set_policy(user, {"weight": weight})
        for n in range(150):
            act = draw.choice(["put in", "claim", "claim", "claim", "settle", "settle"])
            if act == "settle" and twins[0].running:
                at = draw.randrange(len(twins[0].running))
                for twin in twins:
                    await twin.settle(at)
            elif act == "claim":
                came = [await twin.claim() for twin in twins]
                assert came[0] == came[1]
            elif act == "put in":
                some = [
                    (draw.randrange(5), draw.choice([1, 3, 5]), draw.choice([1, 2.5]))
                    for _ in range(draw.randint(1, 2))
                ]
                tasks = [new_task(f"user{of}", f"{n}-{at}", *how, 0, b"n" * 8) for at, (of, *how) in enumerate(some)]
                came = [await twin.put_in(tasks) for twin in twins]
                assert came[0] == came[1]
            assert twins[0].standings() == twins[1].standings()
        assert twins[0].answers > 5
        for core in (answered, asks):
            core.forget()
