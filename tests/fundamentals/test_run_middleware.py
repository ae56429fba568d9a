"""Middlewares around a run: what they see, what they may do, and whom they cannot harm."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import nullcontext
from contextvars import ContextVar
from typing import Any

import pytest

from fairque import (
    BadArguments,
    CallNext,
    Collect,
    Fail,
    InvalidInput,
    Retry,
    RunMiddleware,
    Task,
    TaskCanceled,
    TaskContext,
    TaskFailed,
    TaskFunction,
    TaskHandler,
    TaskQueue,
    TaskState,
    Worker,
    WrongType,
    current_task,
    failure_of,
    task,
)
from fairque.tasks.registry import registry
from tests.fundamentals import in_processes
from tests.support.eventually import eventually
from tests.support.servers import Server

request: ContextVar[str] = ContextVar("request", default="none")


@task
async def on_the_loop(value: int) -> int:
    return value


@task
def in_a_thread(value: int) -> int:
    return value


class Handler(TaskHandler):
    async def process_task(self, payload: dict[str, Any]) -> Any:
        return payload["value"]


@pytest.fixture(autouse=True)
def _registered():
    known = (on_the_loop, in_a_thread, in_processes.mirrored, in_processes.raises)
    registry.update({made.name: made for made in known})


class Log:
    """What middlewares did, and some that write into it."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def named(self, name: str) -> RunMiddleware:
        async def middleware(run: TaskContext, call_next: CallNext) -> Any:
            assert current_task() is run
            self.lines.append(f"{name} {run.name.rpartition('.')[2]}")
            value = await call_next()
            self.lines.append(f"{name} {value!r}")
            return value

        return middleware


async def test_they_stand_around_each_run_the_first_one_outermost(server: Server, queue_name: str):
    log = Log()
    queue = TaskQueue(server.url, name=queue_name, run_middleware=[log.named("a"), log.named("b")])
    async with queue, Worker(queue, run_middleware=[log.named("c")]):
        assert await (await queue.enqueue(on_the_loop(7), user_id="acme")).result(20) == 7
    assert log.lines == ["a on_the_loop", "b on_the_loop", "c on_the_loop", "c 7", "b 7", "a 7"]


@pytest.mark.parametrize(
    "made",
    [on_the_loop(5), in_a_thread(5), Task.create(payload={"value": 5}, name="payload")],
    ids=lambda made: made.name.rpartition(".")[2],
)
async def test_they_stand_around_bodies_of_every_kind(queue: TaskQueue, made: Task[Any]):
    log = Log()
    async with Worker(queue, handler=Handler(), run_middleware=[log.named("a")]):
        assert await (await queue.enqueue(made, user_id="acme")).result(20) == 5
    assert log.lines == [f"a {made.name.rpartition('.')[2]}", "a 5"]


async def test_of_a_subprocess_they_see_the_result_as_plain_data(queue: TaskQueue):
    log = Log()
    async with Worker(queue, run_middleware=[log.named("a")]):
        handle = await queue.enqueue(in_processes.mirrored(in_processes.Point(1, 2)), user_id="acme")
        assert await handle.result(20) == in_processes.Point(2, 1)
    assert log.lines == ["a mirrored", "a {'x': 2, 'y': 1}"]


async def test_they_may_answer_themselves_and_change_a_result(queue: TaskQueue):
    ran = []

    @task
    async def costly(n: int) -> int:
        ran.append(n)
        return n

    async def cached(run: TaskContext, call_next: CallNext) -> Any:
        if run.headers.get("known"):
            return int(run.headers["known"])
        return -(await call_next())

    async with Worker(queue, run_middleware=[cached]):
        known = await queue.enqueue(costly(1), user_id="acme", headers={"known": "5"})
        unknown = await queue.enqueue(costly(2), user_id="acme")
        assert await queue.results([known, unknown], 20) == [5, -2]
    assert ran == [2]


