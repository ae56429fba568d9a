"""6. Results: wait for the end of a task, from anywhere, and get what it returned."""

import asyncio
import re
import time
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum, IntEnum
from typing import Annotated, Generic, NamedTuple, TypedDict, TypeVar
from uuid import UUID

import msgspec
import pytest

from fairque import (
    FairqueError,
    InvalidInput,
    Priority,
    ResultNotKept,
    ResultTimeout,
    TaskFailed,
    TaskHandle,
    TaskQueue,
    TaskState,
    UnknownTask,
    Worker,
    task,
)
from fairque.tasks.registry import registry
from tests.support.eventually import eventually
from tests.support.resp import RespClient

T = TypeVar("T")


@task
async def echo(value: object = None) -> object:
    return value


@pytest.fixture(autouse=True)
def _registered():
    registry[echo.name] = echo


async def result_of(queue: TaskQueue, made, **options) -> object:
    handle = await queue.enqueue(made, user_id="anna", **options)
    await Worker(queue).run_until_idle()
    return await handle.result(20)


# Values


class Color(Enum):
    RED = "red"
    BLUE = "blue"


class Level(IntEnum):
    LOW = 1


@dataclass
class Point:
    x: int
    y: float = 0.5
    tags: frozenset[str] = frozenset()


class Pair(NamedTuple):
    left: int
    right: str


class Movie(TypedDict):
    title: str
    year: int


class Order(msgspec.Struct, frozen=True):
    number: int
    placed: datetime
    items: list[Point]
    note: str | None = None


class Cat(msgspec.Struct, tag=True):
    lives: int


class Dog(msgspec.Struct, tag=True):
    tricks: list[str]


class Page(msgspec.Struct, Generic[T]):
    items: list[T]


NOON = datetime(2024, 2, 29, 12, 30, 15, 123456, tzinfo=UTC)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (None, None),
        (bool, True),
        (int, 2**64 - 1),
        (float, float("inf")),
        (str, "ein Kätzchen 🐈 \0"),
        (bytes, bytes(range(256))),
        (list[int], []),
        (tuple[int, str], (1, "a")),
        (set[int], {1, 2}),
        (dict[int, str], {1: "a"}),
        (datetime, NOON),
        (date, date(2024, 2, 29)),
        (timedelta, timedelta(days=1, microseconds=5)),
        (UUID, UUID(int=1)),
        (Decimal, Decimal("0.10")),
        (Color, Color.BLUE),
        (Level, Level.LOW),
        (Priority, Priority.CRITICAL),
        (Point, Point(1, tags=frozenset("a"))),
        (Pair, Pair(1, "b")),
        (Movie, Movie(title="M", year=1931)),
        (Order, Order(7, NOON, [Point(1), Point(2, 3.0)], "fragile")),
        (list[Cat | Dog], [Cat(9), Dog(["roll"])]),
        (Page[Point], Page([Point(1)])),
        (Annotated[int, msgspec.Meta(ge=1)], 5),
        (Point | None, Point(3)),
    ],
    ids=str,
)
@pytest.mark.parametrize("where", ["loop", "thread"])
async def test_a_result_has_the_type_that_the_function_names(queue: TaskQueue, kind, value, where: str):
    async def on_the_loop():
        return value

    def in_a_thread():
        return value

    function = on_the_loop if where == "loop" else in_a_thread
    function.__annotations__ = {"return": kind}
    got = await result_of(queue, task(function)())
    assert got == value
    assert type(got) is type(value)


async def test_not_a_number_is_a_result(queue: TaskQueue):
    got = await result_of(queue, echo(float("nan")))
    assert got != got


async def test_a_handle_by_id_converts_where_the_function_is_known_here_and_gives_plain_values_elsewhere(
    queue: TaskQueue,
):
    @task
    async def order() -> Order:
        return Order(7, NOON, [Point(1)])

    handle = await queue.enqueue(order(), user_id="anna")
    await Worker(queue).run_until_idle()
    assert await handle.result(20) == Order(7, NOON, [Point(1)])
    by_id = queue.handle("anna", handle.task_id)
    assert await by_id.result(20) == Order(7, NOON, [Point(1)])
    del registry[order.name]
    plain = await by_id.result(20)
    assert (
        plain
        == {
            "number": 7,
            "placed": msgspec.to_builtins(NOON),
            "items": [{"x": 1, "y": 0.5, "tags": []}],
            "note": None,
        }
        or plain["placed"] == NOON
    )


