"""Generators as tasks: what they yield is read while they run."""

from __future__ import annotations

import asyncio
import random
import signal
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from fairque import (
    FailureKind,
    InvalidInput,
    Restarted,
    Retry,
    Streamed,
    TaskCanceled,
    TaskFailed,
    TaskQueue,
    TaskState,
    UnknownTask,
    Worker,
    current_task,
    task,
)
from fairque.queue import stream
from fairque.redis.delivery import Delivery, Refusal
from fairque.redis.store import Store
from fairque.redis.store_chunks import Batch
from fairque.settings import QueueSettings
from fairque.tasks.registry import registry
from tests.support.core import outcome
from tests.support.eventually import eventually
from tests.support.workers import Fleet
from tests.workers import tasks

if TYPE_CHECKING:
    from fairque import TaskHandle, TaskStream
    from tests.support.process import WorkerProcess
    from tests.support.servers import Server

    StartProcess = Callable[..., Awaitable[WorkerProcess]]

LEASE = 1.0
BRIEF = QueueSettings(lease_ms=100)


gates: dict[str, asyncio.Event] = {}
closed = threading.Event()


def gate(name: str) -> asyncio.Event:
    return gates.setdefault(name, asyncio.Event())


@task(name="streams-count")
async def count(most: int) -> AsyncIterator[int]:
    for n in range(most):
        yield n


@task(name="streams-rows")
def rows(most: int) -> Iterator[dict[str, int]]:
    for n in range(most):
        yield {"row": n}


@task(name="streams-steps")
async def steps(names: list[str]) -> AsyncIterator[str]:
    for name in names:
        await gate(name).wait()
        yield name


@task(name="streams-flaky", max_retries=1)
async def flaky(many: int, size: int = 1) -> AsyncIterator[tuple[int, bytes]]:
    for _ in range(many):
        yield current_task().attempt, bytes(size)
    if current_task().attempt == 1:
        raise Retry(delay=0.01)


@task(name="streams-broken")
async def broken() -> AsyncIterator[int]:
    yield 1
    raise ValueError("on purpose")


@task(name="streams-large", max_retries=3)
async def large(many: int, size: int) -> AsyncIterator[bytes]:
    for _ in range(many):
        yield bytes(size)


@task(name="streams-endless")
def endless() -> Iterator[bytes]:
    try:
        while True:
            yield bytes(100)
    finally:
        closed.set()


@task(name="streams-endless-async")
async def endless_async() -> AsyncIterator[bytes]:
    try:
        while True:
            yield bytes(100_000)
    finally:
        closed.set()


@task(name="streams-odd")
async def odd() -> AsyncIterator[Any]:
    yield object()


@pytest.fixture(autouse=True)
def _registered() -> None:
    gates.clear()
    registry.update(
        {made.name: made for made in (count, rows, steps, flaky, broken, large, odd, endless, endless_async)}
    )


async def told(stream: TaskStream[Any]) -> AsyncIterator[Any]:
    """All that it tells, and where it begins anew the error that says so."""
    while True:
        try:
            async for chunk in stream:
                yield chunk
        except Restarted as exc:
            yield exc
        else:
            return


async def read(stream: TaskStream[Any]) -> list[Any]:
    async with asyncio.timeout(20):
        return [each async for each in told(stream)]


@pytest.mark.every_server
async def test_what_a_generator_yields_is_read_while_it_runs(queue: TaskQueue) -> None:
    handle = await queue.enqueue(steps(["a", "b", "c"]), user_id="acme")
    stream = handle.stream()
    async with Worker(queue), asyncio.timeout(20):
        chunks = aiter(stream)
        for name in "abc":
            gate(name).set()
            assert await anext(chunks) == name
        assert stream.position == "1-3"
        with pytest.raises(StopAsyncIteration):
            await anext(chunks)
        assert await handle.result() == Streamed(chunks=3)