async def test_a_result_that_cannot_travel_fails_its_task_only(queue: TaskQueue):
    async def odd(run: TaskContext, call_next: CallNext) -> Any:
        return object() if run.user_id == "eve" else await call_next()

    async with Worker(queue, run_middleware=[odd]):
        mine, other = [await queue.enqueue(on_the_loop(1), user_id=user) for user in ("eve", "acme")]
        with pytest.raises(TaskFailed, match="the result cannot be encoded"):
            await mine.result(20)
        assert await other.result(20) == 1
    await queue.discard(mine)


async def test_they_see_what_a_body_raises_wherever_it_ran(queue: TaskQueue):
    seen = []

    async def report(run: TaskContext, call_next: CallNext) -> Any:
        try:
            return await call_next()
        except Exception as error:
            failure = failure_of(error)
            assert "in raises" in failure.traceback
            seen.append(f"{run.user_id}: {failure.type_name}: {failure.message}")
            raise

    @task
    async def raises() -> None:
        raise LookupError("not there")

    async with Worker(queue, run_middleware=[report]):
        for made in (raises(), in_processes.raises("ValueError"), in_processes.raises("TwoPartError")):
            handle = await queue.enqueue(made, user_id="acme")
            with pytest.raises(TaskFailed):
                await handle.result(20)
            await queue.discard(handle)
    assert seen == [
        "acme: LookupError: not there",
        "acme: ValueError: raised on purpose",
        "acme: TwoPartError: the door: is locked",
    ]


async def test_they_may_decide_what_an_error_means(queue: TaskQueue):
    @task(max_retries=5)
    async def raises(kind: str) -> str:
        if current_task().attempt > 1:
            return f"attempt {current_task().attempt}"
        raise {"forgive": LookupError, "again": ConnectionError, "never": PermissionError}[kind]

    async def judge(_run: TaskContext, call_next: CallNext) -> Any:
        try:
            return await call_next()
        except LookupError:
            return "forgiven"
        except ConnectionError:
            raise Retry(delay=0.01) from None
        except PermissionError:
            raise Fail("it never will") from None

    async with Worker(queue, run_middleware=[judge]):
        forgiven, again, never = [
            await queue.enqueue(raises(each), user_id="acme") for each in ("forgive", "again", "never")
        ]
        assert await queue.results([forgiven, again], 20) == ["forgiven", "attempt 2"]
        with pytest.raises(TaskFailed, match="it never will"):
            await never.result(20)
    await queue.discard(never)


async def test_one_that_raises_fails_the_attempt_of_its_task_and_nothing_else(queue: TaskQueue):
    attempts = []

    async def harsh(run: TaskContext, call_next: CallNext) -> Any:
        if run.user_id == "eve":
            attempts.append(run.attempt)
            raise SystemExit("no more of this")
        return await call_next()

    async with Worker(queue, concurrency=2, run_middleware=[harsh]):
        bad = [await queue.enqueue(on_the_loop(n).options(max_retries=0), user_id="eve") for n in range(4)]
        good = [await queue.enqueue(on_the_loop(n), user_id="acme") for n in range(4)]
        assert await queue.results(good, 20) == [0, 1, 2, 3]
        for handle in bad:
            with pytest.raises(TaskFailed, match="no more of this"):
                await handle.result(20)
    assert attempts == [1] * 4
    assert await queue.requeue_all("eve") == 4
    await queue.purge("eve")


async def test_one_that_raises_is_followed_by_the_retries_of_the_task(queue: TaskQueue):
    async def once(run: TaskContext, call_next: CallNext) -> Any:
        if run.attempt == 1:
            raise ConnectionError
        return await call_next()

    async with Worker(queue, run_middleware=[once]):
        handle = await queue.enqueue(on_the_loop(3).options(max_retries=1), user_id="acme")
        assert await handle.result(20) == 3


