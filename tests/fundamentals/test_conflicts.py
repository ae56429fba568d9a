"""A task whose id is taken: keep the one that lives, replace it, or raise."""

from __future__ import annotations

import asyncio

import pytest

from fairque import Enqueued, InvalidInput, Retry, TaskExists, TaskQueue, TaskState, Worker, task
from fairque.tasks.message import new_nonce
from tests.fundamentals.test_expiry import Stage, reason_of
from tests.support.core import Core
from tests.support.eventually import eventually

USER = "anna: ä"


@task
async def echo(value: object = None) -> object:
    return value


@pytest.fixture
async def stage() -> Stage:
    return Stage()


async def put(queue: TaskQueue, value: object, **options):
    return await queue.enqueue(echo(value), user_id=USER, **{"task_id": "t", "on_conflict": "replace", **options})


async def test_what_waits_is_replaced_under_its_id(queue: TaskQueue) -> None:
    first = await put(queue, 1)
    second = await put(queue, 2)
    assert (first.enqueued, second.enqueued, second.created) == (Enqueued.CREATED, Enqueued.REPLACED, True)
    assert (await queue.stats()).queued == 1
    await Worker(queue).run_until_idle()
    assert await first.result(1) == await second.result(1) == 2
    user = await queue.user(USER)
    assert (user.finished, user.canceled) == (1, 0)


async def test_it_keeps_its_place_in_line_and_a_new_priority_counts(queue: TaskQueue) -> None:
    ran = []

    @task
    async def note(name: str) -> None:
        ran.append(name)

    for name in ("first", "second", "third"):
        await queue.enqueue(note(name), user_id=USER, task_id=name)
    await queue.enqueue(note("first again"), user_id=USER, task_id="first", on_conflict="replace")
    await queue.enqueue(note("third, urgent"), user_id=USER, task_id="third", on_conflict="replace", priority=5)
    await Worker(queue, concurrency=1).run_until_idle()
    assert ran == ["third, urgent", "first again", "second"]


async def test_nothing_is_asked_of_one_that_is_replaced_by_the_call_that_brings_it(queue: TaskQueue) -> None:
    first = echo(1).options(task_id="t", depends_on=["never put in"])
    handles = await queue.enqueue_many([first, echo(2).options(task_id="t", on_conflict="replace")], user_id=USER)
    await Worker(queue).run_until_idle()
    assert await handles[0].result(1) == 2


async def test_the_place_of_one_that_was_requeued_is_that_of_its_new_life(queue: TaskQueue) -> None:
    ran = []

    @task(max_retries=0)
    async def note(name: str) -> None:
        if name == "broken":
            raise OSError("the disk")
        ran.append(name)

    broken = await queue.enqueue(note("broken"), user_id=USER, task_id="t")
    await Worker(queue).run_until_idle()
    await queue.enqueue(note("before it"), user_id=USER)
    await queue.requeue(broken)
    await queue.enqueue(note("instead of it"), user_id=USER, task_id="t", on_conflict="replace")
    await Worker(queue, concurrency=1).run_until_idle()
    assert ran == ["before it", "instead of it"]


async def test_one_that_runs_is_kept(queue: TaskQueue, stage: Stage) -> None:
    async with Worker(queue):
        running = await queue.enqueue(stage.occupy(), user_id=USER, task_id="t")
        await stage.started.wait()
        other = await put(queue, 2)
        assert (other.enqueued, other.created) == (Enqueued.KEPT, False)
        stage.go_on.set()
        assert await other.result(10) is await running.result(10) is None


async def test_an_error_is_raised_for_one_that_lives_and_nothing_is_written(queue: TaskQueue) -> None:
    await put(queue, 1, on_conflict="error")
    with pytest.raises(TaskExists, match="'t'") as caught:
        await put(queue, 2, on_conflict="error")
    assert (caught.value.user_id, caught.value.task_id) == (USER, "t")
    made = [echo(3).options(task_id=name, on_conflict="error") for name in ("new", "t")]
    with pytest.raises(TaskExists):
        await queue.enqueue_many(made, user_id=USER)
    assert (await queue.stats()).queued == 1
    await Worker(queue).run_until_idle()
    assert (await put(queue, 4, on_conflict="error")).enqueued is Enqueued.CREATED
    await queue.purge(USER)


async def test_one_users_conflict_fails_no_others_call_that_is_sent_with_it(queue: TaskQueue) -> None:
    await put(queue, 1)
    calls = [put(queue, 2, on_conflict="error")]
    calls += [queue.enqueue(echo(n), user_id="zoe") for n in range(20)]
    refused, *others = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(refused, TaskExists)
    assert all(other.created for other in others)
    await queue.purge(USER)
    await queue.purge("zoe")


