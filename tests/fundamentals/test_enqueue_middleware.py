"""Middlewares around calls that put tasks in: what they see and change, and what becomes of their errors."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest

from fairque import (
    CallNext,
    EnqueueCall,
    EnqueueMiddleware,
    FairqueError,
    FairQueueConfig,
    InvalidInput,
    MessageTooLarge,
    QueueFull,
    Schedule,
    Task,
    TaskQueue,
    TaskScheduler,
    UnknownBatch,
    Worker,
    WrongType,
    current_task,
    task,
)
from fairque.sync import TaskQueue as BlockingQueue
from fairque.tasks.registry import registry
from fairque.testing import enqueued
from tests.support.eventually import eventually
from tests.support.servers import Server

Opened = Callable[..., Any]


@task
async def echo(value: Any = None) -> Any:
    return value


@task
async def headers(_: Any = None) -> dict[str, str]:
    return dict(current_task().headers)


@pytest.fixture(autouse=True)
def _registered():
    registry.update({made.name: made for made in (echo, headers)})


@pytest.fixture
def opened(server: Server, queue_name: str) -> Opened:
    """A queue with these middlewares."""

    @asynccontextmanager
    async def open_(*middleware: EnqueueMiddleware) -> AsyncIterator[TaskQueue]:
        async with TaskQueue(server.url, name=queue_name, enqueue_middleware=middleware) as queue:
            yield queue

    return open_


async def tagged(call: EnqueueCall, call_next: CallNext) -> None:
    call.add_headers({"tag": "on all"})
    await call_next()


class Seen:
    """A middleware that notes what it sees."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.ids: list[str] = []

    async def __call__(self, call: EnqueueCall, call_next: CallNext) -> None:
        assert call.ids == []
        users = ", ".join(str(each.task_options.user_id) for each in call.tasks)
        self.lines.append(f"{call.kind} of {users}")
        await call_next()
        self.ids += call.ids


# What they are around


async def test_each_call_that_puts_tasks_in_passes_them(opened: Opened):
    seen = Seen()
    async with opened(seen) as queue:
        single = await queue.enqueue(echo(1), user_id="acme")
        many = await queue.enqueue_many([echo(2), echo(3).options(user_id="zoe")], user_id="acme")
        run = await queue.enqueue(echo(4) >> echo(5), user_id="acme")
        linked = await queue.enqueue(echo(echo(6).output), user_id="acme")
        pushed = await queue.push_function_task("acme", echo, [7])
        payload = await queue.enqueue(Task.create(payload={"n": 8}), user_id="acme")
        assert await queue.enqueue_many([], user_id="acme") == []
        made = [single.task_id, *(each.task_id for each in many), *(each.task_id for each in run.tasks.values())]
        assert seen.ids[:5] == made
        assert seen.ids[-3:] == [linked.task_id, pushed, payload.task_id]
        assert len(await enqueued(queue)) == 5 + 1 + 1 + 1 + 1
        for user in ("acme", "zoe"):
            await queue.purge(user)
    assert seen.lines == [
        "task of acme",
        "tasks of acme, acme",
        "pipeline of acme, acme",
        "pipeline of acme, acme",
        "task of acme",
        "task of acme",
    ]


@pytest.mark.leaves_keys("schedule*", "declare*")
async def test_so_do_schedules_when_they_are_added_and_changed(opened: Opened):
    seen = Seen()
    async with opened(seen, tagged) as queue:
        scheduler = TaskScheduler(queue)
        await scheduler.add_schedule("0 0 1 1 *", echo(1), user_id="acme", schedule_id="a")
        await scheduler.add_schedules(
            [Schedule("0 0 1 1 *", echo(n).options(user_id="zoe"), schedule_id=f"b{n}") for n in range(2)]
        )
        await scheduler.update_schedule("a", jitter=5)  # no task in it
        await scheduler.update_schedule("a", task=echo(2).options(on_end=echo(3)))
        first = await scheduler.run_now("a")
        [planned] = await enqueued(queue)
        assert (planned.user_id, planned.args, planned.headers) == ("acme", (2,), {"tag": "on all"})
        await queue.handle("acme", first).cancel()
        [called_back] = await enqueued(queue)
        assert (called_back.args, called_back.headers) == ((3,), {"tag": "on all"})
        await queue.purge("acme")
    assert seen.lines == ["schedules of acme", "schedules of zoe, zoe", "schedules of None"]
    assert seen.ids == ["a", "b0", "b1", "a"]


