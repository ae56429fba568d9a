"""Dependencies of a task: who makes them, when they are closed, and what of them callers see."""

# ruff: noqa: ARG001
from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Annotated, Any

import pytest

from fairque import (
    BadArguments,
    Collect,
    InvalidInput,
    RetryPolicy,
    Snooze,
    SoftTimeout,
    TaskCanceled,
    TaskFailed,
    TaskQueue,
    Worker,
    current_task,
    task,
    xcom_task,
)
from fairque.contrib.depends import CallArgument, Depends, Provided, replaced
from fairque.tasks.registry import registry
from fairque.testing import assert_enqueued, run_all
from tests.fundamentals import in_processes_depending
from tests.support.eventually import eventually

log: list[str] = []


class Client:
    """Cannot travel: it has a lock."""

    def __init__(self, name: str = "client") -> None:
        self.name = name
        self.lock = threading.Lock()


@asynccontextmanager
async def make_client() -> AsyncIterator[Client]:
    log.append("open")
    try:
        yield Client()
    finally:
        log.append("close")


async def make_user(client: Client = Depends(make_client)) -> str:
    return f"user of {client.name}"


def refused() -> Client:
    raise ConnectionRefusedError("nobody is there")


@contextmanager
def connected() -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(":memory:")  # it may be used in the thread that opened it, and in no other
    try:
        yield connection
    finally:
        connection.close()
        log.append("close")


@pytest.fixture(autouse=True)
def _clean():
    log.clear()
    registry.update({made.name: made for made in (in_processes_depending.use, in_processes_depending.refuse)})


async def ran(queue: TaskQueue, made: Any, **worker: Any) -> Any:
    handle = await queue.enqueue(made, user_id="acme")
    async with Worker(queue, **worker):
        return await handle.result(20)


async def test_they_are_made_on_the_worker_and_closed_after_the_run(queue: TaskQueue):
    @task
    async def fetch(url: str, client: Client = Depends(make_client)) -> str:
        log.append(f"{client.name} fetches {url}")
        return url

    assert await ran(queue, fetch("a")) == "a"
    assert log == ["open", "client fetches a", "close"]


async def test_they_may_stand_in_annotations(queue: TaskQueue):
    @task
    async def fetch(url: str, client: Annotated[Client, Depends(make_client)] = Provided, *, times: int = 1) -> str:
        return url * times + client.name

    assert await ran(queue, fetch("a", times=2)) == "aaclient"


async def test_they_may_be_of_types_that_cannot_travel(queue: TaskQueue):
    @task
    async def fetch(
        url: str,
        one: Annotated[Client | sqlite3.Connection, Depends(make_client)],
        other: Callable[[], int] | Client | dict[Client, object] = Depends(make_client),
    ) -> bool:
        return one is other

    assert await ran(queue, fetch("a"))  # type: ignore[call-arg]


async def test_they_are_made_once_a_run_however_many_want_them(queue: TaskQueue):
    @task
    async def greet(user: str = Depends(make_user), client: Client = Depends(make_client)) -> str:
        return f"{user}, {client.name}"

    handles = await queue.enqueue_many([greet(), greet()], user_id="acme")
    async with Worker(queue, concurrency=1):
        assert await queue.results(handles, 20) == ["user of client, client"] * 2
    assert log == ["open", "close"] * 2


async def test_a_factory_may_ask_for_an_argument_of_the_call(queue: TaskQueue):
    def of_tenant(tenant: str = CallArgument()) -> str:
        return f"database of {tenant}"

    @task
    async def count(tenant: str, database: str = Depends(of_tenant)) -> str:
        return database

    assert await ran(queue, count("zoe")) == "database of zoe"
    assert await ran(queue, count(tenant="max")) == "database of max"


async def test_a_factory_knows_its_task(queue: TaskQueue):
    def whose() -> str:
        return current_task().user_id

    @task
    async def tell(user: str = Depends(whose)) -> str:
        return user

    assert await ran(queue, tell()) == "acme"


async def test_they_are_no_part_of_a_message(queue: TaskQueue):
    @task
    async def fetch(url: str, client: Client = Depends(make_client)) -> str:
        return url

    @task
    async def plain(url: str) -> str:
        return url

    assert (fetch("a").args, fetch("a").kwargs) == (plain("a").args, plain("a").kwargs)
    handle = await queue.enqueue(fetch("a"), user_id="acme")
    await assert_enqueued(queue, fetch("a"), user_id="acme")
    await handle.cancel()
    assert log == []


