"""Redis is gone, or cannot write: producers hear of it in time, all others wait and go on, and nothing is lost."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING

import pytest

from fairque import QueueUnavailable, TaskEvent, TaskQueue, TaskState, UnknownTask, Worker, task
from fairque.redis.requester import BlockingRequester
from fairque.redis.store import renew
from fairque.tasks.registry import unregister
from fairque.worker.hooks import Hooks
from fairque.worker.last_will import LastWill
from fairque.worker.settler import Settler
from fairque.worker.signals import Signals
from tests.support.calls import call_of, is_known
from tests.support.core import outcome
from tests.support.eventually import eventually
from tests.support.gate import Gate, new_gate, work
from tests.support.outages import OUTAGES, execute, killed, out_of_memory
from tests.support.proxy import CuttingProxy
from tests.support.stopwatch import Stopwatch

if TYPE_CHECKING:
    from fairque.embedded.server import EmbeddedServer
    from fairque.redis.delivery import Delivery
    from tests.support.servers import Server

    GoDown = Callable[[], AbstractContextManager[None]]

PATIENCE = 0.5
"""Seconds within which a producer of these tests wants an answer."""
MARGIN = 0.4


@pytest.fixture
def gate() -> Gate:
    return new_gate()


@pytest.fixture
def frail(own_server: Callable[..., EmbeddedServer]) -> EmbeddedServer:
    """A server of the test's own, which keeps its data when it is killed."""
    return own_server(appendonly=True, appendfsync="always")


@pytest.fixture
async def queue(frail: EmbeddedServer) -> AsyncIterator[TaskQueue]:
    async with TaskQueue(frail.url, timeout=PATIENCE) as queue:
        yield queue