@pytest.mark.leaves_keys("schedule*", "declare*")
async def test_a_declared_schedule_passes_them_when_its_definition_is_new(opened: Opened):
    """What they add does not make it a new one: it may differ from process to process, or from time to time."""
    calls = []

    async def numbered(call: EnqueueCall, call_next: CallNext) -> None:
        calls.append(call.kind)
        call.add_headers({"number": str(len(calls))})
        await call_next()

    @task(name="nightly", every=timedelta(hours=1), user_id="acme")
    async def nightly() -> None: ...

    async with opened(numbered) as queue:
        for _ in range(3):
            assert await TaskScheduler(queue).fire_due() == 0
            await Worker(queue).run_until_idle()
        scheduler = TaskScheduler(queue)
        await scheduler.run_now("nightly")
        [made] = await enqueued(queue)
        assert made.headers == {"number": "1"}
        await queue.purge("acme")
    assert calls == ["schedules"]


@pytest.mark.leaves_keys("schedule*", "declare*")
async def test_a_declared_schedule_that_one_refuses_harms_no_other(opened: Opened, caplog: pytest.LogCaptureFixture):
    async def picky(call: EnqueueCall, call_next: CallNext) -> None:
        if call.tasks[0].name == "bad":
            raise LookupError("not this one")
        await call_next()

    for name in ("bad", "good"):
        task(name=name, every=timedelta(hours=1), user_id="acme")(echo.fn)
    async with opened(picky) as queue:
        scheduler = TaskScheduler(queue)
        async with Worker(queue):
            [only] = await eventually(scheduler.list_schedules)
        assert only.schedule_id == "good"
        await queue.purge("acme")
    assert "schedule 'bad': it cannot be declared: LookupError: not this one" in caplog.text


async def test_callbacks_have_the_headers_of_the_call_that_brings_them(opened: Opened):
    after_that = headers().options(headers={"tag": "its own"})
    called_back = headers().options(on_success=after_that)
    async with opened(tagged) as queue, Worker(queue):
        handle = await queue.enqueue(echo().options(on_success=called_back), user_id="acme", task_id="a")
        assert await handle.result(20) is None
        for name, tag in (("a.on_success", "on all"), ("a.on_success.on_success", "its own")):
            assert await queue.handle("acme", name, task=headers).result(20) == {"tag": tag}


async def test_opening_a_batch_is_a_call_that_brings_its_callbacks(opened: Opened):
    seen = Seen()
    async with opened(seen, tagged) as queue, Worker(queue):
        async with queue.batch("acme", batch_id="b", on_complete=headers(), on_success=[headers(), echo(1)]) as batch:
            await batch.enqueue(echo(2))
        await batch.wait(timeout=20)
        for name in ("b.on_complete", "b.on_success"):
            assert await queue.handle("acme", name, task=headers).result(20) == {"tag": "on all"}
        assert await queue.handle("acme", "b.on_success-2").result(20) == 1
        async with queue.batch("acme"):
            pass
        with pytest.raises(InvalidInput, match="is of another user than 'acme'"):
            await queue.batch("acme", on_complete=echo().options(user_id="zoe")).open()
    assert seen.lines == ["batch of acme, acme, acme", "task of acme", "batch of zoe"]
    assert len(seen.ids) == 1


async def test_a_middleware_that_refuses_a_batch_leaves_nothing(opened: Opened):
    async def closed(_call: EnqueueCall, _call_next: CallNext) -> None:
        raise LookupError("closed")

    async with opened(closed) as queue:
        with pytest.raises(LookupError, match="closed"):
            await queue.batch("acme", batch_id="b", on_complete=echo()).open()
        with pytest.raises(UnknownBatch):
            await queue.batch("acme", batch_id="b").progress()


def test_blocking_calls_pass_them_with_the_context_of_their_thread(server: Server, queue_name: str):
    async def inherited(call: EnqueueCall, call_next: CallNext) -> None:
        try:
            call.add_headers(current_task().headers)
        except FairqueError:  # not in a task
            call.add_headers({"from": "outside"})
        await call_next()

    with BlockingQueue(server.url, name=queue_name, enqueue_middleware=[inherited]) as queue:

        @task
        def parent() -> str:
            return queue.enqueue(headers(), user_id="acme").task_id

        assert queue.enqueue(headers(), user_id="acme").task_id
        handle = queue.enqueue(parent().options(headers={"from": "the parent"}), user_id="acme")
        with queue.worker():
            child = queue.handle("acme", handle.result(20), task=headers)
            assert child.result(20) == {"from": "the parent"}