async def test_it_is_read_afterwards_from_the_start_or_from_a_position(queue: TaskQueue) -> None:
    handle = await queue.enqueue(count(2_500), user_id="acme")
    await Worker(queue).run_until_idle()
    assert await read(handle.stream()) == list(range(2_500))
    assert await read(handle.stream(after="1-2400")) == list(range(2_400, 2_500))
    assert await read(handle.stream(after="1-2500")) == []


async def test_a_plain_generator_runs_in_a_thread(queue: TaskQueue) -> None:
    handle = await queue.enqueue(rows(3_000), user_id="acme")
    async with Worker(queue):
        assert await read(handle.stream()) == [{"row": n} for n in range(3_000)]


async def test_a_generator_that_yields_nothing_ends_as_others(queue: TaskQueue) -> None:
    handle = await queue.enqueue(count(0), user_id="acme")
    async with Worker(queue):
        assert await read(handle.stream()) == []
        assert await handle.result() == Streamed(chunks=0)


async def test_a_retry_is_seen_by_who_read_and_not_by_who_comes_later(queue: TaskQueue) -> None:
    handle = await queue.enqueue(flaky(3), user_id="acme")
    reading = asyncio.create_task(read(handle.stream()))
    first, second = [(1, b"\0")] * 3, [(2, b"\0")] * 3
    async with Worker(queue):
        *before, restarted = (await reading)[:4]
        assert before == first
        assert (type(restarted), restarted.attempt) == (Restarted, 2)
        assert reading.result()[4:] == second
        assert await read(handle.stream()) == second
        assert await read(handle.stream(after="2-1")) == second[1:]
        assert [type(each) for each in await read(handle.stream(after="1-2"))] == [
            tuple,
            Restarted,
            tuple,
            tuple,
            tuple,
        ]


async def test_an_error_comes_behind_what_was_yielded_before_it(queue: TaskQueue) -> None:
    handle = await queue.enqueue(broken(), user_id="acme")
    async with Worker(queue), asyncio.timeout(20):
        chunks = aiter(handle.stream())
        assert await anext(chunks) == 1
        with pytest.raises(TaskFailed, match="on purpose"):
            await anext(chunks)


async def test_a_cancellation_ends_the_stream(queue: TaskQueue) -> None:
    handle = await queue.enqueue(steps(["a", "b"]), user_id="acme")
    gate("a").set()
    async with Worker(queue), asyncio.timeout(20):
        chunks = aiter(handle.stream())
        assert await anext(chunks) == "a"
        await handle.cancel("enough")
        with pytest.raises(TaskCanceled, match="enough"):
            await anext(chunks)


@pytest.mark.parametrize("made", [endless, endless_async])
async def test_a_generator_is_closed_where_its_task_is_canceled(queue: TaskQueue, made: Any) -> None:
    handle = await queue.enqueue(made(), user_id="acme")
    async with Worker(queue) as worker, asyncio.timeout(20):
        chunks = aiter(handle.stream())
        await anext(chunks)
        await handle.cancel()
        await eventually(closed.is_set)
        with pytest.raises(TaskCanceled):
            await handle.result()
        assert worker._parts.runner.leftover_threads == 0


@pytest.mark.parametrize("made", [endless, endless_async])
async def test_a_generator_is_closed_where_it_is_beyond_the_limit_or_out_of_time(queue: TaskQueue, made: Any) -> None:
    async with Worker(queue), asyncio.timeout(60):
        handle = await queue.enqueue(made(), user_id="acme", timeout=0.2)
        with pytest.raises(TaskFailed, match=r"ran longer|more than 16,777,216 bytes"):
            await handle.result()
        await eventually(closed.is_set)


async def test_a_task_that_is_not_known_has_no_stream(queue: TaskQueue) -> None:
    with pytest.raises(UnknownTask):
        await read(queue.handle("acme", "none").stream())
    with pytest.raises(InvalidInput, match="position"):
        queue.handle("acme", "none").stream(after="20")