@pytest.fixture(params=list(OUTAGES))
def outage(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def go_down(outage: str, frail: EmbeddedServer) -> GoDown:
    return lambda: OUTAGES[outage][0](frail)


class Caught:
    """The text of the error, once there is one."""

    text = ""


@contextlib.contextmanager
def unavailable_in_time(says: str) -> Iterator[Caught]:
    told = Caught()
    watch = Stopwatch()
    with pytest.raises(QueueUnavailable) as caught:
        yield told
    told.text = str(caught.value)
    assert says in told.text
    assert watch.seconds < PATIENCE + MARGIN


# Every kind of outage


async def test_a_producer_is_told_in_time_what_is_wrong_and_nothing_is_added(
    queue: TaskQueue, outage: str, go_down: GoDown
) -> None:
    await queue.enqueue(work(0), user_id="acme")
    with go_down():
        with unavailable_in_time(OUTAGES[outage][1]):
            await queue.enqueue(work(1), user_id="acme")
        with unavailable_in_time(OUTAGES[outage][1]):
            await queue.enqueue_many([work(2), work(3)], user_id="acme")
        if outage != "out of memory":  # when a user has filled the server, one must be able to pause it
            with unavailable_in_time(OUTAGES[outage][1]):
                await queue.set_policy("acme", weight=2)
    assert (await queue.stats()).queued == 1
    await queue.enqueue(work(4), user_id="acme")
    assert (await queue.user("acme")).queued == 2


async def test_an_enqueue_during_a_short_outage_succeeds(frail: EmbeddedServer, go_down: GoDown) -> None:
    async with TaskQueue(frail.url, timeout=10) as queue:
        await queue.stats()
        with go_down():
            enqueuing = asyncio.create_task(queue.enqueue(work(1), user_id="acme"))
            _, pending = await asyncio.wait([enqueuing], timeout=0.2)
            assert pending
        assert (await enqueuing).created
        assert (await queue.stats()).queued == 1


async def test_a_worker_waits_with_growing_pauses_and_goes_on(
    queue: TaskQueue, gate: Gate, go_down: GoDown, caplog: pytest.LogCaptureFixture
) -> None:
    gate.open()
    async with Worker(queue, poll_interval=0.05):
        await queue.enqueue(work(1), user_id="acme")
        with go_down():
            await eventually(lambda: tries(caplog) >= 4)
        assert tries(caplog) <= 6, "after four tries it pauses for half a second on average"
        handle = await queue.enqueue(work(2), user_id="acme")
        assert await handle.result(timeout=20) == 2
    stats = await queue.stats()
    assert (stats.finished, stats.queued, stats.started, stats.workers) == (2, 0, 0, ())


def tries(caplog: pytest.LogCaptureFixture, what: str = "cannot claim, trying again") -> int:
    return sum(what in record.getMessage() for record in caplog.records)


async def test_renewals_are_tried_ever_more_rarely_once_no_lease_can_be_saved(
    frail: EmbeddedServer, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    lease = 1.0
    async with TaskQueue(frail.url, lease=lease, timeout=PATIENCE) as queue, Worker(queue) as worker:
        handle = await queue.enqueue(work(1), user_id="acme")
        await eventually(lambda: gate.started)
        with killed(frail):
            await asyncio.sleep(lease / 2)
            assert tries(caplog, "could not renew") >= 4, "they may still come in time"
            await asyncio.sleep(lease)
            caplog.clear()
            await asyncio.sleep(4 * lease)
            assert 4 <= tries(caplog, "could not renew") <= 20, "half a lease apart at the most"
        back = server_ms(frail)
        await eventually(lambda: last_heard(frail, worker) > back, deadline=lease)
        gate.open()
        assert await handle.result(timeout=20) == 1


async def test_a_task_that_waits_for_outputs_asks_for_them_ever_more_rarely(
    frail: EmbeddedServer, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    gate.open()
    async with CuttingProxy(frail.url) as proxy, TaskQueue(proxy.url, timeout=0.2) as queue:
        second = await queue.enqueue(work(work(1).output), user_id="acme")
        async with Worker(queue):
            held = proxy.hold(call_of("records"))
            await eventually(lambda: tries(caplog, "cannot be fetched"))
            with killed(frail):
                held.released.set()
                await asyncio.sleep(3)
            assert tries(caplog, "cannot be fetched") <= 9
            assert await second.result(timeout=20) == 1


@pytest.mark.parametrize("outage", [name for name in OUTAGES if name != "out of memory"])
async def test_a_result_that_cannot_be_written_is_kept_and_written_later(
    queue: TaskQueue, gate: Gate, go_down: GoDown, caplog: pytest.LogCaptureFixture
) -> None:
    lost: list[TaskEvent] = []
    async with Worker(queue, on_lost=lost.append):
        handle = await queue.enqueue(work(1), user_id="acme")
        await eventually(lambda: gate.started)
        with go_down():
            gate.open()
            await eventually(lambda: "cannot report 1 outcome, trying again" in caplog.text)
        assert await handle.result(timeout=20) == 1
    assert (lost, len(gate.started)) == ([], 1)
    assert (await queue.stats()).finished == 1


async def test_without_memory_results_can_still_be_written(frail: EmbeddedServer, queue: TaskQueue, gate: Gate) -> None:
    async with Worker(queue, poll_interval=0.1):
        first = await queue.enqueue(work(1), user_id="acme")
        await eventually(lambda: gate.started)
        second = await queue.enqueue(work(2), user_id="acme")
        await eventually(lambda: len(gate.started) == 2)
        with out_of_memory(frail):
            execute(frail, "FUNCTION", "FLUSH")
            gate.open()
            assert await first.result(timeout=20) == 1
            assert await second.result(timeout=20) == 2
        third = await queue.enqueue(work(3), user_id="acme")
        assert await third.result(timeout=20) == 3


async def test_without_memory_leases_can_still_be_renewed(frail: EmbeddedServer, queue: TaskQueue) -> None:
    """By the thread that does so, as well on a server that knows no scripts."""
    await queue.enqueue(work(1), user_id="acme")
    store = queue.store()
    held = (await store.claim("w", 1)).deliveries
    with out_of_memory(frail), contextlib.closing(BlockingRequester(queue.connector)) as requester:
        execute(frail, "FUNCTION", "FLUSH")
        renewed = await asyncio.to_thread(renew, requester, queue.keys, "w", {"pid": 1}, held)
        assert (renewed.lost, renewed.canceled) == ([], [])
    await store.settle("w", [outcome(of, "finished") for of in held])
    await store.close()


async def test_who_waits_for_a_result_waits_through_the_outage(
    frail: EmbeddedServer, queue: TaskQueue, gate: Gate, go_down: GoDown
) -> None:
    handle = await queue.enqueue(work(1), user_id="acme")
    waiters = [asyncio.create_task(handle.result(timeout=20)) for _ in range(3)]
    await eventually(lambda: has_waiters(frail))
    async with Worker(queue, poll_interval=0.1):
        await eventually(lambda: gate.started)
        with go_down():
            gate.open()
            done, _ = await asyncio.wait(waiters, timeout=2 * PATIENCE)
            assert not any(waiter.exception() for waiter in done)
        assert await asyncio.gather(*waiters) == [1, 1, 1]


async def test_what_a_task_yields_waits_for_the_end_of_the_outage_and_so_does_its_reader(
    queue: TaskQueue, go_down: GoDown, caplog: pytest.LogCaptureFixture
) -> None:
    opened = asyncio.Event()

    async def letters() -> AsyncIterator[str]:
        yield "a"
        await opened.wait()
        yield "b"
        yield "c"

    made = task(name="letters of an outage")(letters)
    async with Worker(queue, poll_interval=0.1), asyncio.timeout(40):
        handle = await queue.enqueue(made(), user_id="acme")
        chunks = aiter(handle.stream())
        assert await anext(chunks) == "a"
        with go_down():
            opened.set()
            await eventually(lambda: "cannot send what tasks yield, trying again" in caplog.text)
        assert [chunk async for chunk in chunks] == ["b", "c"]
    unregister(made.name)
    assert (await handle.result(timeout=20)).chunks == 3


def has_waiters(server: EmbeddedServer) -> bool:
    return any(b":done:" in channel for channel in execute(server, "PUBSUB", "SHARDCHANNELS"))


@pytest.mark.parametrize("outage", ["killed", "read-only"])
async def test_an_outage_longer_than_the_lease_has_nobody_robbed_who_renews_soon_after_it(
    frail: EmbeddedServer, go_down: GoDown, gate: Gate
) -> None:
    lost: list[TaskEvent] = []
    lease = 0.5
    async with (
        CuttingProxy(frail.url) as proxy,
        TaskQueue(frail.url, lease=lease, timeout=PATIENCE) as near,
        TaskQueue(proxy.url, lease=lease, timeout=PATIENCE) as far,
        Worker(far, on_lost=lost.append, poll_interval=0.1) as owner,
    ):
        handles = [await near.enqueue(work(n), user_id=f"user {n}") for n in range(3)]
        await eventually(lambda: len(gate.started) == 3)
        async with Worker(far, poll_interval=0.1) as other:
            with go_down():
                await asyncio.sleep(1.5 * lease)
                renewal = proxy.hold(call_of("renew"))
            back = server_ms(frail)
            await eventually(lambda: last_heard(frail, other) > back)  # it has claimed, and nobody could renew yet
            renewal.released.set()
            await eventually(lambda: last_heard(frail, owner) > back)
            await asyncio.sleep(4 * lease)  # in which nothing may happen
            gate.open()
            assert [await handle.result(timeout=20) for handle in handles] == list(range(3))
    assert (lost, len(gate.started)) == ([], 3)


def server_ms(server: EmbeddedServer) -> int:
    seconds, microseconds = execute(server, "TIME")
    return int(seconds) * 1000 + int(microseconds) // 1000


def last_heard(server: EmbeddedServer, worker: Worker) -> int:
    return int(execute(server, "ZSCORE", "fairque:{default}:workers", worker.worker_id) or 0)


@pytest.mark.parametrize("outage", ["killed", "read-only"])
async def test_tasks_of_a_worker_that_died_in_the_outage_run_elsewhere(
    frail: EmbeddedServer, go_down: GoDown, gate: Gate
) -> None:
    gate.open()
    async with TaskQueue(frail.url, lease=0.5, timeout=PATIENCE) as queue:
        handle = await queue.enqueue(work(1), user_id="acme")
        assert len(await claim_and_die(queue)) == 1
        async with Worker(queue, poll_interval=0.1):
            with go_down():
                await asyncio.sleep(0.3)
            assert await handle.result(timeout=20) == 1
        assert (await handle.info()).attempt == 2


async def claim_and_die(queue: TaskQueue) -> list[Delivery]:
    store = queue.store()
    claim = await store.claim("ghost", 1, settings=queue.settings)
    await store.close()
    return claim.deliveries


# A server that is gone, and comes back


async def test_a_worker_that_starts_during_an_outage_waits_for_its_end(
    frail: EmbeddedServer, queue: TaskQueue, gate: Gate
) -> None:
    gate.open()
    handle = await queue.enqueue(work(1), user_id="acme")
    with killed(frail):
        running = asyncio.create_task(Worker(queue).run_until_idle())
        _, pending = await asyncio.wait([running], timeout=0.3)
        assert pending
    await running
    assert await handle.result(timeout=0) == 1


async def test_a_worker_told_to_leave_during_an_outage_leaves(
    frail: EmbeddedServer,
    queue: TaskQueue,
    gate: Gate,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("fairque.worker.worker.GOODBYE_SECONDS", 0.3)
    async with Worker(queue) as worker:
        handle = await queue.enqueue(work(1), user_id="acme")
        await eventually(lambda: gate.started)
        with killed(frail):
            gate.open()
            async with asyncio.timeout(20):
                await worker.stop()
    assert "1 outcome was not reported: its task runs again" in caplog.text
    assert await handle.state() is TaskState.STARTED


async def test_a_server_that_lost_everything_is_served_as_a_new_one(
    own_server: Callable[..., EmbeddedServer], gate: Gate
) -> None:
    server = own_server()
    lost: list[TaskEvent] = []
    async with TaskQueue(server.url) as queue, Worker(queue, on_lost=lost.append, poll_interval=0.1):
        handle = await queue.enqueue(work(1), user_id="acme")
        waiter = asyncio.create_task(handle.result(timeout=20))
        await eventually(lambda: gate.started and has_waiters(server))
        with killed(server):
            gate.open()
        with pytest.raises(UnknownTask):
            await waiter
        await eventually(lambda: lost)
        assert lost[0].task_id == handle.task_id
        again = await queue.enqueue(work(2), user_id="acme")
        assert await again.result(timeout=20) == 2
        assert (await queue.user("acme")).finished == 1


async def test_who_waits_for_a_result_waits_for_a_server_that_takes_long_to_load(
    own_server: Callable[..., EmbeddedServer], gate: Gate
) -> None:
    gate.open()
    server = own_server(
        appendonly=True, appendfsync="always", key_load_delay=10_000, loading_process_events_interval_bytes=1024
    )
    execute(server, "EVAL", "for i = 1, 150 do redis.call('SET', i, string.rep('x', 1024)) end", 0)
    async with TaskQueue(server.url, timeout=PATIENCE) as queue:
        handle = await queue.enqueue(work(1), user_id="acme")
        waiter = asyncio.create_task(handle.result(timeout=20))
        await eventually(lambda: has_waiters(server))
        server.kill()
        began = time.monotonic()
        await asyncio.to_thread(server.start)
        assert time.monotonic() - began > 2 * PATIENCE, "it loads too fast to prove anything"
        await Worker(queue).run_until_idle()
        assert await waiter == 1


async def test_scripts_that_the_server_forgot_are_loaded_again(frail: EmbeddedServer, gate: Gate) -> None:
    lost: list[TaskEvent] = []
    async with TaskQueue(frail.url, lease=0.3) as queue, Worker(queue, on_lost=lost.append):
        for n in range(5):
            execute(frail, "FUNCTION", "FLUSH")
            await queue.enqueue(work(n), user_id="acme")
            await eventually(lambda want=n + 1: len(gate.started) == want)
            execute(frail, "FUNCTION", "FLUSH")
            await eventually(lambda: is_loaded(frail, "renew"))
        execute(frail, "FUNCTION", "FLUSH")
        gate.open()
        await eventually(lambda: is_done(queue, 5))
    assert (lost, len(gate.started)) == ([], 5)


async def test_a_server_that_takes_over_after_a_script_was_loaded_is_given_it_as_well(frail: EmbeddedServer) -> None:
    async with CuttingProxy(frail.url) as proxy, TaskQueue(proxy.url) as queue:
        execute(frail, "FUNCTION", "FLUSH")
        second = proxy.hold(call_of("stats"), nth=2)
        asking = asyncio.create_task(queue.stats())
        await second.reached.wait()
        execute(frail, "FUNCTION", "FLUSH")
        second.released.set()
        assert (await asking).queued == 0


def is_loaded(server: EmbeddedServer, script: str) -> bool:
    return is_known(partial(execute, server), script)


async def is_done(queue: TaskQueue, tasks: int) -> bool:
    stats = await queue.stats()
    return (stats.finished, stats.started) == (tasks, 0)


# A server that does not answer


@pytest.fixture
async def far(proxy: CuttingProxy, queue_name: str) -> AsyncIterator[TaskQueue]:
    """A queue seen through the proxy."""
    async with TaskQueue(proxy.url, name=queue_name, timeout=PATIENCE) as queue:
        yield queue


@pytest.mark.leaves_keys("policy*")  # a call that was given up may arrive
async def test_every_call_ends_in_its_time_when_nothing_answers(far: TaskQueue, proxy: CuttingProxy) -> None:
    handle = await far.enqueue(work(1), user_id="acme", task_id="x")
    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: far.enqueue(work(1), user_id="acme", task_id="x"),
        lambda: far.enqueue_many([work(1).options(task_id="x")], user_id="acme"),
        lambda: far.push_function_task("acme", work, (1,), task_id="x"),
        handle.state,
        handle.info,
        handle.result,
        far.stats,
        far.users,
        lambda: far.user("acme"),
        lambda: far.set_policy("acme", weight=1),
    ]

    async def is_unavailable(call: Callable[[], Awaitable[object]]) -> None:
        with unavailable_in_time("is not available: Timeout"):
            await call()

    proxy.pause()
    await asyncio.gather(*map(is_unavailable, calls))
    proxy.resume()
    assert await handle.state() is TaskState.QUEUED
    await take_back(far)


async def take_back(queue: TaskQueue) -> None:
    """Leave no task behind."""
    new_gate().open()
    await Worker(queue, concurrency=1000).run_until_idle()


async def test_every_one_of_many_calls_ends_in_its_time_when_nothing_answers(
    far: TaskQueue, proxy: CuttingProxy
) -> None:
    await far.enqueue(work(1), user_id="acme")
    proxy.pause()
    with unavailable_in_time("is not available"):
        calls: list[Awaitable[object]] = [far.enqueue(work(n), user_id="acme") for n in range(1200)]
        calls += [far.stats() for _ in range(20)]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(outcome, QueueUnavailable) for outcome in outcomes)
        raise outcomes[0]
    proxy.resume()
    assert (await far.stats()).queued >= 1
    await take_back(far)


async def test_calls_that_come_one_after_another_during_an_outage_end_each_in_its_time(
    far: TaskQueue, proxy: CuttingProxy
) -> None:
    async def call(delay: float) -> float:
        await asyncio.sleep(delay)
        watch = Stopwatch()
        with pytest.raises(QueueUnavailable):
            await far.enqueue(work(1), user_id="acme")
        return watch.seconds

    await far.enqueue(work(1), user_id="acme")
    proxy.pause()
    seconds = await asyncio.gather(*(call(n * PATIENCE / 10) for n in range(20)))
    assert max(seconds) < PATIENCE + MARGIN
    proxy.resume()
    await take_back(far)


async def test_a_call_that_was_not_answered_in_time_disturbs_none_that_follow(
    far: TaskQueue, proxy: CuttingProxy
) -> None:
    await far.stats()
    for _ in range(3):
        proxy.pause()
        with unavailable_in_time("Timeout"):
            await far.user("acme")
        proxy.resume()
        assert (await far.stats()).queued == 0


async def test_who_waits_for_a_result_is_not_disturbed_by_a_look_that_nobody_answers(
    server: Server, far: TaskQueue, proxy: CuttingProxy
) -> None:
    handle = await far.enqueue(work(1), user_id="acme")
    waiter = asyncio.create_task(handle.result(timeout=20))
    await eventually(lambda: any(b":done:" in channel for channel in server.execute("PUBSUB", "SHARDCHANNELS")))
    look = proxy.hold(call_of("peek"))
    proxy.cut_all()
    await look.reached.wait()
    done, _ = await asyncio.wait([waiter], timeout=2 * PATIENCE)
    assert not done
    look.released.set()
    await take_back(far)
    assert await waiter == 1


async def test_a_worker_goes_on_when_answers_come_again(
    server: Server, queue_name: str, far: TaskQueue, proxy: CuttingProxy, gate: Gate
) -> None:
    lost: list[TaskEvent] = []
    async with Worker(far, on_lost=lost.append, poll_interval=0.1), TaskQueue(server.url, name=queue_name) as near:
        first = await near.enqueue(work(1), user_id="acme")
        await eventually(lambda: gate.started)
        proxy.pause()
        gate.open()
        await asyncio.sleep(2 * PATIENCE)
        assert await first.state() is TaskState.STARTED
        proxy.resume()
        assert await first.result(timeout=20) == 1
        second = await near.enqueue(work(2), user_id="acme")
        assert await second.result(timeout=20) == 2
    assert (lost, len(gate.started)) == ([], 2)


@pytest.mark.leaves_keys("workers", "waiting")  # its goodbye does not arrive
async def test_a_worker_that_leaves_without_an_answer_to_its_claim_counts_no_outcomes(
    far: TaskQueue, proxy: CuttingProxy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("fairque.worker.worker.GOODBYE_SECONDS", 0.3)
    async with Worker(far, poll_interval=0.1) as worker:
        proxy.pause()
        await eventually(lambda: "cannot claim" in caplog.text)
        async with asyncio.timeout(20):
            await worker.stop()
        proxy.resume()
    assert "the last claim was not answered" in caplog.text
    assert "outcomes" not in caplog.text


# No server at all


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def test_nothing_listens_where_the_url_points() -> None:
    url = f"redis://somebody:secret@127.0.0.1:{closed_port()}"
    with unavailable_in_time("Redis at redis://somebody:***@127.0.0.1") as caught:
        async with TaskQueue(url, timeout=PATIENCE):
            pass
    assert "Three ways out" not in caught.text


async def test_without_a_url_and_without_a_server_the_error_names_three_ways_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("FAIRQUE_REDIS_URL", raising=False)
    monkeypatch.setattr("fairque.redis.connector.DEFAULT_URL", f"redis://localhost:{closed_port()}")
    with unavailable_in_time("Redis at redis://localhost") as caught:
        async with TaskQueue(timeout=PATIENCE):
            pass
    assert "Three ways out" in caught.text
    for way in ("TaskQueue('redis://host:6379')", "FAIRQUE_REDIS_URL", "TaskQueue('embedded://')"):
        assert way in caught.text


async def test_the_url_of_the_environment_is_used_when_none_is_given(
    monkeypatch: pytest.MonkeyPatch, server: Server, queue_name: str
) -> None:
    monkeypatch.setenv("FAIRQUE_REDIS_URL", server.url)
    async with TaskQueue(name=queue_name) as queue:
        assert (await queue.stats()).queued == 0
    monkeypatch.setenv("FAIRQUE_REDIS_URL", f"redis://127.0.0.1:{closed_port()}")
    with unavailable_in_time("is not available") as caught:
        async with TaskQueue(timeout=PATIENCE):
            pass
    assert "Three ways out" not in caught.text


async def test_what_a_process_tells_before_it_ends_is_tried_again_until_the_outage_is_over(
    server: Server, queue_name: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with CuttingProxy(server.url) as proxy, TaskQueue(server.url, name=queue_name) as near:
        async with TaskQueue(proxy.url, name=queue_name, timeout=PATIENCE) as far:
            await near.enqueue_many([work(n) for n in range(2)], user_id="acme")
            store = near.store()
            blocking, innocent = (await store.claim("ends", 2, wait=False)).deliveries
            settler = Settler(Hooks({}, "q"), Signals(), lease=10)
            for delivery in (blocking, innocent):
                settler.hold(delivery)
            await proxy.refuse()
            requester = BlockingRequester(far.connector)
            telling = asyncio.create_task(
                asyncio.to_thread(LastWill(far.keys, far.settings, "ends", settler).execute, requester, blocking)
            )
            await eventually(lambda: caplog.text.count("cannot tell what ran here, trying again") >= 2)
            await proxy.accept()
            await telling
            requester.close()
        assert (await near.handle("acme", innocent.id).info()).state is TaskState.QUEUED
        accused = (await store.info("acme", blocking.id)).fields
        assert (accused["state"], float(accused["alone"]) > 0) == ("started", True)
        await store.settle("ends", [outcome(blocking, "finished")])
        await store.leave("ends", [()])
        await near.purge("acme")
        await store.close()
