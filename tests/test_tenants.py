"""What a SaaS team runs its customers with, through queues and workers as they are used."""

from __future__ import annotations

import asyncio
import json
import signal
import statistics
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fairque import (
    EVERYBODY,
    BadArguments,
    Breaker,
    Certainty,
    Explanation,
    InvalidInput,
    QueueFull,
    Rate,
    Reason,
    Task,
    TaskHandler,
    TaskQueue,
    TaskState,
    UnknownTask,
    Worker,
    current_task,
    task,
)
from fairque.queue.demand import look_at_demand
from fairque.tasks.registry import unregister
from tests.support.core import Core, metrics_of_old
from tests.support.eventually import eventually
from tests.support.process import WorkerProcess
from tests.support.servers import Server
from tests.support.workers import Fleet
from tests.workers.tasks import log

pytestmark = pytest.mark.leaves_keys()


@task
async def nap(seconds: float = 0.01) -> None:
    await asyncio.sleep(seconds)


@task
async def use(tokens: float) -> None:
    current_task().charge(tokens)


@task
def use_in_thread(tokens: float) -> None:
    current_task().charge(tokens)


@task(run_in="process")
def use_in_process(tokens: float) -> None:
    current_task().charge(tokens)


@task
async def use_and_fail(tokens: float) -> None:
    current_task().charge(tokens)
    raise ValueError


@task(cost=lambda pages, colour=False: pages * (2 if colour else 1.0))
async def print_pages(pages: int, colour: bool = False) -> None: ...


@task(cost=lambda: {}["price"])
async def priceless() -> None: ...


@task
async def count_pages() -> int:
    return 3


calling = 0


@pytest.fixture
def call_api() -> Iterator[Any]:
    """Registered for one test: workers of others would declare its limit as well."""
    global calling
    calling = 0

    @task(name="call the api", max_running=2)
    async def call_api(seconds: float = 0.01) -> int:
        global calling
        calling += 1
        most = calling
        try:
            await asyncio.sleep(seconds)
        finally:
            calling -= 1
        return most

    yield call_api
    unregister("call the api")


async def is_done(queue: TaskQueue, user_id: str, tasks: int) -> bool:
    user = await queue.user(user_id)
    return user.finished + user.failed == tasks


# Policies


async def test_a_policy_is_changed_field_by_field_and_read_back(queue: TaskQueue) -> None:
    await queue.set_policy("acme", weight=2, rate="100/m burst 5", breaker=Breaker(3, window=10, cooldown=1))
    found = await queue.set_policy("acme", max_running=7)
    assert (found.weight, found.max_running, found.rate) == (2, 7, Rate(100, per=60, burst=5))
    assert found.breaker == Breaker(3, window=10, cooldown=1)
    await queue.set_policy(EVERYBODY, max_running=3, max_queued=50, overflow="drop_oldest")
    found = await queue.set_policy("acme", rate=None, max_running=None, breaker=None)
    assert (found.weight, found.rate, found.breaker) == (2, None, None)
    assert (found.max_running, found.max_queued, found.overflow) == (3, 50, "drop_oldest"), "of everybody"
    until = datetime(2100, 1, 1, tzinfo=UTC)
    assert (await queue.set_policy("acme", paused=until, group="a: *plan")).paused == until
    assert (await queue.get_policy("acme")).group == "a: *plan"
    await queue.clear_policy("acme")
    assert (await queue.get_policy("acme")).weight is None
    await queue.clear_policy(EVERYBODY)
    assert (await queue.get_policy("acme")).max_running is None


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"weight": 0}, "weight must be a number from"),
        ({"max_running": 0}, "max_running must be a whole number from 1"),
        ({"max_share": 0}, "max_share must be a number from 1e-06 to 1, not 0"),
        ({"max_share": 1.1}, "max_share must be a number"),
        ({"max_share": "80%"}, "max_share must be a number"),
        ({"min_running": 1.5}, "min_running must be a whole number"),
        ({"max_queued": -1}, "max_queued must be a whole number from 0"),
        ({"max_bytes": 0}, "max_bytes must be a whole number from 1"),
        ({"max_bytes": "1 GB"}, "max_bytes must be a whole number"),
        ({"rate": "fast"}, "'100/m' with s, m, h or d, not 'fast'"),
        ({"rate": 5}, "not 5"),
        ({"overflow": "drop"}, "overflow must be 'reject' or 'drop_oldest', not 'drop'"),
        ({"paused": "yes"}, "paused must be True, False, or a datetime"),
        ({"group": ""}, "group must not be empty"),
        ({"group": "a//b"}, "group must be a name, or a path of up to 4 names as in 'acme/europe', not 'a//b'"),
        ({"group": "a/b/c/d/e"}, "up to 4 names"),
        ({"breaker": 5}, "breaker must be a Breaker"),
    ],
)
async def test_a_value_that_breaks_a_rule_is_refused_before_anything_is_written(
    queue: TaskQueue, server: Server, queue_name: str, fields: dict[str, Any], says: str
) -> None:
    with pytest.raises(InvalidInput, match=says):
        await queue.set_policy("acme", **fields)
    assert server.keys(queue_name) == []