async def test_a_task_that_is_no_generator_has_no_stream(queue: TaskQueue) -> None:
    handle = await queue.enqueue(tasks.add(1, 2), user_id="acme")
    with pytest.raises(InvalidInput, match="add' is no generator"):
        handle.stream()  # type: ignore[misc]
    with pytest.raises(InvalidInput, match="add' is no generator"):
        await read(queue.handle("acme", handle.task_id).stream())
    await handle.cancel()


async def test_what_cannot_be_sent_fails_the_task_with_its_reason(queue: TaskQueue) -> None:
    handle = await queue.enqueue(odd(), user_id="acme")
    async with Worker(queue):
        with pytest.raises(TaskFailed, match="what it yields cannot be encoded"):
            await handle.result(timeout=20)


async def test_a_task_may_yield_16_mib(queue: TaskQueue) -> None:
    fits = await queue.enqueue(large(66, 250_000), user_id="acme")
    too_much = await queue.enqueue(large(68, 250_000), user_id="acme")
    async with Worker(queue):
        assert await fits.result(timeout=20) == Streamed(chunks=66)
        with pytest.raises(TaskFailed, match="more than 16,777,216 bytes") as caught:
            await too_much.result(timeout=20)
    assert caught.value.kind == FailureKind.QUOTA
    assert (await too_much.info()).attempt == 1


async def test_what_an_attempt_left_makes_room_for_the_next_one(queue: TaskQueue) -> None:
    handle = await queue.enqueue(flaky(40, 250_000), user_id="acme")
    async with Worker(queue):
        assert await handle.result(timeout=20) == Streamed(chunks=40)
        assert [type(each) for each in await read(handle.stream(after="1-0"))] == [Restarted] + [tuple] * 40


async def test_a_generator_that_waits_for_nothing_leaves_the_loop_to_others(queue: TaskQueue) -> None:
    handle = await queue.enqueue(count(50_000), user_id="acme")
    turns_of_others = 0
    async with Worker(queue):
        ending = asyncio.create_task(handle.result(timeout=60))
        while not ending.done():
            await asyncio.sleep(0)
            turns_of_others += 1
        assert await ending == Streamed(chunks=50_000)
    assert turns_of_others > 100


# Workers that die


class Reader:
    """Reads to the end in the background, and keeps what it was told: (position, chunk), and `Restarted`."""

    def __init__(self, stream: TaskStream[Any]) -> None:
        self.stream = stream
        self.told: list[Any] = []
        self.task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for each in told(self.stream):
            self.told.append(each if isinstance(each, Restarted) else (self.stream.position, each))

    async def has(self, many: int) -> None:
        await eventually(lambda: len(self.told) >= many)

    async def ends(self) -> list[Any]:
        async with asyncio.timeout(30):
            await self.task
        return self.told


@pytest.mark.leaves_keys("workers", "waiting")
async def test_a_worker_that_is_killed_in_the_middle_is_seen_as_a_restart_and_nothing_comes_twice(
    server: Server, queue_name: str, worker_process: StartProcess
) -> None:
    fleet = Fleet(worker_process, server.url, queue_name, lease=LEASE)
    async with TaskQueue(server.url, name=queue_name, lease=LEASE) as queue:
        first = await fleet.start(scheduler=False)
        handle = await queue.enqueue(tasks.numbers(60, 0.01), user_id="acme")
        reader = Reader(handle.stream())
        await reader.has(20)
        first.send(signal.SIGKILL)
        await fleet.start(scheduler=False)
        read_chunks = await reader.ends()
        [at] = [at for at, each in enumerate(read_chunks) if isinstance(each, Restarted)]
        before, after = read_chunks[:at], read_chunks[at + 1 :]
        assert before == [(f"1-{n + 1}", (1, n)) for n in range(at)]
        assert after == [(f"2-{n + 1}", (2, n)) for n in range(60)]
        assert read_chunks[at].attempt == 2
        assert await handle.result() == Streamed(chunks=60)