@pytest.mark.parametrize("has_more", [False, True])
def test_no_caller_can_give_them(has_more: bool):
    async def fetch(url: str, client: Client = Depends(make_client), width: int = 3) -> str: ...
    async def with_more(url: str, client: Client = Depends(make_client), **more: Any) -> str: ...

    made = task(with_more if has_more else fetch)
    with pytest.raises(BadArguments, match="'client' is given by its worker"):
        made("a", client="mine")  # type: ignore[arg-type]
    with pytest.raises(BadArguments, match="too many positional arguments"):
        made("a", "mine")  # type: ignore[arg-type]


async def test_what_a_message_gives_in_their_place_is_refused(queue: TaskQueue):
    async def fetch(url: str, **more: str) -> str: ...

    old = task(name="fetch")(fetch)("a", client="mine")
    registry.pop("fetch")

    @task(name="fetch")
    async def new(url: str, client: Client = Depends(make_client), **more: str) -> str:
        return client.name

    handle = await queue.enqueue(old, user_id="acme")
    async with Worker(queue):
        with pytest.raises(TaskFailed, match="'client' is given by its worker") as error:
            await handle.result(20)
    assert error.value.kind == "bad-arguments"
    await queue.discard(handle)


async def test_they_are_closed_when_the_body_fails(queue: TaskQueue):
    @task
    async def fail(client: Client = Depends(make_client)) -> None:
        raise LookupError("lost")

    with pytest.raises(TaskFailed, match="lost"):
        await ran(queue, fail())
    assert log == ["open", "close"]


@pytest.mark.parametrize("how", ["timeout", "cancel", "stop"])
async def test_they_are_closed_when_the_body_is_stopped(queue: TaskQueue, how: str):
    @task
    async def hang(client: Client = Depends(make_client)) -> None:
        log.append("hang")
        await asyncio.Event().wait()

    handle = await queue.enqueue(hang(), user_id="acme", **{"timeout": 0.1} if how == "timeout" else {})
    async with Worker(queue, shutdown_timeout=0):
        await eventually(lambda: "hang" in log)
        if how == "cancel":
            await handle.cancel()
        if how != "stop":
            with pytest.raises((TaskFailed, TaskCanceled)):
                await handle.result(20)
    await eventually(lambda: log == ["open", "hang", "close"])
    if how == "stop":
        await handle.cancel()


async def test_a_soft_timeout_reaches_the_body(queue: TaskQueue):
    @task(timeout=(0.05, 10))
    async def slow(client: Client = Depends(make_client)) -> str:
        try:
            await asyncio.Event().wait()
        except SoftTimeout:
            return "in time"
        raise AssertionError

    assert await ran(queue, slow()) == "in time"
    assert log == ["open", "close"]


async def test_one_that_cannot_be_had_fails_the_attempt_by_its_name(queue: TaskQueue):
    attempts = []

    def flaky() -> Client:
        attempts.append(current_task().attempt)
        if len(attempts) == 1:
            raise ConnectionRefusedError("nobody is there")
        return Client()

    @task(max_retries=1, retry=RetryPolicy(base=0))
    async def fetch(other: Client = Depends(make_client), client: Client = Depends(flaky)) -> str:
        return client.name

    assert await ran(queue, fetch()) == "client"
    assert attempts == [1, 2]
    assert log == ["open", "close"] * 2


@pytest.mark.parametrize("where", ["loop", "thread", "process"])
async def test_its_failure_tells_what_it_was_wherever_the_body_runs(queue: TaskQueue, where: str):
    @task(name="loop")
    async def loop(pid: Client = Depends(refused)) -> None: ...

    @task(name="thread")
    def thread(pid: Client = Depends(refused)) -> None: ...

    made = {"loop": loop, "thread": thread, "process": in_processes_depending.refuse}[where]
    handle = await queue.enqueue(made(), user_id="acme", max_retries=0)
    async with Worker(queue):
        with pytest.raises(TaskFailed) as error:
            await handle.result(20)
    assert error.value.type_name == "ConnectionRefusedError"
    assert str(error.value).endswith(f"nobody is there; in the dependency 'pid' of task {made.name!r}")
    assert "in refused" in error.value.traceback
    assert "uncalled_for" not in error.value.traceback
    await queue.discard(handle)


