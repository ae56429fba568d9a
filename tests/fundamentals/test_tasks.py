"""1. Tasks: functions that workers can find, and calls of them that can be enqueued."""

import asyncio
import contextvars
import os
import threading
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import Enum
from uuid import UUID

import msgspec
import pytest

from fairque import (
    BadArguments,
    DuplicateTask,
    FairqueError,
    InvalidInput,
    Priority,
    RetryPolicy,
    Task,
    TaskFailed,
    TaskHandler,
    TaskQueue,
    Worker,
    current_task,
    task,
)
from fairque.tasks.registry import registry, unregister
from tests.fundamentals import in_processes

# Building


async def test_calling_a_task_builds_it_and_runs_nothing():
    ran = []

    @task
    async def greet(name: str) -> str:
        ran.append(name)
        return f"hello {name}"

    built = greet("anna")
    assert isinstance(built, Task)
    assert not ran
    assert await greet.fn("anna") == "hello anna"
    assert ran == ["anna"]


def test_a_decorator_takes_every_option():
    policy = RetryPolicy(max=7)

    @task(
        name="thumbnail",
        priority=Priority.HIGH,
        max_retries=3,
        retry=policy,
        timeout=30,
        result_ttl=60,
        cost=2.5,
        user_id="acme",
        task_id="only-one",
    )
    def thumbnail() -> None: ...

    assert thumbnail.name == "thumbnail"
    options = thumbnail().task_options
    assert (options.priority, options.max_retries, options.retry) == (Priority.HIGH, 3, policy)
    assert (options.timeout, options.result_ttl, options.cost) == (30, 60, 2.5)
    assert (options.user_id, options.task_id) == ("acme", "only-one")


async def test_options_of_the_decorator_hold_where_the_call_says_nothing(queue: TaskQueue):
    @task(user_id="acme", task_id="only-one", priority=Priority.CRITICAL)
    async def here() -> str:
        return current_task().user_id

    mine = await queue.enqueue(here())
    theirs = await queue.enqueue(here(), user_id="other", priority=Priority.LOW, task_id="another")
    assert (mine.user_id, mine.task_id) == ("acme", "only-one")
    assert (theirs.user_id, theirs.task_id) == ("other", "another")
    assert (await queue.user("acme")).critical == 1
    assert (await queue.user("other")).normal == 1
    await Worker(queue).run_until_idle()
    assert [await mine.result(20), await theirs.result(20)] == ["acme", "other"]


def test_options_return_a_changed_copy():
    @task(priority=Priority.LOW)
    def work(n: int) -> int:
        return n

    plain = work(1)
    changed = plain.options(priority=Priority.HIGH, delay=timedelta(seconds=3))
    assert (plain.task_options.priority, plain.task_options.delay) == (Priority.LOW, None)
    assert (changed.task_options.priority, changed.task_options.delay) == (Priority.HIGH, 3)
    urgent = work.options(priority=Priority.CRITICAL)
    assert urgent(1).task_options.priority is Priority.CRITICAL
    assert work(1).task_options.priority is Priority.LOW
    assert registry[work.name] is work


def test_an_option_that_does_not_exist_is_refused_with_those_that_do():
    with pytest.raises(InvalidInput, match=r"unknown task option 'prio'; there are .*priority"):
        Task.create().options(prio=3)


async def test_arguments_are_what_they_were_when_the_task_was_built(queue: TaskQueue):
    @task
    async def total(numbers: list[int]) -> int:
        return sum(numbers)

    numbers = [1, 2, 3]
    built = total(numbers)
    numbers.append(100)
    handle = await queue.enqueue(built, user_id="anna")
    await Worker(queue).run_until_idle()
    assert await handle.result(20) == 6


# Functions of all shapes