@pytest.mark.leaves_keys("workers", "waiting")
async def test_a_storm_of_kills_tears_no_stream(server: Server, queue_name: str, worker_process: StartProcess) -> None:
    fleet = Fleet(worker_process, server.url, queue_name, lease=LEASE)
    async with TaskQueue(server.url, name=queue_name, lease=LEASE) as queue:
        handles = [await queue.enqueue(tasks.numbers(100, 0.01), user_id=f"user {n % 3}") for n in range(9)]
        readers = [Reader(handle.stream()) for handle in handles]
        for _ in range(4):
            worker = await fleet.start(scheduler=False, max_deliveries=1000)
            many = sum(len(reader.told) for reader in readers) + random.randrange(20, 60)
            await eventually(lambda many=many: sum(len(reader.told) for reader in readers) >= many)
            worker.send(signal.SIGKILL)
        await fleet.start(scheduler=False, max_deliveries=1000)
        for reader in readers:
            chunks = [each for each in await reader.ends() if not isinstance(each, Restarted)]
            positions = [tuple(map(int, position.split("-"))) for position, _ in chunks]
            assert positions == sorted(set(positions)), "in order, each once"
            assert all(n == position[1] - 1 for position, (_, (_, n)) in zip(positions, chunks, strict=True)), "no gap"
            assert [n for run, n in positions if run == positions[-1][0]] == list(range(1, 101))


async def test_a_worker_that_stops_puts_it_back_and_the_next_run_yields_from_the_beginning(
    queue: TaskQueue,
) -> None:
    handle = await queue.enqueue(steps(["a", "b"]), user_id="acme")
    reader = Reader(handle.stream())
    gate("a").set()
    async with Worker(queue, shutdown_timeout=0):
        await reader.has(1)
    gate("b").set()
    async with Worker(queue):
        first, restarted, *second = await reader.ends()
    assert first == ("1-1", "a")
    assert (type(restarted), restarted.attempt) == (Restarted, 1), "its attempt does not count"
    assert second == [("2-1", "a"), ("2-2", "b")]


async def test_an_attempt_that_lost_its_task_adds_nothing(queue: TaskQueue) -> None:
    handle = await queue.enqueue(count(3), user_id="acme")
    store = queue.store()
    try:
        [old] = (await store.claim("ghost", 1, settings=BRIEF, wait=False)).deliveries
        assert await store.append("ghost", [Batch(old, 1, 1, b"\x91\x00")]) == [True]
        [new] = await eventually(lambda: taken(store, "thief"))
        refused = await store.append("ghost", [Batch(old, 2, 1, b"\x91\x01")])
        assert refused == [Refusal.ELSEWHERE]
        assert await store.append("thief", [Batch(new, 1, 2, b"\x92\x05\x06")]) == [True]
        assert await store.append("thief", [Batch(new, 1, 2, b"\x92\x05\x06")]) == [True], "a repeated call"
        assert await store.settle("thief", [outcome(new, "finished")]) == [True]
        assert await store.append("thief", [Batch(new, 3, 1, b"\x91\x07")]) == [Refusal.ENDED]
        page = await store.chunks("acme", handle.task_id, "1-0")
        assert page.batches == [("1-1", old.mark, b"\x91\x00"), ("2-2", new.mark, b"\x92\x05\x06")]
    finally:
        for worker in ("ghost", "thief"):
            await store.leave(worker, [[]])
        await store.close()


async def taken(store: Store, worker: str) -> list[Delivery]:
    return (await store.claim(worker, 1, settings=BRIEF, wait=False)).deliveries


# How long it is kept


def ttl_of(server: Server, handle: TaskHandle[Any]) -> float:
    """Of what it yielded, in seconds; -1: for ever, -2: it is not there."""
    key = handle._source.store.keys.chunks_channel(handle.user_id, handle.task_id)
    left = int(server.execute("PTTL", key))
    return left / 1000 if left > 0 else left