async def test_they_stand_in_order_in_the_task_of_the_caller(opened: Opened):
    lines = []

    def named(name: str) -> EnqueueMiddleware:
        async def middleware(_call: EnqueueCall, call_next: CallNext) -> None:
            lines.append(f"{name} {asyncio.current_task() is me}")
            await call_next()
            lines.append(name)

        return middleware

    me = asyncio.current_task()
    async with opened(named("a"), named("b")) as queue:
        handle = await queue.enqueue(echo(), user_id="acme")
        await handle.cancel()
    assert lines == ["a True", "b True", "b", "a"]


async def test_a_queue_of_a_configuration_has_them(server: Server, queue_name: str):
    config = FairQueueConfig.from_dict({"redis": {"url": server.url}, "queue": {"name": queue_name}}, environ={})
    async with TaskQueue.from_config(config, enqueue_middleware=[tagged]) as queue, Worker(queue):
        assert await (await queue.enqueue(headers(), user_id="acme")).result(20) == {"tag": "on all"}


# What they change


async def test_headers_are_added_to_those_of_each_task(opened: Opened):
    async with opened(tagged) as queue, Worker(queue):
        own = headers().options(headers={"tag": "its own", "other": "1"})
        handles = await queue.enqueue_many([headers(), own], user_id="acme")
        assert await queue.results(handles, 20) == [{"tag": "on all"}, {"tag": "its own", "other": "1"}]
        run = await queue.enqueue(headers(own.output), user_id="acme")
        assert await run.result(20) == {"tag": "on all"}


async def test_options_of_every_kind_may_be_changed(opened: Opened):
    async def of_acme(call: EnqueueCall, call_next: CallNext) -> None:
        call.tasks = [each.options(user_id="acme", priority=6, delay=3600) for each in call.tasks]
        await call_next()

    async with opened(of_acme) as queue:
        for made in (await queue.enqueue(echo()), *await queue.enqueue_many([echo()], user_id="eve")):
            info = await made.info()
            assert (info.user_id, info.priority, info.state) == ("acme", 6, "scheduled")
        run = await queue.enqueue(echo() >> echo(), user_id="eve")
        assert run.user_id == "acme"
        await queue.purge("acme")


async def test_tasks_of_a_call_may_still_depend_on_each_other(opened: Opened):
    async def costly(call: EnqueueCall, call_next: CallNext) -> None:
        call.tasks = [each.options(cost=2) for each in call.tasks]
        await call_next()

    async with opened(costly, tagged) as queue, Worker(queue):
        first = echo(1)
        handles = await queue.enqueue_many([first, echo(2).options(depends_on=[first])], user_id="acme")
        assert await queue.results(handles, 20) == [1, 2]
        one, two = echo(3), echo(4)
        run = await queue.enqueue(echo([one.output, two.output]).options(depends_on=handles), user_id="acme")
        assert await run.result(20) == [3, 4]
        usage = await queue.usage("acme")
        assert sum(hour.cost for hour in usage) == 2 * 5


async def test_an_id_of_the_caller_is_as_idempotent_as_without_them(opened: Opened):
    async with opened(tagged) as queue:
        one, two = [await queue.enqueue(echo(), user_id="acme", task_id="t") for _ in range(2)]
        assert (one.created, two.created, two.task_id) == (True, False, "t")
        await one.cancel()


@pytest.mark.parametrize(
    "change",
    [
        lambda _: [],
        lambda tasks: [*tasks, echo(2)],
        lambda _: [echo(2)],
        lambda _: [headers(1)],
        lambda tasks: [tasks[0].options(task_id="other")],
        lambda _: ["nothing"],
        lambda tasks: [tasks.append(tasks[0]), tasks][1],
        lambda tasks: [tasks.clear(), tasks][1],
    ],
    ids=range(8),
)
async def test_which_tasks_a_call_puts_in_is_up_to_its_caller(opened: Opened, change: Callable[[Any], Any]):
    async def changing(call: EnqueueCall, call_next: CallNext) -> None:
        call.tasks = change(call.tasks)
        await call_next()

    async with opened(changing) as queue:
        for call in (
            lambda: queue.enqueue(echo(1), user_id="acme"),
            lambda: queue.enqueue_many([echo(1)], user_id="acme"),
            lambda: TaskScheduler(queue).add_schedule("0 0 1 1 *", echo(1), user_id="acme"),
        ):
            with pytest.raises(InvalidInput, match="may change options of tasks"):
                await call()
        assert (await queue.user("acme")).queued == 0


