"""What the tasks of a worker share: its lifespan."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from contextvars import ContextVar
from typing import Any, TypedDict

import pytest

from fairque import (
    FairqueError,
    InvalidInput,
    Task,
    TaskContext,
    TaskFailed,
    TaskHandler,
    TaskQueue,
    TaskState,
    Worker,
    WrongType,
    current_task,
    task,
)
from fairque.sync import TaskQueue as BlockingQueue
from fairque.tasks.registry import registry
from fairque.testing import run_all
from fairque.worker import lifespan
from tests.fundamentals import in_processes
from tests.support.eventually import eventually
from tests.support.servers import Server


class Pool:
    """It knows what happened, in order."""

    def __init__(self) -> None:
        self.told: list[str] = []

    @asynccontextmanager
    async def resources(self) -> AsyncIterator[Pool]:
        self.told.append("opened")
        yield self
        self.told.append("closed")


class Typed(TypedDict):
    pool: Pool


@task
async def use(what: str) -> None:
    current_task(Pool).state.told.append(what)


@task
def use_in_thread(what: str) -> None:
    current_task(Pool).state.told.append(what)


@task
async def state_as(wanted: str) -> str:
    kinds: dict[str, Any] = {"dict": dict, "dict[str, Pool]": dict[str, Pool], "Typed": Typed, "Pool": Pool}
    return type(current_task(kinds[wanted]).state).__name__


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    before = dict(registry)
    yield
    registry.clear()
    registry.update(before)


@pytest.mark.smoke
async def test_a_lifespan_is_open_from_before_the_first_task_to_after_the_last_one(queue: TaskQueue) -> None:
    pool, started = Pool(), asyncio.Event()

    @task(name="slow")
    async def slow() -> None:
        started.set()
        await asyncio.sleep(0.1)
        current_task(Pool).state.told.append("slow")

    await queue.enqueue(use("loop"), user_id="acme")
    worker = Worker(queue, concurrency=1, lifespan=pool.resources)
    with pytest.raises(FairqueError, match="there is no state: its lifespan is not open"):
        _ = worker.state
    async with worker:
        assert worker.state is pool
        await queue.enqueue(use_in_thread("thread"), user_id="acme")
        await queue.enqueue(slow(), user_id="acme")
        await asyncio.wait_for(started.wait(), 20)
    assert pool.told == ["opened", "loop", "thread", "slow", "closed"]
    with pytest.raises(FairqueError, match="its lifespan is not open"):
        _ = worker.state


async def test_a_handler_of_payloads_finds_the_state(queue: TaskQueue) -> None:
    class Handler(TaskHandler):
        async def process_task(self, payload: Any) -> None:
            current_task(Pool).state.told.append(payload["word"])

    pool = Pool()
    await queue.enqueue(Task.create(payload={"word": "payload"}), user_id="acme")
    await run_all(queue, handler=Handler(), lifespan=pool.resources)
    assert pool.told == ["opened", "payload", "closed"]


async def test_a_body_in_a_subprocess_is_told_that_it_has_no_state(queue: TaskQueue) -> None:
    await queue.enqueue(in_processes.ask_for_state(), user_id="acme")
    with pytest.raises(TaskFailed, match="a subprocess has no state: what the lifespan of its worker has opened"):
        await run_all(queue, lifespan=Pool().resources)


async def test_without_a_lifespan_a_task_is_told_what_is_missing(queue: TaskQueue) -> None:
    await queue.enqueue(use("x"), user_id="acme")
    with pytest.raises(TaskFailed, match=re.escape("the worker has no lifespan; it is what Worker(queue, lifespan=…)")):
        await run_all(queue)


@pytest.mark.parametrize(
    ("wanted", "found"), [("dict", "dict"), ("dict[str, Pool]", "dict"), ("Typed", "dict"), ("Pool", None)]
)
async def test_the_type_of_the_state_is_checked_where_it_can_be(
    queue: TaskQueue, wanted: str, found: str | None
) -> None:
    @asynccontextmanager
    async def typed() -> AsyncIterator[Typed]:
        yield {"pool": Pool()}

    handle = await queue.enqueue(state_as(wanted), user_id="acme")
    await run_all(queue, lifespan=typed, raise_errors=False)
    if found is not None:
        assert await handle.result(timeout=0) == found
    else:
        with pytest.raises(TaskFailed, match="the lifespan of this worker has yielded a dict, not a Pool") as failed:
            await handle.result(timeout=0)
        assert failed.value.type_name == WrongType.__name__


async def test_each_worker_has_a_lifespan_of_its_own_and_a_state_may_be_none(queue: TaskQueue) -> None:
    @asynccontextmanager
    async def nothing() -> AsyncIterator[None]:
        yield

    @task(name="look")
    async def look() -> Any:
        return current_task().state

    first, second = Pool(), Pool()
    async with Worker(queue, lifespan=first.resources), Worker(queue, lifespan=second.resources) as other:
        assert other.state is second
    assert first.told == second.told == ["opened", "closed"]
    handle = await queue.enqueue(look(), user_id="acme")
    await run_all(queue, lifespan=nothing)
    assert await handle.result(timeout=0) is None


async def test_a_task_group_and_context_variables_of_a_lifespan_are_its_own(queue: TaskQueue) -> None:
    ticks, name = 0, ContextVar("name", default="outside")

    @asynccontextmanager
    async def ticking() -> AsyncIterator[None]:
        async def tick() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0.01)

        name.set("inside")
        async with asyncio.TaskGroup() as group:
            running = group.create_task(tick())
            yield
            running.cancel()

    async with Worker(queue, lifespan=ticking):
        await eventually(lambda: ticks > 3)
        assert name.get() == "outside"


# What goes wrong


def failing(at: str, error: BaseException) -> Callable[[], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def resources() -> AsyncIterator[None]:
        if at == "start":
            raise error
        yield
        if at == "end":
            raise error

    return resources


@pytest.mark.parametrize("error", [OSError("no database"), SystemExit("no database")])
async def test_a_lifespan_that_fails_at_its_start_ends_the_worker_with_its_error(
    queue: TaskQueue, error: BaseException
) -> None:
    handle = await queue.enqueue(use("x"), user_id="acme")
    with pytest.raises(type(error), match="no database"):
        await Worker(queue, lifespan=failing("start", error)).run()
    assert await handle.state() == TaskState.QUEUED
    assert not (await queue.stats()).workers
    await handle.cancel()


async def test_a_lifespan_that_fails_at_its_end_is_logged_and_raised_when_all_is_reported(
    queue: TaskQueue, caplog: pytest.LogCaptureFixture
) -> None:
    @task(name="fine")
    async def fine() -> str:
        return "done"

    handle = await queue.enqueue(fine(), user_id="acme")
    worker = Worker(queue, lifespan=failing("end", OSError("no goodbye")))
    with pytest.raises(OSError, match="no goodbye"):
        await worker.run_until_idle()
    assert await handle.result(timeout=0) == "done"
    [record] = [each for each in caplog.records if each.levelno == logging.ERROR]
    assert record.getMessage() == "the lifespan failed"
    assert "no goodbye" in caplog.text


async def test_the_error_of_a_worker_is_not_hidden_by_that_of_its_lifespan(
    server: Server, begun: TaskQueue, caplog: pytest.LogCaptureFixture
) -> None:
    other = TaskQueue(server.url, name=begun.name, lease=7)
    with pytest.raises(InvalidInput, match="lease"):
        await Worker(other, lifespan=failing("end", OSError("no goodbye"))).run()
    assert "no goodbye" in caplog.text
    await other.close()


async def test_a_lifespan_that_ends_before_its_worker_has_it_drained(
    queue: TaskQueue, caplog: pytest.LogCaptureFixture
) -> None:
    breaks, lives_on = asyncio.Event(), asyncio.Event()

    @asynccontextmanager
    async def breaking() -> AsyncIterator[None]:
        async def watch() -> None:
            await breaks.wait()
            raise OSError("connection lost")

        async with asyncio.TaskGroup() as group:
            group.create_task(watch())
            yield

    @task(name="outlives")
    async def outlives() -> str:
        breaks.set()
        await lives_on.wait()
        return "done"

    handle = await queue.enqueue(outlives(), user_id="acme")
    serving = asyncio.create_task(Worker(queue, lifespan=breaking).run())
    await eventually(lambda: "the lifespan has ended while its worker served: it drains" in caplog.text)
    lives_on.set()
    with pytest.raises(ExceptionGroup) as raised:
        await serving
    assert raised.group_contains(OSError, match="connection lost")
    assert await handle.result(timeout=0) == "done"


async def test_a_worker_that_is_stopped_while_its_lifespan_opens_ends_without_an_error(queue: TaskQueue) -> None:
    opening, given_up = asyncio.Event(), asyncio.Event()

    @asynccontextmanager
    async def slow() -> AsyncIterator[None]:
        opening.set()
        try:
            await asyncio.Event().wait()
        finally:
            given_up.set()
        yield

    worker = Worker(queue, lifespan=slow)
    serving = asyncio.create_task(worker.run())
    await opening.wait()
    await worker.stop()
    await asyncio.wait_for(serving, 10)
    assert given_up.is_set()
    late = Worker(queue, lifespan=slow)
    opening.clear()
    await late.stop()
    await asyncio.wait_for(late.run(), 10)
    assert not opening.is_set()


async def test_a_cancelled_worker_closes_its_lifespan_all_the_same(queue: TaskQueue) -> None:
    told: list[str] = []

    @asynccontextmanager
    async def careful() -> AsyncIterator[None]:
        yield
        await asyncio.sleep(0.05)
        told.append("closed")

    worker = Worker(queue, lifespan=careful)
    serving = asyncio.create_task(worker.run())
    await asyncio.wait_for(worker.has_opened.wait(), 10)
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving
    assert told == ["closed"]


async def test_a_lifespan_that_does_not_close_is_cancelled_and_then_left_behind(
    queue: TaskQueue, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifespan, "CLOSE_SECONDS", 0.1)
    monkeypatch.setattr(lifespan, "GRACE_SECONDS", 0.1)
    lets_go = asyncio.Event()

    @asynccontextmanager
    async def stubborn() -> AsyncIterator[None]:
        yield
        while not lets_go.is_set():
            try:
                await lets_go.wait()
            except asyncio.CancelledError:
                continue

    with pytest.raises(FairqueError, match=r"the lifespan has not closed within 0\.1 s"):
        await Worker(queue, lifespan=stubborn).run_until_idle()
    assert "the lifespan goes on, although it was cancelled: it is left behind" in caplog.text
    lets_go.set()


async def test_a_slow_start_is_told(
    queue: TaskQueue, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifespan, "SLOW_SECONDS", 0.01)

    @asynccontextmanager
    async def slow() -> AsyncIterator[None]:
        await eventually(lambda: "the lifespan is not open after 0.01 s" in caplog.text)
        yield

    await Worker(queue, lifespan=slow).run_until_idle()


async def test_what_is_no_lifespan_is_refused(queue: TaskQueue) -> None:
    async def undecorated() -> AsyncIterator[None]:
        yield

    undecided: list[Any] = [(undecorated, "decorate it, @asynccontextmanager"), (Pool(), "not a Pool")]
    for given, text in undecided:
        with pytest.raises(InvalidInput, match=text):
            Worker(queue, lifespan=given)
    with pytest.raises(InvalidInput, match="must make an async context manager, not a Pool"):
        await Worker(queue, lifespan=Pool).run()  # type: ignore[arg-type]


def test_a_worker_for_blocking_code_has_it_as_well(server: Server, queue_name: str) -> None:
    pool = Pool()
    with BlockingQueue(server.url, name=queue_name) as queue:
        with queue.worker(lifespan=pool.resources):
            queue.enqueue(use_in_thread("x"), user_id="acme").result(timeout=20)
        assert pool.told == ["opened", "x", "closed"]


def test_a_context_without_a_worker_has_no_state() -> None:
    with pytest.raises(FairqueError, match="outside a task"):
        current_task(Pool)
    assert TaskContext.state.__doc__