async def test_it_is_kept_as_long_as_the_result(queue: TaskQueue, server: Server) -> None:
    brief = await queue.enqueue(count(2), user_id="acme", result_ttl=100)
    failed = await queue.enqueue(broken(), user_id="acme")
    running = await queue.enqueue(steps(["a", "b"]), user_id="acme")
    gate("a").set()
    async with Worker(queue), asyncio.timeout(20):
        assert await anext(aiter(running.stream())) == "a"
        assert ttl_of(server, running) == -1
        assert await brief.result() == Streamed(chunks=2)
        assert 90 < ttl_of(server, brief) <= 100
        with pytest.raises(TaskFailed):
            await failed.result()
        week = queue.settings.dead_letter_ttl_ms / 1000
        assert week - 20 < ttl_of(server, failed) <= week
        await running.cancel()
        with pytest.raises(TaskCanceled):
            await running.result()
        assert week - 20 < ttl_of(server, running) <= week


async def test_a_dead_letter_keeps_it_and_a_requeue_begins_another_run(queue: TaskQueue, server: Server) -> None:
    handle = await queue.enqueue(broken(), user_id="acme")
    await Worker(queue).run_until_idle()
    await queue.requeue(handle)
    assert ttl_of(server, handle) == -1
    await Worker(queue).run_until_idle()
    stream = handle.stream(after="1-1")
    with pytest.raises(Restarted):
        await anext(aiter(stream))
    assert await anext(aiter(stream)) == 1
    assert stream.position == "2-1"
    await queue.discard(handle)
    assert ttl_of(server, handle) == -2


async def test_an_id_that_is_used_again_begins_a_stream_of_its_own(queue: TaskQueue) -> None:
    for most in (5, 2):
        handle = await queue.enqueue(count(most), user_id="acme", task_id="again")
        await Worker(queue).run_until_idle()
        assert await read(handle.stream()) == list(range(most))
    reader = handle.stream(after="1-4")
    with pytest.raises(Restarted):
        await anext(aiter(reader))
    assert await read(reader) == [0, 1]


async def test_a_purge_erases_what_was_yielded(queue: TaskQueue, server: Server) -> None:
    ended = await queue.enqueue(count(3), user_id="acme")
    other = await queue.enqueue(count(3), user_id="acme2")
    running = await queue.enqueue(steps(["a", "b"]), user_id="acme")
    gate("a").set()
    async with Worker(queue), asyncio.timeout(20):
        reader = aiter(running.stream())
        assert await anext(reader) == "a"
        await ended.result()
        await other.result()
        purged = await queue.purge("acme")
        assert (purged.running, purged.results) == (1, 2)
        with pytest.raises((TaskCanceled, UnknownTask)):
            await anext(reader)
    assert [ttl_of(server, handle) for handle in (ended, running)] == [-2, -2]
    assert await read(other.stream()) == [0, 1, 2]


# Isolation


async def test_who_yields_very_much_delays_no_chunk_of_another(queue: TaskQueue) -> None:
    """Six tasks of one user fill what may be filled, in the worker and on its connection."""
    flood = [await queue.enqueue(large(60, 250_000), user_id="flood") for _ in range(6)]
    async with Worker(queue):
        await eventually(lambda: has_yielded(flood[-1]))
        handle = await queue.enqueue(tasks.numbers(20, 0.005), user_id="quiet")
        assert len(await read(handle.stream())) == 20
        assert TaskState.STARTED in [await each.state() for each in flood]
        for each in flood:
            assert await each.result(timeout=60) == Streamed(chunks=60)


async def has_yielded(handle: TaskHandle[Any], many: int = 1) -> bool:
    return bool((await handle._source.store.chunks(handle.user_id, handle.task_id, f"1-{many - 1}")).batches)