@pytest.mark.parametrize(
    "options", [{"priority": 9}, {"user_id": ""}, {"headers": {"a": 1}}, {"color": "red"}], ids=str
)
async def test_what_they_say_is_checked_as_what_callers_say(opened: Opened, options: Any):
    async def changing(call: EnqueueCall, call_next: CallNext) -> None:
        call.tasks = [each.options(**options) for each in call.tasks]
        await call_next()

    async with opened(changing) as queue:
        with pytest.raises(InvalidInput):
            await queue.enqueue(echo(1), user_id="acme")


async def test_too_many_headers_together_are_refused(opened: Opened):
    async with opened(tagged) as queue:
        with pytest.raises(InvalidInput, match="the limit is 4096"):
            await queue.enqueue(echo(), user_id="acme", headers={"much": "x" * 4090})


async def test_an_output_that_is_an_argument_is_kept_whatever_they_say(opened: Opened):
    async def keeps_nothing(call: EnqueueCall, call_next: CallNext) -> None:
        call.tasks = [each.options(result_ttl=0) for each in call.tasks]
        await call_next()

    async with opened(keeps_nothing) as queue:
        with pytest.raises(InvalidInput, match="it keeps no result"):
            await queue.enqueue(echo(echo(1).output), user_id="acme")
        assert await enqueued(queue) == []


async def test_one_that_awaits_holds_up_its_own_call_alone(opened: Opened):
    let_go = asyncio.Event()

    async def asks_first(call: EnqueueCall, call_next: CallNext) -> None:
        if call.tasks[0].task_options.user_id == "eve":
            await let_go.wait()
        await call_next()

    async with opened(asks_first) as queue:
        held = asyncio.create_task(queue.enqueue(echo(), user_id="eve"))
        handles = [await queue.enqueue(echo(), user_id="acme") for _ in range(3)]
        handles += await queue.enqueue_many([echo(), echo()], user_id="acme")
        assert not held.done()
        let_go.set()
        for handle in [*handles, await held]:
            await handle.cancel()


# Errors


async def test_one_that_raises_refuses_the_call_and_nothing_is_written(opened: Opened):
    async def locked(call: EnqueueCall, call_next: CallNext) -> None:
        if any(each.task_options.user_id == "eve" for each in call.tasks):
            raise PermissionError("eve is locked out")
        await call_next()

    async with opened(tagged, locked) as queue:
        for call in (
            lambda: queue.enqueue(echo(), user_id="eve"),
            lambda: queue.enqueue_many([echo(), echo().options(user_id="eve")], user_id="eve"),
            lambda: queue.enqueue(echo() >> echo(), user_id="eve"),
            lambda: TaskScheduler(queue).add_schedule("0 0 1 1 *", echo(), user_id="eve", schedule_id="s"),
        ):
            refused, other = await asyncio.gather(call(), queue.enqueue(echo(), user_id="acme"), return_exceptions=True)
            assert isinstance(refused, PermissionError)
            assert other.created
        assert {each.user_id for each in await enqueued(queue)} == {"acme"}
        assert await TaskScheduler(queue).list_schedules() == []
        await queue.purge("acme")


async def test_an_error_after_the_tasks_are_in_is_the_callers_as_well(opened: Opened):
    async def clumsy(_call: EnqueueCall, call_next: CallNext) -> None:
        await call_next()
        raise LookupError("too late")

    async with opened(clumsy) as queue:
        with pytest.raises(LookupError, match="too late"):
            await queue.enqueue(echo(), user_id="acme", task_id="t")
        assert [each.task_id for each in await enqueued(queue)] == ["t"]
        await queue.purge("acme")


async def test_what_became_of_a_call_cannot_be_swallowed(opened: Opened):
    async def silent(_call: EnqueueCall, call_next: CallNext) -> None:
        try:
            await call_next()
        except Exception:
            return

    async with opened(silent) as queue:
        await queue.set_policy("acme", max_queued=1)
        handle = await queue.enqueue(echo(), user_id="acme")
        with pytest.raises(QueueFull):
            await queue.enqueue(echo(), user_id="acme")
        await handle.cancel()
        await queue.clear_policy("acme")