@pytest.mark.leaves_keys("limit*")
async def test_it_is_replaced_wherever_it_waits(queue: TaskQueue, stage: Stage) -> None:
    limited = task(name="limited", max_running=1)(stage._occupy)
    attempts = []

    @task(max_retries=3)
    async def flaky() -> None:
        attempts.append(1)
        raise Retry(delay=3600)

    async with Worker(queue):
        first = await queue.enqueue(limited(), user_id=USER)
        await stage.started.wait()
        held = await queue.enqueue(limited(), user_id=USER, task_id="held")
        scheduled = await queue.enqueue(echo(), user_id=USER, task_id="scheduled", delay=3600)
        deferred = await queue.enqueue(echo(), user_id=USER, task_id="deferred", depends_on=[first])
        retried = await queue.enqueue(flaky(), user_id=USER, task_id="retried")
        await eventually(lambda: is_waiting(held, retried))
        for handle in (held, scheduled, deferred, retried):
            await put(queue, handle.task_id, task_id=handle.task_id)
        for handle in (held, scheduled, deferred, retried):
            assert await handle.result(10) == handle.task_id
        stage.go_on.set()
        await first.result(10)
    assert (await retried.info()).errors == ()
    assert len(attempts) == 1


async def is_waiting(held, retried) -> bool:
    info = await held.info()
    return info.held_by is not None and await retried.state() is TaskState.SCHEDULED


async def test_who_depends_on_it_depends_on_the_new_one_which_depends_on_what_it_says(queue: TaskQueue) -> None:
    source = await queue.enqueue(echo("source"), user_id=USER, delay=3600)
    await put(queue, 1, depends_on=[source])
    after = await queue.enqueue(echo("after"), user_id=USER, depends_on=["t"])
    assert (await source.info()).dependents == ("t",)
    second = await put(queue, 2)
    assert (await source.info()).dependents == ()
    assert (await second.info()).dependents == (after.task_id,)
    await put(queue, 3, depends_on=[source])
    await source.cancel()
    assert "dependency" in await reason_of(second)
    assert "dependency" in await reason_of(after)


async def test_a_task_cannot_wait_for_itself_by_replacing_what_it_depends_on(queue: TaskQueue) -> None:
    await put(queue, 1)
    after = await queue.enqueue(echo(), user_id=USER, depends_on=["t"])
    with pytest.raises(InvalidInput, match="wait for each other"):
        await put(queue, 2, depends_on=[after])
    await Worker(queue).run_until_idle()
    assert await queue.handle(USER, "t").result(1) == 1


async def test_a_full_backlog_has_room_for_what_replaces(queue: TaskQueue) -> None:
    await queue.set_policy(USER, max_queued=1, max_bytes=10_000)
    await put(queue, "x" * 6_000)
    assert (await put(queue, "y" * 6_000)).enqueued is Enqueued.REPLACED
    await Worker(queue).run_until_idle()
    await queue.purge(USER)


async def test_of_those_that_come_in_one_call_the_last_one_counts(queue: TaskQueue) -> None:
    made = [echo(n).options(task_id="t", on_conflict="replace") for n in range(3)]
    handles = await queue.enqueue_many([*made, echo(4).options(task_id="t")], user_id=USER)
    assert [handle.enqueued for handle in handles] == ["created", "replaced", "replaced", "kept"]
    handles = await asyncio.gather(*(put(queue, n) for n in range(3, 40)))
    assert {handle.enqueued for handle in handles} == {Enqueued.REPLACED}
    await Worker(queue).run_until_idle()
    assert await handles[0].result(1) == 39
    assert (await queue.stats()).finished == 1


async def test_a_repeated_call_gets_its_answer_and_overwrites_no_newer_one(server, queue_name: str) -> None:
    async with TaskQueue(server.url, name=queue_name) as queue, Core(server.url, queue_name):
        first = queue._producer.make(echo(1).options(task_id="t", on_conflict="replace"), USER, new_nonce())
        for _ in range(2):
            [answer] = await queue._producer._sender.send([first])
        newer = await put(queue, 2)
        assert newer.enqueued is Enqueued.REPLACED
        assert await queue._producer._sender.send([first]) == [answer]
        await Worker(queue).run_until_idle()
        assert await newer.result(1) == 2
        assert await queue._producer._sender.send([first]) == [answer], "after its end as well"
        assert (await queue.stats()).queued == 0


async def test_what_expires_and_is_replaced_expires_as_the_new_one_says(queue: TaskQueue) -> None:
    await queue.pause(USER)
    await put(queue, 1, expires=0.2)
    kept = await put(queue, 2)
    await put(queue, 1, task_id="u")
    late = await put(queue, 2, task_id="u", expires=0.2)
    async with Worker(queue):
        assert await reason_of(late) == "expired"
        await queue.resume(USER)
        assert await kept.result(10) == 2
    await queue.clear_policy(USER)


async def test_another_word_is_refused(queue: TaskQueue) -> None:
    with pytest.raises(InvalidInput, match="on_conflict"):
        await put(queue, 1, on_conflict="overwrite")
