"""Traces and metrics by OpenTelemetry: what spans there are, how they belong together, and that they harm nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import baggage, context, trace
from opentelemetry.metrics import NoOpMeter, NoOpMeterProvider
from opentelemetry.propagators.textmap import TextMapPropagator
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanKind, StatusCode
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from fairque import (
    CallNext,
    Collect,
    EnqueueCall,
    FairqueError,
    QueueFull,
    RetryPolicy,
    Snooze,
    Streamed,
    Task,
    TaskCanceled,
    TaskFailed,
    TaskHandler,
    TaskQueue,
    TaskScheduler,
    Worker,
    current_task,
    task,
)
from fairque.contrib.opentelemetry import Tracing
from fairque.contrib.sqlalchemy import Outbox, OutboxRelay, metadata
from fairque.embedded.server import EmbeddedServer
from fairque.sync import TaskQueue as BlockingQueue
from fairque.tasks.registry import registry
from tests.support.eventually import eventually
from tests.support.servers import Server
from tests.support.spans import Recorded, is_child, is_linked

Opened = Callable[..., Any]
SECRET = "hunter2"


@pytest.fixture(autouse=True)
def _tasks_of_one_test() -> Iterator[None]:
    before = dict(registry)
    yield
    registry.clear()
    registry.update(before)


@pytest.fixture
def recorded() -> Iterator[Recorded]:
    found = Recorded()
    yield found
    found.close()


@pytest.fixture
def opened(server: Server, queue_name: str, recorded: Recorded) -> Opened:
    """A queue that is traced, and a worker that serves it."""

    @asynccontextmanager
    async def open_(tracing: Tracing | None = None, serves: bool = True, **options: Any) -> AsyncIterator[TaskQueue]:
        doors = (tracing or recorded.tracing()).doors
        async with TaskQueue(server.url, name=queue_name, **doors) as queue:
            if not serves:
                yield queue
                return
            async with Worker(queue, **options):
                yield queue

    return open_


@task(name="traced-echo")
async def echo(value: Any = None) -> Any:
    return value


@pytest.fixture(autouse=True)
def _echo(_tasks_of_one_test: None) -> None:
    registry["traced-echo"] = echo


async def one_run(
    recorded: Recorded, queue: TaskQueue, call: Task, error: type[Exception] | None = None
) -> ReadableSpan:
    """The span of its first run; the task is gone afterwards."""
    handle = await queue.enqueue(call, user_id="acme")
    if error is None:
        await handle.result(20)
    else:
        with pytest.raises(error):
            await handle.result(20)
    [span] = await recorded.wait_for(1, "process")
    if error is TaskFailed:
        await queue.discard(handle)
    return span


# One task


async def test_a_run_is_a_child_of_the_call_that_put_it_in(opened: Opened, recorded: Recorded, queue_name: str):
    async with opened(worker_id="w-1") as queue:
        with recorded.tracer.start_as_current_span("request"):
            handle = await queue.enqueue(echo(1), user_id="acme")
        assert await handle.result(20) == 1
        [run] = await recorded.wait_for(1, "process")
    [sent] = recorded.spans("enqueue")
    [request] = recorded.spans("request")
    assert is_child(sent, request)
    assert is_child(run, sent)
    assert not sent.links
    assert not run.links
    assert (sent.kind, run.kind) == (SpanKind.PRODUCER, SpanKind.CONSUMER)
    assert (sent.name, run.name) == (f"enqueue {queue_name}", f"process {queue_name}")
    assert sent.status.status_code is run.status.status_code is StatusCode.UNSET
    assert dict(sent.attributes or {}) == {
        "messaging.system": "fairque",
        "messaging.operation.name": "enqueue",
        "messaging.operation.type": "send",
        "messaging.destination.name": queue_name,
        "messaging.message.id": handle.task_id,
        "server.address": queue.connector.url.removeprefix("unix://"),
        "fairque.task.name": "traced-echo",
    }
    assert dict(run.attributes or {}) == {
        "messaging.system": "fairque",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": queue_name,
        "messaging.message.id": handle.task_id,
        "messaging.client.id": "w-1",
        "server.address": queue.connector.url.removeprefix("unix://"),
        "fairque.task.name": "traced-echo",
        "fairque.task.attempt": 1,
        "fairque.task.outcome": "returned",
    }


async def test_a_server_of_the_network_has_an_address_and_a_port(
    own_server: Callable[..., EmbeddedServer], recorded: Recorded
):
    server = own_server(tcp=True)
    async with TaskQueue(f"redis://127.0.0.1:{server.port}", **recorded.tracing().doors) as queue:
        await queue.enqueue_many([echo(1), echo(2)], user_id="acme")
        await TaskScheduler(queue).add_schedule("0 0 1 1 *", echo(1), user_id="acme", schedule_id="yearly")
        await TaskScheduler(queue).run_now("yearly")
        async with Worker(queue):
            await recorded.wait_for(3, "process")
    places = [
        ((each.attributes or {}).get("server.address"), (each.attributes or {}).get("server.port"))
        for each in recorded.spans()
    ]
    assert len(places) == 8, "the call, what it creates, the schedule, its firing, and the runs"
    assert set(places) == {("127.0.0.1", server.port)}


@pytest.mark.parametrize(
    ("url", "where"),
    [
        ("redis://h:1", ("h", 1)),
        ("rediss://user:secret@h", ("h", 6379)),
        ("unix:///a%20b?db=1", ("/a b", None)),
        ("sentinel://s/master", None),
        ("cluster://a,b", None),
        ("embedded://", None),
    ],
)
def test_where_a_server_is_is_known_from_its_url_or_later(url: str, where: object):
    assert TaskQueue(url).connector.server == where


async def test_how_long_it_stood_in_line_is_an_event(opened: Opened, recorded: Recorded):
    async with opened(serves=False) as queue:
        handle = await queue.enqueue(echo(1), user_id="acme")

        async def has_waited() -> bool:
            return ((await queue.user("acme")).wait_seconds or 0) > 0.05

        await eventually(has_waited)
        async with Worker(queue):
            await handle.result(20)
            [run] = await recorded.wait_for(1, "process")
    [event] = run.events
    assert event.name == "fairque.waited"
    assert 0.05 <= (event.attributes or {})["fairque.wait.duration"] < 20


async def test_the_id_of_a_user_is_told_only_where_that_was_asked_for(opened: Opened, recorded: Recorded):
    async with opened() as queue:
        await one_run(recorded, queue, echo(1))
    assert "acme" not in str([each.to_json() for each in recorded.spans()])
    other = Recorded()
    async with opened(other.tracing(user_id=True)) as queue:
        await one_run(other, queue, echo(1))
        await queue.enqueue_many([echo(2)], user_id="zoe")
        await other.wait_for(2, "process")
    users = [(each.attributes or {}).get("fairque.user.id") for each in other.spans("enqueue", "create", "process")]
    assert sorted(map(str, users)) == ["None", "acme", "acme", "zoe", "zoe"]
    assert "acme" not in str(other.points("messaging.process.duration"))
    other.close()


async def test_how_long_its_body_waits_for_others_is_an_event(opened: Opened, recorded: Recorded):
    @task(name="slow")
    async def slow() -> int:
        await asyncio.sleep(0.05)
        return 7

    @task(name="waits")
    async def waits() -> str:
        child = await current_task().enqueue(slow())
        assert await child.result() == 7
        return child.task_id

    async with opened() as queue:
        child_id = await (await queue.enqueue(waits(), user_id="acme")).result(20)
        runs = await recorded.wait_for(2, "process")
    [run] = [each for each in runs if (each.attributes or {})["fairque.task.name"] == "waits"]
    [event] = [each for each in run.events if each.name == "fairque.awaited"]
    assert (event.attributes or {})["fairque.wait.for"] == child_id
    assert 0.04 < (event.attributes or {})["fairque.wait.duration"] < 20


@pytest.mark.parametrize("run_in", ["loop", "thread"])
async def test_the_body_finds_the_span_of_its_run_and_the_baggage_of_the_call(
    opened: Opened, recorded: Recorded, run_in: str
):
    def look() -> list[str]:
        with recorded.tracer.start_as_current_span("inside"):
            return [str(baggage.get_baggage("tenant")), str(trace.get_current_span().is_recording())]

    @task(name="in-loop")
    async def in_loop() -> list[str]:
        return look()

    @task(name="in-thread")
    def in_thread() -> list[str]:
        return look()

    async with opened() as queue:
        token = context.attach(baggage.set_baggage("tenant", "blue"))
        handle = await queue.enqueue(in_loop() if run_in == "loop" else in_thread(), user_id="acme")
        context.detach(token)
        assert await handle.result(20) == ["blue", "True"]
        [run] = await recorded.wait_for(1, "process")
    [inside] = recorded.spans("inside")
    assert is_child(inside, run)


async def test_a_task_without_a_trace_begins_one(opened: Opened, recorded: Recorded, queue: TaskQueue):
    """It was put in by a program that is not traced."""
    async with opened():
        await (await queue.enqueue(echo(1), user_id="acme")).result(20)
        [run] = await recorded.wait_for(1, "process")
    assert run.parent is None


async def test_runs_are_no_children_of_what_their_worker_was_started_in(opened: Opened, recorded: Recorded):
    token = context.attach(baggage.set_baggage("leaked", "yes"))
    try:
        with recorded.tracer.start_as_current_span("start"):
            async with opened() as queue:
                async with Worker(queue):
                    pass
                outside = context.attach(context.Context())
                handle = await queue.enqueue(echo(1), user_id="acme")
                context.detach(outside)
                await handle.result(20)
                [run] = await recorded.wait_for(1, "process")
    finally:
        context.detach(token)
    [start] = recorded.spans("start")
    assert run.context.trace_id != start.context.trace_id


# What belongs together


async def test_retries_are_spans_of_one_trace(opened: Opened, recorded: Recorded):
    @task(name="third-time", max_retries=2, retry=RetryPolicy(base=0))
    async def third_time() -> int:
        if current_task().attempt < 3:
            raise ConnectionError(SECRET)
        return current_task().attempt

    async with opened() as queue:
        assert await (await queue.enqueue(third_time(), user_id="acme")).result(20) == 3
        runs = await recorded.wait_for(3, "process")
    [sent] = recorded.spans("enqueue")
    assert all(is_child(each, sent) for each in runs)
    assert [(each.attributes or {})["fairque.task.attempt"] for each in runs] == [1, 2, 3]
    assert [each.status.status_code for each in runs] == [StatusCode.ERROR, StatusCode.ERROR, StatusCode.UNSET]


async def test_a_requeued_dead_letter_goes_on_in_its_trace(opened: Opened, recorded: Recorded):
    is_open = asyncio.Event()

    @task(name="gate")
    async def gate() -> None:
        assert is_open.is_set()

    async with opened() as queue:
        handle = await queue.enqueue(gate(), user_id="acme")
        with pytest.raises(TaskFailed):
            await handle.result(20)
        is_open.set()
        await (await queue.requeue(handle)).result(20)
        runs = await recorded.wait_for(2, "process")
    assert {each.context.trace_id for each in runs} == {recorded.spans("enqueue")[0].context.trace_id}


async def test_a_pipeline_is_one_trace(opened: Opened, recorded: Recorded):
    async with opened() as queue:
        run = await queue.enqueue(echo(1) >> (echo(2) | echo(3)) >> echo(4), user_id="acme")
        await run.result(timeout=20)
        linked = await queue.enqueue(echo(echo(5).output), user_id="acme")
        assert await linked.result(20) == 5
        runs = await recorded.wait_for(6, "process")
    pipeline, linked_call = recorded.spans("enqueue")
    assert [sum(is_child(each, call) for each in runs) for call in (pipeline, linked_call)] == [4, 2]
    assert (pipeline.attributes or {})["messaging.batch.message_count"] == 4
    assert "messaging.message.id" not in (pipeline.attributes or {})


async def test_children_are_put_in_within_the_run_of_their_parent(opened: Opened, recorded: Recorded):
    @task(name="parent")
    async def parent() -> str:
        return (await current_task().enqueue(echo(1))).task_id

    @task(name="parent-in-thread")
    def parent_in_thread() -> str:
        return current_task().enqueue_from_thread(echo(2))

    async with opened() as queue:
        for each in (parent(), parent_in_thread()):
            handle = await queue.enqueue(each, user_id="acme")
            await queue.handle("acme", await handle.result(20)).result(20)
        runs = await recorded.wait_for(4, "process")
    calls = {(each.attributes or {})["messaging.message.id"]: each for each in recorded.spans("enqueue")}
    by_id = {(each.attributes or {})["messaging.message.id"]: each for each in runs}
    children = [each for each in by_id if "/" in str(each)]
    assert len(children) == 2
    for child in children:
        parent_id = str(child).partition("/")[0]
        assert is_child(by_id[child], calls[child])
        assert is_child(calls[child], by_id[parent_id])


async def test_a_pipeline_of_children_is_put_in_within_the_run_of_their_parent(opened: Opened, recorded: Recorded):
    @task(name="parent")
    async def parent() -> str:
        return (await current_task().enqueue(echo(1) >> echo(2), key="both")).run_id

    async with opened() as queue:
        await (await queue.enqueue(parent(), user_id="acme")).result(20)
        runs = await recorded.wait_for(3, "process")
    outer, inner = recorded.spans("enqueue")
    outer, inner = (inner, outer) if outer.parent is not None else (outer, inner)
    [of_parent] = [each for each in runs if is_child(each, outer)]
    assert is_child(inner, of_parent)
    assert sum(is_child(each, inner) for each in runs) == 2


async def test_callbacks_belong_to_the_trace_of_the_task_whose_end_they_follow(opened: Opened, recorded: Recorded):
    async with opened() as queue:
        await queue.enqueue(echo(1).options(on_success=echo(2).options(on_end=echo(3))), user_id="acme")
        runs = await recorded.wait_for(3, "process")
    [sent] = recorded.spans("enqueue")
    assert all(is_child(each, sent) for each in runs)


async def test_callbacks_of_a_batch_belong_to_the_trace_in_which_it_was_opened(opened: Opened, recorded: Recorded):
    async with opened() as queue:
        async with queue.batch("acme", on_complete=echo("all")) as batch:
            await batch.enqueue_many([echo(1), echo(2)])
        runs = await recorded.wait_for(3, "process")
    [opening] = recorded.spans("open_batch")
    assert sum(is_child(each, opening) for each in runs) == 1
    assert (opening.attributes or {})["messaging.operation.type"] == "create"


async def test_what_an_inherited_header_says_of_a_trace_is_not_the_trace_of_a_child(
    server: Server, queue_name: str, recorded: Recorded
):
    """A middleware that hands on all headers of the task that runs hands on where that one came from."""

    async def inherit(call: EnqueueCall, call_next: CallNext) -> None:
        with suppress(FairqueError):
            call.add_headers(current_task().headers)
        await call_next()

    tracing = recorded.tracing()
    queue = TaskQueue(
        server.url,
        name=queue_name,
        enqueue_middleware=[inherit, tracing.around_enqueue],
        run_middleware=[tracing.around_run],
    )

    @task(name="parent")
    async def parent() -> str:
        return (await queue.enqueue(echo(1), user_id="acme")).task_id

    async with queue, Worker(queue):
        handle = await queue.enqueue(parent(), user_id="acme", headers={"request-id": "7"})
        child = queue.handle("acme", await handle.result(20))
        await child.result(20)
        runs = await recorded.wait_for(2, "process")
    sent, sent_inside = recorded.spans("enqueue")
    [outer] = [each for each in runs if is_child(each, sent)]
    [inner] = [each for each in runs if is_child(each, sent_inside)]
    assert is_child(sent_inside, outer)
    assert inner is not outer


async def test_a_task_of_an_outbox_belongs_to_where_it_was_added(opened: Opened, recorded: Recorded, tmp_path: Path):
    engine = create_engine(f"sqlite:///{tmp_path / 'app.db'}")
    metadata.create_all(engine)
    async with opened() as queue:
        with recorded.tracer.start_as_current_span("request"), Session(engine) as session:
            task_id = await Outbox(queue).enqueue(session, echo(1), user_id="acme")
            session.commit()
        assert await OutboxRelay(queue, engine).drain() == 1
        assert await queue.handle("acme", task_id).result(20) == 1
        [run] = await recorded.wait_for(1, "process")
        await queue.purge("acme")
    engine.dispose()
    [sent] = recorded.spans("enqueue")
    assert is_child(run, sent)
    assert is_child(sent, recorded.spans("request")[0])


async def test_a_trace_that_a_caller_gives_by_hand_stays_as_it_is(opened: Opened, recorded: Recorded):
    given = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
    async with opened() as queue:
        await (await queue.enqueue(echo(1), user_id="acme", headers=given)).result(20)
        [handle] = await queue.enqueue_many([echo(1).options(headers=given)], user_id="acme")
        await handle.result(20)
        runs = await recorded.wait_for(2, "process")
    for sent, run in zip(recorded.spans("enqueue"), runs, strict=True):
        assert run.parent is not None
        assert trace.format_span_id(run.parent.span_id) == "b7ad6b7169203331"
        assert [trace.format_trace_id(each.context.trace_id) for each in sent.links] == [given["traceparent"][3:35]]
    assert recorded.spans("create") == []


@pytest.mark.leaves_keys("schedule*")
async def test_each_run_of_a_schedule_is_a_trace_that_is_linked_to_where_it_was_made(
    opened: Opened, recorded: Recorded
):
    @task(name="flaky", max_retries=1, retry=RetryPolicy(base=0))
    async def flaky() -> Any:
        if current_task().attempt == 1:
            raise ConnectionError
        return sorted(current_task().headers), baggage.get_baggage("tenant")

    planned = flaky().options(on_success=echo("called back"))
    async with opened(scheduler=False) as traced:
        scheduler = TaskScheduler(traced)
        token = context.attach(baggage.set_baggage("tenant", "of the request"))
        with recorded.tracer.start_as_current_span("setup"):
            await scheduler.add_schedule(every=60, task=planned, user_id="acme", schedule_id="s")
        context.detach(token)
        assert await scheduler.fire_due(ahead=130) == 2
        by_hand = await scheduler.run_now("s")
        runs = await recorded.wait_for(9, "process")
        assert await traced.handle("acme", by_hand).result(20) == [["traceparent"], None]
        await traced.purge("acme")
    [made] = recorded.spans("schedule")
    assert is_child(made, recorded.spans("setup")[0])
    fired = recorded.spans("fire")
    assert len({each.context.trace_id for each in (made, *fired)}) == 4
    for each in fired:
        assert (each.parent, each.kind) == (None, SpanKind.PRODUCER)
        assert is_linked(each, made)
        assert (each.attributes or {})["fairque.schedule.id"] == "s"
        assert sum(is_child(run, each) for run in runs) == 3
    assert recorded.points("messaging.client.sent.messages") == []


@pytest.mark.leaves_keys("schedule*")
async def test_so_it_is_where_a_scheduler_fires_it_that_is_not_traced(
    opened: Opened, recorded: Recorded, queue: TaskQueue
):
    async with opened(scheduler=False) as traced:
        await TaskScheduler(traced).add_schedule(every=60, task=echo(1), user_id="acme", schedule_id="s")
        await TaskScheduler(queue).fire_due(ahead=70)
        [run] = await recorded.wait_for(1, "process")
        await traced.purge("acme")
    [made] = recorded.spans("schedule")
    assert run.parent is None
    assert is_linked(run, made)


# Many at once


async def test_tasks_of_one_call_have_a_trace_each_that_is_linked_to_the_call(opened: Opened, recorded: Recorded):
    async with opened() as queue:
        with recorded.tracer.start_as_current_span("request"):
            handles = await queue.enqueue_many([echo(n) for n in range(3)], user_id="acme")
        await queue.results(handles, 20)
        runs = await recorded.wait_for(3, "process")
    [sent] = recorded.spans("enqueue")
    created = recorded.spans("create")
    assert is_child(sent, recorded.spans("request")[0])
    assert sent.kind is SpanKind.CLIENT
    assert (sent.attributes or {})["messaging.batch.message_count"] == 3
    assert [(each.attributes or {})["messaging.message.id"] for each in created] == [each.task_id for each in handles]
    assert len({each.context.trace_id for each in (sent, *created)}) == 4
    for each in created:
        assert (each.parent, each.kind) == (None, SpanKind.PRODUCER)
        assert is_linked(each, sent)
        assert is_linked(sent, each)
        assert sum(is_child(run, each) for run in runs) == 1


async def test_they_are_one_trace_where_that_is_chosen(opened: Opened, recorded: Recorded):
    async with opened(recorded.tracing(create_spans=False)) as queue:
        await queue.results(await queue.enqueue_many([echo(n) for n in range(3)], user_id="acme"), 20)
        runs = await recorded.wait_for(3, "process")
    [sent] = recorded.spans("enqueue")
    assert all(is_child(each, sent) for each in runs)
    assert sent.kind is SpanKind.PRODUCER
    assert recorded.spans("create") == []


async def test_baggage_goes_with_each_of_many(opened: Opened):
    @task(name="carried")
    async def carried() -> Any:
        return baggage.get_baggage("tenant")

    async with opened() as queue:
        token = context.attach(baggage.set_baggage("tenant", "blue"))
        handles = await queue.enqueue_many([carried(), carried()], user_id="acme")
        context.detach(token)
        assert await queue.results(handles, 20) == ["blue", "blue"]


async def test_spans_of_tasks_that_one_body_serves_are_linked(opened: Opened, recorded: Recorded):
    @task(name="together", collect=Collect(10, within=5))
    async def together(numbers: list[int]) -> list[int]:
        with recorded.tracer.start_as_current_span("inside"):
            return [number * 2 for number in numbers]

    async with opened(serves=False) as queue:
        handles = [await queue.enqueue(together(n), user_id="acme") for n in range(10)]
        async with Worker(queue):
            assert await queue.results(handles, 20) == [n * 2 for n in range(10)]
            runs = await recorded.wait_for(10, "process")
    sent = recorded.spans("enqueue")
    [inside] = recorded.spans("inside")
    assert all(sum(is_child(each, call) for each in runs) == 1 for call in sent)
    [first] = [each for each in runs if is_child(inside, each)]
    assert (first.attributes or {})["messaging.batch.message_count"] == 10
    assert all(is_linked(each, first) for each in runs if each is not first)
    assert sum(is_linked(first, call) for call in sent) == 9


# How runs end


async def test_an_error_has_its_type_and_frames_and_not_its_text(opened: Opened, recorded: Recorded):
    @task(name="raises")
    async def raises(secret: str) -> None:
        raise LookupError(secret)

    async with opened() as queue:
        run = await one_run(recorded, queue, raises(SECRET), TaskFailed)
    assert (run.attributes or {})["error.type"] == "LookupError"
    assert (run.attributes or {})["fairque.task.outcome"] == "raised"
    assert (run.status.status_code, run.status.description) == (StatusCode.ERROR, "LookupError")
    [exception] = [each for each in run.events if each.name == "exception"]
    assert (exception.attributes or {})["exception.type"] == "LookupError"
    assert "in raises" in str((exception.attributes or {})["exception.stacktrace"])
    assert SECRET not in run.to_json()


async def test_it_has_its_text_where_that_was_asked_for(opened: Opened, recorded: Recorded):
    @task(name="raises")
    async def raises(secret: str) -> None:
        raise LookupError(secret)

    async with opened(recorded.tracing(error_texts=True)) as queue:
        run = await one_run(recorded, queue, raises(SECRET), TaskFailed)
    [exception] = [each for each in run.events if each.name == "exception"]
    assert (exception.attributes or {})["exception.message"] == SECRET
    assert run.status.description == SECRET


async def test_a_run_that_is_cut_off_says_why(opened: Opened, recorded: Recorded):
    began = asyncio.Event()

    @task(name="hangs")
    async def hangs() -> None:
        began.set()
        await asyncio.Event().wait()

    @task(name="swallows")
    async def swallows() -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "went well"
        return ""

    async with opened(shutdown_timeout=0) as queue:
        for each in (hangs(), swallows()):
            handle = await queue.enqueue(each.options(timeout=0.05), user_id="acme")
            with pytest.raises(TaskFailed):
                await handle.result(20)
            await queue.discard(handle)
        began.clear()
        canceled = await queue.enqueue(hangs(), user_id="acme")
        await began.wait()
        await canceled.cancel()
        with pytest.raises(TaskCanceled):
            await canceled.result(20)
        began.clear()
        released = await queue.enqueue(hangs(), user_id="acme")
        await began.wait()
    await eventually(lambda: len(recorded.spans("process")) == 4)
    ends = [
        ((each.attributes or {})["fairque.task.outcome"], (each.attributes or {}).get("error.type"), each.status.is_ok)
        for each in recorded.spans("process")
    ]
    assert ends == [
        ("timeout", "TimeoutError", False),
        ("timeout", "TimeoutError", False),
        ("canceled", None, True),
        ("released", None, True),
    ]
    async with opened(serves=False) as queue:
        await queue.handle("acme", released.task_id).cancel()


async def test_a_task_that_puts_itself_off_has_not_failed(opened: Opened, recorded: Recorded):
    @task(name="later")
    async def later() -> int:
        if current_task().snoozed == 0:
            raise Snooze(0.01)
        return current_task().snoozed

    async with opened() as queue:
        assert await (await queue.enqueue(later(), user_id="acme")).result(20) == 1
        first, second = await recorded.wait_for(2, "process")
    assert (first.attributes or {})["fairque.task.outcome"] == "snoozed"
    assert first.status.status_code is StatusCode.UNSET
    assert (second.attributes or {})["fairque.task.snoozed"] == 1
    assert first.context.trace_id == second.context.trace_id


async def test_a_task_that_fails_before_it_runs_has_a_span_where_the_hook_is_told(opened: Opened, recorded: Recorded):
    @task(name="takes-a-number")
    async def anything(number: Any) -> None: ...

    @task(name="unknown")
    async def unknown() -> None: ...

    @task(name="raises")
    async def raises() -> None:
        raise LookupError

    calls = [anything(SECRET), unknown(), raises()]
    del registry["takes-a-number"], registry["unknown"]

    @task(name="takes-a-number")
    async def number_only(number: int) -> None: ...

    tracing = recorded.tracing()
    async with opened(tracing, unknown_task_patience=0.01, **tracing.hooks) as queue:
        for call in calls:
            handle = await queue.enqueue(call, user_id="acme")
            with pytest.raises(TaskFailed):
                await handle.result(20)
            await queue.discard(handle)
        runs = await recorded.wait_for(3, "process")
    sent = recorded.spans("enqueue")
    ends = [((each.attributes or {})["error.type"], (each.attributes or {})["fairque.task.outcome"]) for each in runs]
    assert ends == [("BadArguments", "not run"), ("UnknownTask", "not run"), ("LookupError", "raised")]
    assert all(is_child(run, call) for run, call in zip(runs, sent, strict=True))
    assert SECRET not in str([each.to_json() for each in recorded.spans()])


async def test_a_generator_is_one_run_that_says_how_much_it_yielded(opened: Opened, recorded: Recorded):
    @task(name="count")
    async def count(to: int) -> AsyncIterator[int]:
        for n in range(to):
            with recorded.tracer.start_as_current_span("inside"):
                pass
            yield n

    async with opened() as queue:
        handle = await queue.enqueue(count(3), user_id="acme")
        assert [n async for n in handle.stream()] == [0, 1, 2]
        assert await handle.result(20) == Streamed(3)
        [run] = await recorded.wait_for(1, "process")
    assert (run.attributes or {})["fairque.stream.chunks"] == 3
    assert all(is_child(each, run) for each in recorded.spans("inside"))


async def test_a_call_that_is_refused_says_so(opened: Opened, recorded: Recorded, queue_name: str):
    async with opened(serves=False) as queue:
        await queue.set_policy("acme", max_queued=0)
        with pytest.raises(QueueFull):
            await queue.enqueue(echo(1), user_id="acme")
        with pytest.raises(QueueFull):
            await queue.enqueue_many([echo(1), echo(2)], user_id="acme")
        await queue.purge("acme")
    assert [(each.attributes or {})["error.type"] for each in recorded.spans()] == ["QueueFull"] * 4
    assert all(not each.status.is_ok for each in recorded.spans())
    points = {
        tuple(sorted(each.items())): point.value for each, point in recorded.points("messaging.client.sent.messages")
    }
    assert points == {
        (
            ("error.type", "QueueFull"),
            ("messaging.destination.name", queue_name),
            ("messaging.operation.name", "enqueue"),
            ("messaging.system", "fairque"),
        ): 3
    }


# Metrics


class Quiet(TaskHandler):
    async def process_task(self, payload: dict[str, Any]) -> None: ...


async def test_the_metrics_are_those_of_the_conventions(opened: Opened, recorded: Recorded, queue_name: str):
    async with opened(handler=Quiet()) as queue:
        await queue.results(await queue.enqueue_many([echo(n) for n in range(3)], user_id="acme"), 20)
        named = [Task.create(payload={}, name=f"made up {n}") for n in range(3)]
        await queue.results([await queue.enqueue(each, user_id="acme") for each in named], 20)
        await recorded.wait_for(6, "process")
    [(sent, many)] = recorded.points("messaging.client.sent.messages")
    assert many.value == 6
    assert sent == {
        "messaging.system": "fairque",
        "messaging.operation.name": "enqueue",
        "messaging.destination.name": queue_name,
    }
    [(operation, durations)] = recorded.points("messaging.client.operation.duration")
    assert operation == {**sent, "messaging.operation.type": "send"}
    assert durations.count == 4
    assert list(durations.explicit_bounds)[:2] == [0.005, 0.01]
    of_runs = {**sent, "messaging.operation.name": "process"}
    consumed = recorded.points("messaging.client.consumed.messages")
    assert [(each, point.value) for each, point in consumed] == [
        ({**of_runs, "fairque.task.name": "traced-echo"}, 3),
        (of_runs, 3),  # names of payloads come from callers, and could be any number
    ]
    runs = recorded.points("messaging.process.duration")
    assert [(each, point.count) for each, point in runs] == [
        ({**of_runs, "fairque.task.name": "traced-echo", "fairque.task.outcome": "returned"}, 3),
        ({**of_runs, "fairque.task.outcome": "returned"}, 3),
    ]


# What must not harm


async def test_baggage_that_is_too_long_is_left_out_and_that_is_told_once(
    opened: Opened, caplog: pytest.LogCaptureFixture
):
    @task(name="told")
    async def told() -> list[str]:
        return sorted(current_task().headers)

    async with opened() as queue:
        token = context.attach(baggage.set_baggage("much", "x" * 3900))
        fits = await queue.enqueue(told(), user_id="acme")
        own = {"mine": "y" * 500}
        single = await queue.enqueue(told(), user_id="acme", headers=own)
        many = await queue.enqueue_many([told(), told().options(headers=own)], user_id="acme")
        full = await queue.enqueue(told(), user_id="acme", headers={"mine": "y" * 4092})
        context.detach(token)
        found = await queue.results([fits, single, *many, full], 20)
    assert found == [
        ["baggage", "traceparent"],
        ["mine", "traceparent"],
        ["baggage", "traceparent"],
        ["mine", "traceparent"],
        ["mine"],
    ]
    lines = [each.getMessage() for each in caplog.records if each.name == "fairque.opentelemetry"]
    assert [line.split("'")[1] for line in lines] == ["baggage", "traceparent"]


async def test_a_message_that_is_as_large_as_it_may_be_goes_without_its_trace(
    server: Server, queue_name: str, recorded: Recorded
):
    async with TaskQueue(server.url, name=queue_name, max_message_bytes=5000, **recorded.tracing().doors) as queue:
        largest = 4950
        async with Worker(queue):
            handle = await queue.enqueue(echo("x" * largest), user_id="acme")
            assert len(await handle.result(20)) == largest
            many = await queue.enqueue_many([echo("x" * largest), echo("y")], user_id="acme")
            await queue.results(many, 20)
            runs = await recorded.wait_for(3, "process")
        with pytest.raises(FairqueError, match="the limit is 5000"):
            await queue.enqueue(echo("x" * 5000), user_id="acme")
    assert all(each.parent is None for each in runs)


@pytest.mark.parametrize(
    "forged",
    [
        {"traceparent": "nonsense"},
        {"traceparent": "00-" + "0" * 32 + "-" + "0" * 16 + "-01"},
        {"traceparent": "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"},
        {"traceparent": "0" * 4000},
        {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "tracestate": "=,=,\0,=" * 100},
        {"baggage": ",".join("=;%" for _ in range(1000))},
        {"baggage": "\U0001f600=%ff%00"},
        {"scheduled-traceparent": "nonsense"},
    ],
    ids=range(8),
)
async def test_headers_that_somebody_has_forged_fail_nothing(
    opened: Opened, queue: TaskQueue, recorded: Recorded, forged: dict[str, str]
):
    async with opened() as traced:
        plain = await queue.enqueue(echo(1), user_id="eve", headers=forged)
        single = await traced.enqueue(echo(2), user_id="eve", headers=forged)
        [many] = await traced.enqueue_many([echo(3)], user_id="eve", headers=forged)
        assert await queue.results([plain, single, many], 20) == [1, 2, 3]
        await recorded.wait_for(3, "process")


class Broken(TextMapPropagator):
    def extract(self, *_: Any, **__: Any) -> Any:
        raise LookupError("cannot read")

    def inject(self, *_: Any, **__: Any) -> None:
        raise LookupError("cannot write")

    @property
    def fields(self) -> set[str]:
        return {"traceparent"}


class BrokenProvider(trace.TracerProvider):
    def get_tracer(self, *_: Any, **__: Any) -> Any:
        class Tracer(trace.NoOpTracer):
            def start_span(self, *_: Any, **__: Any) -> Any:
                raise LookupError("cannot start")

        return Tracer()


async def test_a_propagator_or_a_tracer_that_raises_fails_nothing(
    opened: Opened, recorded: Recorded, caplog: pytest.LogCaptureFixture
):
    for tracing in (recorded.tracing(propagator=Broken()), Tracing(tracer_provider=BrokenProvider())):
        async with opened(tracing) as queue:
            assert await (await queue.enqueue(echo(1), user_id="acme", headers={"traceparent": "x"})).result(20) == 1
            assert await queue.results(await queue.enqueue_many([echo(2), echo(3)], user_id="acme"), 20) == [2, 3]
    assert len([each for each in caplog.records if each.name == "fairque.opentelemetry"]) == 3


class BrokenMeters(NoOpMeterProvider):
    def get_meter(self, *_: Any, **__: Any) -> Any:
        class Meter(NoOpMeter):
            def create_counter(self, *_: Any, **__: Any) -> Any:
                return BrokenInstrument()

            def create_histogram(self, *_: Any, **__: Any) -> Any:
                return BrokenInstrument()

        return Meter("broken")


class BrokenInstrument:
    def add(self, *_: Any, **__: Any) -> None:
        raise LookupError("cannot count")

    record = add


class BrokenSpan(trace.NonRecordingSpan):
    def is_recording(self) -> bool:
        return True

    def add_event(self, *_: Any, **__: Any) -> None:
        raise LookupError("cannot note")

    set_attribute = set_status = end = add_event


class BrokenSpans(trace.TracerProvider):
    def get_tracer(self, *_: Any, **__: Any) -> Any:
        class Tracer(trace.NoOpTracer):
            def start_span(self, *_: Any, **__: Any) -> Any:
                return BrokenSpan(trace.SpanContext(7, 7, False, trace.TraceFlags(1)))

        return Tracer()


async def test_instruments_and_spans_that_raise_fail_nothing(opened: Opened, caplog: pytest.LogCaptureFixture):
    @task(name="raises")
    async def raises() -> None:
        raise LookupError

    async with opened(Tracing(tracer_provider=BrokenSpans(), meter_provider=BrokenMeters())) as queue:
        assert await (await queue.enqueue(echo(1), user_id="acme")).result(20) == 1
        assert await queue.results(await queue.enqueue_many([echo(2), echo(3)], user_id="acme"), 20) == [2, 3]
        bad = await queue.enqueue(raises(), user_id="acme")
        with pytest.raises(TaskFailed, match="LookupError"):
            await bad.result(20)
        await queue.discard(bad)
    lines = [each.getMessage() for each in caplog.records if each.name == "fairque.opentelemetry"]
    assert len(lines) == 2


async def test_an_error_that_another_middleware_swallows_reaches_the_caller_all_the_same(
    server: Server, queue_name: str, recorded: Recorded
):
    async def swallow(_call: EnqueueCall, call_next: CallNext) -> None:
        with suppress(QueueFull):
            await call_next()

    around = [recorded.tracing().around_enqueue, swallow]
    async with TaskQueue(server.url, name=queue_name, enqueue_middleware=around) as queue:
        await queue.set_policy("acme", max_queued=0)
        with pytest.raises(QueueFull):
            await queue.enqueue(echo(1), user_id="acme")
        with pytest.raises(QueueFull):
            await queue.enqueue_many([echo(1), echo(2)], user_id="acme")
        await queue.purge("acme")


async def test_names_that_no_exporter_could_send_are_not_in_spans(opened: Opened, recorded: Recorded):
    """Else one caller keeps the spans of others from being sent with its own."""
    async with opened(recorded.tracing(user_id=True), serves=False) as queue:
        for call, user_id in (
            (Task.create(name="broken \ud800"), "acme"),
            (echo(1), "broken \ud800"),
            (Task.create(name="x" * 3_000_000), "acme"),
        ):
            with pytest.raises((FairqueError, UnicodeError)):
                await queue.enqueue(call, user_id=user_id)
    for span in recorded.spans():
        for value in (span.attributes or {}).values():
            assert len(str(value).encode()) < 3000


async def test_a_task_that_harms_its_own_span_harms_no_other(
    opened: Opened, recorded: Recorded, caplog: pytest.LogCaptureFixture
):
    left: list[Any] = []

    @task(name="hostile")
    async def hostile() -> None:
        span = trace.get_current_span()
        for n in range(1000):
            span.set_attribute(f"made-up-{n}", "x" * 100)
        context.attach(baggage.set_baggage("mine", "stays"))
        left.append(recorded.tracer.start_span("never ended"))
        context.attach(trace.set_span_in_context(left[-1]))
        span.end()
        raise LookupError

    @task(name="hostile-in-thread")
    def hostile_in_thread() -> None:
        context.attach(baggage.set_baggage("mine", "stays"))
        context.attach(trace.set_span_in_context(recorded.tracer.start_span("never ended")))

    @task(name="innocent")
    async def innocent() -> list[str]:
        return sorted(baggage.get_all())

    @task(name="innocent-in-thread")
    def innocent_in_thread() -> list[str]:
        return sorted(baggage.get_all())

    async with opened(concurrency=1) as queue:
        for each in (hostile(), hostile_in_thread()):
            attacker = await queue.enqueue(each, user_id="eve")
            async for _ in attacker.watch():
                pass
        for each in (innocent(), innocent_in_thread()):
            victim = await queue.enqueue(each, user_id="acme")
            assert await victim.result(20) == []
        runs = await recorded.wait_for(4, "process")
        await queue.purge("eve")
    for run in runs[2:]:
        assert run.parent is not None
        assert (run.attributes or {})["fairque.task.outcome"] == "returned"
        assert "made-up" not in run.to_json()
    assert "ended span" not in caplog.text


async def test_without_an_sdk_nothing_is_recorded_and_baggage_goes_along(server: Server, queue_name: str):
    @task(name="carried")
    async def carried() -> Any:
        return baggage.get_baggage("tenant"), sorted(current_task().headers)

    async with TaskQueue(server.url, name=queue_name, **Tracing().doors) as queue, Worker(queue):
        token = context.attach(baggage.set_baggage("tenant", "blue"))
        handle = await queue.enqueue(carried(), user_id="acme")
        context.detach(token)
        assert await handle.result(20) == ["blue", ["baggage"]]
        bare, many = (
            await queue.enqueue(carried(), user_id="acme"),
            await queue.enqueue_many([carried()], user_id="acme"),
        )
        assert await queue.results([bare, *many], 20) == [[None, []]] * 2


async def test_blocking_code_puts_tasks_in_within_its_own_span(
    opened: Opened, recorded: Recorded, server: Server, queue_name: str
):
    def put_in() -> str:
        queue = BlockingQueue(server.url, name=queue_name, **recorded.tracing().doors)
        with queue, recorded.tracer.start_as_current_span("script"):
            return queue.enqueue(echo(1), user_id="acme").task_id

    async with opened() as queue:
        task_id = await asyncio.to_thread(put_in)
        assert await queue.handle("acme", task_id).result(20) == 1
        [run] = await recorded.wait_for(1, "process")
    [sent] = recorded.spans("enqueue")
    assert is_child(sent, recorded.spans("script")[0])
    assert is_child(run, sent)
