"""`fairque.testing`: what it runs, what it moves, and what it finds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

import fairque.testing.clock
from fairque import (
    CallNext,
    InvalidInput,
    Priority,
    Retry,
    RetryPolicy,
    Task,
    TaskContext,
    TaskFailed,
    TaskHandler,
    TaskQueue,
    TaskScheduler,
    TaskState,
    Worker,
    current_task,
    task,
)
from fairque.tasks.registry import registry, unregister
from fairque.testing import EnqueuedTask, advance, assert_enqueued, enqueued, run_all, temporary_queue
from fairque.testing.clock import move
from tests.support.servers import Server

log: list[str] = []
HOUR = 3600.0


@pytest.fixture(autouse=True)
def _empty_log() -> Iterator[None]:
    log.clear()
    known = set(registry)
    yield
    for name in registry.keys() - known:
        unregister(name)


@pytest.fixture
async def queue(server: Server) -> AsyncIterator[TaskQueue]:
    """What the fixture of users gives: these tests may leave tasks behind."""
    async with temporary_queue(server.url) as queue:
        yield queue


@task
async def say(word: str, times: int = 1) -> str:
    log.append(word * times)
    return word


@task
def say_in_a_thread(word: str) -> None:
    log.append(word)


@task
async def spread(queue_name: str, url: str, depth: int) -> None:
    log.append(f"depth {depth}")
    if depth:
        async with TaskQueue(url, name=queue_name) as queue:
            await queue.enqueue(spread(queue_name, url, depth - 1), user_id="acme")


@task(retry=RetryPolicy(max=2, base=0))
async def stumble() -> int:
    if current_task().attempt < 3:
        raise ConnectionError("not yet")
    return current_task().attempt


@task(retry=RetryPolicy(max=2, base=HOUR, cap=3 * HOUR, jitter=0))
async def stumble_for_hours() -> int:
    log.append(f"attempt {current_task().attempt}")
    if current_task().attempt < 3:
        raise Retry(reason="later")
    return current_task().attempt


@task
async def divide(a: int, b: int) -> float:
    log.append("divide")
    return a / b


@task
async def hang() -> None:
    await asyncio.Event().wait()


@task
async def meet(at: datetime, guests: list[str], *, table: int = 1) -> None:
    log.append(f"{at} {guests} {table}")


# run_all


async def test_run_all_runs_what_waits_and_what_that_brings_until_nothing_is_left(queue: TaskQueue, server: Server):
    first = await queue.enqueue(say("first"), user_id="acme")
    await queue.enqueue(say("then"), user_id="acme", depends_on=[first])
    await queue.enqueue(spread(queue.name, server.url, 2), user_id="acme")
    await queue.enqueue(say_in_a_thread("threaded"), user_id="zoe")
    await queue.enqueue(stumble(), user_id="zoe")
    await queue.enqueue(say("much later"), user_id="zoe", delay=HOUR)
    ran = await run_all(queue)
    assert sorted(log) == ["depth 0", "depth 1", "depth 2", "first", "then", "threaded"]
    assert [info.attempt for info in ran if info.name.endswith("stumble")] == [3]
    assert {info.state for info in ran} == {TaskState.FINISHED}
    assert len(ran) == 7
    assert await run_all(queue) == []


async def test_run_all_runs_one_after_the_other_in_the_order_of_service(queue: TaskQueue):
    await queue.enqueue_many([say("a1"), say("a2"), say("a3")], user_id="acme")
    await queue.enqueue_many([say("z1"), say("z2"), say("z3")], user_id="zoe")
    await queue.enqueue(say("urgent"), user_id="acme", priority=Priority.CRITICAL)
    ran = await run_all(queue)
    assert log == ["urgent", "z1", "a1", "z2", "a2", "z3", "a3"]
    assert [info.user_id for info in ran] == ["acme", "zoe", "acme", "zoe", "acme", "zoe", "acme"]


async def test_what_ran_comes_in_the_order_in_which_it_ended(queue: TaskQueue):
    await queue.enqueue(stumble(), user_id="acme")
    await queue.enqueue_many([say("z1"), say("z2"), say("z3")], user_id="zoe")
    ran = await run_all(queue)
    assert [info.user_id for info in ran].index("acme") >= 2  # it took its turn three times


async def test_run_all_raises_the_first_failure_when_all_others_have_run(queue: TaskQueue):
    await queue.enqueue(divide(1, 0), user_id="acme", task_id="wrong")
    await queue.enqueue(divide(2, 0), user_id="acme", task_id="wrong-too")
    await queue.enqueue(say("after"), user_id="acme")
    with pytest.raises(TaskFailed, match="division by zero") as raised:
        await run_all(queue)
    assert raised.value.type_name == "ZeroDivisionError"
    assert log == ["divide", "divide", "after"]
    notes = "\n".join(raised.value.__notes__)
    assert "divide ('wrong' of user 'acme'), attempt 1" in notes
    assert "return a / b" in notes
    assert "failed as well: tests.test_testing.divide ('wrong-too' of user 'acme'): ZeroDivisionError" in notes


async def test_run_all_can_hand_back_failures_instead(queue: TaskQueue):
    await queue.enqueue(divide(1, 0), user_id="acme")
    [info] = await run_all(queue, raise_errors=False)
    assert info.state is TaskState.FAILED
    assert info.error is not None
    assert info.error.type_name == "ZeroDivisionError"


async def test_a_task_that_will_be_tried_later_is_told_as_scheduled(queue: TaskQueue):
    await queue.enqueue(stumble_for_hours(), user_id="acme")
    [info] = await run_all(queue)
    assert (info.state, info.attempt) == (TaskState.SCHEDULED, 1)


async def test_run_all_gives_up_in_time_and_says_what_is_left(queue: TaskQueue):
    handle = await queue.enqueue(hang(), user_id="acme")
    await queue.enqueue(say("never"), user_id="acme")
    with pytest.raises(TimeoutError, match=r"(?s)not empty after 0.5 s; these wait:.*hang\(\).*say\('never'\)"):
        await run_all(queue, timeout=0.5)
    assert await handle.state() is TaskState.QUEUED
    assert log == []


async def test_tasks_that_wait_for_each_other_need_run_all_to_run_more_than_one(queue: TaskQueue):
    met = asyncio.Event()

    @task
    async def wait() -> None:
        await met.wait()

    @task
    async def come() -> None:
        met.set()

    await queue.enqueue_many([wait(), come()], user_id="acme")
    assert len(await run_all(queue, concurrency=2)) == 2


async def test_run_all_takes_a_handler_for_payloads(queue: TaskQueue):
    class Handler(TaskHandler):
        async def process_task(self, payload: dict[str, Any]) -> None:
            log.append(payload["word"])

    await queue.enqueue(Task.create(payload={"word": "handled"}), user_id="acme")
    await run_all(queue, handler=Handler())
    assert log == ["handled"]


async def test_run_all_takes_middlewares(queue: TaskQueue):
    @task
    async def quiet() -> None: ...

    async def loud(run: TaskContext, call_next: CallNext) -> Any:
        log.append(run.user_id)
        return await call_next()

    await queue.enqueue(quiet(), user_id="acme", headers={"a": "1"})
    [waiting] = await enqueued(queue)
    assert waiting.headers == {"a": "1"}
    await run_all(queue, run_middleware=[loud])
    assert log == ["acme"]


async def test_run_all_refuses_a_queue_that_another_worker_serves(queue: TaskQueue):
    async with Worker(queue, worker_id="busy-bee"):
        with pytest.raises(InvalidInput, match="while worker 'busy-bee' serves"):
            await run_all(queue)
    assert await run_all(queue) == []


# advance


async def test_advance_brings_nearer_what_is_scheduled_and_runs_nothing(queue: TaskQueue):
    await queue.enqueue(say("in an hour"), user_id="acme", delay=HOUR)
    await queue.enqueue(say("in two"), user_id="zoe", delay=2 * HOUR)
    assert await advance(queue, HOUR - 60) == 0
    assert await run_all(queue) == []
    assert await advance(queue, 60) == 1
    assert log == []
    await run_all(queue)
    assert log == ["in an hour"]
    assert await advance(queue, HOUR) == 1
    await run_all(queue)
    assert log == ["in an hour", "in two"]


async def test_what_is_due_together_runs_in_the_order_of_its_times(queue: TaskQueue):
    for delay in (3, 1, 2):
        await queue.enqueue(say(f"in {delay}"), user_id="acme", delay=delay * HOUR)
    assert await advance(queue, 4 * HOUR) == 3
    await run_all(queue)
    assert log == ["in 1", "in 2", "in 3"]


async def test_advance_brings_nearer_retries_that_wait_for_their_backoff(queue: TaskQueue):
    await queue.enqueue(stumble_for_hours(), user_id="acme")
    await run_all(queue)
    await advance(queue, HOUR)
    await run_all(queue)
    assert log == ["attempt 1", "attempt 2"]
    await advance(queue, HOUR)
    assert await run_all(queue) == []  # the second retry waits twice as long
    await advance(queue, HOUR)
    [info] = await run_all(queue)
    assert info.state is TaskState.FINISHED


async def test_time_passes_for_a_task_that_waits_for_another_one_as_well(queue: TaskQueue):
    first = await queue.enqueue(say("first"), user_id="acme")
    made = say("then").options(delay_from="enqueue")
    await queue.enqueue(made, user_id="acme", depends_on=[first], delay=HOUR)
    await advance(queue, HOUR)
    await run_all(queue)
    assert log == ["first", "then"]


async def test_nothing_that_lasts_is_left_of_time_that_passed(queue: TaskQueue, server: Server):
    await advance(queue, HOUR)
    before = server.lasting_keys(queue.name)
    await advance(queue, HOUR)
    assert server.lasting_keys(queue.name) == before


async def test_a_worker_that_sleeps_hears_of_it(queue: TaskQueue):
    async with Worker(queue, poll_interval=HOUR):
        handle = await queue.enqueue(say("now"), user_id="acme", delay=HOUR)
        await advance(queue, HOUR)
        assert await handle.result(timeout=30) == "now"


async def test_a_call_that_is_repeated_after_a_cut_reply_moves_once(queue: TaskQueue):
    await queue.enqueue(say("in two hours"), user_id="acme", delay=2 * HOUR)
    store = queue.store()
    first = await move(store, 3_600_000, "nonce")
    assert await move(store, 3_600_000, "nonce") == first == (0, 3_600_000)
    assert await move(store, 3_600_000, "another") == (1, 7_200_000)
    await store.close()


async def test_advance_fires_the_slots_of_schedules_that_come_within_that_time(queue: TaskQueue):
    scheduler = TaskScheduler(queue)
    await scheduler.add_schedule(cron_expr="0 * * * *", task=say("hello"), user_id="acme", schedule_id="hourly")
    assert await advance(queue, 3 * HOUR) == 3
    ran = await run_all(queue)
    assert [info.state for info in ran] == ["finished"] * 3
    assert await advance(queue, HOUR) == 1
    assert len(await run_all(queue)) == 1
    await scheduler.remove_schedule("hourly")


async def test_advance_refuses_more_than_it_can_move_at_once(queue: TaskQueue, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fairque.testing.clock, "MOST_MOVED", 1)
    await queue.enqueue(say("one"), user_id="acme", delay=HOUR)
    assert await advance(queue, HOUR) == 1
    await queue.enqueue(say("two"), user_id="acme", delay=HOUR)
    with pytest.raises(InvalidInput, match="too large for advance"):
        await advance(queue, HOUR)
    assert [round(each.due_in or 0) for each in await enqueued(queue)] == [0, HOUR]


@pytest.mark.parametrize("seconds", [-1, float("nan"), "60"])
async def test_advance_takes_seconds_that_may_pass(queue: TaskQueue, seconds: Any):
    with pytest.raises(InvalidInput, match="seconds must be a number"):
        await advance(queue, seconds)


# enqueued, assert_enqueued


async def test_everything_that_waits_is_found_wherever_it_waits(queue: TaskQueue):
    await queue.enqueue(say("scheduled"), user_id="zoe", delay=HOUR, priority=Priority.LOW)
    first = await queue.enqueue(say("normal"), user_id="acme")
    await queue.enqueue(say("deferred"), user_id="acme", depends_on=[first])
    await queue.enqueue(say("deferred too"), user_id="acme", depends_on=[first], task_id="0")
    await queue.enqueue(say("critical"), user_id="acme", priority=Priority.CRITICAL)
    found = await enqueued(queue)
    assert [(each.user_id, each.args[0], each.priority, each.state) for each in found] == [
        ("acme", "critical", Priority.CRITICAL, TaskState.QUEUED),
        ("acme", "normal", Priority.NORMAL, TaskState.QUEUED),
        ("acme", "deferred", Priority.NORMAL, TaskState.DEFERRED),
        ("acme", "deferred too", Priority.NORMAL, TaskState.DEFERRED),
        ("zoe", "scheduled", Priority.LOW, TaskState.SCHEDULED),
    ]
    assert [each.due_in and round(each.due_in / 60) for each in found] == [None, None, None, None, 60]
    assert found[1].task_id == first.task_id
    assert [each.args[0] for each in await enqueued(queue, user_id="zoe")] == ["scheduled"]
    assert [each.args[0] for each in await enqueued(queue, priority=6)] == ["critical"]


async def test_what_a_limit_of_its_name_holds_back_is_found(queue: TaskQueue):
    await queue.set_limit(say.name, rate="1/h")
    await queue.enqueue_many([say("first"), say("second")], user_id="acme")
    assert len(await run_all(queue)) == 1
    [second] = await enqueued(queue)
    assert (second.args, second.state) == (("second",), TaskState.QUEUED)


async def test_more_than_a_page_is_found(queue: TaskQueue, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("fairque.testing.waiting.PAGE", 3)
    first = await queue.enqueue(say("first"), user_id="user-0")
    for user in range(7):
        await queue.enqueue_many([say(f"{n}") for n in range(7)], user_id=f"user-{user}")
    await queue.enqueue_many([say("d").options(depends_on=[first]) for _ in range(7)], user_id="user-0")
    assert len(await enqueued(queue)) == 1 + 7 * 7 + 7
    assert [each.args[0] for each in await enqueued(queue, user_id="user-3")] == list("0123456")


MEETING = meet(datetime(2026, 3, 1, tzinfo=UTC), ["zoe"])


@pytest.mark.parametrize(
    "wanted",
    [
        {},
        {"task": meet},
        {"task": "tests.test_testing.meet"},
        {"task": MEETING},
        {"task": meet(datetime(2026, 3, 1, tzinfo=UTC), guests=["zoe"], table=1).options(delay=5)},
        {"task": meet, "args": (datetime(2026, 3, 1, tzinfo=UTC),)},
        {"task": meet, "kwargs": {"guests": ["zoe"]}},
        {"task": meet, "kwargs": {"guests": ("zoe",), "table": 1}},
        {"kwargs": {"table": 1}},
        {"task": meet, "user_id": "acme", "priority": Priority.NORMAL},
    ],
)
async def test_a_task_is_found_by_what_is_known_of_it(queue: TaskQueue, wanted: dict[str, Any]):
    await queue.enqueue(meet(datetime(2026, 3, 1, tzinfo=UTC), ["zoe"], table=1), user_id="acme")
    assert len(await assert_enqueued(queue, **wanted)) == 1
    with pytest.raises(AssertionError, match="expected exactly 0"):
        await assert_enqueued(queue, **wanted, count=0)


@pytest.mark.parametrize(
    "wanted",
    [
        {"task": say},
        {"task": "meet"},
        {"task": meet(datetime(2026, 3, 1, tzinfo=UTC), ["zoe"], table=2)},
        {"task": meet, "args": (datetime(2026, 3, 2, tzinfo=UTC),)},
        {"task": meet, "kwargs": {"guests": []}},
        {"kwargs": {"chair": 1}},
        {"task": meet, "user_id": "zoe"},
        {"task": meet, "priority": Priority.HIGH},
    ],
)
async def test_what_differs_is_not_found(queue: TaskQueue, wanted: dict[str, Any]):
    await queue.enqueue(MEETING, user_id="acme")
    assert await assert_enqueued(queue, **wanted, count=0) == []
    with pytest.raises(AssertionError, match="expected at least 1 of "):
        await assert_enqueued(queue, **wanted)


async def test_a_failed_assertion_says_what_waits_instead(queue: TaskQueue):
    await queue.enqueue(say("hello", times=3), user_id="acme", priority=Priority.HIGH)
    await queue.enqueue(say("bye"), user_id="zoe", delay=HOUR)
    with pytest.raises(AssertionError) as raised:
        await assert_enqueued(queue, say, user_id="acme", args=("bye",), priority=3, count=2)
    expected, hello, bye = str(raised.value).splitlines()
    assert expected == (
        "expected exactly 2 of tests.test_testing.say('bye'), user 'acme', priority NORMAL "
        f"in queue {queue.name!r}, found 0; these wait:"
    )
    assert hello == "  acme: tests.test_testing.say('hello', times=3), HIGH, queued"
    assert bye.startswith("  zoe: tests.test_testing.say('bye'), NORMAL, scheduled, due in 3")


async def test_a_failed_assertion_about_an_empty_queue_says_so(queue: TaskQueue):
    with pytest.raises(AssertionError, match=r"expected at least 1 of any task in queue .*, found 0; nothing waits"):
        await assert_enqueued(queue)


async def test_a_failed_assertion_about_a_full_queue_stays_readable(queue: TaskQueue):
    await queue.enqueue_many([say("x") for _ in range(60)], user_id="acme")
    with pytest.raises(AssertionError, match=r"and 10 more") as raised:
        await assert_enqueued(queue, say, count=1)
    assert len(str(raised.value).splitlines()) == 52


async def test_outputs_of_other_tasks_stand_among_the_arguments(queue: TaskQueue):
    word = say("word")
    run = await queue.enqueue(say(word.output).options(task_id="echo") >> say("end"), user_id="acme")
    [found] = [each for each in await enqueued(queue, say) if each.task_id == run["echo"].task_id]
    assert found.args == (f"<output of {run['say'].task_id}>",)


async def test_functions_that_are_not_known_here_and_payloads_are_compared_as_they_came(queue: TaskQueue):
    @task(name="elsewhere")
    async def elsewhere(point: tuple[int, int], *, unit: str = "m") -> None: ...

    await queue.enqueue(elsewhere((1, 2), unit="km"), user_id="acme")
    unregister("elsewhere")
    await queue.enqueue(Task.create(payload={"a": 1}, name="note"), user_id="acme")
    await assert_enqueued(queue, "elsewhere", args=[(1, 2)], kwargs={"unit": "km"}, count=1)
    await assert_enqueued(queue, "elsewhere", args=[(1, 3)], count=0)
    await assert_enqueued(queue, "note", args=[{"a": 1}], count=1)
    await assert_enqueued(queue, Task.create(payload={"a": 1}, name="note"), count=1)
    await assert_enqueued(queue, Task.create(payload={"a": 1, "b": 2}, name="note"), count=0)


@pytest.mark.parametrize(
    ("wanted", "problem"),
    [
        ({"task": 42}, "give a task, a function made by @task"),
        ({"task": MEETING, "args": [1]}, "has its arguments already"),
        ({"task": say, "args": "hello"}, "args must be a list or tuple"),
        ({"task": say, "kwargs": ["hello"]}, "kwargs must be a dict"),
        ({"task": say, "kwargs": {"word": "x", "tims": 2}}, "takes no such arguments.*tims"),
        ({"task": say, "args": ("x", 2, 3)}, "takes no such arguments.*too many"),
        ({"task": say, "count": -1}, "count must be"),
        ({"task": say, "user_id": ""}, "user_id must not be empty"),
        ({"task": say, "priority": 7}, "priority must be a whole number from 1 to 6"),
    ],
)
async def test_an_assertion_that_makes_no_sense_is_refused(queue: TaskQueue, wanted: dict[str, Any], problem: str):
    with pytest.raises(InvalidInput, match=problem):
        await assert_enqueued(queue, **wanted)


# temporary_queue


async def test_nothing_is_left_of_a_temporary_queue(server: Server):
    async with temporary_queue(server.url, result_ttl=60) as temporary:
        handle = await temporary.enqueue(say("here"), user_id="acme")
        await run_all(temporary)
        assert await handle.result() == "here"
        await temporary.enqueue(divide(1, 0), user_id="a*[b")
        await temporary.xcom("acme").push("key", 1)
        await advance(temporary, 1)
        assert server.keys(temporary.name)
    assert server.keys(temporary.name) == []


async def test_nothing_is_left_of_it_when_the_test_fails(server: Server):
    names = []

    async def failing() -> None:
        async with temporary_queue(server.url) as temporary:
            names.append(temporary.name)
            await temporary.enqueue(say("here"), user_id="acme")
            await assert_enqueued(temporary, say, count=2)

    with pytest.raises(AssertionError):
        await failing()
    assert server.keys(names[0]) == []


async def test_each_temporary_queue_is_another_one(server: Server):
    async with temporary_queue(server.url) as one, temporary_queue(server.url) as other:
        await one.enqueue(say("x"), user_id="acme")
        assert await enqueued(other) == []
        assert isinstance((await enqueued(one))[0], EnqueuedTask)