def test_rates_and_breakers_check_their_numbers() -> None:
    for make in (lambda: Rate(0), lambda: Rate(5, per=0), lambda: Rate(5, burst=0), lambda: Rate(1, per=90_000)):
        with pytest.raises(InvalidInput, match="of a rate must be"):
            make()
    for make in (lambda: Breaker(0), lambda: Breaker(window=0), lambda: Breaker(cooldown=90_000)):
        with pytest.raises(InvalidInput, match="of a breaker must be"):
            make()


async def test_everybody_cannot_be_in_one_group(queue: TaskQueue) -> None:
    with pytest.raises(InvalidInput, match="group"):
        await queue.set_policy(EVERYBODY, group="plan")


async def test_a_group_has_a_weight(queue: TaskQueue) -> None:
    assert await queue.get_group("plan") == 1
    await queue.set_group("plan", weight=3)
    assert await queue.get_group("plan") == 3
    await queue.set_group("plan", weight=None)
    assert await queue.get_group("plan") == 1


async def test_a_group_may_be_in_a_group(queue: TaskQueue) -> None:
    await queue.set_group("acme/a: é*", weight=3)
    assert await queue.get_group("acme/a: é*") == 3
    assert await queue.groups() == {"acme/a: é*": 3}
    assert (await queue.set_policy("zoe", group="acme/a: é*")).group == "acme/a: é*"
    await queue.set_policy("ann", group="acme")
    for user_id in ("zoe", "ann", "other"):
        await queue.enqueue(nap(), user_id=user_id)
    assert (await queue.explain("zoe")).share == 1 / 2 * 3 / 4
    assert (await queue.explain("ann")).share == 1 / 2 * 1 / 4


async def test_a_paused_user_is_taken_up_by_an_idle_worker_when_its_time_is_over(queue: TaskQueue) -> None:
    await queue.pause("acme", until=datetime.now(UTC) + timedelta(seconds=0.4))
    handle = await queue.enqueue(nap(), user_id="acme")
    async with Worker(queue, poll_interval=60):
        assert await handle.state() == "queued"
        await handle.result(timeout=20)
    info = await handle.info()
    assert info.wait_seconds is not None
    assert info.wait_seconds > 0.3


async def test_a_resumed_user_is_taken_up_by_an_idle_worker_at_once(queue: TaskQueue) -> None:
    async with Worker(queue, poll_interval=60):
        await queue.pause("acme")
        handle = await queue.enqueue(nap(), user_id="acme")
        assert await handle.state() == "queued"
        await queue.resume("acme")
        await handle.result(timeout=20)


async def test_a_limited_user_wakes_an_idle_worker_when_its_time_has_come(queue: TaskQueue) -> None:
    await queue.set_policy("acme", rate="20/s")
    async with Worker(queue, poll_interval=60):
        handles = await queue.enqueue_many([nap(0) for _ in range(6)], user_id="acme")
        began = time.monotonic()
        for handle in handles:
            await handle.result(timeout=20)
        assert time.monotonic() - began > 0.2


async def test_a_freed_slot_of_a_limited_user_wakes_the_other_worker(queue: TaskQueue) -> None:
    await queue.set_policy("acme", max_running=1)
    async with Worker(queue, concurrency=1, poll_interval=60), Worker(queue, concurrency=1, poll_interval=60):
        handles = await queue.enqueue_many([nap(0.01) for _ in range(20)], user_id="acme")
        for handle in handles:
            await handle.result(timeout=20)


async def test_a_full_backlog_refuses_and_says_when_to_come_back(queue: TaskQueue) -> None:
    await queue.set_policy("acme", max_queued=2)
    await queue.enqueue_many([nap(), nap()], user_id="acme")
    with pytest.raises(QueueFull, match="acme") as caught:
        await queue.enqueue(nap(), user_id="acme")
    assert caught.value.retry_after > 0
    await queue.enqueue(nap(), user_id="other")


async def test_a_full_user_fails_nobody_who_enqueues_at_the_same_moment(queue: TaskQueue) -> None:
    await queue.set_policy("full", max_queued=1)
    calls = [queue.enqueue(nap(), user_id=user) for user in ["full", "a", "full", "b", "full", "c"] * 5]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    refused = [answer for answer in answers if isinstance(answer, QueueFull)]
    assert len(refused) == 14
    assert (await queue.stats()).queued == 16