@pytest.mark.smoke
async def test_functions_of_all_shapes_get_their_arguments(queue: TaskQueue):
    @task
    async def defaults(a: int, b: int = 2) -> list[int]:
        return [a, b]

    @task
    async def keywords_only(*, a: int, b: int = 2) -> list[int]:
        return [a, b]

    @task
    async def positional_only(a: int, /, b: int = 2) -> list[int]:
        return [a, b]

    @task
    async def variable(*numbers: int, **named: int) -> list[int]:
        return [*numbers, *named.values()]

    calls = [
        (defaults(1), [1, 2]),
        (defaults(1, 3), [1, 3]),
        (defaults(b=1, a=5), [5, 1]),
        (keywords_only(a=1), [1, 2]),
        (keywords_only(b=1, a=5), [5, 1]),
        (positional_only(1), [1, 2]),
        (positional_only(1, b=3), [1, 3]),
        (variable(), []),
        (variable(1, 2, a=3), [1, 2, 3]),
        (variable(*range(70_000)), list(range(70_000))),
    ]
    handles = await queue.enqueue_many([call for call, _ in calls], user_id="anna")
    await Worker(queue).run_until_idle()
    assert [await handle.result(20) for handle in handles] == [expected for _, expected in calls]


class Tools:
    @staticmethod
    @task
    async def triple(n: int) -> int:
        return 3 * n


async def test_functions_in_classes_and_closures_are_tasks_as_well(queue: TaskQueue):
    def adder(step: int):
        @task(name=f"add-{step}")
        async def add(n: int) -> int:
            return n + step

        return add

    registry[Tools.triple.name] = Tools.triple
    calls = [Tools.triple(5), adder(1)(5), adder(10)(5)]
    handles = await queue.enqueue_many(calls, user_id="anna")
    await Worker(queue).run_until_idle()
    assert [await handle.result(20) for handle in handles] == [15, 6, 15]


# Arguments are converted to the annotations


class Color(Enum):
    RED = "red"


@dataclass
class Size:
    width: int
    height: int | None = None


class Order(msgspec.Struct):
    number: int
    sizes: list[Size]


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (Color, Color.RED),
        (Size, Size(3)),
        (Order, Order(1, [Size(3, 4)])),
        (datetime, datetime(2024, 2, 29, 12, tzinfo=UTC)),
        (timedelta, timedelta(seconds=90)),
        (UUID, UUID(int=7)),
        (Decimal, Decimal("1.10")),
        (bytes, b"\0\xff"),
        (set[int], {1, 2}),
        (tuple[int, str], (1, "a")),
        (dict[int, list[str]], {1: ["a"]}),
        (int | None, None),
        (float, 2.5),
        (int, 2**63),
        (int, -(2**63)),
    ],
    ids=str,
)
async def test_a_function_gets_the_types_it_names(queue: TaskQueue, kind, value):
    got = []

    async def take(value, *, named):
        got.extend([value, named])

    take.__annotations__ = {"value": kind, "named": kind}
    handle = await queue.enqueue(task(take)(value, named=value), user_id="anna")
    await Worker(queue).run_until_idle()
    await handle.result(20)
    assert got == [value, value]
    assert [type(each) for each in got] == [type(value)] * 2


def test_arguments_that_do_not_fit_fail_on_the_line_of_the_caller():
    @task
    def resize(image_id: int, width: int = 800) -> None: ...

    for wrong in (
        resize,
        lambda: resize(1, 2, 3),
        lambda: resize("one"),
        lambda: resize(1, height=2),
        lambda: resize(1, width="wide"),
    ):
        with pytest.raises(BadArguments, match=r"resize' do not fit: "):
            wrong()


@pytest.mark.smoke
def test_annotations_of_modules_not_imported_at_run_time_leave_the_others_alone():
    def take(when, number): ...

    take.__annotations__ = {"when": "OnlyForTypeCheckers", "number": "int"}
    taken = task(take)
    with pytest.raises(BadArguments, match="Expected `int`"):
        taken("today", "one")


# Where they run


