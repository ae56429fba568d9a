"""Who waits for a result gets it, or an error that says why not, whatever happens to the messages."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Callable
from decimal import Decimal
from typing import TYPE_CHECKING

import pytest

from fairque import TaskFailed, TaskInfo, TaskQueue, UnknownTask, Worker, task
from fairque.queue import changes
from fairque.redis.connector import Connector
from fairque.redis.requester import Requester, pack
from fairque.tasks.registry import registry
from tests.support.calls import call_of
from tests.support.eventually import eventually
from tests.support.gate import new_gate, work
from tests.support.outages import execute
from tests.support.process import ROOT
from tests.support.stopwatch import Stopwatch

if TYPE_CHECKING:
    from fairque.embedded.server import EmbeddedServer
    from tests.support.proxy import CuttingProxy
    from tests.support.servers import Server

PATIENCE = 1.0
MARGIN = 0.5


@task
async def half(n: int) -> Decimal:
    if n % 2:
        raise ValueError(n)
    return Decimal(n // 2)


def has_waiters(server: Server) -> bool:
    return any(b":done:" in channel for channel in server.execute("PUBSUB", "SHARDCHANNELS"))


async def test_who_waits_is_told_when_the_queue_was_emptied_without_a_message(
    own_server: Callable[..., EmbeddedServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changes, "FIRST_LOOK_SECONDS", 0.2)
    server = own_server()
    async with TaskQueue(server.url) as queue:
        handle = await queue.enqueue(work(1), user_id="acme")
        waiter = asyncio.create_task(handle.result())
        watcher = asyncio.create_task(last_of(handle.watch()))
        await eventually(lambda: execute(server, "PUBSUB", "SHARDCHANNELS"))
        execute(server, "FLUSHALL")
        async with asyncio.timeout(20):
            for each in (waiter, watcher):
                with pytest.raises(UnknownTask):
                    await each


async def last_of(seen: AsyncIterator[TaskInfo]) -> TaskInfo:
    return [each async for each in seen][-1]


async def test_a_result_whose_message_was_lost_is_there_when_the_time_is_over(
    server: Server, queue_name: str, queue: TaskQueue, proxy: CuttingProxy
) -> None:
    new_gate().open()
    async with TaskQueue(proxy.url, name=queue_name) as far:
        handle = await far.enqueue(work(1), user_id="acme")
        waiter = asyncio.create_task(handle.result(timeout=1))
        await eventually(lambda: has_waiters(server))
        proxy.silence()
        await Worker(queue).run_until_idle()
        proxy.cut_all()
        assert await waiter == 1


@task
async def letters(n: int) -> str:
    return n * "x"


@pytest.mark.parametrize(("size", "looks"), [(10, 1), (2_000, 2)])
async def test_a_small_result_comes_with_the_message_of_the_end(
    queue_name: str, queue: TaskQueue, proxy: CuttingProxy, size: int, looks: int
) -> None:
    async with TaskQueue(proxy.url, name=queue_name) as far:
        handle = await far.enqueue(letters(size), user_id="acme")
        first, second = (proxy.hold(call_of("peek"), nth=n, of_reply=True) for n in (1, 2))
        waiter = asyncio.create_task(handle.result())
        await first.reached.wait()
        first.released.set()
        await Worker(queue).run_until_idle()
        await asyncio.wait([waiter, asyncio.create_task(second.reached.wait())], return_when=asyncio.FIRST_COMPLETED)
        assert second.reached.is_set() == (looks == 2)
        second.released.set()
        second.reached.set()
        assert await waiter == size * "x"


async def test_a_loop_that_stood_still_for_longer_than_the_timeout_is_no_outage(
    server: Server, queue_name: str
) -> None:
    new_gate().open()
    async with TaskQueue(server.url, name=queue_name, timeout=PATIENCE) as queue:
        handle = await queue.enqueue(work(1), user_id="acme")
        waiter = asyncio.create_task(handle.result())
        for _ in range(2):  # it subscribes, on a connection that is not there yet
            await asyncio.sleep(0)
        time.sleep(1.5 * PATIENCE)  # noqa: ASYNC251
        await Worker(queue).run_until_idle()
        assert await waiter == 1


async def test_silent_connections_are_found_within_the_timeout_of_the_queue(
    server: Server, queue_name: str, queue: TaskQueue, proxy: CuttingProxy
) -> None:
    """That for messages, on which nothing is asked; then the look at the result has to find the other one."""
    new_gate().open()
    async with TaskQueue(proxy.url, name=queue_name, timeout=PATIENCE) as far:
        handle = await far.enqueue(work(1), user_id="acme")
        waiter = asyncio.create_task(handle.result())
        await eventually(lambda: has_waiters(server))
        proxy.silence()
        await Worker(queue).run_until_idle()
        watch = Stopwatch()
        assert await waiter == 1
        assert watch.seconds < 1.5 * PATIENCE + MARGIN
        assert (await far.stats()).finished == 1


LOSE = ("unshare", "--net", "ip", "rule", "add", "ipproto", "tcp", "sport", "1", "blackhole")


async def output_of(*command: str) -> bytes | None:
    """None where it cannot be run, or fails."""
    pipe = asyncio.subprocess.PIPE
    try:
        process = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe, cwd=ROOT)
    except FileNotFoundError:
        return None
    output, _ = await process.communicate()
    return output if process.returncode == 0 else None


async def test_connections_whose_packets_are_lost_are_found_within_the_timeout_of_the_queue() -> None:
    if await output_of(*LOSE) is None:
        pytest.skip("needs root, unshare and ip, for a network that loses packets")
    output = await output_of("unshare", "--net", sys.executable, "-m", "tests.workers.dropped_packets", str(PATIENCE))
    assert output is not None
    seen = json.loads(output)
    assert seen["connections"] >= 6
    assert seen["woken"] < 1.5 * PATIENCE + MARGIN  # with a poll_interval of an hour
    assert seen["result"] < 1.5 * PATIENCE + MARGIN
    assert seen["waited"] < 1.5 * PATIENCE + 2 * MARGIN  # half a second of it is its delay
    assert seen["enqueued"] < PATIENCE + MARGIN
    assert seen["afterwards"] < MARGIN


async def test_a_call_on_a_silent_connection_is_answered_on_another_one(queue_name: str, proxy: CuttingProxy) -> None:
    new_gate().open()
    async with TaskQueue(proxy.url, name=queue_name, timeout=PATIENCE) as far:
        handle = await far.enqueue(work(1), user_id="acme")
        with pytest.raises(TimeoutError):
            await handle.result(0.1)
        proxy.silence()
        watch = Stopwatch()
        assert (await far.stats()).queued == 1
        again, _ = await asyncio.gather(far.enqueue(work(2), user_id="acme"), far.user("acme"))
        assert watch.seconds < PATIENCE + MARGIN
        await Worker(far).run_until_idle()
        assert await again.result(20) == 2


async def test_what_the_server_does_not_read_stays_with_its_callers_and_leaves_with_them(
    proxy: CuttingProxy,
) -> None:
    requester = Requester(Connector(proxy.url, timeout=20))
    await requester.request(pack(("PING",)))
    connection = requester._connection
    assert connection is not None
    proxy.pause()
    large = pack(("ECHO", b"x" * 1_000_000))
    calls = [asyncio.create_task(requester.request(large)) for _ in range(50)]
    await asyncio.sleep(0.1)
    assert connection._transport.get_write_buffer_size() < 2_000_000
    assert len(connection._unsent) > 20
    for call in calls[10:]:
        call.cancel()
    await asyncio.wait(calls[10:])
    assert len(connection._unsent) <= 10
    last = asyncio.create_task(requester.request(pack(("ECHO", "mine"))))
    proxy.resume()
    assert [len(reply) for reply in await asyncio.gather(*calls[:10])] == [1_000_000] * 10
    assert await last == b"mine"
    await requester.close()


async def test_each_gets_its_own_reply_whatever_ends_in_the_middle(proxy: CuttingProxy) -> None:
    requester = Requester(Connector(proxy.url, timeout=5))

    async def ask(n: int) -> bool:
        return await requester.request(pack(("ECHO", n))) == str(n).encode()

    right = 0
    for round_number in range(20):
        calls = [asyncio.create_task(ask(n)) for n in range(round_number * 100, round_number * 100 + 100)]
        await asyncio.sleep(0.001 * (round_number % 4))
        for call in calls[:: 3 + round_number % 5]:
            call.cancel()
        if round_number % 7 == 3:
            proxy.cut_all()
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        right += outcomes.count(True)
        assert False not in outcomes
    assert right > 500
    await requester.close()


async def test_ten_thousand_wait_for_results_at_a_time(queue: TaskQueue) -> None:
    new_gate().open()
    handles = await queue.enqueue_many([work(n) for n in range(10_000)], user_id="acme")
    waiter = asyncio.create_task(queue.results(handles, timeout=50))
    await asyncio.sleep(0)
    async with Worker(queue, concurrency=500):
        assert await waiter == list(range(10_000))


async def test_who_waits_for_very_much_is_no_delay_to_another_user(queue: TaskQueue) -> None:
    """Subscriptions and looks of a process go by turns of users."""
    new_gate().open()
    many = await queue.enqueue_many([work(n) for n in range(10_000)], user_id="acme")
    one = await queue.enqueue(work(1), user_id="zoe")
    await Worker(queue, concurrency=500).run_until_idle()
    waiters = [asyncio.create_task(handle.result()) for handle in many]
    await asyncio.sleep(0)
    assert await one.result() == 1
    assert sum(waiter.done() for waiter in waiters) < 4_000
    assert await asyncio.gather(*waiters) == list(range(10_000))


async def test_the_first_task_that_fails_ends_the_wait_for_all(server: Server, queue: TaskQueue) -> None:
    never = await queue.enqueue(work(1).options(delay=3600), user_id="acme")
    fails = await queue.enqueue(half(1), user_id="acme")
    await Worker(queue).run_until_idle()
    with pytest.raises(TaskFailed):
        await queue.results([never, fails], timeout=20)
    await eventually(lambda: not has_waiters(server))
    await never.cancel()


async def test_a_handle_by_id_with_the_function_gives_its_type(
    queue: TaskQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = await queue.enqueue(half(2), user_id="acme")
    await Worker(queue).run_until_idle()
    monkeypatch.delitem(registry, half.name)
    assert await queue.handle("acme", handle.task_id, task=half).result(20) == Decimal(1)