async def test_a_policy_of_retries_knows_the_error_of_a_factory(queue: TaskQueue):
    @task(max_retries=1, retry=RetryPolicy(base=0, retry_on=[ConnectionError]))
    async def fetch(client: Client = Depends(refused)) -> None: ...

    @task(max_retries=1, retry=RetryPolicy(base=0, retry_on=[TimeoutError]))
    async def fetch_once(client: Client = Depends(refused)) -> None: ...

    handles = await queue.enqueue_many([fetch(), fetch_once()], user_id="acme")
    async with Worker(queue):
        for handle in handles:
            with pytest.raises(TaskFailed, match="nobody is there"):
                await handle.result(20)
    assert {letter.name.rpartition(".")[2]: letter.attempt for letter in await queue.dead_letters()} == {
        "fetch": 2,
        "fetch_once": 1,
    }


async def test_a_factory_may_put_the_task_off(queue: TaskQueue):
    seen = []

    def when_free() -> int:
        seen.append(current_task().snoozed)
        if len(seen) == 1:
            raise Snooze(0.01)
        return 1

    @task
    async def fetch(turn: int = Depends(when_free)) -> int:
        return current_task().attempt

    assert await ran(queue, fetch()) == 1
    assert seen == [0, 1]


async def test_one_that_swallows_the_error_of_a_body_does_not_hide_it(queue: TaskQueue):
    @asynccontextmanager
    async def swallowing() -> AsyncIterator[int]:
        try:
            yield 1
        except LookupError:
            log.append("rolled back")

    @contextmanager
    def swallowing_plain() -> Iterator[int]:
        try:
            yield 1
        except LookupError:
            log.append("rolled back")

    @task
    async def fail(session: int = Depends(swallowing)) -> None:
        raise LookupError("lost")

    @task
    def fail_plain(session: int = Depends(swallowing_plain)) -> None:
        raise LookupError("lost")

    for made in (fail(), fail_plain()):
        handle = await queue.enqueue(made, user_id="acme")
        async with Worker(queue):
            with pytest.raises(TaskFailed, match="lost"):
                await handle.result(20)
        await queue.discard(handle)
    assert log == ["rolled back"] * 2


async def test_an_error_as_they_are_closed_is_that_of_the_attempt(queue: TaskQueue):
    @asynccontextmanager
    async def uncommitted() -> AsyncIterator[int]:
        yield 1
        raise ConnectionResetError("not committed")

    @task
    async def book(session: int = Depends(uncommitted)) -> str:
        return "booked"

    handle = await queue.enqueue(book(), user_id="acme")
    async with Worker(queue):
        with pytest.raises(TaskFailed, match="not committed"):
            await handle.result(20)
    await queue.discard(handle)


# Threads, subprocesses, generators


async def test_a_plain_function_has_them_made_and_closed_in_its_thread(queue: TaskQueue):
    @task
    def count(connection: sqlite3.Connection = Depends(connected)) -> int:
        return int(connection.execute("select 41 + 1").fetchone()[0])

    assert await ran(queue, count()) == 42
    assert log == ["close"]


async def test_a_blocking_factory_of_a_plain_function_holds_up_nobody(queue: TaskQueue):
    is_there = threading.Event()

    def blocking() -> int:
        assert is_there.wait(20)
        return 1

    @task
    def slow(client: int = Depends(blocking)) -> int:
        return client

    @task
    async def quick() -> None:
        is_there.set()

    async with Worker(queue, concurrency=2):
        first = await queue.enqueue(slow(), user_id="eve")
        await (await queue.enqueue(quick(), user_id="acme")).result(20)
        assert await first.result(20) == 1


async def test_a_thread_that_goes_on_keeps_what_it_has_until_it_ends(queue: TaskQueue):
    going_on = threading.Event()

    @task(timeout=0.1)
    def stubborn(connection: sqlite3.Connection = Depends(connected)) -> None:
        assert going_on.wait(20)
        connection.execute("select 1")
        log.append("used")

    handle = await queue.enqueue(stubborn(), user_id="acme")
    async with Worker(queue):
        with pytest.raises(TaskFailed):
            await handle.result(20)
        assert log == []
        going_on.set()
        await eventually(lambda: log == ["used", "close"])
    await queue.discard(handle)