@pytest.mark.smoke
async def test_async_functions_run_on_the_loop_and_plain_ones_in_threads(queue: TaskQueue):
    @task
    async def on_the_loop() -> bool:
        return threading.current_thread() is threading.main_thread()

    @task
    def in_a_thread() -> bool:
        return threading.current_thread() is threading.main_thread()

    first = await queue.enqueue(on_the_loop(), user_id="anna")
    second = await queue.enqueue(in_a_thread(), user_id="anna")
    await Worker(queue).run_until_idle()
    assert await first.result(20) is True
    assert await second.result(20) is False


@pytest.mark.smoke
async def test_plain_functions_can_run_in_subprocesses(queue: TaskQueue):
    where = await queue.enqueue(in_processes.pid(), user_id="anna")
    who = await queue.enqueue(in_processes.where_am_i(), user_id="b:c")
    point = await queue.enqueue(in_processes.mirrored(in_processes.Point(1, 2)), user_id="anna")
    same = await queue.enqueue(in_processes.mirrored(in_processes.Point(1, 2), twice=True), user_id="anna")
    await Worker(queue, concurrency=1).run_until_idle()
    assert await where.result(20) != os.getpid()
    assert await who.result(20) == ["b:c", who.task_id, "tests.fundamentals.in_processes.where_am_i", 1]
    assert await point.result(20) == in_processes.Point(2, 1)
    assert await same.result(20) == in_processes.Point(1, 2)


async def test_a_subprocess_finds_functions_by_their_registered_name(queue: TaskQueue):
    shouted = await queue.enqueue(in_processes.shout("hi"), user_id="anna")
    counted = await queue.enqueue(in_processes.count_by_two(1), user_id="anna")
    await Worker(queue, concurrency=1).run_until_idle()
    assert [await shouted.result(20), await counted.result(20)] == ["HI", 3]


def test_where_a_function_can_not_run_is_refused_at_once():
    async def on_the_loop() -> None: ...

    def plain() -> None: ...

    async def stream():
        yield 1

    def rows():
        yield 1

    with pytest.raises(InvalidInput, match=r"run_in='thread' of .*on_the_loop: an async function runs in the loop"):
        task(run_in="thread")(on_the_loop)
    with pytest.raises(InvalidInput, match=r"run_in='loop' of .*plain: only an async function can run in the loop"):
        task(run_in="loop")(plain)
    with pytest.raises(InvalidInput, match="run_in must be 'loop', 'thread' or 'process', not 'fiber'"):
        task(run_in="fiber")(plain)
    with pytest.raises(InvalidInput, match=r"run_in='thread' of .*stream: an async generator runs in the loop"):
        task(run_in="thread")(stream)
    with pytest.raises(InvalidInput, match=r"run_in='process' of .*rows: a plain generator runs in a thread"):
        task(run_in="process")(rows)
    with pytest.raises(InvalidInput, match="42"):
        task(42)
    assert not registry.keys() & {f"{f.__module__}.{f.__qualname__}" for f in (on_the_loop, plain, stream, rows)}


# The running task


@pytest.mark.smoke
async def test_a_task_knows_itself_wherever_it_goes(queue: TaskQueue):
    def describe() -> list[str | int]:
        here = current_task()
        return [here.user_id, here.task_id, here.attempt]

    @task
    async def on_the_loop() -> list[list[str | int]]:
        async def later():
            await asyncio.sleep(0)
            return describe()

        return [describe(), await asyncio.create_task(later()), await asyncio.to_thread(describe)]

    @task
    def in_a_thread() -> list[list[str | int]]:
        return [describe()]

    calls = [made().options(user_id=user) for user in ("anna", "b:c") for made in (on_the_loop, in_a_thread)]
    handles = await queue.enqueue_many(calls)
    await Worker(queue).run_until_idle()
    for handle in handles:
        for description in await handle.result(20):
            assert description == [handle.user_id, handle.task_id, 1]