class Picky(msgspec.Struct):
    n: int

    def __post_init__(self) -> None:
        if self.n < 0:
            raise KeyError(self.n)


async def test_a_result_that_breaks_its_annotation_comes_as_it_is(queue: TaskQueue):
    @task(name="liar")
    async def liar() -> int:
        return "not a number"

    @task(name="picky")
    async def picky() -> Picky:
        made = Picky(1)
        made.n = -1
        return made

    assert await result_of(queue, liar()) == "not a number"
    assert await result_of(queue, picky()) == {"n": -1}


# Failures


@pytest.mark.smoke
async def test_a_failure_is_told_as_data(queue: TaskQueue):
    class CustomError(Exception):
        def __init__(self, code: int, detail: str) -> None:
            super().__init__(f"{detail} ({code})")

    @task
    async def fail() -> None:
        try:
            raise OSError("the disk")
        except OSError as exc:
            raise CustomError(507, "no space") from exc

    with pytest.raises(TaskFailed) as failed:
        await result_of(queue, fail())
    error = failed.value
    assert (error.kind, error.type_name, error.message) == ("error", "CustomError", "no space (507)")
    assert str(error) == "CustomError: no space (507)"
    assert "OSError: the disk" in error.traceback
    assert "direct cause" in error.traceback
    assert isinstance(error, FairqueError)
    assert not hasattr(error, "code")


async def test_an_error_without_text_has_the_name_of_its_class(queue: TaskQueue):
    @task
    async def fail() -> None:
        raise ValueError

    with pytest.raises(TaskFailed) as failed:
        await result_of(queue, fail())
    assert str(failed.value) == "ValueError"


# Waiting


async def test_one_look_does_not_wait(queue: TaskQueue):
    handle = await queue.enqueue(echo(1), user_id="anna")
    with pytest.raises(ResultTimeout, match=f"{handle.task_id!r} of user 'anna' has not ended within 0 s"):
        await handle.result(timeout=0)
    await Worker(queue).run_until_idle()
    assert await handle.result(timeout=0) == 1


async def test_patience_ends_and_the_task_goes_on(queue: TaskQueue):
    handle = await queue.enqueue(echo(1), user_id="anna")
    began = time.monotonic()
    with pytest.raises(ResultTimeout, match=r"within 0\.1 s") as late:
        await handle.result(timeout=0.1)
    assert isinstance(late.value, TimeoutError)
    assert 0.1 <= time.monotonic() - began < 10
    assert await handle.state() is TaskState.QUEUED
    await Worker(queue).run_until_idle()
    assert await handle.result(timeout=20) == 1


@pytest.mark.leaves_keys
@pytest.mark.parametrize("timeout", [-1, float("nan"), "soon"])
async def test_a_patience_that_makes_no_sense_is_refused(queue: TaskQueue, timeout):
    handle = await queue.enqueue(echo(1), user_id="anna")
    with pytest.raises(InvalidInput, match=f"timeout must be .*, not {timeout!r}"):
        await handle.result(timeout=timeout)


async def test_a_task_nobody_enqueued_is_unknown(queue: TaskQueue):
    handle = queue.handle("anna", "never")
    for look in (handle.result, handle.state, handle.info):
        with pytest.raises(UnknownTask, match="no task 'never' of user 'anna'"):
            await look()


async def test_many_wait_for_one_task(queue: TaskQueue, server, queue_name: str):
    handle = await queue.enqueue(echo("for all"), user_id="anna")
    waiting = [asyncio.create_task(handle.result(20)) for _ in range(200)]
    other = [asyncio.create_task(queue.handle("anna", handle.task_id).result(20)) for _ in range(100)]
    await eventually(lambda: subscribers(server, queue_name, handle) == 1)
    for each in waiting[::3]:
        each.cancel()
    await Worker(queue).run_until_idle()
    ends = await asyncio.gather(*waiting, *other, return_exceptions=True)
    assert ends.count("for all") == 233
    assert sum(isinstance(end, asyncio.CancelledError) for end in ends) == 67
    await eventually(lambda: subscribers(server, queue_name, handle) == 0)


async def test_one_waits_for_many_tasks(queue: TaskQueue):
    handles = await queue.enqueue_many([echo(at) for at in range(500)], user_id="anna")
    waiting = asyncio.gather(*(handle.result(20) for handle in handles))
    async with Worker(queue, concurrency=50):
        assert await waiting == list(range(500))