async def test_no_more_than_may_run_with_workers_that_are_killed(
    server: Server,
    queue_name: str,
    worker_process: Callable[..., Awaitable[WorkerProcess]],
    tmp_path: Path,
) -> None:
    async with TaskQueue(server.url, name=queue_name, lease=1.0) as queue:
        await queue.set_policy("acme", max_running=3)
        handles = await queue.enqueue_many([log(str(tmp_path / "log"), 0.05) for _ in range(300)], user_id="acme")
        fleet = Fleet(worker_process, server.url, queue_name, lease=1.0)
        await queue.pause("acme")
        workers = [await fleet.start(concurrency=4) for _ in range(2)]
        await queue.resume("acme")
        most = 0
        kills = 0
        ends = time.monotonic() + 40
        while time.monotonic() < ends:
            user = await queue.user("acme")
            most = max(most, user.started)
            if user.finished == 300:
                break
            if user.finished > 10 + 50 * kills and kills < 2:
                kills += 1
                workers.pop(0).send(signal.SIGKILL)
                workers.append(await fleet.start(concurrency=4))
            await asyncio.sleep(0.01)
        assert (most, kills) == (3, 2)
        for handle in handles:
            assert await handle.state() == "finished"


# Limits of names, costs and charges


async def test_a_limit_of_a_name_holds_over_users_and_workers(queue: TaskQueue, call_api: Any) -> None:
    handles = []
    for user_id in ("a", "b", "c"):
        handles += await queue.enqueue_many([call_api() for _ in range(8)], user_id=user_id)
    behind = await queue.enqueue(nap(0), user_id="a")
    async with Worker(queue, concurrency=5), Worker(queue, concurrency=5):
        await behind.result(timeout=20)
        assert (await queue.user("a")).queued > 0, "what is behind them did not wait"
        assert max([await handle.result(timeout=20) for handle in handles]) <= 2


async def test_a_limit_that_vanished_from_the_code_is_taken_back_by_the_next_worker(queue: TaskQueue) -> None:
    @task(name="limited for now", max_running=1)
    async def before() -> None: ...

    await Worker(queue).run_until_idle()
    unregister("limited for now")

    @task(name="limited for now")
    async def after() -> None:
        await asyncio.sleep(0.05)

    try:
        handles = await queue.enqueue_many([after() for _ in range(4)], user_id="acme")
        async with Worker(queue):
            await eventually(lambda: _runs(queue, "acme", 4))
            for handle in handles:
                await handle.result(timeout=20)
    finally:
        unregister("limited for now")


async def _runs(queue: TaskQueue, user_id: str, tasks: int) -> bool:
    user = await queue.user(user_id)
    return user.started == tasks or user.finished == tasks


@pytest.mark.parametrize("fn", [use, use_in_thread, use_in_process])
async def test_a_task_charges_what_becomes_known_while_it_runs(queue: TaskQueue, fn: Any) -> None:
    async with Worker(queue):
        handle = await queue.enqueue(fn(250.5), user_id="acme")
        await handle.result(timeout=30)
    user = await queue.user("acme")
    assert user.metrics.cost == 251.5
    assert (await queue.usage("acme"))[-1].cost == 251.5


async def test_a_task_that_fails_is_charged_as_well(queue: TaskQueue) -> None:
    async with Worker(queue):
        await queue.enqueue(use_and_fail(9), user_id="acme")
        await eventually(lambda: is_done(queue, "acme", 1))
    assert (await queue.user("acme")).metrics.cost == 10
    await queue.purge("acme")


@pytest.mark.parametrize("charge", [-1, float("nan"), "much", 1e12])
async def test_a_charge_is_a_number_that_makes_sense(charge: Any) -> None:
    from fairque import TaskContext

    with pytest.raises(InvalidInput, match="a charge must be a number from 0"):
        TaskContext("acme", "1", "use", 1, "w").charge(charge)


async def test_a_cost_is_told_from_the_arguments() -> None:
    assert print_pages(5).task_options.cost == 5
    assert print_pages(5, colour=True).task_options.cost == 10
    with pytest.raises(InvalidInput, match="cost must be a number"):
        print_pages(0)
    with pytest.raises(InvalidInput, match="cannot be told from its arguments"):
        priceless()
    with pytest.raises(BadArguments):
        print_pages()  # type: ignore[call-arg]


async def test_a_cost_that_is_given_wins_over_the_one_that_is_told() -> None:
    assert print_pages(5).options(cost=3).task_options.cost == 3
    assert print_pages.options(cost=3)(5).task_options.cost == 3
    assert print_pages.options(priority=4)(5).task_options.cost == 5


async def test_a_cost_cannot_be_told_from_what_is_not_known_yet(queue: TaskQueue) -> None:
    with pytest.raises(InvalidInput, match=r"outputs of other tasks: give it, as in print_pages.options\(cost=1\)"):
        print_pages(count_pages().output)
    await queue.enqueue(print_pages.options(cost=7)(count_pages().output), user_id="acme")
    await Worker(queue).run_until_idle()
    assert (await queue.user("acme")).metrics.cost == 8