async def test_what_a_task_sets_in_its_context_stays_with_it(queue: TaskQueue):
    mark = contextvars.ContextVar("mark", default="clean")

    @task
    async def on_the_loop() -> str:
        found = mark.get()
        mark.set("dirty")
        return found

    @task
    def in_a_thread() -> str:
        found = mark.get()
        mark.set("dirty")
        return found

    calls = [on_the_loop(), in_a_thread(), in_processes.marked()] * 3
    handles = await queue.enqueue_many(calls, user_id="anna")
    await Worker(queue, concurrency=1).run_until_idle()
    assert {await handle.result(20) for handle in handles} == {"clean"}


def test_outside_a_task_there_is_no_current_one():
    with pytest.raises(FairqueError, match="outside a task"):
        current_task()


# Names


def test_a_function_is_known_by_its_module_and_its_qualified_name():
    @task
    def nameless() -> None: ...

    here = "test_a_function_is_known_by_its_module_and_its_qualified_name"
    assert nameless.name == f"{__name__}.{here}.<locals>.nameless"
    assert registry[nameless.name] is nameless


def test_two_functions_under_one_name_are_an_error_at_once():
    @task(name="report")
    def one() -> None: ...

    with pytest.raises(DuplicateTask, match=r"'report' is taken by .*<locals>\.one"):

        @task(name="report")
        def other() -> None: ...

    assert registry["report"] is one
    unregister("report")
    task(name="report")(one.fn)


# Tasks without a function


async def test_tasks_without_a_function_are_served_by_a_handler(queue: TaskQueue):
    class Mailer(TaskHandler):
        async def process_task(self, payload):
            return [current_task().user_id, payload]

    made = Task.create(user_id="anna", priority=Priority.HIGH, payload={"to": "b@example.org", "copies": [1, 2]})
    handle = await queue.enqueue(made)
    empty = await queue.enqueue(Task.create(), user_id="ben")
    await Worker(queue, handler=Mailer()).run_until_idle()
    assert await handle.result(20) == ["anna", {"to": "b@example.org", "copies": [1, 2]}]
    assert await empty.result(20) == ["ben", {}]


async def test_a_handler_is_not_given_calls_and_a_function_is_not_given_payloads(queue: TaskQueue):
    got = []

    class Handler(TaskHandler):
        async def process_task(self, payload):
            got.append(payload)

    @task(name="report")
    async def report(order: dict) -> str:
        return f"called with {order}"

    @task(name="gone")
    async def gone(order: dict) -> None: ...

    called = await queue.enqueue(report({"a": 1}), user_id="anna")
    handled = await queue.enqueue(Task.create(name="report", payload={"b": 2}), user_id="anna")
    unknown = await queue.enqueue(gone({"c": 3}), user_id="anna")
    unregister("gone")
    await Worker(queue, handler=Handler()).run_until_idle()
    assert await called.result(20) == "called with {'a': 1}"
    assert await handled.result(20) is None
    assert got == [{"b": 2}]
    assert await unknown.state() == "scheduled", "put back for a worker that knows it"
    registry["gone"] = gone
    async with Worker(queue):
        await unknown.result(20)


async def test_an_error_of_a_handler_fails_the_task(queue: TaskQueue):
    class Broken(TaskHandler):
        async def process_task(self, payload):
            raise ValueError(f"no stamp on {payload}")

    handle = await queue.enqueue(Task.create(payload={}), user_id="anna")
    await Worker(queue, handler=Broken()).run_until_idle()
    with pytest.raises(TaskFailed, match=r"ValueError: no stamp on \{\}"):
        await handle.result(20)


def test_a_payload_that_cannot_be_encoded_is_refused():
    with pytest.raises(BadArguments, match="payload cannot be encoded: Encoding objects of type object"):
        Task.create(payload={"a": object()})
    with pytest.raises(BadArguments, match="payload"):
        Task.create(payload=[1, 2])