async def test_a_slow_reader_holds_no_slot(queue: TaskQueue) -> None:
    handle = await queue.enqueue(count(3_000), user_id="acme")
    reader = aiter(handle.stream())
    async with Worker(queue, concurrency=1):
        assert await anext(reader) == 0
        assert await handle.result(timeout=20) == Streamed(chunks=3_000)
        assert await (await queue.enqueue(count(1), user_id="acme")).result(timeout=20) == Streamed(chunks=1)
    assert [chunk async for chunk in reader] == list(range(1, 3_000))


async def test_no_user_reads_what_another_yields(queue: TaskQueue) -> None:
    handle = await queue.enqueue(count(3), user_id="acme", task_id="a:b")
    await Worker(queue).run_until_idle()
    for user_id, task_id in (("acme:a", "b"), ("other", "a:b"), ("acme", "b")):
        with pytest.raises(UnknownTask):
            await read(queue.handle(user_id, task_id).stream())
    assert await read(queue.handle("acme", "a:b").stream()) == await read(handle.stream()) == [0, 1, 2]


async def test_a_key_of_a_wrong_type_costs_its_own_task_only(queue: TaskQueue, server: Server) -> None:
    bad = await queue.enqueue(count(3), user_id="bad", task_id="t")
    good = await queue.enqueue(count(3), user_id="good")
    server.execute("SET", f"{queue.keys.prefix}chunks:bad:t", "by another hand")
    async with Worker(queue):
        assert await good.result(timeout=20) == Streamed(chunks=3)
        with pytest.raises(TaskFailed, match="chunks:bad:t"):
            await bad.result(timeout=20)
    server.execute("DEL", f"{queue.keys.prefix}chunks:bad:t")


# Calls


async def test_ten_thousand_chunks_need_few_calls(queue: TaskQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0
    append = Store.append

    async def counting(store: Store, *args: Any) -> Any:
        nonlocal calls
        calls += 1
        return await append(store, *args)

    monkeypatch.setattr(Store, "append", counting)
    handle = await queue.enqueue(count(10_000), user_id="acme")
    async with Worker(queue):
        assert await handle.result(timeout=20) == Streamed(chunks=10_000)
    assert calls < 50


async def test_a_reader_that_keeps_up_asks_at_the_beginning_and_at_the_end(
    queue: TaskQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    chunks = Store.chunks

    async def counting(store: Store, user_id: str, task_id: str, after: str) -> Any:
        asked.append(after)
        return await chunks(store, user_id, task_id, after)

    monkeypatch.setattr(Store, "chunks", counting)
    handle = await queue.enqueue(steps(list("abcdef")), user_id="acme")
    reader = Reader(handle.stream())
    await eventually(lambda: bool(asked))
    async with Worker(queue):
        for many, name in enumerate("abcdef", 1):
            gate(name).set()
            await reader.has(many)
        assert [chunk for _, chunk in await reader.ends()] == list("abcdef")
    assert asked[0] == ""
    assert asked[-1] == "1-6"
    assert len(asked) <= 4  # and once at the first chunk, whose run it did not know


async def test_what_messages_do_not_tell_is_asked_for(queue: TaskQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each second message is lost."""
    handle = await queue.enqueue(steps(list("abcdef")), user_id="acme")
    reader = Reader(handle.stream())
    lost = 0
    told = stream.batch_told

    def losing(message: bytes) -> Any:
        nonlocal lost
        lost += 1
        return stream.Told("1-1", 1, b"\x91\xa1a") if lost % 2 else told(message)

    monkeypatch.setattr(stream, "batch_told", losing)
    async with Worker(queue):
        for many, name in enumerate("abcdef", 1):
            gate(name).set()
            await eventually(lambda many=many: has_yielded(handle, many))
        assert [chunk for _, chunk in await reader.ends()] == list("abcdef")
    assert lost