async def test_a_subprocess_has_its_own(queue: TaskQueue, tmp_path: Path):
    file = tmp_path / "log"
    pid = await ran(queue, in_processes_depending.use(str(file)))
    assert file.read_text().splitlines() == [f"opened by {pid}", f"closed by {pid}"]


async def test_a_generator_has_them_while_it_is_read(queue: TaskQueue):
    @task
    async def numbers(client: Client = Depends(make_client)) -> AsyncIterator[str]:
        yield client.name
        log.append("between")
        yield client.name

    @task
    def rows(connection: sqlite3.Connection = Depends(connected)) -> Iterator[int]:
        for (row,) in connection.execute("values (1), (2)"):
            yield row

    first = await queue.enqueue(numbers(), user_id="acme")
    second = await queue.enqueue(rows(), user_id="acme")
    async with Worker(queue, concurrency=1):
        assert [chunk async for chunk in first.stream()] == ["client"] * 2
        assert [chunk async for chunk in second.stream()] == [1, 2]
    assert log == ["open", "between", "close", "close"]


@pytest.mark.parametrize("is_plain", [False, True])
async def test_a_generator_that_is_canceled_closes_them(queue: TaskQueue, is_plain: bool):
    if is_plain:

        @task(name="endless")
        def endless(connection: sqlite3.Connection = Depends(connected)) -> Iterator[int]:
            while True:
                yield 1
    else:

        @task(name="endless")
        async def endless(client: Client = Depends(make_client)) -> AsyncIterator[int]:
            yield 1
            await asyncio.Event().wait()

    handle = await queue.enqueue(endless(), user_id="acme")
    async with Worker(queue):
        async for _ in handle.stream():
            break
        await handle.cancel()
        with pytest.raises(TaskCanceled):
            await handle.result(20)
        await eventually(lambda: log[-1:] == ["close"])


async def test_a_factory_of_a_plain_function_cannot_wait(queue: TaskQueue):
    class Late:
        def __init__(self) -> None: ...

        async def __aenter__(self) -> int:
            await asyncio.sleep(0)
            return 1

        async def __aexit__(self, *_: object) -> None: ...

    @task
    def count(connection: sqlite3.Connection = Depends(connected), late: Any = Depends(Late)) -> None: ...

    handle = await queue.enqueue(count(), user_id="acme")
    async with Worker(queue):
        with pytest.raises(TaskFailed, match=r"has no event loop, so .*; in the dependency 'late'"):
            await handle.result(20)
    assert log == ["close"]


@pytest.mark.parametrize("is_plain", [False, True])
async def test_a_body_that_serves_many_calls_has_them_once(queue: TaskQueue, is_plain: bool):
    if is_plain:

        @task(name="embed", collect=Collect(2, within=10))
        def embed(texts: list[str], db: sqlite3.Connection = Depends(connected)) -> list[str]:
            return [f"{text} {db.execute('select 1').fetchone()[0]}" for text in texts]
    else:

        @task(name="embed", collect=Collect(2, within=10))
        async def embed(texts: list[str], client: Client = Depends(make_client)) -> list[str]:
            return [f"{text} 1" for text in texts]

    handles = await queue.enqueue_many([embed("a"), embed("b")], user_id="acme")
    async with Worker(queue):
        assert await queue.results(handles, 20) == ["a 1", "b 1"]
    assert log == (["close"] if is_plain else ["open", "close"])


def test_a_body_that_serves_many_calls_has_one_list_of_arguments_beside_them():
    async def embed(texts: list[str], width: int = 3, client: Client = Depends(make_client)) -> list[str]: ...

    with pytest.raises(InvalidInput, match="it takes one parameter"):
        task(collect=Collect(2, within=10))(embed)  # type: ignore[arg-type]


async def test_they_go_with_values_of_others(queue: TaskQueue):
    @xcom_task(pull_keys={"width": "width"}, pull_defaults={"width": 3})
    async def resize(image: str, width: int, *, client: Client = Depends(make_client)) -> str:
        return f"{image} {width} {client.name}"

    assert await ran(queue, resize("a")) == "a 3 client"