async def test_waiting_costs_no_polling(queue: TaskQueue, server, queue_name: str):
    handle = await queue.enqueue(echo("hello"), user_id="anna")
    waiting = asyncio.create_task(handle.result())
    await eventually(lambda: subscribers(server, queue_name, handle) == 1)
    with RespClient(server.url) as client:
        looks: list[int] = []
        await eventually(lambda: quiet(client, looks))
        before = commands(client)
        await asyncio.wait([waiting], timeout=1)
        assert commands(client) - before == 1, "only the one that counts them"
    assert not waiting.done()
    await Worker(queue).run_until_idle()
    assert await asyncio.wait_for(waiting, 5) == "hello"


@pytest.mark.parametrize("at", [0, 1, 2, 3, 5, 8])
async def test_whoever_stops_waiting_leaves_nothing_behind(queue: TaskQueue, server, queue_name: str, at: int):
    handle = await queue.enqueue(echo(1), user_id="anna")
    waiting = asyncio.create_task(handle.result())
    for _ in range(at):
        await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    again = asyncio.create_task(handle.result(20))
    await eventually(lambda: subscribers(server, queue_name, handle) == 1)
    await Worker(queue).run_until_idle()
    assert await again == 1
    await eventually(lambda: subscribers(server, queue_name, handle) == 0)


async def test_the_end_is_never_missed(queue: TaskQueue):
    """Waiting begins before, while and after the task runs."""
    async with Worker(queue):
        for at in range(200):
            handle = await queue.enqueue(echo(at), user_id="anna")
            for _ in range(at % 20):
                await asyncio.sleep(0)
            assert await handle.result(20) == at


async def test_results_are_seen_from_other_processes(queue: TaskQueue, server, queue_name: str):
    handle = await queue.enqueue(echo([1, 2]), user_id="b:c", task_id="x:y")
    async with TaskQueue(server.url, name=queue_name) as other:
        waiting = asyncio.create_task(other.handle("b:c", "x:y").result(20))
        await eventually(lambda: subscribers(server, queue_name, handle) == 1)
        await Worker(queue).run_until_idle()
        assert await waiting == [1, 2]


# State and information


@pytest.mark.smoke
async def test_what_is_known_of_a_task_grows_with_its_life(queue: TaskQueue):
    go_on = asyncio.Event()

    @task(name="work")
    async def work() -> None:
        await go_on.wait()

    began = time.time()
    handle = await queue.enqueue(work(), user_id="anna", delay=0.2)
    info = await handle.info()
    assert (info.user_id, info.task_id, info.name) == ("anna", handle.task_id, "work")
    assert (info.state, info.attempt, info.queued_at) == (TaskState.SCHEDULED, 0, None)
    async with Worker(queue) as worker:
        await eventually(lambda: is_in(handle, TaskState.STARTED))
        info = await handle.info()
        assert (info.state, info.attempt, info.worker) == (TaskState.STARTED, 1, worker.worker_id)
        assert began - 1 < info.queued_at <= info.started_at
        assert info.wait_seconds == pytest.approx(info.started_at - info.queued_at, abs=0.002)
        assert (info.ended_at, info.run_seconds) == (None, None)
        await asyncio.sleep(0.1)
        go_on.set()
        await handle.result(20)
    info = await handle.info()
    assert (info.state, info.attempt, info.worker) == (TaskState.FINISHED, 1, worker.worker_id)
    assert 0.099 <= info.run_seconds < 5
    assert info.ended_at == pytest.approx(info.started_at + info.run_seconds, abs=0.01)
    assert info.queued_at + info.wait_seconds == pytest.approx(info.started_at, abs=0.01)
    assert info.errors == ()
    assert info.error is None


async def test_the_wait_is_counted_from_the_enqueue(queue: TaskQueue, server):
    handle = await queue.enqueue(echo(), user_id="anna", priority=Priority.VERY_HIGH)
    queued = (await handle.info()).queued_at
    seconds, micros = server.execute("TIME")
    assert queued == pytest.approx(int(seconds) + int(micros) / 1e6, abs=2)
    await asyncio.sleep(0.2)
    await Worker(queue).run_until_idle()
    info = await handle.info()
    assert info.queued_at == pytest.approx(queued, abs=0.002)
    assert 0.199 <= info.wait_seconds < 5