async def test_seconds_are_shared_by_a_queue_that_charges_time(server: Server, queue_name: str) -> None:
    async with TaskQueue(server.url, name=queue_name, fairness="time") as queue:
        await queue.enqueue_many([nap(0.1) for _ in range(200)], user_id="long")
        await queue.enqueue_many([nap(0.01) for _ in range(1500)], user_id="short")
        async with Worker(queue, concurrency=8):

            async def is_measured() -> bool:
                return (await queue.stats()).metrics.busy_seconds > 20

            await eventually(is_measured, 40)
            used = [(await queue.user(user_id)).metrics.busy_seconds for user_id in ("long", "short")]
        assert abs(used[0] / used[1] - 1) < 0.1, used
        for user_id in ("long", "short"):
            await queue.purge(user_id)


# Explanations


async def why(queue: TaskQueue, user_id: str, task_id: str | None = None) -> tuple[Explanation, set[Reason]]:
    found = await queue.explain(user_id, task_id)
    assert str(found)
    return found, {held.reason for held in found.waiting}


async def test_what_holds_a_task_back_is_told(queue: TaskQueue) -> None:
    first = await queue.enqueue(nap(), user_id="acme", task_id="first")
    found, reasons = await why(queue, "acme", "first")
    assert (found.state, reasons, found.starts_in) == (TaskState.QUEUED, {Reason.NO_WORKER}, None)
    await queue.pause("acme")
    assert (await why(queue, "acme"))[1] == {Reason.NO_WORKER, Reason.PAUSED}
    await queue.enqueue(nap(), user_id="acme", task_id="later", delay=60)
    found, reasons = await why(queue, "acme", "later")
    assert Reason.SCHEDULED in reasons
    assert found.waiting[0].until == pytest.approx(time.time() + 60, abs=10)
    await queue.enqueue(nap(), user_id="acme", task_id="dependent", depends_on=["later", first])
    found, reasons = await why(queue, "acme", "dependent")
    assert Reason.DEFERRED in reasons
    assert found.dependencies == ("first", "later")
    assert (await why(queue, "nobody"))[1] == {Reason.NOTHING}
    with pytest.raises(UnknownTask, match="never"):
        await queue.explain("acme", "never")
    await queue.purge("acme")


async def test_limits_of_a_user_are_told(queue: TaskQueue) -> None:
    await queue.set_policy("busy", max_running=1)
    await queue.set_policy("fast", rate="1/m")
    async with Worker(queue) as worker:
        for user_id in ("busy", "fast"):
            await queue.enqueue_many([nap(30), nap(30), nap(30)], user_id=user_id)
        await eventually(lambda: _runs(queue, "busy", 1))
        await eventually(lambda: _runs(queue, "fast", 1))
        found, reasons = await why(queue, "busy")
        assert reasons == {Reason.USER_LIMIT}
        assert (found.running, found.backlog) == (1, 2)
        found, reasons = await why(queue, "fast")
        assert reasons == {Reason.RATE}
        assert found.waiting[0].until == pytest.approx(time.time() + 60, abs=10)
        running = next(iter(await queue.tasks("busy", state="started")))
        found, _ = await why(queue, "busy", running.task_id)
        assert (found.state, found.worker) == (TaskState.STARTED, worker.worker_id)
        for user_id in ("busy", "fast"):
            await queue.purge(user_id)


async def test_a_name_at_its_limit_and_an_open_breaker_are_told(queue: TaskQueue, call_api: Any) -> None:
    await queue.set_policy("broken", breaker=Breaker(failures=1, cooldown=60))
    async with Worker(queue):
        await queue.enqueue(use_and_fail(1), user_id="broken")
        await eventually(lambda: is_done(queue, "broken", 1))
        await queue.enqueue(nap(), user_id="broken")
        assert (await why(queue, "broken"))[1] == {Reason.BREAKER}
        await queue.enqueue_many([call_api(30) for _ in range(3)], user_id="acme")
        await eventually(lambda: _runs(queue, "acme", 2))
        assert (await why(queue, "acme"))[1] == {Reason.LIMIT}
        for user_id in ("acme", "broken"):
            await queue.purge(user_id)


async def test_workers_that_do_not_serve_the_user_or_do_not_know_the_task_are_no_help(queue: TaskQueue) -> None:
    @task(name="known elsewhere")
    async def elsewhere() -> None: ...

    made = elsewhere()
    unregister("known elsewhere")
    await queue.pause("acme")
    await queue.enqueue(made, user_id="acme")
    async with Worker(queue, assigned_users=["another"]):
        await eventually(lambda: _workers(queue, 1))
        assert Reason.NO_WORKER in (await why(queue, "acme"))[1]
    async with Worker(queue):
        await eventually(lambda: _workers(queue, 1))
        assert Reason.UNKNOWN_TASK in (await why(queue, "acme"))[1]
    async with Worker(queue, handler=Anything()):
        await eventually(lambda: _workers(queue, 1))
        assert Reason.UNKNOWN_TASK not in (await why(queue, "acme"))[1]