async def test_they_are_not_around_what_does_not_run(queue: TaskQueue):
    """Arguments that do not fit, also those that come from another task."""
    log = Log()

    @task
    async def text() -> str:
        return "text"

    @task(name="takes-a-number")
    async def first(number: Any) -> int:
        return int(number)

    bad, linked = first("x"), first(text().output)
    del registry["takes-a-number"]

    @task(name="takes-a-number")
    async def number_only(number: int) -> int:
        return number

    async with Worker(queue, run_middleware=[log.named("a")]):
        for made in (bad, linked):
            handle = await queue.enqueue(made, user_id="acme")
            with pytest.raises(TaskFailed) as failed:
                await handle.result(20)
            assert failed.value.type_name == BadArguments.__name__
            await queue.discard(handle)
    assert log.lines == ["a text", "a 'text'"]


async def test_the_outputs_of_others_are_there_when_they_are_called(queue: TaskQueue):
    @task
    async def add(a: int, b: int) -> int:
        return a + b

    log = Log()
    async with Worker(queue, run_middleware=[log.named("a")]):
        handle = await queue.enqueue(add(on_the_loop(1).output, in_a_thread(2).output), user_id="acme")
        assert await handle.result(20) == 3
    assert log.lines[-2:] == ["a add", "a 3"]


async def test_what_they_set_is_seen_by_the_body(queue: TaskQueue):
    async def tell(run: TaskContext, call_next: CallNext) -> Any:
        request.set(run.headers["request"])
        return await call_next()

    @task
    async def here() -> str:
        return request.get()

    @task
    def there() -> str:
        return request.get()

    async with Worker(queue, run_middleware=[tell]):
        handles = [
            await queue.enqueue(made, user_id="acme", headers={"request": name})
            for name, made in {"one": here(), "two": there()}.items()
        ]
        assert await queue.results(handles, 20) == ["one", "two"]
    assert request.get() == "none"


async def test_one_may_run_the_body_again(queue: TaskQueue):
    ran = []

    @task
    async def third_time() -> int:
        ran.append(current_task().attempt)
        if len(ran) < 3:
            raise ConnectionError
        return len(ran)

    async def stubborn(_run: TaskContext, call_next: CallNext) -> Any:
        while True:
            try:
                return await call_next()
            except ConnectionError:
                continue

    async with Worker(queue, run_middleware=[stubborn]):
        assert await (await queue.enqueue(third_time(), user_id="acme")).result(20) == 3
    assert ran == [1, 1, 1]


async def test_around_a_generator_they_see_how_much_it_yielded_and_run_it_once(queue: TaskQueue):
    log, ran = Log(), []

    @task
    async def count(to: int) -> AsyncIterator[int]:
        ran.append(to)
        for n in range(to):
            yield n

    async def twice(run: TaskContext, call_next: CallNext) -> Any:
        await call_next()
        return await call_next() if run.user_id == "eve" else None

    async with Worker(queue, run_middleware=[log.named("a")]):
        handle = await queue.enqueue(count(3), user_id="acme")
        assert [n async for n in handle.stream()] == [0, 1, 2]
        await handle.result(20)
    assert log.lines == ["a count", "a Streamed(chunks=3)"]
    async with Worker(queue, run_middleware=[twice]):
        handle = await queue.enqueue(count(4), user_id="eve")
        with pytest.raises(TaskFailed, match="once in an attempt"):
            await handle.result(20)
    await queue.discard(handle)
    assert ran == [3, 4]


# Cancellations and timeouts


