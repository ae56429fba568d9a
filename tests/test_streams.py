"""Generators as tasks: what they yield is read while they run."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from types import SimpleNamespace
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
    UnknownTask,
    Worker,
    current_task,
    task,
)
from fairque.tasks.registry import unregister

if TYPE_CHECKING:
    from fairque import TaskStream


@pytest.fixture
def known() -> Iterator[SimpleNamespace]:
    gates: dict[str, asyncio.Event] = {}

    def gate(name: str) -> asyncio.Event:
        return gates.setdefault(name, asyncio.Event())

    async def count(most: int) -> AsyncIterator[int]:
        for n in range(most):
            yield n

    def rows(most: int) -> Iterator[dict[str, int]]:
        for n in range(most):
            yield {"row": n}

    async def steps(names: list[str]) -> AsyncIterator[str]:
        for name in names:
            await gate(name).wait()
            yield name

    async def flaky(most: int) -> AsyncIterator[str]:
        for n in range(most):
            yield f"{current_task().attempt}.{n}"
        if current_task().attempt == 1:
            raise Retry(delay=0.01)

    async def broken() -> AsyncIterator[int]:
        yield 1
        raise ValueError("on purpose")

    async def large(many: int, size: int) -> AsyncIterator[bytes]:
        for _ in range(many):
            yield bytes(size)

    async def odd() -> AsyncIterator[Any]:
        yield object()

    functions = {
        "count": task(name="count")(count),
        "rows": task(name="rows")(rows),
        "steps": task(name="steps")(steps),
        "flaky": task(name="flaky", max_retries=2)(flaky),
        "broken": task(name="broken")(broken),
        "large": task(name="large", max_retries=3)(large),
        "odd": task(name="odd")(odd),
    }
    yield SimpleNamespace(gate=gate, **functions)
    for function in functions.values():
        unregister(function.name)


async def read(stream: TaskStream[Any]) -> list[Any]:
    """All of it, with the numbers of attempts where it begins anew."""
    found: list[Any] = []
    while True:
        try:
            async with asyncio.timeout(20):
                async for chunk in stream:
                    found.append(chunk)
        except Restarted as exc:
            found.append(exc)
        else:
            return found


@pytest.mark.every_server
async def test_what_a_generator_yields_is_read_while_it_runs(queue: TaskQueue, known: SimpleNamespace) -> None:
    handle = await queue.enqueue(known.steps(["a", "b", "c"]), user_id="acme")
    stream = handle.stream()
    async with Worker(queue), asyncio.timeout(20):
        chunks = aiter(stream)
        for name in "abc":
            known.gate(name).set()
            assert await anext(chunks) == name
        assert stream.position == "1-3"
        with pytest.raises(StopAsyncIteration):
            await anext(chunks)
        assert await handle.result() == Streamed(chunks=3)


async def test_it_is_read_afterwards_from_the_start_or_from_a_position(
    queue: TaskQueue, known: SimpleNamespace
) -> None:
    handle = await queue.enqueue(known.count(2_500), user_id="acme")
    await Worker(queue).run_until_idle()
    assert await read(handle.stream()) == list(range(2_500))
    assert await read(handle.stream(after="1-2400")) == list(range(2_400, 2_500))
    assert await read(handle.stream(after="1-2500")) == []


async def test_a_plain_generator_runs_in_a_thread(queue: TaskQueue, known: SimpleNamespace) -> None:
    handle = await queue.enqueue(known.rows(3_000), user_id="acme")
    async with Worker(queue):
        assert await read(handle.stream()) == [{"row": n} for n in range(3_000)]


async def test_a_generator_that_yields_nothing_ends_as_others(queue: TaskQueue, known: SimpleNamespace) -> None:
    handle = await queue.enqueue(known.count(0), user_id="acme")
    async with Worker(queue):
        assert await read(handle.stream()) == []
        assert await handle.result() == Streamed(chunks=0)


async def test_a_retry_is_seen_by_who_read_and_not_by_who_comes_later(queue: TaskQueue, known: SimpleNamespace) -> None:
    handle = await queue.enqueue(known.flaky(3), user_id="acme")
    reading = asyncio.create_task(read(handle.stream(after="1-0")))
    async with Worker(queue):
        first, (restarted, *second) = (found := await reading)[:3], found[3:]
        assert first == ["1.0", "1.1", "1.2"]
        assert (type(restarted), restarted.attempt) == (Restarted, 2)
        assert second == ["2.0", "2.1", "2.2"]
        assert await read(handle.stream()) == second
        assert await read(handle.stream(after="2-1")) == second[1:]


async def test_an_error_comes_behind_what_was_yielded_before_it(queue: TaskQueue, known: SimpleNamespace) -> None:
    handle = await queue.enqueue(known.broken(), user_id="acme")
    async with Worker(queue):
        found = []
        with pytest.raises(TaskFailed, match="on purpose"):
            async for chunk in handle.stream():
                found.append(chunk)
        assert found == [1]


async def test_a_cancellation_ends_the_stream(queue: TaskQueue, known: SimpleNamespace) -> None:
    handle = await queue.enqueue(known.steps(["a", "b"]), user_id="acme")
    known.gate("a").set()
    async with Worker(queue), asyncio.timeout(20):
        chunks = aiter(handle.stream())
        assert await anext(chunks) == "a"
        await handle.cancel("enough")
        with pytest.raises(TaskCanceled, match="enough"):
            await anext(chunks)


async def test_a_task_that_is_not_known_has_no_stream(queue: TaskQueue, known: SimpleNamespace) -> None:
    with pytest.raises(UnknownTask):
        await read(queue.handle("acme", "none").stream())
    with pytest.raises(InvalidInput, match="position"):
        queue.handle("acme", "none").stream(after="20")


async def test_what_cannot_be_sent_fails_the_task_with_its_reason(queue: TaskQueue, known: SimpleNamespace) -> None:
    handle = await queue.enqueue(known.odd(), user_id="acme")
    async with Worker(queue):
        with pytest.raises(TaskFailed, match="what it yields cannot be encoded"):
            await handle.result(timeout=20)


async def test_a_task_may_yield_16_mib(queue: TaskQueue, known: SimpleNamespace) -> None:
    fits = await queue.enqueue(known.large(66, 250_000), user_id="acme")
    too_much = await queue.enqueue(known.large(68, 250_000), user_id="acme")
    async with Worker(queue):
        assert await fits.result(timeout=20) == Streamed(chunks=66)
        with pytest.raises(TaskFailed, match="more than 16,777,216 bytes") as caught:
            await too_much.result(timeout=20)
    assert caught.value.kind == FailureKind.QUOTA
    assert (await too_much.info()).attempt == 1


async def test_what_an_attempt_left_makes_room_for_the_next_one(queue: TaskQueue, known: SimpleNamespace) -> None:
    async def heavy() -> AsyncIterator[bytes]:
        for _ in range(40):
            yield bytes(250_000)
        if current_task().attempt == 1:
            raise Retry(delay=0.01)

    made = task(name="heavy", max_retries=1)(heavy)
    try:
        handle = await queue.enqueue(made(), user_id="acme")
        async with Worker(queue):
            assert await handle.result(timeout=20) == Streamed(chunks=40)
            assert len(await read(handle.stream(after="1-0"))) == 41
    finally:
        unregister(made.name)


async def test_a_generator_that_waits_for_nothing_leaves_the_loop_to_others(
    queue: TaskQueue, known: SimpleNamespace
) -> None:
    handle = await queue.enqueue(known.count(50_000), user_id="acme")
    longest = 0.0
    async with Worker(queue):
        ending = asyncio.create_task(handle.result(timeout=60))
        while not ending.done():
            before = time.monotonic()
            await asyncio.sleep(0.001)
            longest = max(longest, time.monotonic() - before)
        assert await ending == Streamed(chunks=50_000)
    assert longest < 1