class Anything(TaskHandler):
    async def process_task(self, payload: dict[str, Any]) -> None: ...


async def test_users_beyond_those_that_were_looked_at_are_counted(queue: TaskQueue) -> None:
    """By the thousand they are not looked at one by one, but all of them are ahead, and share."""
    users = [f"u{at:04}" for at in range(1200)]
    for at in range(0, len(users), 400):
        await queue.enqueue_many([nap().options(user_id=user_id) for user_id in users[at : at + 400] for _ in range(2)])
    first, last = await queue.explain(users[0]), await queue.explain(users[-1])
    assert (first.ahead_others, last.ahead_others) == (0, 1199)
    assert last.share == first.share == pytest.approx(1 / 1200)
    second = (await queue.tasks(users[-1]))[1]
    assert 1199 <= (await queue.explain(users[-1], second.task_id)).ahead_others <= 2 * 1199


async def test_members_of_a_large_group_are_counted(queue: TaskQueue) -> None:
    await queue.set_group("plan", weight=3)
    users = [f"u{at:04}" for at in range(510)]
    for user_id in users:
        await queue.set_policy(user_id, group="plan")
    await queue.enqueue_many([nap().options(user_id=user_id) for user_id in users[:255]])
    await queue.enqueue_many([nap().options(user_id=user_id) for user_id in users[255:]])
    await queue.enqueue(nap(), user_id="alone")
    found = await queue.explain(users[-1])
    assert found.share == pytest.approx(0.75 / 510)
    assert found.ahead_others >= 509


async def test_a_task_that_waits_for_its_name_is_not_ahead_of_itself(queue: TaskQueue, call_api: Any) -> None:
    async with Worker(queue):
        handles = await queue.enqueue_many([call_api(30) for _ in range(4)], user_id="acme")
        await eventually(lambda: _held(queue, 2))
        waiting = [await queue.explain("acme", handle.task_id) for handle in handles]
        assert sorted(each.ahead_own for each in waiting if each.waiting) == [0, 1]
        assert (await queue.explain("acme")).ahead_own == 0
        await queue.purge("acme")


async def _held(queue: TaskQueue, tasks: int) -> bool:
    user = await queue.user("acme")
    return user.started == 2 and user.queued == tasks


@pytest.mark.parametrize("user_id", ["a:b", "*x", "@plan", "é\n", "%41", "a{b}c d", ".."])
async def test_odd_user_ids_are_explained_like_any_other(queue: TaskQueue, user_id: str) -> None:
    await queue.set_policy(user_id, group="a:b/é*")
    handle = await queue.enqueue(nap(), user_id=user_id)
    found = await queue.explain(user_id, handle.task_id)
    assert (found.share, found.ahead_others, found.waiting[0].reason) == (1, 0, Reason.NO_WORKER)
    async with Worker(queue, assigned_users=[user_id]):
        await handle.result(timeout=20)


async def _workers(queue: TaskQueue, count: int) -> bool:
    workers = (await queue.stats()).workers
    return len(workers) == count and all(worker.concurrency for worker in workers)


async def _finished(queue: TaskQueue, tasks: int) -> bool:
    return (await queue.stats()).finished >= tasks


async def test_an_estimate_comes_true_on_a_steady_load(queue: TaskQueue) -> None:
    """Four users with backlogs, one of double weight; every so often one asks when its last task starts."""
    await queue.set_policy("u1", weight=2)
    users = ["u1", "u2", "u3", "u4"]
    for user_id in users:
        # Long enough that the sleep decides, and not how busy the machine is.
        await queue.enqueue_many([nap(0.1) for _ in range(90)], user_id=user_id)
    asked: list[tuple[Any, float, float]] = []
    async with Worker(queue, concurrency=8):
        await eventually(lambda: _workers(queue, 1))  # its first heartbeat tells its slots
        await eventually(lambda: _finished(queue, 50))
        for round_ in range(24):
            user_id = users[round_ % 4]
            waiting = await queue.tasks(user_id, state="queued", limit=40)
            info = waiting[min(len(waiting) - 1, 5 + round_)]
            found = await queue.explain(user_id, info.task_id)
            assert found.starts_in is not None
            assert found.certainty is Certainty.GOOD
            asked.append((queue.handle(user_id, info.task_id), time.time(), found.starts_in))
            await asyncio.sleep(0.03)
        errors = []
        for handle, at, starts_in in asked:
            await handle.result(timeout=30)
            started_at = (await handle.info()).started_at
            errors.append(abs(starts_in - (started_at - at)) / (started_at - at))
        assert statistics.median(errors) < 0.3, sorted(errors)
        for user_id in users:
            await queue.purge(user_id)