async def test_states_say_whether_a_task_has_ended():
    assert [state for state in TaskState if state.ended] == ["finished", "failed", "canceled"]


# How long results are kept


async def test_a_result_is_kept_for_a_day_and_a_failure_for_a_week(queue: TaskQueue, server, queue_name: str):
    @task
    async def fail() -> None:
        raise ValueError

    fine = await queue.enqueue(echo(), user_id="anna")
    failed = await queue.enqueue(fail(), user_id="anna")
    await Worker(queue).run_until_idle()
    assert 86_390_000 < result_ttl_ms(server, queue_name, fine) <= 86_400_000
    assert 7 * 86_390_000 < result_ttl_ms(server, queue_name, failed) <= 7 * 86_400_000


async def test_a_task_says_how_long_its_result_is_kept(queue: TaskQueue):
    handle = await queue.enqueue(echo(1).options(result_ttl=0.3), user_id="anna")
    await Worker(queue).run_until_idle()
    assert await handle.result(20) == 1
    await eventually(lambda: is_unknown(handle))
    with pytest.raises(UnknownTask, match="its result has expired"):
        await handle.result(20)


async def test_the_decorator_and_the_queue_say_it_where_the_task_does_not(server, queue_name: str):
    @task(result_ttl=1000)
    async def work() -> None: ...

    async with TaskQueue(server.url, name=queue_name, result_ttl=500) as queue:
        decorated = await queue.enqueue(work(), user_id="anna")
        called = await queue.enqueue(work().options(result_ttl=2000), user_id="anna")
        plain = await queue.enqueue(echo(), user_id="anna")
        await Worker(queue).run_until_idle()
        ttls = [result_ttl_ms(server, queue_name, handle) for handle in (decorated, called, plain)]
    assert [round(ttl / 1000) for ttl in ttls] == [1000, 2000, 500]


async def test_nothing_is_kept_where_nothing_is_wanted(queue: TaskQueue, server, queue_name: str):
    handle = await queue.enqueue(echo("secret").options(result_ttl=0), user_id="anna")
    waiting = asyncio.create_task(handle.result(20))
    await Worker(queue).run_until_idle()
    with pytest.raises(ResultNotKept, match=f"{handle.task_id!r} of user 'anna' finished, its result was not kept"):
        await waiting
    key = f"fairque:{{{queue_name}}}:result:anna:{handle.task_id}"
    assert b"secret" not in server.execute("GET", key)
    assert 0 < server.execute("PTTL", key) <= 15_000, "a trace, for an enqueue that is repeated"
    assert not [each for each in server.keys(queue_name) if handle.task_id in each and each != key]


async def test_a_failure_is_kept_even_where_no_result_is(queue: TaskQueue):
    @task(result_ttl=0)
    async def fail() -> None:
        raise ValueError("no")

    with pytest.raises(TaskFailed, match="no"):
        await result_of(queue, fail())


async def test_after_the_end_only_the_result_is_left(queue: TaskQueue, server, queue_name: str):
    handle = await queue.enqueue(echo("hello"), user_id="anna")
    await Worker(queue).run_until_idle()
    keys = {key.removeprefix(f"fairque:{{{queue_name}}}:") for key in server.keys(queue_name)}
    assert keys == {
        f"result:anna:{handle.task_id}",
        "settings",
        "state",
        "users",
        "metrics:anna",
        "metrics:*",
    }


async def is_in(handle: TaskHandle, state: TaskState) -> bool:
    return await handle.state() is state


async def is_unknown(handle: TaskHandle) -> bool:
    try:
        await handle.state()
    except UnknownTask:
        return True
    return False


def subscribers(server, queue_name: str, handle: TaskHandle) -> int:
    from fairque.redis.keys import Keys

    channel = Keys(queue_name).done_channel(handle.user_id, handle.task_id)
    return server.execute("PUBSUB", "SHARDNUMSUB", channel)[1]


def commands(client: RespClient) -> int:
    return int(re.search(rb"total_commands_processed:(\d+)", client.execute("INFO", "stats"))[1])


def quiet(client: RespClient, looks: list[int]) -> bool:
    """Nobody else said anything between the last six looks."""
    looks.append(commands(client))
    return len(looks) > 5 and looks[-1] - looks[-6] == 5


def result_ttl_ms(server, queue_name: str, handle: TaskHandle) -> int:
    return server.execute("PTTL", f"fairque:{{{queue_name}}}:result:{handle.user_id}:{handle.task_id}")
