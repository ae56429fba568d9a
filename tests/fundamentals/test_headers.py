"""Headers: what travels with a task beside its arguments."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from fairque import (
    Codec,
    Encrypt,
    Fail,
    InvalidInput,
    Task,
    TaskEvent,
    TaskFailed,
    TaskHandler,
    TaskQueue,
    TaskScheduler,
    TaskState,
    Worker,
    current_task,
    task,
)
from fairque.tasks.message import encode_body
from fairque.testing import enqueued
from tests.fundamentals import in_processes
from tests.support.servers import Server

FROM_HERE = {"request": "r-1", "länge": "ö" * 3}


async def test_a_task_is_given_the_headers_of_its_call(queue: TaskQueue):
    @task
    async def on_the_loop() -> dict[str, str]:
        return dict(current_task().headers)

    @task
    def in_a_thread() -> dict[str, str]:
        return dict(current_task().headers)

    calls = [on_the_loop(), in_a_thread(), in_processes.headers_here()]
    with_headers = [await queue.enqueue(each, user_id="acme", headers=FROM_HERE) for each in calls]
    without = [await queue.enqueue(each, user_id="acme") for each in calls]
    async with Worker(queue):
        assert await queue.results(with_headers, 20) == [FROM_HERE] * 3
        assert await queue.results(without, 20) == [{}] * 3


async def test_a_handler_is_given_them_as_well(queue: TaskQueue):
    class Echo(TaskHandler):
        async def process_task(self, payload: dict[str, Any]) -> dict[str, str]:
            return {**current_task().headers, **payload}

    handle = await queue.enqueue(Task.create(payload={"n": "1"}, headers=FROM_HERE), user_id="acme")
    async with Worker(queue, handler=Echo()):
        assert await handle.result(20) == {**FROM_HERE, "n": "1"}


async def test_what_is_said_later_replaces_what_was_said_before(queue: TaskQueue):
    @task(headers={"team": "billing", "a": "1"})
    async def told() -> dict[str, str]:
        return dict(current_task().headers)

    calls = [told(), told().options(headers={"a": "2"}), told().options(headers={})]
    handles = await queue.enqueue_many(calls, user_id="acme")
    handles += await queue.enqueue_many([told()], user_id="acme", headers={"b": "3"})
    async with Worker(queue):
        assert await queue.results(handles, 20) == [{"team": "billing", "a": "1"}, {"a": "2"}, {}, {"b": "3"}]


async def test_each_step_of_a_pipeline_has_its_own(queue: TaskQueue):
    @task
    async def first() -> dict[str, str]:
        return dict(current_task().headers)

    @task
    async def second(before: dict[str, str]) -> list[dict[str, str]]:
        return [before, dict(current_task().headers)]

    one = first().options(headers={"step": "1"})
    run = await queue.enqueue(second(one.output).options(headers={"step": "2"}), user_id="acme")
    async with Worker(queue):
        assert await run.result(20) == [{"step": "1"}, {"step": "2"}]


@pytest.mark.leaves_keys("schedule*", "declare*")
async def test_each_run_of_a_schedule_has_those_of_its_task(queue: TaskQueue):
    told = []

    @task
    async def report() -> None:
        told.append(current_task().headers)

    scheduler = TaskScheduler(queue)
    made = report().options(headers=FROM_HERE)
    await scheduler.add_schedule(every=timedelta(hours=1), task=made, user_id="acme", schedule_id="hourly")
    await scheduler.run_now("hourly")
    await scheduler.fire_due(ahead=3600)
    assert [each.headers for each in await enqueued(queue)] == [FROM_HERE] * 2
    await Worker(queue, scheduler=False).run_until_idle()
    assert told == [FROM_HERE] * 2


async def test_they_are_told_of_a_task_until_it_ends_and_of_a_failed_one(queue: TaskQueue):
    @task
    async def ends(*, well: bool) -> dict[str, str]:
        if not well:
            raise Fail("it is to")
        return dict(current_task().headers)

    good, bad = [await queue.enqueue(ends(well=well), user_id="acme", headers=FROM_HERE) for well in (True, False)]
    assert (await good.info()).headers == FROM_HERE
    assert (await queue.tasks("acme"))[0].headers == {}  # listings leave them out
    await Worker(queue).run_until_idle()
    assert (await good.info()).headers == {}
    assert (await bad.info()).headers == FROM_HERE
    again = await queue.requeue(bad)
    assert (await again.info()).headers == FROM_HERE
    await again.cancel()


async def test_a_retry_has_the_same(queue: TaskQueue):
    @task(max_retries=1)
    async def twice() -> str:
        if current_task().attempt == 1:
            raise ConnectionError
        return current_task().headers["request"]

    handle = await queue.enqueue(twice(), user_id="acme", headers=FROM_HERE)
    async with Worker(queue):
        assert await handle.result(20) == "r-1"


async def test_a_body_cannot_change_them(queue: TaskQueue):
    """Those of tasks without any are one map in the worker: what a body put there would be in all others."""

    @task
    async def write() -> None:
        current_task().headers["mine"] = "yours"  # type: ignore[index]

    @task
    async def read() -> dict[str, str]:
        return dict(current_task().headers)

    attack, other = await queue.enqueue(write(), user_id="eve"), await queue.enqueue(read(), user_id="acme")
    async with Worker(queue, concurrency=1):
        with pytest.raises(TaskFailed, match="does not support item assignment"):
            await attack.result(20)
        assert await other.result(20) == {}
    await queue.discard(attack)


def test_what_becomes_of_the_map_of_the_caller_changes_no_task():
    given = {"a": "1"}
    made = Task.create(headers=given)
    given["a"] = "2"
    assert made.task_options.headers == {"a": "1"}
    with pytest.raises(TypeError):
        made.task_options.headers["a"] = "2"  # type: ignore[index]


@pytest.mark.parametrize("codec", [None, Encrypt({"k": bytes(32)})], ids=["plain", "sealed"])
async def test_hooks_are_told_of_them_and_of_the_queue(server: Server, queue_name: str, codec: Codec | None):
    @task
    async def divide(n: int) -> float:
        return 1 / n

    told: list[TaskEvent] = []
    async with TaskQueue(server.url, name=queue_name, codec=codec) as queue:
        async with Worker(queue, on_success=told.append, on_failure=told.append):
            await (await queue.enqueue(divide(1), user_id="acme", headers=FROM_HERE)).result(20)
            await (await queue.enqueue(divide(1), user_id="acme")).result(20)
            bad = await queue.enqueue(divide(0), user_id="acme", headers=FROM_HERE)
            with pytest.raises(TaskFailed):
                await bad.result(20)
        await queue.discard(bad)
    assert [dict(each.headers) for each in told] == [FROM_HERE, {}, FROM_HERE]
    assert {each.queue_name for each in told} == {queue_name}


def test_a_message_without_headers_is_as_small_as_before():
    plain = encode_body(Task.create().message(), bytes(8), 1.0, 3, 1000)
    assert len(plain) == 18 + 5  # an array of four: no name, no payload, nothing, nothing
    assert encode_body(Task.create(headers={}).message(), bytes(8), 1.0, 3, 1000) == plain
    timed = encode_body(Task.create(timeout=5).message(), bytes(8), 1.0, 3, 1000)
    assert b"headers" not in timed


@pytest.mark.parametrize(
    ("headers", "rule"),
    [
        ("trace", "headers must be a map of texts, not 'trace'"),
        ([("a", "1")], "headers must be a map of texts, not"),
        ({"a": 1}, "header 'a' must be a str, not 1"),
        ({"a": None}, "header 'a' must be a str, not None"),
        ({1: "a"}, "the name of a header must be a str, not 1"),
        ({"": "a"}, "the name of a header must not be empty"),
        ({"a": "\ud800"}, "header 'a' cannot be encoded as UTF-8"),
        ({"a": "x" * 4096}, "headers have 4097 bytes, names included, the limit is 4096"),
        ({"ö" * 1024: "ö" * 1024, "b": ""}, "headers have 4097 bytes"),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_what_are_no_headers_is_refused(headers: Any, rule: str):
    for make in (
        lambda: task(name="refused", headers=headers)(lambda: None),
        lambda: Task.create(headers=headers),
        lambda: Task.create().options(headers=headers),
    ):
        with pytest.raises(InvalidInput, match=rule):
            make()


async def test_as_many_as_may_be_arrive(queue: TaskQueue):
    headers = {f"{n:03}": "x" * 13 for n in range(256)}
    handle = await queue.enqueue(Task.create(headers=headers), user_id="acme")
    assert (await handle.info()).headers == headers
    await handle.cancel()
    assert await handle.state() is TaskState.CANCELED