class Waiting:
    """A task that waits for ever, and a middleware that keeps its cancellation for itself."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.task = task(name="waiting")(self._wait)

    async def _wait(self) -> None:
        self.seen.append("began")
        await asyncio.Event().wait()

    async def swallow(self, run: TaskContext, call_next: CallNext) -> Any:
        if run.name != "waiting":
            return await call_next()
        try:
            return await call_next()
        except asyncio.CancelledError:
            self.seen.append("swallowed")
            return "nothing happened"


async def test_a_cancellation_passes_through(queue: TaskQueue):
    waiting, seen = Waiting(), []

    async def watch(run: TaskContext, call_next: CallNext) -> Any:
        try:
            return await call_next()
        except asyncio.CancelledError:
            seen.append(run.canceled)
            raise

    async with Worker(queue, run_middleware=[watch]):
        handle = await queue.enqueue(waiting.task(), user_id="acme")
        await eventually(lambda: waiting.seen)
        await handle.cancel()
        with pytest.raises(TaskCanceled):
            await handle.result(20)
    assert seen == [True]


async def test_they_and_the_body_are_told_which_queue_a_task_comes_from(queue: TaskQueue):
    seen = []

    async def look(run: TaskContext, call_next: CallNext) -> Any:
        seen.append(run.queue_name)
        return await call_next()

    async with Worker(queue, run_middleware=[look]):
        handle = await queue.enqueue(in_processes.name_of_queue(), user_id="acme")
        assert await handle.result(20) == queue.name
    assert seen == [queue.name]


async def test_one_may_say_within_what_the_body_runs_in_a_subprocess(queue: TaskQueue):
    async def marks(run: TaskContext, call_next: CallNext) -> Any:
        if run.user_id != "zoe":
            manager = in_processes.marking if run.user_id == "acme" else in_processes.failing
            run.enter_in_subprocess(manager, {"mark": run.user_id})
        return await call_next()

    async with Worker(queue, concurrency=1, run_middleware=[marks]):
        found = [await queue.enqueue(in_processes.marked(), user_id=user) for user in ("acme", "zoe", "acme")]
        assert await queue.results(found, 20) == ["acme", "clean", "acme"]
        bad = await queue.enqueue(in_processes.marked(), user_id="eve")
        with pytest.raises(TaskFailed, match="no eve here"):
            await bad.result(20)
        here = await queue.enqueue(on_the_loop(1), user_id="eve")
        assert await here.result(20) == 1
    await queue.discard(bad)


@pytest.mark.parametrize(
    ("manager", "given", "reason"),
    [
        (lambda _: nullcontext(), {}, "at the top of a module"),
        ("os.path", {}, "at the top of a module"),
        (in_processes.marking, {"mark": 7}, "texts by name"),
    ],
    ids=["lambda", "text", "number"],
)
async def test_what_a_subprocess_cannot_be_told_is_refused(queue: TaskQueue, manager: Any, given: Any, reason: str):
    async def marks(run: TaskContext, call_next: CallNext) -> Any:
        run.enter_in_subprocess(manager, given)
        return await call_next()

    async with Worker(queue, run_middleware=[marks]):
        handle = await queue.enqueue(in_processes.marked(), user_id="acme")
        with pytest.raises(TaskFailed, match=reason):
            await handle.result(20)
    await queue.discard(handle)


async def test_a_cancellation_that_one_swallows_counts_all_the_same(queue: TaskQueue):
    waiting = Waiting()
    async with Worker(queue, concurrency=1, run_middleware=[waiting.swallow]):
        handle = await queue.enqueue(waiting.task(), user_id="eve")
        other = await queue.enqueue(on_the_loop(1), user_id="acme")
        await eventually(lambda: waiting.seen)
        await handle.cancel("not needed")
        with pytest.raises(TaskCanceled, match="not needed"):
            await handle.result(20)
        assert await other.result(20) == 1
    assert waiting.seen == ["began", "swallowed"]


async def test_a_timeout_that_one_swallows_counts_all_the_same(queue: TaskQueue):
    waiting = Waiting()
    async with Worker(queue, concurrency=1, run_middleware=[waiting.swallow]):
        handle = await queue.enqueue(waiting.task().options(timeout=0.05), user_id="eve")
        other = await queue.enqueue(on_the_loop(1), user_id="acme")
        with pytest.raises(TaskFailed, match=r"ran longer than 0\.05 s"):
            await handle.result(20)
        assert await other.result(20) == 1
        await eventually(lambda: waiting.seen == ["began", "swallowed"])
    await queue.discard(handle)


async def test_a_timeout_is_for_the_middlewares_as_well(queue: TaskQueue):
    async def slow(_run: TaskContext, _call_next: CallNext) -> Any:
        await asyncio.Event().wait()

    async with Worker(queue, run_middleware=[slow]):
        handle = await queue.enqueue(on_the_loop(1).options(timeout=0.05), user_id="eve")
        with pytest.raises(TaskFailed, match=r"ran longer than 0\.05 s"):
            await handle.result(20)
    await queue.discard(handle)


async def test_one_that_goes_on_after_a_cancellation_holds_no_slot(queue: TaskQueue):
    waiting, let_go = Waiting(), asyncio.Event()

    async def clings(run: TaskContext, call_next: CallNext) -> Any:
        try:
            return await call_next()
        except asyncio.CancelledError:
            while run.user_id == "eve" and not let_go.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await let_go.wait()
            raise

    async with Worker(queue, concurrency=1, cancel_grace=0.05, run_middleware=[clings]):
        handle = await queue.enqueue(waiting.task(), user_id="eve")
        await eventually(lambda: waiting.seen)
        other = await queue.enqueue(on_the_loop(1), user_id="acme")
        await handle.cancel()
        assert await other.result(20) == 1
        let_go.set()


async def test_what_is_put_back_at_a_stop_stays_so_when_one_swallows_it(queue: TaskQueue):
    waiting = Waiting()
    async with Worker(queue, shutdown_timeout=0, run_middleware=[waiting.swallow]):
        handle = await queue.enqueue(waiting.task(), user_id="acme")
        await eventually(lambda: waiting.seen)
    assert waiting.seen == ["began", "swallowed"]
    assert await handle.state() is TaskState.QUEUED
    await handle.cancel()


# What is refused


class TakesOne:
    async def __call__(self, run: TaskContext) -> None: ...


@pytest.mark.parametrize("wrong", [5, "name", TakesOne(), TakesOne, on_the_loop, lambda: None], ids=range(6))
async def test_what_is_no_middleware_is_refused(queue: TaskQueue, wrong: Any):
    for make in (
        lambda: Worker(queue, run_middleware=[wrong]),
        lambda: TaskQueue(run_middleware=[wrong]),
        lambda: TaskQueue(enqueue_middleware=[wrong]),
    ):
        with pytest.raises(InvalidInput, match="a middleware is an async function of two arguments"):
            make()


@pytest.mark.parametrize("wrong", ["name", 5, iter(())])
async def test_middlewares_come_in_a_list(queue: TaskQueue, wrong: Any):
    with pytest.raises(WrongType, match="run_middleware must be a list"):
        Worker(queue, run_middleware=wrong)


async def test_a_plain_function_fails_its_tasks_with_a_text_that_tells(queue: TaskQueue):
    def plain(_run: TaskContext, _call_next: CallNext) -> Any:
        return 5

    async with Worker(queue, run_middleware=[plain]):
        handle = await queue.enqueue(on_the_loop(1), user_id="acme")
        with pytest.raises(TaskFailed, match="await"):
            await handle.result(20)
    await queue.discard(handle)


# Around grouped work


calls: list[list[int]] = []


@task(name="thirds", collect=Collect(3, within=3600))
async def thirds(numbers: list[int]) -> list[float | Exception]:
    calls.append(list(numbers))
    return [n / 3 if n else ValueError("nothing to divide") for n in numbers]


@pytest.fixture(autouse=True)
def grouped() -> list[list[int]]:
    """What the body was called with."""
    registry["thirds"] = thirds
    calls.clear()
    return calls


async def results_of(queue: TaskQueue, numbers: list[int], function: TaskFunction[[int], float] = thirds) -> list[Any]:
    made = [function(n).options(headers={"n": str(n)}, task_id=str(n)) for n in numbers]
    handles = await queue.enqueue_many(made, user_id="acme")
    return await asyncio.gather(*(handle.result(timeout=20) for handle in handles), return_exceptions=True)


async def test_each_task_of_a_group_has_middlewares_of_its_own_and_their_body_runs_once(
    queue: TaskQueue, grouped: list[list[int]]
):
    seen: list[tuple[str, str, Any]] = []

    async def notes(run: TaskContext, call_next: CallNext) -> Any:
        assert current_task() is run
        value = await call_next()
        seen.append((run.task_id, run.headers["n"], value))
        return value * 10

    async with Worker(queue, run_middleware=[notes]):
        assert await results_of(queue, [3, 6, 9]) == [10, 20, 30]
    assert grouped == [[3, 6, 9]]
    assert seen == [("3", "3", 1), ("6", "6", 2), ("9", "9", 3)]


async def test_an_error_of_one_in_a_group_passes_its_own_middlewares_alone(queue: TaskQueue):
    raised: list[str] = []

    async def reports(run: TaskContext, call_next: CallNext) -> Any:
        try:
            return await call_next()
        except ValueError:
            raised.append(run.task_id)
            return -1

    async with Worker(queue, run_middleware=[reports]):
        assert await results_of(queue, [3, 0, 9]) == [1, -1, 3]
    assert raised == ["0"]


@pytest.mark.parametrize("way", ["returns", "raises"])
async def test_one_of_a_group_that_ends_in_its_middleware_leaves_the_others_together(
    queue: TaskQueue, grouped: list[list[int]], way: str
):
    async def knows_six(run: TaskContext, call_next: CallNext) -> Any:
        if run.task_id != "6":
            return await call_next()
        if way == "raises":
            raise SystemExit("not this one")
        return 2

    async with Worker(queue, run_middleware=[knows_six]):
        first, known, last = await results_of(queue, [3, 6, 9])
    assert (first, last) == (1, 3)
    assert known == 2 if way == "returns" else isinstance(known, TaskFailed)
    assert grouped == [[3, 9]]
    await queue.purge("acme")


async def test_one_of_a_group_whose_middleware_runs_it_again_runs_alone(queue: TaskQueue, grouped: list[list[int]]):
    async def twice(run: TaskContext, call_next: CallNext) -> Any:
        first = await call_next()
        return [first, await call_next()] if run.task_id == "6" else first

    async with Worker(queue, run_middleware=[twice]):
        assert await results_of(queue, [3, 6, 9]) == [1, [2, 2], 3]
    assert grouped == [[3, 6, 9], [6]]


async def test_one_of_a_group_that_is_canceled_within_its_middleware_holds_up_no_other(
    queue: TaskQueue, grouped: list[list[int]]
):
    held = asyncio.Event()

    async def holds_six(run: TaskContext, call_next: CallNext) -> Any:
        if run.task_id == "6":
            held.set()
            await asyncio.sleep(3600)
        return await call_next()

    async with Worker(queue, run_middleware=[holds_six]):
        results = asyncio.create_task(results_of(queue, [3, 6, 9]))
        await asyncio.wait_for(held.wait(), 20)
        await queue.handle("acme", "6").cancel()
        first, canceled, last = await results
    assert (first, last) == (1, 3)
    assert isinstance(canceled, TaskCanceled)
    assert grouped == [[3, 9]]


async def test_what_the_middlewares_of_the_first_of_a_group_set_is_there_in_the_body(queue: TaskQueue):
    seen: list[tuple[str, str]] = []

    @task(name="looks", collect=Collect(3, within=3600))
    def looks(numbers: list[int]) -> list[float | Exception]:
        seen.append((request.get(), current_task().task_id))
        return [float(n) for n in numbers]

    async def sets(run: TaskContext, call_next: CallNext) -> Any:
        request.set(run.headers["n"])
        return await call_next()

    async with Worker(queue, run_middleware=[sets]):
        assert await results_of(queue, [3, 6, 9], looks) == [3, 6, 9]
    assert seen == [("3", "3")]