# Usage, shares, demand


async def test_usage_is_told_by_the_hour(queue: TaskQueue) -> None:
    async with Worker(queue):
        for handle in await queue.enqueue_many([nap(0.01) for _ in range(10)], user_id="acme"):
            await handle.result(timeout=20)
    hours = await queue.usage("acme")
    assert sum(hour.tasks for hour in hours) == 10
    assert sum(hour.cost for hour in hours) == 10
    assert 0.1 <= sum(hour.busy_seconds for hour in hours) < 5
    assert all(hour.start.minute == 0 for hour in hours)
    assert sum(hour.tasks for hour in await queue.usage(EVERYBODY)) == 10
    assert await queue.usage("acme", since=datetime.now(UTC) + timedelta(hours=2)) == []
    assert await queue.usage("nobody") == []


def set_clock_of_usage(core: Core, whose: str, hours: int) -> None:
    """As if the services so far had been so many hours ago."""
    key = f":metrics:{whose}"
    core.execute("SET", key, metrics_of_old(core.execute("GET", key), hours), "KEEPTTL")


@pytest.mark.parametrize("hours", [1, 30, 24 * 20])
async def test_an_hour_that_ended_in_silence_is_told_later(queue: TaskQueue, hours: int) -> None:
    async with Core(queue.connector.url, queue.name) as core:
        await queue.enqueue(use(4), user_id="acme")
        await Worker(queue).run_until_idle()
        for whose in ("acme", "*"):
            set_clock_of_usage(core, whose, hours)
        since = datetime.now(UTC) - timedelta(hours=hours + 2)
        for whose in ("acme", EVERYBODY):
            assert [hour.cost for hour in await queue.usage(whose, since=since)] == [5]
        await queue.enqueue(use(1), user_id="acme")
        await Worker(queue).run_until_idle()
        for whose in ("acme", EVERYBODY):
            found = await queue.usage(whose, since=since)
            assert [hour.cost for hour in found] == [5, 2]
            assert found[1].start - found[0].start in (timedelta(hours=hours), timedelta(hours=hours + 1))
            assert [hour.cost for hour in await queue.usage(whose, since=found[1].start)] == [2]


async def test_nothing_is_lost_from_a_bill_when_the_clock_of_the_server_is_set_back(queue: TaskQueue) -> None:
    async with Core(queue.connector.url, queue.name) as core:
        for _ in range(3):  # each service is of the next hour, which is over when the clock is set back
            await queue.enqueue(use(4), user_id="acme")
            await Worker(queue).run_until_idle()
            set_clock_of_usage(core, "acme", -1)
    hours_ago = datetime.now(UTC) - timedelta(hours=3)
    assert sum(hour.cost for hour in await queue.usage("acme", since=hours_ago)) == 15


async def test_waits_are_measured_within_a_factor_of_two(queue: TaskQueue) -> None:
    await queue.enqueue_many([nap(0) for _ in range(50)], user_id="acme")
    await asyncio.sleep(0.3)
    await Worker(queue).run_until_idle()
    waits = (await queue.user("acme")).metrics.waits
    assert waits.count == 50
    assert 0.15 <= waits.p50 <= waits.p95 <= waits.p99 < 10


async def test_who_gets_too_much_and_who_too_little_is_flagged(queue: TaskQueue) -> None:
    await queue.enqueue_many([nap(0) for _ in range(200)], user_id="noisy")
    await Worker(queue).run_until_idle()
    await queue.enqueue_many([nap(0), nap(0)], user_id="starved")
    found = await queue.shares()
    assert {user.user_id: user.verdict for user in found.users} == {"noisy": "noisy", "starved": "starved"}
    assert sum(user.share for user in found.users) == pytest.approx(1)


async def test_an_even_queue_has_an_index_near_one(queue: TaskQueue) -> None:
    for user_id in ("a", "b", "c"):
        await queue.enqueue_many([nap(0.005) for _ in range(100)], user_id=user_id)
    async with Worker(queue, concurrency=3):

        async def is_half_way() -> bool:
            return (await queue.stats()).finished > 150

        await eventually(is_half_way)
        found = await queue.shares()
    assert found.jain > 0.99
    assert {user.user_id: user.verdict for user in found.users} == {"a": "", "b": "", "c": ""}
    for user_id in ("a", "b", "c"):
        await queue.purge(user_id)


