"""Expiry: a task that is worth nothing when it begins too late."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from fairque import InvalidInput, Retry, TaskCanceled, TaskHandle, TaskQueue, TaskScheduler, TaskState, Worker, task
from fairque.redis.arguments import Rules
from fairque.testing import advance
from tests.support.core import Core, new_task
from tests.support.eventually import eventually
from tests.support.stopwatch import Stopwatch

USER, OTHER = "anna: ä", "zoe"


@task
async def echo(value: object = None) -> object:
    return value


async def reason_of(handle: TaskHandle[object], timeout: float = 20) -> str:
    with pytest.raises(TaskCanceled) as caught:
        await handle.result(timeout)
    return caught.value.reason


class Stage:
    """A task that occupies its slot until it is let go."""

    def __init__(self) -> None:
        self.go_on, self.started = asyncio.Event(), asyncio.Event()
        self.occupy = task(name="occupy")(self._occupy)

    async def _occupy(self) -> None:
        self.started.set()
        await self.go_on.wait()


@pytest.fixture
async def stage() -> Stage:
    return Stage()


async def test_who_waits_for_it_hears_within_a_second_while_the_worker_is_idle(queue: TaskQueue) -> None:
    await queue.pause(USER)
    async with Worker(queue, scheduler=False):
        handle = await queue.enqueue(echo(), user_id=USER, expires=0.3)
        clock = Stopwatch()
        assert await reason_of(handle) == "expired"
        assert 0.2 < clock.seconds < 1.3
    user = await queue.user(USER)
    assert (user.canceled, user.metrics.cost, user.normal) == (1, 0, 0)
    await queue.purge(USER)


@pytest.mark.parametrize("before", [True, False], ids=["put in before", "put in meanwhile"])
async def test_who_waits_for_it_hears_within_a_second_while_all_slots_are_taken(
    queue: TaskQueue, stage: Stage, before: bool
) -> None:
    async with Worker(queue, concurrency=1):
        if before:
            await queue.pause(USER)
            handle = await queue.enqueue(echo(), user_id=USER, expires=2)
        occupied = await queue.enqueue(stage.occupy(), user_id=OTHER)
        await stage.started.wait()
        if before:
            await queue.resume(USER)
        else:
            handle = await queue.enqueue(echo(), user_id=USER, expires=timedelta(seconds=0.3))
        clock = Stopwatch()
        assert await reason_of(handle) == "expired"
        assert clock.seconds < (3 if before else 1.3)
        stage.go_on.set()
        await occupied.result(10)


async def test_one_that_begins_in_time_runs_for_as_long_as_it_takes(queue: TaskQueue) -> None:
    attempts = []

    @task(max_retries=1)
    async def slow() -> str:
        attempts.append(1)
        await asyncio.sleep(0.15)
        if len(attempts) == 1:
            raise Retry(delay=0.1)
        return "done"

    async with Worker(queue):
        handle = await queue.enqueue(slow(), user_id=USER, expires=0.1)
        assert await handle.result(20) == "done"
    assert len(attempts) == 2


@pytest.mark.leaves_keys("limit*")
async def test_it_expires_wherever_it_waits(queue: TaskQueue, stage: Stage) -> None:
    limited = task(name="limited", max_running=1)(stage._occupy)
    async with Worker(queue, concurrency=3):
        first = await queue.enqueue(limited(), user_id=USER)
        await stage.started.wait()
        held = await queue.enqueue(limited(), user_id=USER, expires=0.5)
        deferred = await queue.enqueue(echo(), user_id=USER, expires=0.5, depends_on=[first])
        await eventually(lambda: is_held(held))
        assert await deferred.state() is TaskState.DEFERRED
        assert await reason_of(held) == await reason_of(deferred) == "expired"
        stage.go_on.set()
        await first.result(10)


async def is_held(handle: TaskHandle[object]) -> bool:
    return (await handle.info()).held_by is not None


async def test_one_with_a_delay_expires_where_its_turn_does_not_come(queue: TaskQueue) -> None:
    await queue.pause(USER)
    handle = await queue.enqueue(echo(), user_id=USER, delay=3600, expires=3601)
    assert await handle.state() is TaskState.SCHEDULED
    await advance(queue, 3602)
    await Worker(queue).run_until_idle()
    assert await reason_of(handle) == "expired"
    await queue.purge(USER)


async def test_dependents_follow_their_policy(queue: TaskQueue) -> None:
    await queue.pause(USER)
    first = await queue.enqueue(echo(), user_id=USER, expires=0.01)
    waits = await queue.enqueue(echo(), user_id=USER, depends_on=[first])
    runs = await queue.enqueue(echo(1), user_id=USER, depends_on=[first], on_dependency_failure="run")
    async with Worker(queue):
        assert await reason_of(first) == "expired"
        assert (await reason_of(waits)).startswith("dependency")
        await queue.resume(USER)
        assert await runs.result(20) == 1


async def test_a_moment_that_has_passed_lets_nothing_begin(queue: TaskQueue) -> None:
    handle = await queue.enqueue(echo(), user_id=USER, expires=datetime.now(UTC) - timedelta(minutes=1))
    await Worker(queue).run_until_idle()
    assert await reason_of(handle) == "expired"


async def test_of_many_that_expire_at_once_none_begins(server, queue_name: str) -> None:
    async with Core(server.url, queue_name) as core:
        for user_id in (USER, OTHER):
            made = [new_task(user_id, str(n), 3, 1.0, 0, b"12345678") for n in range(300)]
            await core.enqueue_all([each._replace(rules=Rules("+10")) for each in made])
        await core.enqueue(OTHER, "last")
        core.wait_until_ms(core.now_us() // 1000 + 20)
        taken = [of.id for _ in range(20) for of in await core.take(1)]
        assert taken == ["last"]
        assert core.state()["canceled"] == "600"
        assert "expiring" not in core.dump()
        assert "expiring" not in core.state()
        core.forget()


async def test_a_user_whose_tasks_expire_by_thousands_delays_nobody(queue: TaskQueue) -> None:
    await queue.pause(USER)
    await queue.pause(OTHER)
    moment = datetime.now(UTC) + timedelta(seconds=3)
    async with Worker(queue):
        await queue.enqueue_many([echo()] * 5_000, user_id=USER, expires=moment)
        handle = await queue.enqueue(echo(), user_id=OTHER, expires=moment)
        begun = max(moment, datetime.now(UTC))
        assert await reason_of(handle) == "expired"
        assert datetime.now(UTC) < begun + timedelta(seconds=1)
        await eventually(lambda: has_expired(queue, 5_001))
    for user_id in (USER, OTHER):
        await queue.clear_policy(user_id)


async def has_expired(queue: TaskQueue, number: int) -> bool:
    return (await queue.stats()).canceled == number


async def test_one_that_no_worker_knows_has_not_begun(queue: TaskQueue) -> None:
    unknown = task(name="nobody.knows.it")(echo.fn)
    made = unknown()
    from fairque.tasks.registry import unregister

    unregister("nobody.knows.it")
    async with Worker(queue):
        handle = await queue.enqueue(made, user_id=USER, expires=0.5)
        assert await reason_of(handle) == "expired"


async def test_it_tells_by_when_it_must_begin(queue: TaskQueue) -> None:
    before = datetime.now(UTC).timestamp()
    handle = await queue.enqueue(echo(), user_id=USER, expires=60)
    info = await handle.info()
    assert info.expires_at == pytest.approx(before + 60, abs=5)
    told = await queue.explain(USER, handle.task_id)
    assert told is not None
    assert told.expires_in == pytest.approx(60, abs=5)
    assert "expires in" in str(told)
    await Worker(queue).run_until_idle()
    plain = await queue.enqueue(echo(), user_id=USER)
    assert (await plain.info()).expires_at is None
    assert "expires" not in str(await queue.explain(USER, plain.task_id))
    await plain.cancel()


async def test_canceled_finished_and_purged_ones_leave_nothing(queue: TaskQueue, server, queue_name: str) -> None:
    handles = [await queue.enqueue(echo(), user_id=USER, expires=60) for _ in range(2)]
    assert await handles[0].cancel()
    await Worker(queue).run_until_idle()
    assert await handles[1].result(1) is None
    await queue.enqueue(echo(), user_id=USER, expires=60)
    await queue.purge(USER)
    async with Core(server.url, queue_name) as core:
        assert not [name for name in core.dump() if name.startswith("expiring")]


@pytest.mark.leaves_keys("schedule*", "declare*")
async def test_each_run_of_a_schedule_has_its_own_time_to_begin(queue: TaskQueue) -> None:
    await queue.pause(USER)
    scheduler = TaskScheduler(queue)
    await scheduler.add_schedule(every=3600, task=echo().options(expires=0.2), user_id=USER, schedule_id="hourly")
    await scheduler.fire_due(ahead=3600)
    [info] = await queue.tasks(USER)
    async with Worker(queue):
        assert await reason_of(queue.handle(USER, info.task_id)) == "expired"
    await queue.clear_policy(USER)
    with pytest.raises(InvalidInput, match="seconds"):
        await scheduler.add_schedule(every=1, task=echo().options(expires=datetime.now(UTC)), user_id=USER)


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"expires": 0}, "never run"),
        ({"expires": -1}, "expires must be"),
        ({"expires": "soon"}, "expires must be"),
        ({"expires": 5, "delay": 5}, "never run"),
        ({"expires": datetime(2030, 1, 1, tzinfo=UTC), "execute_after": datetime(2030, 1, 2, tzinfo=UTC)}, "never run"),
    ],
)
async def test_what_could_never_run_is_refused(queue: TaskQueue, options, rule: str) -> None:
    with pytest.raises(InvalidInput, match=rule):
        await queue.enqueue(echo(), user_id=USER, **options)