async def test_a_cancellation_that_is_the_middlewares_own_is_no_cancellation_of_the_caller(opened: Opened):
    async def impatient(_call: EnqueueCall, call_next: CallNext) -> None:
        putting_in = asyncio.ensure_future(call_next())
        await asyncio.sleep(0)
        putting_in.cancel()
        await asyncio.wait([putting_in])

    async with opened(impatient) as queue:
        with pytest.raises(FairqueError, match="may or may not"):
            await queue.enqueue(echo(), user_id="acme")
        await queue.purge("acme")


async def test_a_cancellation_of_the_caller_reaches_it_whatever_they_do(opened: Opened):
    going_on = asyncio.Event()

    async def deaf(_call: EnqueueCall, call_next: CallNext) -> None:
        going_on.set()
        with contextlib.suppress(asyncio.CancelledError):
            await call_next()

    async with opened(deaf) as queue:
        call = asyncio.create_task(queue.enqueue(echo(), user_id="acme"))
        await going_on.wait()
        call.cancel()
        await asyncio.wait([call])
        assert call.cancelled()
        await queue.purge("acme")


async def test_one_that_does_not_go_on_has_to_say_why(opened: Opened):
    async def lazy(_call: EnqueueCall, _call_next: CallNext) -> None:
        return

    async with opened(lazy) as queue:
        with pytest.raises(FairqueError, match="to refuse a call, raise an error"):
            await queue.enqueue(echo(), user_id="acme")
        assert await enqueued(queue) == []


async def test_one_that_goes_on_twice_puts_in_once(opened: Opened):
    async def eager(_call: EnqueueCall, call_next: CallNext) -> None:
        await call_next()
        await call_next()

    async with opened(eager) as queue:
        with pytest.raises(FairqueError, match="once"):
            await queue.enqueue(echo(), user_id="acme")
        assert len(await enqueued(queue)) == 1
        await queue.purge("acme")


async def test_one_may_go_on_with_less_where_the_message_was_too_large(server: Server, queue_name: str):
    """Nothing was written then. After any other error something may have been."""
    seen: list[str] = []

    async def greedy(call: EnqueueCall, call_next: CallNext) -> None:
        given = call.tasks
        call.add_headers({"much": "x" * 1000})
        try:
            await call_next()
        except FairqueError as error:
            seen.append(type(error).__name__)
            call.tasks = given
            await call_next()

    async with TaskQueue(server.url, name=queue_name, max_message_bytes=1500, enqueue_middleware=[greedy]) as queue:
        await queue.enqueue(echo(1), user_id="acme")
        await queue.enqueue(echo("y" * 1000), user_id="acme")
        await queue.enqueue_many([echo("y" * 1000), echo(2)], user_id="acme")
        assert [dict(each.headers) == {} for each in await enqueued(queue)] == [False, True, True, True]
        with pytest.raises(MessageTooLarge):
            await queue.enqueue(echo("y" * 2000), user_id="acme")
        await queue.set_policy("acme", max_queued=1)
        with pytest.raises(FairqueError, match="once"):
            await queue.enqueue(echo(3), user_id="acme")
        await queue.purge("acme")
    assert seen == ["MessageTooLarge"] * 3 + ["QueueFull"]


async def test_they_are_told_which_queue_is_called(opened: Opened, queue_name: str):
    names = []

    async def look(call: EnqueueCall, call_next: CallNext) -> None:
        names.append(call.queue_name)
        await call_next()

    async with opened(look) as queue:
        await queue.enqueue(echo(1), user_id="acme")
        await queue.purge("acme")
    assert names == [queue_name]


async def test_what_is_no_task_is_refused_before_they_see_it(opened: Opened):
    seen = Seen()
    async with opened(seen) as queue:
        for call in (
            lambda: queue.enqueue("echo", user_id="acme"),
            lambda: queue.enqueue_many(["echo"], user_id="acme"),
            lambda: TaskScheduler(queue).add_schedule("0 0 1 1 *", None, user_id="acme"),
            lambda: TaskScheduler(queue).update_schedule("none", task="echo"),
        ):
            with pytest.raises(WrongType, match="only a task"):
                await call()
    assert seen.lines == []