async def test_demand_tells_the_slots_that_it_takes(queue: TaskQueue) -> None:
    assert (await queue.demand()).slots_needed == 0
    async with Worker(queue, concurrency=4):
        for handle in await queue.enqueue_many([nap(0.1) for _ in range(8)], user_id="acme"):
            await handle.result(timeout=20)
    await queue.enqueue_many([nap(0.1) for _ in range(1000)], user_id="acme")
    found = await queue.demand(target_wait=10)
    assert found.backlog == 1000
    assert found.work_seconds == pytest.approx(100, rel=0.5)
    assert 10 <= found.slots_needed <= 15
    assert (found.slots, found.wait_seconds) == (0, None)
    assert json.loads(msgspec.json.encode(found))["slots_needed"] == found.slots_needed
    await queue.purge("acme")


async def test_shares_count_what_runs(queue: TaskQueue) -> None:
    await queue.enqueue_many([nap(0) for _ in range(20)], user_id="idle")
    await Worker(queue).run_until_idle()
    await queue.enqueue_many([nap(300) for _ in range(5)], user_id="acme")
    async with Worker(queue, concurrency=2, shutdown_timeout=0):
        await eventually(lambda: are_running(queue, 2))
        found = {user.user_id: user for user in (await queue.shares()).users}
        assert (found["acme"].verdict, found["idle"].verdict) == ("", ""), "acme has all the slots that there are"
        assert found["acme"].share == pytest.approx(2 / 22, rel=0.05)
    await queue.purge("acme")


async def test_the_index_is_low_while_some_get_nothing_and_those_who_got_it_want_no_more(queue: TaskQueue) -> None:
    await queue.enqueue(nap(0), user_id="hungry")
    for user_id in ("fed", "full"):
        await queue.enqueue_many([nap(0) for _ in range(10)], user_id=user_id)
    await Worker(queue, assigned_users=("fed", "full")).run_until_idle()
    found = await queue.shares()
    assert {user.user_id: user.verdict for user in found.users}["hungry"] == "starved"
    assert found.jain == pytest.approx(2 / 3, abs=0.01)
    await Worker(queue).run_until_idle()
    assert (await queue.shares()).jain == 1, "nobody wants more"


async def test_the_index_is_1_while_those_who_got_less_got_all_that_they_wanted(queue: TaskQueue) -> None:
    await queue.enqueue(nap(0), user_id="small")
    await queue.enqueue_many([nap(0) for _ in range(30)], user_id="large")
    await Worker(queue).run_until_idle()
    await queue.enqueue_many([nap(0) for _ in range(30)], user_id="large")
    assert (await queue.shares()).jain == 1
    await queue.purge("large")


async def test_who_came_while_nothing_ended_is_not_starved(queue: TaskQueue) -> None:
    await queue.enqueue_many([nap(300), nap(300)], user_id="acme")
    async with Worker(queue, concurrency=2, shutdown_timeout=0):
        await eventually(lambda: are_running(queue, 2))
        await queue.enqueue(nap(0), user_id="zoe")
        found = {user.user_id: (user.share, user.verdict) for user in (await queue.shares()).users}
        assert found == {"acme": (1, ""), "zoe": (0, "")}, "no slot has come free"
    for user_id in ("acme", "zoe"):
        await queue.purge(user_id)


async def test_users_of_a_group_are_entitled_to_their_part_of_it(queue: TaskQueue) -> None:
    await queue.set_group("gold", weight=3)
    await queue.set_policy("a", group="gold")
    await queue.set_policy("b", group="gold/inner", weight=2)
    for user_id in ("a", "b", "c"):
        await queue.enqueue(nap(0), user_id=user_id)
    entitled = {user.user_id: user.entitled for user in (await queue.shares()).users}
    assert entitled == {"a": 3 / 8, "b": 3 / 8, "c": 1 / 4}
    for user_id in ("a", "b", "c"):
        await queue.purge(user_id)
    await queue.set_group("gold", weight=None)


async def test_a_payload_that_no_worker_has_a_handler_for_is_explained(queue: TaskQueue) -> None:
    handle = await queue.enqueue(Task.create(payload={"x": 1}, name="raw"), user_id="acme", delay=100)
    async with Worker(queue):
        found = await queue.explain("acme", handle.task_id)
    assert Reason.UNKNOWN_TASK in {held.reason for held in found.waiting}
    assert "no worker that serves its user has a handler for payloads" in str(found)
    await queue.purge("acme")


async def are_running(queue: TaskQueue, tasks: int) -> bool:
    return (await queue.stats()).started == tasks


async def test_demand_keeps_the_slots_of_what_runs(queue: TaskQueue) -> None:
    await queue.enqueue_many([nap(3600) for _ in range(40)], user_id="acme")
    async with Worker(queue, concurrency=40, shutdown_timeout=0, scheduler=False):
        await eventually(lambda: are_running(queue, 40))
        assert (await queue.demand()).slots_needed == 40
        await queue.enqueue_many([nap(3600) for _ in range(5)], user_id="zoe")
        await asyncio.sleep(0)
        found = await queue.demand(target_wait=0.001)
        assert (found.running, found.backlog, found.slots_needed) == (40, 5, 45)
        assert found.running_seconds > 0
    for user_id in ("acme", "zoe"):
        await queue.purge(user_id)


