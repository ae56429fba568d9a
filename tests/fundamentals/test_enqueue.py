"""2. Enqueue: put tasks in, once."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from fairque import (
    ConfigError,
    FairqueError,
    InvalidInput,
    Priority,
    QueueFull,
    QueueUnavailable,
    StoreError,
    TaskFailed,
    TaskQueue,
    TaskState,
    Worker,
    current_task,
    task,
)
from fairque.tasks.registry import registry
from tests.support.calls import scripts_called
from tests.support.eventually import eventually
from tests.support.resp import RespClient


@task
async def echo(value: object = None) -> object:
    return value


@task
async def fail() -> None:
    raise ValueError("on purpose")


@pytest.fixture(autouse=True)
def _registered():
    registry.update({made.name: made for made in (echo, fail)})


def script_calls(server) -> int:
    """How many scripts the server has run so far."""
    return scripts_called(server.execute)


# One task


@pytest.mark.smoke
async def test_a_task_that_was_enqueued_waits_until_a_worker_comes(queue: TaskQueue):
    handle = await queue.enqueue(echo("hello"), user_id="anna")
    assert handle.created
    assert await handle.state() is TaskState.QUEUED
    await Worker(queue).run_until_idle()
    assert await handle.state() is TaskState.FINISHED
    assert await handle.result(20) == "hello"


async def test_one_task_enqueued_twice_is_two_tasks(queue: TaskQueue):
    hello = echo("hello")
    first, second = await queue.enqueue(hello, user_id="anna"), await queue.enqueue(hello, user_id="anna")
    assert first.task_id != second.task_id
    assert first.created
    assert second.created
    await Worker(queue).run_until_idle()
    assert [await first.result(20), await second.result(20)] == ["hello", "hello"]


async def test_a_task_needs_a_user(queue: TaskQueue):
    with pytest.raises(InvalidInput, match=r"echo' has no user_id: give one to enqueue\(\), \.options\(\) or @task"):
        await queue.enqueue(echo())


async def test_only_tasks_can_be_enqueued(queue: TaskQueue):
    for wrong in (echo, echo.fn, "echo", None):
        with pytest.raises(InvalidInput, match="only a task can be enqueued"):
            await queue.enqueue(wrong, user_id="anna")
        with pytest.raises(InvalidInput, match="only a task can be enqueued"):
            await queue.enqueue_many([echo(), wrong], user_id="anna")
    assert (await queue.stats()).queued == 0


# Later


@pytest.mark.parametrize("late", [0.3, timedelta(seconds=0.3)], ids=["seconds", "timedelta"])
@pytest.mark.smoke
async def test_a_delayed_task_is_scheduled_and_starts_when_its_time_has_come(queue: TaskQueue, late):
    before = await queue.enqueue(echo(), user_id="anna")
    handle = await queue.enqueue(echo(), user_id="anna", delay=late)
    assert await handle.state() is TaskState.SCHEDULED
    async with Worker(queue):
        await handle.result(20)
    waited = (await handle.info()).started_at - (await before.info()).queued_at
    assert 0.298 <= waited < 10  # times are told in ms


async def test_a_task_runs_after_a_moment_of_the_calendar(queue: TaskQueue):
    soon = datetime.now(UTC) + timedelta(seconds=0.3)
    aware = await queue.enqueue(echo(), user_id="anna", execute_after=soon)
    local = await queue.enqueue(echo(), user_id="anna", execute_after=soon.astimezone().replace(tzinfo=None))
    past = await queue.enqueue(echo(), user_id="anna", execute_after=datetime(1969, 1, 1, tzinfo=UTC))
    assert [await handle.state() for handle in (aware, local, past)] == ["scheduled", "scheduled", "queued"]
    async with Worker(queue):
        for handle in (aware, local):
            await handle.result(20)
            assert (await handle.info()).started_at >= soon.timestamp()


@pytest.mark.leaves_keys
async def test_delay_and_execute_after_exclude_each_other(queue: TaskQueue):
    with pytest.raises(InvalidInput, match="either delay or execute_after"):
        await queue.enqueue(echo(), user_id="anna", delay=1, execute_after=datetime.now(UTC))
    assert (await queue.enqueue(echo().options(delay=50), user_id="anna", delay=0)).created
    assert (await queue.stats()).scheduled == 0, "what is given to the call comes first"


async def test_a_sleeping_worker_hears_of_a_task_that_is_due_before_the_others(queue: TaskQueue):
    async with Worker(queue, poll_interval=60):
        late = await queue.enqueue(echo(), user_id="anna", delay=0.6)
        early = await queue.enqueue(echo(), user_id="ben", delay=0.2)
        await early.result(20)
        assert await late.state() is TaskState.SCHEDULED
        await late.result(20)


# Once


async def test_while_a_task_lives_its_id_names_it(queue: TaskQueue):
    go_on = asyncio.Event()

    @task
    async def wait() -> str:
        await go_on.wait()
        return "first"

    first = await queue.enqueue(wait(), user_id="anna", task_id="invoice-7")
    queued = await queue.enqueue(echo("second"), user_id="anna", task_id="invoice-7")
    async with Worker(queue):
        await eventually(lambda: is_in(first, TaskState.STARTED))
        started = await queue.enqueue(echo("third"), user_id="anna", task_id="invoice-7")
        go_on.set()
        for handle in (first, queued, started):
            assert await handle.result(20) == "first"
    assert [first.created, queued.created, started.created] == [True, False, False]
    assert (first.user_id, first.task_id) == (queued.user_id, queued.task_id)


async def test_a_scheduled_task_lives(queue: TaskQueue):
    first = await queue.enqueue(echo(1), user_id="anna", task_id="t", delay=0.2)
    assert not (await queue.enqueue(echo(2), user_id="anna", task_id="t")).created
    async with Worker(queue):
        assert await first.result(20) == 1


@pytest.mark.parametrize("result_ttl", [None, 0], ids=["kept", "not kept"])
async def test_after_the_end_the_id_is_free_again(queue: TaskQueue, result_ttl):
    for value in (1, 2):
        made = echo(value) if result_ttl is None else echo(value).options(result_ttl=result_ttl)
        handle = await queue.enqueue(made, user_id="anna", task_id="t")
        assert handle.created
        await Worker(queue).run_until_idle()
        if result_ttl is None:
            assert await handle.result(20) == value
    assert (await queue.user("anna")).finished == 2


async def test_an_id_is_free_again_after_a_failure_and_nothing_of_it_is_left(queue: TaskQueue):
    failed = await queue.enqueue(fail(), user_id="anna", task_id="t")
    await Worker(queue).run_until_idle()
    with pytest.raises(TaskFailed):
        await failed.result(20)
    assert (await queue.user("anna")).dead_letters == 1
    again = await queue.enqueue(echo("fine"), user_id="anna", task_id="t")
    assert again.created
    assert (await again.info()).errors == ()
    assert (await queue.user("anna")).dead_letters == 0
    await Worker(queue).run_until_idle()
    assert await again.result(20) == "fine"
    assert (await again.info()).attempt == 1


async def test_ids_are_unique_per_user(queue: TaskQueue):
    handles = [await queue.enqueue(echo(user), user_id=user, task_id="t") for user in ("anna", "ben")]
    assert all(handle.created for handle in handles)
    await Worker(queue).run_until_idle()
    assert [await handle.result(20) for handle in handles] == ["anna", "ben"]


async def test_many_callers_with_one_id_make_one_task(queue: TaskQueue):
    calls = (queue.enqueue(echo(at), user_id="anna", task_id="t") for at in range(50))
    handles = await asyncio.gather(*calls)
    assert [handle.created for handle in handles].count(True) == 1
    together = await queue.enqueue_many([echo().options(task_id="u"), echo().options(task_id="u")], user_id="anna")
    assert [handle.created for handle in together] == [True, False]
    assert (await queue.user("anna")).queued == 2
    await Worker(queue).run_until_idle()


# Many at once


async def test_calls_that_overlap_share_round_trips(queue: TaskQueue, server):
    await queue.enqueue(echo(), user_id="anna")
    before = script_calls(server)
    handles = await asyncio.gather(*(queue.enqueue(echo(at), user_id=f"user-{at % 7}") for at in range(100)))
    assert script_calls(server) - before == 2, "the first goes at once, all others together"
    before = script_calls(server)
    await asyncio.gather(*(queue.enqueue(echo(), user_id="anna") for _ in range(1201)))
    assert script_calls(server) - before == 4, "500 in a call"
    await Worker(queue, concurrency=500).run_until_idle()
    assert [await handle.result(20) for handle in handles] == list(range(100))


async def test_a_call_alone_waits_for_no_company(queue: TaskQueue, server):
    await queue.enqueue(echo(), user_id="anna")
    before = script_calls(server)
    for _ in range(10):
        await queue.enqueue(echo(), user_id="anna")
    assert script_calls(server) - before == 10
    await Worker(queue).run_until_idle()


async def test_a_batch_takes_one_round_trip_per_500_and_keeps_its_order(queue: TaskQueue, server):
    ran = []

    @task
    async def note(at: int) -> None:
        ran.append(at)

    await queue.enqueue(note(-1), user_id="anna")
    before = script_calls(server)
    handles = await queue.enqueue_many((note(at) for at in range(1200)), user_id="anna")
    assert script_calls(server) - before == 3
    assert len({handle.task_id for handle in handles}) == 1200
    await Worker(queue, concurrency=1).run_until_idle()
    assert ran == list(range(-1, 1200))


async def test_an_empty_batch_costs_nothing(queue: TaskQueue, server):
    before = script_calls(server)
    assert await queue.enqueue_many([], user_id="anna") == []
    assert script_calls(server) == before


async def test_one_bad_task_keeps_a_whole_batch_out(queue: TaskQueue, server, queue_name: str):
    with pytest.raises(InvalidInput, match="has no user_id"):
        await queue.enqueue_many([*[echo().options(user_id="anna")] * 1000, echo()])
    assert server.keys(queue_name) == []


async def test_a_batch_that_the_server_refuses_is_refused_as_a_whole(own_server):
    server = own_server(maxmemory_policy="noeviction")
    async with TaskQueue(server.url, timeout=0.5) as queue:
        await queue.enqueue(echo(), user_id="warm-up")
        configure(server, "maxmemory", 1)
        with pytest.raises(QueueUnavailable, match="maxmemory"):
            await queue.enqueue_many([echo(at) for at in range(400)], user_id="anna")
        configure(server, "maxmemory", 0)
        assert (await queue.user("anna")).queued == 0
        assert (await queue.stats()).queued == 1
        await queue.enqueue_many([echo(at) for at in range(400)], user_id="anna")
        assert (await queue.user("anna")).queued == 400


@pytest.mark.damages
@pytest.mark.leaves_keys
async def test_of_a_batch_calls_before_the_refused_one_stand(queue: TaskQueue, server, queue_name: str):
    server.execute("SET", f"fairque:{{{queue_name}}}:normal:broken", "not a lane")
    tasks = [echo().options(user_id="fine")] * 500 + [echo().options(user_id="late"), echo().options(user_id="broken")]
    with pytest.raises(StoreError, match=r"WRONGTYPE.*:normal:broken, by ZADD in enqueue\.lua"):
        await queue.enqueue_many(tasks)
    assert (await queue.user("fine")).queued == 500
    assert (await queue.stats()).queued == 500


@pytest.mark.damages
@pytest.mark.leaves_keys
async def test_of_calls_that_share_a_round_trip_nobody_fails_for_another(queue: TaskQueue, server, queue_name: str):
    server.execute("SET", f"fairque:{{{queue_name}}}:normal:broken", "not a lane")
    users = ["warm-up", "anna", "broken", "ben"]
    ends = await asyncio.gather(*(queue.enqueue(echo(), user_id=user) for user in users), return_exceptions=True)
    assert [isinstance(end, StoreError) for end in ends] == [False, False, True, False]
    assert (await queue.stats()).queued == 3
    for user in ("anna", "ben"):
        assert (await queue.user(user)).queued == 1


# Cancelled callers, closed queues


@pytest.mark.parametrize("canceled", [0, 1, 5, 99])
async def test_a_caller_that_gives_up_takes_nobody_along(queue: TaskQueue, canceled: int):
    calls = [asyncio.create_task(queue.enqueue(echo(at), user_id="anna")) for at in range(100)]
    await asyncio.sleep(0)
    calls[canceled].cancel()
    ends = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(ends.pop(canceled), asyncio.CancelledError)
    async with Worker(queue, concurrency=100):
        assert sorted([await handle.result(20) for handle in ends] + [canceled]) == list(range(100))
        assert await (await queue.enqueue(echo("later"), user_id="anna")).result(20) == "later"


async def test_what_was_not_sent_when_its_caller_gave_up_is_not_sent_any_more(queue: TaskQueue):
    calls = [asyncio.create_task(queue.enqueue(echo(at), user_id="anna")) for at in range(100)]
    await asyncio.sleep(0)
    for call in calls:
        call.cancel()
    await asyncio.wait(calls)
    assert (await queue.enqueue(echo(), user_id="ben")).created
    assert (await queue.user("anna")).queued <= 1, "the one that was under way may have arrived"
    await Worker(queue).run_until_idle()


@pytest.mark.leaves_keys
async def test_a_queue_closes_when_what_is_being_enqueued_is_in(server, queue_name: str):
    queue = await TaskQueue(server.url, name=queue_name).open()
    calls = [asyncio.create_task(queue.enqueue(echo(at), user_id="anna")) for at in range(1200)]
    await asyncio.sleep(0)
    await queue.close()
    handles = await asyncio.gather(*calls)
    async with TaskQueue(server.url, name=queue_name) as again:
        assert (await again.user("anna")).queued == len(handles) == 1200


async def test_a_closed_queue_says_so_and_can_be_opened_again(server, queue_name: str):
    queue = await TaskQueue(server.url, name=queue_name).open()
    handle = await queue.enqueue(echo(), user_id="anna")
    await queue.close()
    for call in (
        lambda: queue.enqueue(echo(), user_id="anna"),
        lambda: queue.enqueue_many([echo()], user_id="anna"),
        queue.stats,
        handle.state,
        lambda: handle.result(1),
    ):
        with pytest.raises(ConfigError, match="the queue is closed"):
            await call()
    await queue.close()
    async with queue:
        assert await handle.state() is TaskState.QUEUED
        await Worker(queue).run_until_idle()
        await handle.result(20)


async def test_closing_a_queue_ends_the_wait_for_results(server, queue_name: str):
    async with TaskQueue(server.url, name=queue_name) as other:
        queue = await TaskQueue(server.url, name=queue_name).open()
        handle = await queue.enqueue(echo(), user_id="anna")
        waiting = [asyncio.create_task(handle.result()) for _ in range(3)]
        await eventually(lambda: server.execute("PUBSUB", "SHARDNUMSUB", done_channel(queue_name, handle))[1] == 1)
        await queue.close()
        for each in waiting:
            with pytest.raises(FairqueError, match="closed"):
                await asyncio.wait_for(each, 5)
        await Worker(other).run_until_idle()


# By user and function


async def test_a_call_can_be_pushed_for_a_user(queue: TaskQueue):
    @task
    async def describe(a: int, b: int = 2) -> list:
        return [current_task().user_id, a, b]

    ids = [
        await queue.push_function_task("anna", describe, [1], {"b": 3}),
        await queue.push_function_task("ben", describe.fn, (1,), priority=Priority.CRITICAL),
    ]
    assert (await queue.user("ben")).critical == 1
    await Worker(queue).run_until_idle()
    assert await queue.handle("anna", ids[0]).result(20) == ["anna", 1, 3]
    assert await queue.handle("ben", ids[1]).result(20) == ["ben", 1, 2]


async def test_only_registered_functions_can_be_pushed(queue: TaskQueue):
    for wrong in (len, print, "echo", None):
        with pytest.raises(InvalidInput, match="is not a task: decorate it with @task"):
            await queue.push_function_task("anna", wrong)


async def test_queues_with_different_names_know_nothing_of_each_other(server, queue: TaskQueue, queue_name: str):
    async with TaskQueue(server.url, name=f"{queue_name}-2") as other:
        mine = await queue.enqueue(echo("mine"), user_id="anna", task_id="t")
        theirs = await other.enqueue(echo("theirs"), user_id="anna", task_id="t")
        assert theirs.created
        await Worker(other).run_until_idle()
        assert await theirs.result(20) == "theirs"
        assert await mine.state() is TaskState.QUEUED
        await Worker(queue).run_until_idle()
        assert await mine.result(20) == "mine"
    server.forget(f"{queue_name}-2")


async def is_in(handle, state: TaskState) -> bool:
    return await handle.state() is state


def done_channel(queue_name: str, handle) -> str:
    return f"fairque:{{{queue_name}}}:done:{handle.user_id}:{handle.task_id}"


def configure(server, option: str, value: int) -> None:
    with RespClient(server.url) as client:
        client.execute("CONFIG", "SET", option, value)


async def test_an_id_that_comes_again_in_a_later_round_trip_of_one_call_is_created_once(queue: TaskQueue) -> None:
    again = echo(1).options(task_id="again")
    batch = [again, *(echo(1) for _ in range(600)), again]
    handles = await queue.enqueue_many(batch, user_id="acme")
    assert [handle.created for handle in handles] == [True] * 601 + [False]
    await queue.purge("acme")


@pytest.mark.leaves_keys
async def test_whoever_puts_in_very_much_at_once_delays_nobody_else_in_its_process(queue: TaskQueue):
    done: list[str] = []

    async def put_in(user_id: str) -> None:
        await queue.enqueue(echo(), user_id=user_id)
        done.append(user_id)

    flood = [asyncio.create_task(put_in("flood")) for _ in range(10_000)]
    await eventually(lambda: len(done) >= 500)  # it is under way
    before = len(done)
    await put_in("quiet")
    assert len(done) - before <= 1_500, "what was being sent, and the next batch"
    await asyncio.gather(*flood)


@pytest.mark.leaves_keys
async def test_calls_that_are_refused_cost_others_few_round_trips(queue: TaskQueue, server):
    await queue.set_policy("full", max_queued=1)
    await queue.enqueue(echo(), user_id="full")
    before = script_calls(server)
    users = [user for at in range(100) for user in (f"user-{at}", *["full"] * (at == 50))]
    first = queue.enqueue(echo(), user_id="first")  # the others wait for its reply, and go together
    ends = await asyncio.gather(first, *(queue.enqueue(echo(), user_id=user) for user in users), return_exceptions=True)
    assert [type(end) for end in ends if isinstance(end, Exception)] == [QueueFull]
    assert script_calls(server) - before <= 20