# What is refused


async def from_afar() -> int: ...


async def bare() -> AsyncIterator[int]:
    yield 1


def missing(city: str = CallArgument()) -> str: ...


def in_thread(client: int = Depends(from_afar)) -> None: ...


def nested(user: str = Depends(make_user)) -> None: ...


async def generator(client: Any = Depends(bare)) -> None: ...


async def before_args(client: Client = Depends(refused), *rest: int) -> None: ...


async def unnamed(client: Client = Depends(refused), /) -> None: ...


async def asking(city_map: str = Depends(missing)) -> None: ...


async def nothing(client: Client = Provided) -> None: ...


async def of_a_builtin(client: Any = Depends(dict)) -> None: ...


async def of_no_function(client: Any = Depends(3)) -> None: ...  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fn", "why"),
    [
        (in_thread, "dependency 'client' is async, from_afar: make that plain, or the task async"),
        (nested, "dependency 'user' is async"),
        (generator, "'client' is a generator, bare: decorate it with @asynccontextmanager"),
        (before_args, r"must stand behind \*rest"),
        (unnamed, "'client' must have a name"),
        (asking, "no parameter 'city'"),
        (nothing, "defaults to Provided, but"),
        (of_a_builtin, "no signature found for builtin"),
        (of_no_function, "'client' is no function: 3"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_cannot_be_resolved_is_refused_at_decoration(fn: Any, why: str):
    with pytest.raises(InvalidInput, match=why):
        task(name=fn.__name__)(fn)
    assert fn.__name__ not in registry


def test_async_factories_are_refused_for_subprocesses_as_well():
    with pytest.raises(InvalidInput, match="is async"):
        task(run_in="process")(in_thread)


def test_a_name_that_only_type_checkers_know_is_named():
    async def fetch(client: Annotated[Nowhere, Depends(refused)] = Provided) -> None: ...  # type: ignore[name-defined]  # noqa: F821

    with pytest.raises(InvalidInput, match="name 'Nowhere' is not defined"):
        task(fetch)


def test_what_is_shared_by_all_runs_belongs_to_the_worker():
    from uncalled_for import Shared

    async def fetch(client: Client = Depends(refused), other: Client = Shared(refused)) -> None: ...

    with pytest.raises(InvalidInput, match="lifespan"):
        task(fetch)


# In tests


async def test_they_can_be_replaced_for_a_test(queue: TaskQueue):
    @task
    async def fetch(user: str = Depends(make_user), client: Client = Depends(make_client)) -> str:
        return f"{user}, {client.name}"

    @task
    def count(connection: sqlite3.Connection = Depends(connected)) -> str:
        return str(connection)

    with replaced(make_client, lambda: Client("fake")), replaced(connected, lambda: "none"):
        handles = await queue.enqueue_many([fetch(), count()], user_id="acme")
        await run_all(queue)
        assert await queue.results(handles, 20) == ["user of fake, fake", "none"]
    assert log == []
    again = await queue.enqueue(fetch(), user_id="acme")
    await run_all(queue)
    assert await again.result(20) == "user of client, client"


def test_a_replacement_is_held_to_the_same_rules():
    async def late() -> str: ...

    @task
    def count(connection: sqlite3.Connection = Depends(connected)) -> str:
        return str(connection)

    with pytest.raises(InvalidInput, match="late: make that plain"), replaced(connected, late):
        pass
    with replaced(connected, lambda: "none"):
        pass
    with pytest.raises(InvalidInput, match="no task of this process depends on"), replaced(late, connected):
        pass


def test_who_uses_none_imports_nothing_and_who_lacks_the_extra_is_told():
    code = "import sys, fairque, fairque.sync\n"
    code += "assert 'uncalled_for' not in sys.modules; sys.modules['uncalled_for'] = None\n"
    code += "@fairque.task\ndef f(n: int = 3): ...\nf(4)\nimport fairque.contrib.depends"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1].endswith("needs uncalled_for: pip install 'fairque[depends]'"), done.stderr


async def test_a_task_without_any_is_called_as_ever():
    @task
    async def plain(url: str) -> str:
        return url

    assert plain.body is plain.fn