async def test_demand_counts_what_long_tasks_have_left(queue: TaskQueue) -> None:
    async with Core(queue.connector.url, queue.name) as core:
        core.execute("HSET", ":run-times", nap(0).name, "10 300")
        await queue.enqueue_many([nap(3600) for _ in range(2)], user_id="acme")
        async with Worker(queue, concurrency=2, shutdown_timeout=0, scheduler=False):
            await eventually(lambda: are_running(queue, 2))
            found = await queue.demand(target_wait=600)
            assert found.running_seconds == pytest.approx(600, rel=0.05)
            assert found.slots_needed == 1, "two halves of a slot"
            assert (await queue.demand(target_wait=10)).slots_needed == 2
        core.execute("DEL", ":run-times")
    await queue.purge("acme")


async def test_demand_knows_how_long_tasks_of_a_name_run(server: Server, queue_name: str) -> None:
    async with TaskQueue(server.url, name=queue_name, lease=1) as queue, Core(server.url, queue_name) as core:
        async with Worker(queue, concurrency=10, shutdown_timeout=0, scheduler=False):
            for handle in await queue.enqueue_many([nap(0.4) for _ in range(10)], user_id="acme"):
                await handle.result(timeout=20)
            await eventually(lambda: core.execute("HGET", ":run-times", nap(0).name))
            assert (await queue.demand()).slots_needed <= 10, "no more were ever used"
            await queue.enqueue_many([nap(3600) for _ in range(10)], user_id="acme")
            await eventually(lambda: are_running(queue, 10))
            assert (await queue.demand()).running_seconds == pytest.approx(10 * 0.4, rel=0.2)
            assert (await queue.demand(target_wait=0.001)).slots_needed == 10
        await queue.purge("acme")


@pytest.mark.damages
async def test_a_damaged_key_of_run_times_keeps_no_lease_from_being_renewed(server: Server, queue_name: str) -> None:
    async with TaskQueue(server.url, name=queue_name, lease=0.5) as queue, Core(server.url, queue_name) as core:
        core.execute("SET", ":run-times", "nonsense")
        async with Worker(queue, concurrency=2, scheduler=False), Worker(queue, concurrency=2, scheduler=False):
            handles = await queue.enqueue_many([nap(seconds) for seconds in (0.1, 0.2, 1.2, 1.2)], user_id="acme")
            for handle in handles:
                await handle.result(timeout=20)
                assert (await handle.info()).attempt == 1
            assert (await queue.demand()).slots_needed <= 4


async def test_demand_is_not_zero_while_something_is_due_soon(queue: TaskQueue) -> None:
    await queue.enqueue(nap(0), user_id="acme", delay=200)
    assert (await queue.demand()).slots_needed == 1
    assert (await queue.demand(cooldown=100)).slots_needed == 0
    await queue.purge("acme")


@pytest.mark.leaves_keys
async def test_demand_is_not_zero_while_outcomes_are_to_be_passed_on(queue: TaskQueue) -> None:
    first = await queue.enqueue(nap(0), user_id="acme", delay=3600)
    await queue.enqueue_many([nap(0).options(depends_on=[first.task_id]) for _ in range(700)], user_id="acme")
    await first.cancel()

    async def deferred() -> int:
        return (await queue.stats()).deferred

    assert await deferred() == 200, "one call tells 500, claims go on"
    found = await queue.demand()
    assert (found.backlog, found.running, found.slots_needed) == (0, 0, 1)
    async with Worker(queue):
        await eventually(lambda: is_zero(deferred))
    assert (await queue.demand()).slots_needed == 0
    await queue.purge("acme")


async def is_zero(number: Callable[[], Awaitable[int]]) -> bool:
    return await number() == 0


async def test_demand_counts_the_tasks_of_the_dead_among_those_that_wait(server: Server, queue_name: str) -> None:
    async with Core(server.url, queue_name) as core:
        await core.enqueue("acme", "a", "b")
        deliveries = await core.take(2)
        found = await look_at_demand(core.store, target_wait=0.001)
        assert (found.running, found.running_seconds) == (2, 0), "the worker never said what it is"
        assert found.slots_needed >= 1
        await core.settle(deliveries)


async def test_services_of_a_real_worker_follow_the_shares(queue: TaskQueue) -> None:
    order: list[str] = []

    @task(name="note whose turn it is")
    async def turn() -> None:
        order.append(current_task().user_id)

    try:
        await queue.set_policy("gold", weight=3)
        for user_id in ("gold", "basic"):
            await queue.enqueue_many([turn() for _ in range(200)], user_id=user_id)
        await Worker(queue, concurrency=4).run_until_idle()
    finally:
        unregister("note whose turn it is")
    assert abs(Counter(order[:200])["gold"] - 150) <= 4
