"""Tasks that are put in only where no other one stands for them: unique, debounced and throttled."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import timedelta

import pytest

from fairque import (
    Debounce,
    Enqueued,
    InvalidInput,
    TaskCanceled,
    TaskFailed,
    TaskQueue,
    TaskScheduler,
    TaskState,
    Throttle,
    Unique,
    Worker,
    task,
)
from fairque.tasks.message import new_nonce
from fairque.testing import advance
from tests.fundamentals.test_expiry import Stage
from tests.support.core import Core
from tests.support.eventually import eventually

USER, OTHER = "anna: ä", "zoe"


@task
async def echo(value: object = None) -> object:
    return value


@task
async def index(document: str, version: int = 1) -> str:
    return f"{document} {version}"


@task
async def fail() -> None:
    raise ValueError("on purpose")


@pytest.fixture
async def stage() -> Stage:
    return Stage()


async def pointers(server, queue_name: str) -> dict[str, int]:
    async with Core(server.url, queue_name) as core:
        return {name: key.ttl_ms for name, key in core.dump().items() if name.startswith("unique:")}


async def is_running(handle) -> bool:
    return await handle.state() is TaskState.STARTED


# Unique


async def test_one_that_runs_through_a_purge_is_still_the_only_one(queue: TaskQueue) -> None:
    running, go_on = asyncio.Event(), asyncio.Event()

    @task(name="deaf")
    async def deaf() -> None:
        running.set()
        while not go_on.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await go_on.wait()

    async with Worker(queue):
        first = await queue.enqueue(deaf(), user_id=USER, unique=True)
        await running.wait()
        is_complete = (await queue.purge(USER, timeout=0.05)).complete
        second = await queue.enqueue(deaf(), user_id=USER, unique=True)
        go_on.set()
        assert (is_complete, second.task_id) == (False, first.task_id)
        with pytest.raises(TaskCanceled):
            await first.result(10)
    assert (await queue.purge(USER)).complete


async def test_a_second_one_is_the_first_until_that_has_ended(
    queue: TaskQueue, stage: Stage, server, queue_name: str
) -> None:
    async with Worker(queue):
        first = await queue.enqueue(stage.occupy(), user_id=USER, unique=True)
        await stage.started.wait()
        second = await queue.enqueue(stage.occupy(), user_id=USER, unique=True)
        assert (second.task_id, second.enqueued, second.created) == (first.task_id, Enqueued.KEPT, False)
        assert (await first.info()).unique == "ended"
        stage.go_on.set()
        await second.result(10)
        third = await queue.enqueue(stage.occupy(), user_id=USER, unique=True)
        assert third.enqueued is Enqueued.CREATED
        await third.result(10)
    assert await pointers(server, queue_name) == {}


async def test_until_it_has_started_what_changes_meanwhile_makes_another_one(queue: TaskQueue, stage: Stage) -> None:
    rule = Unique(until="started")
    async with Worker(queue):
        first = await queue.enqueue(stage.occupy(), user_id=USER, unique=rule, delay=0.2)
        assert (await queue.enqueue(stage.occupy(), user_id=USER, unique=rule)).task_id == first.task_id
        await stage.started.wait()
        second = await queue.enqueue(stage.occupy(), user_id=USER, unique=rule)
        assert second.created
        stage.go_on.set()
        await second.result(10)


@pytest.mark.parametrize("rule", [Unique(), Unique(until="started")])
async def test_one_that_waited_for_another_task_gives_its_key_up_as_any_other(
    queue: TaskQueue, stage: Stage, server, queue_name: str, rule: Unique
) -> None:
    before = await queue.enqueue(echo(), user_id=USER)
    first = await queue.enqueue(stage.occupy(), user_id=USER, unique=rule, depends_on=[before])
    async with Worker(queue):
        await stage.started.wait()
        second = await queue.enqueue(stage.occupy(), user_id=USER, unique=rule)
        assert second.created is (rule.until == "started")
        stage.go_on.set()
        await first.result(10)
        await second.result(10)
    assert await pointers(server, queue_name) == {}


async def test_for_a_time_after_its_end_there_is_no_other_one(queue: TaskQueue, server, queue_name: str) -> None:
    rule = Unique(after=timedelta(hours=1))
    first = await queue.enqueue(echo(1), user_id=USER, unique=rule)
    await Worker(queue).run_until_idle()
    second = await queue.enqueue(echo(2), user_id=USER, unique=rule)
    assert (second.enqueued, await second.result(1)) == (Enqueued.KEPT, 1)
    assert first.task_id == second.task_id
    [left] = (await pointers(server, queue_name)).values()
    assert 3_500_000 < left <= 3_600_000
    await queue.purge(USER)
    assert await pointers(server, queue_name) == {}
    short = await queue.enqueue(echo(), user_id=USER, unique=Unique(after=0.05))
    await Worker(queue).run_until_idle()
    await eventually(lambda: is_created(queue, short))
    await queue.purge(USER)


async def is_created(queue: TaskQueue, before) -> bool:
    return (await queue.enqueue(echo(), user_id=USER, unique=Unique(after=0.05))).task_id != before.task_id


async def test_each_user_name_and_filled_key_is_unique_for_itself(queue: TaskQueue) -> None:
    made = [
        await queue.enqueue(index("a"), user_id=USER, unique="{document}"),
        await queue.enqueue(index("b"), user_id=USER, unique="{document}"),
        await queue.enqueue(index("a"), user_id=OTHER, unique="{document}"),
        await queue.enqueue(index("a"), user_id=USER, unique=True),
        await queue.enqueue(echo("a"), user_id=USER, unique="{value}"),
    ]
    assert all(handle.created for handle in made)
    again = await queue.enqueue(index("a", 2), user_id=USER, unique="{document}")
    assert again.task_id == made[0].task_id
    await queue.purge(USER)
    await queue.purge(OTHER)


@pytest.mark.parametrize("end", ["cancel", "fail", "discard", "purge", "expire", "replace", "drop"])
async def test_its_key_goes_with_it_however_it_ends(queue: TaskQueue, server, queue_name: str, end: str) -> None:
    if end == "drop":
        await queue.set_policy(USER, max_queued=1, overflow="drop_oldest")
    if end == "expire":
        await queue.pause(USER)
    made = fail() if end in ("fail", "discard") else echo()
    options = {"expires": 0.01} if end == "expire" else {}
    handle = await queue.enqueue(made, user_id=USER, task_id="t", unique=Unique(after=60), **options)
    match end:
        case "cancel":
            await handle.cancel()
        case "fail" | "discard":
            await Worker(queue).run_until_idle()
            with pytest.raises(TaskFailed):
                await handle.result(1)
        case "purge":
            await queue.purge(USER)
        case "replace":
            await queue.enqueue(made, user_id=USER, task_id="t", on_conflict="replace")
        case "drop":
            await queue.enqueue(echo(), user_id=USER)
        case "expire":
            async with Worker(queue):
                await eventually(lambda: has_ended(handle))
    if end == "discard":
        await queue.discard(handle)
    left = await pointers(server, queue_name)
    assert all(0 < ttl <= 60_000 for ttl in left.values())
    assert len(left) == (end in ("fail", "discard")), "one that failed keeps it for the time after its end"
    await queue.purge(USER)


async def has_ended(handle) -> bool:
    return (await handle.state()).ended


async def test_a_hundred_calls_at_once_make_one_task(queue: TaskQueue) -> None:
    handles = await asyncio.gather(*(queue.enqueue(echo(n), user_id=USER, unique=True) for n in range(100)))
    assert [handle.enqueued for handle in handles].count(Enqueued.CREATED) == 1
    assert len({handle.task_id for handle in handles}) == 1
    handles = await queue.enqueue_many([echo(n) for n in range(10)], user_id=USER, unique="{value}")
    assert all(handle.created for handle in handles)
    await queue.purge(USER)


# Debounce


async def test_the_last_call_within_the_window_runs_once_under_the_id_of_the_first(queue: TaskQueue) -> None:
    handles = [await queue.enqueue(echo(n), user_id=USER, debounce=0.3) for n in range(5)]
    assert len({handle.task_id for handle in handles}) == 1
    assert [handle.enqueued for handle in handles] == ["created"] + ["replaced"] * 4
    async with Worker(queue):
        assert [await handle.result(10) for handle in handles] == [4] * 5
        again = await queue.enqueue(echo("again"), user_id=USER, debounce=0.1)
        assert (again.enqueued, await again.result(10)) == (Enqueued.CREATED, "again")
    assert (await queue.stats()).finished == 2


async def test_each_call_puts_it_off_but_not_beyond_the_longest_delay(queue: TaskQueue) -> None:
    rule = Debounce(100.0, longest=150.0)
    first = await queue.enqueue(echo(1), user_id=USER, debounce=rule)
    begun = (await first.info()).due_at
    assert begun is not None
    await advance(queue, 60)
    await queue.enqueue(echo(2), user_id=USER, debounce=rule)
    due = (await first.info()).due_at
    assert due == pytest.approx(begun - 60 + 50, abs=3)
    await queue.purge(USER)


async def test_the_longest_delay_counts_from_the_first_call(queue: TaskQueue) -> None:
    rule = Debounce(0.4, longest=0.6)
    loop = asyncio.get_running_loop()
    async with Worker(queue):
        first = await queue.enqueue(echo(0), user_id=USER, debounce=rule)
        began = loop.time()
        while loop.time() < began + 5 and not await has_ended(first):
            await queue.enqueue(echo(loop.time()), user_id=USER, debounce=rule)
            await asyncio.sleep(0.02)
        assert loop.time() - began < 3
    await queue.purge(USER)


async def test_one_whose_time_has_come_is_brought_up_to_date_and_keeps_its_place(queue: TaskQueue) -> None:
    ran = []

    @task
    async def note(name: str) -> None:
        ran.append(name)

    await queue.pause(USER)
    first = await queue.enqueue(note("old"), user_id=USER, debounce=1)
    await advance(queue, 2)
    await Worker(queue).run_until_idle()
    assert await first.state() is TaskState.QUEUED
    await queue.enqueue(note("other"), user_id=USER)
    newer = await queue.enqueue(note("new"), user_id=USER, debounce=1)
    assert (newer.task_id, newer.enqueued) == (first.task_id, Enqueued.REPLACED)
    await queue.resume(USER)
    await Worker(queue, concurrency=1).run_until_idle()
    assert ran == ["new", "other"]
    await queue.clear_policy(USER)


async def test_calls_that_are_sent_together_are_debounced_as_well(queue: TaskQueue) -> None:
    handles = await asyncio.gather(*(queue.enqueue(echo(n), user_id=USER, debounce=0.05) for n in range(50)))
    handles += await queue.enqueue_many([echo("many 1"), echo("many 2")], user_id=USER, debounce=0.05)
    assert len({handle.task_id for handle in handles}) == 1
    async with Worker(queue):
        assert await handles[0].result(10) == "many 2"
    assert (await queue.stats()).finished == 1


async def test_one_that_runs_is_not_changed_and_a_call_makes_the_next_one(queue: TaskQueue, stage: Stage) -> None:
    async with Worker(queue):
        first = await queue.enqueue(stage.occupy(), user_id=USER, debounce=0.01)
        await stage.started.wait()
        second = await queue.enqueue(stage.occupy(), user_id=USER, debounce=0.01)
        assert second.created
        assert second.task_id != first.task_id
        stage.go_on.set()
        await second.result(10)


# Throttle


async def test_the_first_call_runs_and_the_others_are_dropped_and_told_so(
    queue: TaskQueue, server, queue_name: str
) -> None:
    first = await queue.enqueue(echo(1), user_id=USER, throttle=3600)
    await Worker(queue).run_until_idle()
    second = await queue.enqueue(echo(2), user_id=USER, throttle=3600)
    assert (second.task_id, second.enqueued, second.created) == (first.task_id, Enqueued.DROPPED, False)
    assert await second.result(1) == 1
    assert (await queue.enqueue(echo(3), user_id=OTHER, throttle=3600)).created
    assert [0 < ttl <= 3_600_000 for ttl in (await pointers(server, queue_name)).values()] == [True, True]
    await queue.purge(USER)
    await queue.purge(OTHER)


async def test_after_the_window_the_next_call_runs(queue: TaskQueue) -> None:
    rule = Throttle(0.05, key="{document}")
    first = await queue.enqueue(index("a"), user_id=USER, throttle=rule)
    assert not (await queue.enqueue(index("a"), user_id=USER, throttle=Throttle(0.05, key="{document}"))).created
    await eventually(lambda: is_taken(queue, rule))
    await queue.purge(USER)
    assert first.created


async def is_taken(queue: TaskQueue, rule: Throttle) -> bool:
    return (await queue.enqueue(index("a"), user_id=USER, throttle=rule)).created


# All of them


@pytest.mark.parametrize(
    "rule", [{"unique": True}, {"debounce": 60}, {"throttle": 60}], ids=["unique", "debounce", "throttle"]
)
async def test_a_repeated_call_gets_the_answer_of_its_first_try(queue: TaskQueue, rule) -> None:
    made = [queue._producer.make(echo(n).options(**rule), USER, new_nonce()) for n in range(2)]
    send = queue._producer._sender.send
    told = [await send([new]) for new in made]
    assert [await send([new]) for new in made] == told, "not dropped by itself, nor over a newer one"
    assert (await queue.stats()).queued + (await queue.stats()).scheduled == 1
    await queue.purge(USER)


async def test_pipelines_and_schedules_refuse_them(queue: TaskQueue) -> None:
    for rule in ({"unique": True}, {"debounce": 1}, {"throttle": 1}):
        with pytest.raises(InvalidInput, match="another task cannot stand"):
            await queue.enqueue(echo(1).options(**rule) >> echo(2), user_id=USER)
        with pytest.raises(InvalidInput, match="another task cannot stand"):
            await queue.enqueue(echo(echo(1).output), user_id=USER, **rule)
        with pytest.raises(InvalidInput, match="overlap"):
            await TaskScheduler(queue).add_schedule(every=1, task=echo().options(**rule), user_id=USER)


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"unique": 5}, "unique must be"),
        ({"unique": "{nobody}"}, "cannot be filled"),
        ({"unique": True, "throttle": 5}, "one of"),
        ({"debounce": 0}, "seconds must be"),
        ({"debounce": 5, "delay": 5}, "give no delay"),
        ({"debounce": 5, "expires": 5}, "never run"),
        ({"debounce": 5, "depends_on": ["x"]}, "give no depends_on"),
        ({"throttle": "soon"}, "seconds must be"),
        ({"throttle": timedelta(days=32)}, "seconds must be"),
    ],
)
async def test_what_breaks_a_rule_is_refused(queue: TaskQueue, options, rule: str) -> None:
    with pytest.raises(InvalidInput, match=rule):
        await queue.enqueue(echo(), user_id=USER, **options)


def test_rules_that_contradict_themselves_are_refused() -> None:
    with pytest.raises(InvalidInput, match="after counts from the end"):
        Unique(until="started", after=5)
    with pytest.raises(InvalidInput, match="until must be"):
        Unique(until="never")  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="longest must be"):
        Debounce(5, longest=4)
    with pytest.raises(InvalidInput, match="braces"):
        Unique("{a.b}")
