"""Connections that are cut in the middle of a reply: nobody knows what happened, and nothing happens twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING

import pytest

from fairque import (
    Cancellation,
    Collect,
    Retry,
    TaskEvent,
    TaskFailed,
    TaskQueue,
    TaskState,
    Worker,
    current_task,
    task,
)
from fairque.redis.scripts import load
from tests.support.calls import call_of
from tests.support.eventually import eventually
from tests.support.gate import Gate, new_gate, work

if TYPE_CHECKING:
    from fairque import Task, TaskFunction, TaskHandle, TaskInfo
    from tests.support.proxy import Cut, CuttingProxy, Hold
    from tests.support.servers import Server


@pytest.fixture
def gate() -> Gate:
    return new_gate()


@pytest.fixture
async def far(queue: TaskQueue, proxy: CuttingProxy, queue_name: str) -> AsyncIterator[TaskQueue]:
    """The queue as seen through the proxy."""
    await queue.change_settings(lease=1)
    async with TaskQueue(proxy.url, name=queue_name) as queue:
        yield queue


async def is_done(queue: TaskQueue, tasks: int) -> bool:
    stats = await queue.stats()
    return (stats.finished, stats.queued, stats.started, stats.scheduled) == (tasks, 0, 0, 0)


# Enqueue


@pytest.mark.parametrize("k", range(1, 6))
async def test_an_enqueue_whose_reply_was_cut_makes_one_task(
    queue: TaskQueue, far: TaskQueue, proxy: CuttingProxy, gate: Gate, k: int
) -> None:
    gate.open()
    cut = proxy.cut_reply(call_of("enqueue"), nth=k)
    handles = [await far.enqueue(work(n), user_id="acme") for n in range(5)]
    assert cut.done.is_set()
    assert all(handle.created for handle in handles)
    assert (await queue.stats()).queued == 5
    await Worker(queue).run_until_idle()
    assert [await handle.result(timeout=0) for handle in handles] == list(range(5))
    assert sorted(gate.started) == sorted(handle.task_id for handle in handles)


async def test_enqueues_that_share_a_cut_reply_make_one_task_each(
    queue: TaskQueue, far: TaskQueue, proxy: CuttingProxy, gate: Gate
) -> None:
    cut = proxy.cut_reply(call_of("enqueue"), nth=2)
    handles = await asyncio.gather(*(far.enqueue(work(n), user_id=f"user {n % 7}") for n in range(100)))
    assert cut.done.is_set()
    await assert_each_runs_once(queue, handles, gate)


async def test_a_batch_whose_reply_was_cut_makes_one_task_each(
    queue: TaskQueue, far: TaskQueue, proxy: CuttingProxy, gate: Gate
) -> None:
    cut = proxy.cut_reply(call_of("enqueue"), nth=2)
    handles = await far.enqueue_many([work(n) for n in range(1100)], user_id="acme")
    assert cut.done.is_set()
    await assert_each_runs_once(queue, handles, gate)


async def assert_each_runs_once(queue: TaskQueue, handles: list[TaskHandle[int]], gate: Gate) -> None:
    assert all(handle.created for handle in handles)
    assert (await queue.stats()).queued == len(handles)
    gate.open()
    await Worker(queue, concurrency=100).run_until_idle()
    assert sorted(gate.started) == sorted(handle.task_id for handle in handles)


async def test_an_enqueue_is_made_once_when_the_loading_of_its_script_is_cut(
    server: Server, queue: TaskQueue, far: TaskQueue, proxy: CuttingProxy, gate: Gate
) -> None:
    cuts = [proxy.cut_reply(call_of("enqueue")), proxy.cut_reply(load("enqueue").library)]
    server.execute("FUNCTION", "FLUSH")
    handle = await far.enqueue(work(1), user_id="acme")
    assert all(cut.done.is_set() for cut in cuts)
    await assert_each_runs_once(queue, [handle], gate)


@task(result_ttl=0)
async def keep_nothing() -> None:
    ran.append(current_task().task_id)


ran: list[str] = []


async def test_an_enqueue_repeated_after_its_task_has_ended_makes_no_second_one(
    queue: TaskQueue, far: TaskQueue, proxy: CuttingProxy
) -> None:
    ran.clear()
    cut = proxy.cut_reply(call_of("enqueue"))
    async with Worker(queue):
        enqueuing = asyncio.create_task(far.enqueue(keep_nothing(), user_id="acme", task_id="once"))
        await cut.done.wait()
        await proxy.refuse()
        await eventually(lambda: is_done(queue, 1))
        await proxy.accept()
        handle = await enqueuing
        assert handle.created
        await Worker(queue).run_until_idle()
    assert ran == ["once"]


# Claim, settle, and both in one


async def put_in_one_by_one(queue: TaskQueue, tasks: list[Task[int]]) -> list[TaskHandle[int]]:
    return [await queue.enqueue(each, user_id="acme") for each in tasks]


async def put_in_at_once(queue: TaskQueue, tasks: list[Task[int]]) -> list[TaskHandle[int]]:
    return await queue.enqueue_many(tasks, user_id="acme")


async def serve_until_cut(
    queue: TaskQueue,
    far: TaskQueue,
    gate: Gate,
    *cuts: Cut,
    function: TaskFunction[[int], int] = work,
    put_in: Callable[[TaskQueue, list[Task[int]]], Awaitable[list[TaskHandle[int]]]] = put_in_one_by_one,
) -> list[TaskInfo]:
    """Tasks come in until all the cuts were made. Each is delivered to this worker once, runs once and ends once."""
    gate.open()
    lost: list[TaskEvent] = []
    handles: list[TaskHandle[int]] = []
    async with Worker(far, concurrency=4, on_lost=lost.append) as worker:  # it claims one at a time
        while not (handles and all(cut.done.is_set() for cut in cuts)):
            assert len(handles) < 200, "the script was not called as often"
            batch = await put_in(queue, [function(n) for n in range(5)])
            assert [await handle.result(timeout=20) for handle in batch] == list(range(5))
            handles += batch
    assert lost == []
    if function is work:
        assert sorted(gate.started) == sorted(handle.task_id for handle in handles)
    infos = [await handle.info() for handle in handles]
    assert {(info.attempt, info.worker) for info in infos} == {(1, worker.worker_id)}
    assert await is_done(queue, len(handles))
    assert (await queue.user("acme")).started == 0
    return infos


@pytest.mark.parametrize("script", ["claim", "turn"])
@pytest.mark.parametrize("k", range(1, 6))
async def test_tasks_of_a_call_whose_reply_was_cut_are_delivered_by_the_next_call_and_what_it_reported_counts(
    queue: TaskQueue, far: TaskQueue, proxy: CuttingProxy, gate: Gate, script: str, k: int
) -> None:
    await serve_until_cut(queue, far, gate, proxy.cut_reply(call_of(script), nth=k))


@pytest.mark.parametrize("k", range(1, 6))
async def test_what_is_reported_alone_after_a_cut_and_is_cut_again_counts_as_done(
    queue: TaskQueue, far: TaskQueue, proxy: CuttingProxy, gate: Gate, k: int
) -> None:
    for n in range(1, 100):  # what is reported goes alone until a claim gets through
        proxy.cut_reply(call_of("turn"), nth=n)
    await serve_until_cut(queue, far, gate, proxy.cut_reply(call_of("settle"), nth=k))


async def test_a_claim_that_is_cut_again_and_again_still_delivers_its_tasks(
    queue: TaskQueue, far: TaskQueue, proxy: CuttingProxy, gate: Gate
) -> None:
    await serve_until_cut(queue, far, gate, *(proxy.cut_reply(call_of("claim"), nth=n) for n in range(1, 5)))


async def test_a_worker_that_stops_before_its_cut_call_is_answered_puts_back_what_that_gave_it(
    queue: TaskQueue, far: TaskQueue, proxy: CuttingProxy, gate: Gate
) -> None:
    async with Worker(far, concurrency=20, shutdown_timeout=0.1, poll_interval=60) as worker:
        handles = []
        while not handles or handles[-1].task_id in gate.started:  # the cut fell on a claim that was given nothing
            cut = proxy.cut_reply(call_of("claim"))
            handles.append(late := await queue.enqueue(work(len(handles)), user_id="acme"))
            await cut.done.wait()
            if await late.state() is not TaskState.STARTED:
                await eventually(lambda task_id=late.task_id: task_id in gate.started)
        await worker.stop()
    for handle in handles:
        info = await handle.info()
        assert (info.state, info.attempt) == (TaskState.QUEUED, 0)
    assert late.task_id not in gate.started
    gate.open()
    await Worker(queue).run_until_idle()


calls: list[list[int]] = []


@task(collect=Collect(5, within=3600))
async def work_together(numbers: list[int]) -> list[int | Exception]:
    calls.append(list(numbers))
    return list(numbers)


@pytest.mark.parametrize("script", ["claim", "turn", "settle"])
@pytest.mark.parametrize("k", range(1, 4))
async def test_a_group_of_a_call_whose_reply_was_cut_is_delivered_whole_by_the_next_one_and_runs_once(
    queue: TaskQueue, far: TaskQueue, proxy: CuttingProxy, gate: Gate, script: str, k: int
) -> None:
    calls.clear()
    if script == "settle":
        for n in range(1, 100):
            proxy.cut_reply(call_of("turn"), nth=n)
    cut = proxy.cut_reply(call_of(script), nth=k)
    infos = await serve_until_cut(queue, far, gate, cut, function=work_together, put_in=put_in_at_once)
    assert calls == [list(range(5))] * (len(infos) // 5)


async def test_a_worker_that_stops_before_its_cut_call_is_answered_puts_back_the_whole_group(
    queue: TaskQueue, far: TaskQueue, proxy: CuttingProxy
) -> None:
    calls.clear()
    cut = proxy.cut_reply(call_of("claim"), nth=1)
    handles = await put_in_at_once(queue, [work_together(n) for n in range(5)])
    async with Worker(far, shutdown_timeout=0.1, poll_interval=60) as worker:
        await cut.done.wait()
        await worker.stop()
    infos = [await handle.info() for handle in handles]
    if not calls:  # it was told to stop before it had asked again
        assert {(info.state, info.attempt) for info in infos} == {(TaskState.QUEUED, 0)}
    await Worker(queue).run_until_idle()
    assert [await handle.result(timeout=20) for handle in handles] == list(range(5))
    assert sorted(number for call in calls for number in call) == list(range(5))
    assert (await queue.stats()).started == 0


def is_repeated(call: Hold) -> bool:
    return call.seen > call.nth


@pytest.mark.parametrize("script", ["claim", "turn"])
async def test_a_call_that_a_worker_gave_up_and_that_arrives_behind_its_repetition_takes_nothing(
    queue: TaskQueue, proxy: CuttingProxy, queue_name: str, gate: Gate, script: str
) -> None:
    """What it were handed, nobody would run; and nothing that runs is taken from its worker."""
    lost: list[TaskEvent] = []
    handles = [await queue.enqueue(work(n), user_id="acme") for n in range(100)]
    late = proxy.hold(call_of(script), only=True)
    async with (
        TaskQueue(proxy.url, name=queue_name, timeout=0.5) as far,
        Worker(far, concurrency=20, on_lost=lost.append, poll_interval=0.1),
    ):
        if script == "turn":
            gate.open()
        await late.reached.wait()
        await eventually(lambda: len(gate.started) >= 20)
        await eventually(lambda: is_repeated(late))
        connections = proxy.connections
        late.released.set()
        await eventually(lambda: proxy.connections < connections)  # that of the call, which got through
        gate.open()
        assert [await handle.result(timeout=20) for handle in handles] == list(range(100))
    assert lost == []
    assert sorted(gate.started) == sorted(handle.task_id for handle in handles), "each once"


async def test_a_lone_worker_whose_renewals_are_late_takes_nothing_from_itself(
    server: Server, queue: TaskQueue, far: TaskQueue, proxy: CuttingProxy, gate: Gate
) -> None:
    """For two leases; it claims all the time."""
    lost: list[TaskEvent] = []
    stream = f"{queue.keys.prefix}normal-stream:acme"

    def idle_ms() -> int:
        return min(int(entry[2]) for entry in server.execute("XPENDING", stream, "workers", "-", "+", 50))

    handles = [await queue.enqueue(work(n), user_id="acme") for n in range(50)]
    async with Worker(far, concurrency=100, on_lost=lost.append, poll_interval=0.1):
        await eventually(lambda: len(gate.started) >= 50)
        late = proxy.hold(call_of("renew"))
        await eventually(lambda: idle_ms() > 2000)
        late.released.set()
        gate.open()
        for handle in handles:
            await handle.result(timeout=20)
    assert (lost, len(gate.started)) == ([], 50)


@task
async def fail_at_first() -> int:
    attempt = current_task().attempt
    if attempt == 1:
        raise Retry(delay=0.01)
    return attempt


@task
async def fail() -> None:
    raise ValueError("as ordered")


async def test_a_retry_whose_report_was_cut_is_counted_and_made_once(
    queue: TaskQueue, far: TaskQueue, proxy: CuttingProxy
) -> None:
    lost: list[TaskEvent] = []
    cut = proxy.cut_reply(call_of("turn"))
    async with Worker(far, on_lost=lost.append):
        handle = await queue.enqueue(fail_at_first(), user_id="acme")
        assert await handle.result(timeout=20) == 2
    assert cut.done.is_set()
    assert lost == []
    assert len((await handle.info()).errors) <= 1
    stats = await queue.stats()
    assert (stats.retried, stats.finished, stats.failed) == (1, 1, 0)


async def test_a_failure_whose_report_was_cut_is_one_dead_letter(
    queue: TaskQueue, far: TaskQueue, proxy: CuttingProxy
) -> None:
    cut = proxy.cut_reply(call_of("turn"))
    async with Worker(far):
        handle = await queue.enqueue(fail(), user_id="acme")
        with pytest.raises(TaskFailed, match="ValueError: as ordered"):
            await handle.result(timeout=20)
    assert cut.done.is_set()
    assert len((await handle.info()).errors) == 1
    assert (await queue.stats()).failed == (await queue.user("acme")).dead_letters == 1


async def test_a_cancel_whose_reply_was_cut_is_told_as_it_was(
    queue: TaskQueue, far: TaskQueue, proxy: CuttingProxy
) -> None:
    handle = await queue.enqueue(fail(), user_id="acme")
    cut = proxy.cut_reply(call_of("cancel"))
    assert await far.handle("acme", handle.task_id).cancel() is Cancellation.CANCELED
    assert cut.done.is_set()
    assert (await queue.stats()).canceled == 1


@pytest.mark.parametrize("script", ["requeue", "discard"])
async def test_what_becomes_of_a_dead_letter_is_told_as_it_was_when_the_reply_is_cut(
    queue: TaskQueue, far: TaskQueue, proxy: CuttingProxy, script: str
) -> None:
    handle = await queue.enqueue(fail(), user_id="acme")
    await Worker(queue).run_until_idle()
    cut = proxy.cut_reply(call_of(script))
    await getattr(far, script)(handle)
    assert cut.done.is_set()
    assert (await queue.stats()).queued == (1 if script == "requeue" else 0)
    assert await queue.dead_letters("acme") == []
    await queue.purge("acme")


async def test_a_renewal_whose_reply_was_cut_loses_nothing(
    queue: TaskQueue, far: TaskQueue, proxy: CuttingProxy, gate: Gate
) -> None:
    lost: list[TaskEvent] = []
    cuts = [proxy.cut_reply(call_of("renew"), nth=n) for n in (1, 2, 3)]
    async with Worker(far, on_lost=lost.append), Worker(far):
        handle = await queue.enqueue(work(1), user_id="acme")
        for cut in cuts:
            await cut.done.wait()
        gate.open()
        assert await handle.result(timeout=20) == 1
    assert lost == []
    assert len(gate.started) == 1


async def test_all_connections_are_cut_again_and_again_and_every_task_runs_once(
    queue: TaskQueue, far: TaskQueue, proxy: CuttingProxy, gate: Gate
) -> None:
    async with Worker(far, concurrency=20):
        handles = [await far.enqueue(work(n), user_id=f"user {n % 3}") for n in range(20)]
        waiters = [asyncio.create_task(handle.result(timeout=20)) for handle in handles]
        await eventually(lambda: len(gate.started) == 20)
        for _ in range(5):
            proxy.cut_all()
            await eventually(lambda: proxy.connections >= 3)
        gate.open()
        assert await asyncio.gather(*waiters) == list(range(20))
    assert len(gate.started) == 20
    assert await is_done(queue, 20)


# Waiting for a result


async def test_an_end_announced_before_listening_began_again_is_not_missed(
    server: Server, queue: TaskQueue, far: TaskQueue, proxy: CuttingProxy, gate: Gate
) -> None:
    gate.open()
    handle = await far.enqueue(work(1), user_id="acme")
    waiter = asyncio.create_task(handle.result(timeout=20))
    await eventually(lambda: any(b":done:" in channel for channel in server.execute("PUBSUB", "SHARDCHANNELS")))
    subscription = proxy.hold("SUBSCRIBE")
    proxy.cut_all()
    await subscription.reached.wait()
    await Worker(queue).run_until_idle()
    subscription.released.set()
    assert await waiter == 1


# Callers that give up in the middle of a request


async def test_a_call_that_is_cancelled_in_the_middle_of_a_reply_leaves_the_connection_usable(
    far: TaskQueue, proxy: CuttingProxy, gate: Gate
) -> None:
    gate.open()
    for n in range(5):
        proxy.pause()
        calls = [
            asyncio.create_task(far.enqueue(work(n), user_id="acme", task_id=f"given up {n}")),
            asyncio.create_task(far.stats()),
        ]
        await asyncio.wait(calls, timeout=0.02)
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)
        proxy.resume()
        handle = await far.enqueue(work(n), user_id="acme", task_id=f"meant {n}")
        assert handle.task_id == f"meant {n}"
        assert await handle.state() is TaskState.QUEUED
        assert (await far.user("acme")).user_id == "acme"
    await Worker(far).run_until_idle()
    assert {f"meant {n}" for n in range(5)} <= set(gate.started)
