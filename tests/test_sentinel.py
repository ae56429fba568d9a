"""A queue whose master is found by sentinels, and found again when another server becomes the master."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fairque import QueueUnavailable, StoreError, TaskEvent, TaskHandle, TaskQueue, TaskState, UnknownTask, Worker, task
from fairque.redis.connector import Connector
from fairque.redis.requester import Requester, pack
from tests.support.eventually import eventually
from tests.support.fleet import SERVICE, Watched, cut_off_replicas, execute
from tests.support.gate import Gate, new_gate, work

if TYPE_CHECKING:
    from fairque.embedded.server import EmbeddedServer

SECRET = "hunter2"
NEVER = 3600.0
PATIENCE = 40.0
"""Seconds within which a failover is over, on a busy machine as well. It takes about two."""


@pytest.fixture
def watched(tmp_path: Path, server_program: str | None) -> Iterator[Watched]:
    with Watched(tmp_path, server_program).running() as watched:
        yield watched


@pytest.fixture
async def queue(watched: Watched) -> AsyncIterator[TaskQueue]:
    # A lease outlives a failover on a busy machine.
    async with TaskQueue(watched.url, timeout=PATIENCE, lease=6.0) as queue:
        yield queue


@pytest.fixture
def gate() -> Gate:
    return new_gate()


@task
async def double(n: int) -> int:
    await asyncio.sleep(0.01)
    return 2 * n


async def listens_at(server: EmbeddedServer, queue: TaskQueue, worker: Worker) -> bool:
    channel = queue.keys.wake_channel(worker.worker_id)
    found = await asyncio.to_thread(execute, server, "PUBSUB", "SHARDNUMSUB", channel)
    return bool(found[1])


async def is_master(server: EmbeddedServer) -> bool:
    return bool((await asyncio.to_thread(execute, server, "ROLE"))[0] == b"master")


async def test_what_was_replicated_runs_though_the_master_is_killed(watched: Watched, queue: TaskQueue) -> None:
    """Replication is asynchronous: what the replica had not got when the master died is lost, as in any queue."""

    async def enqueue(n: int) -> TaskHandle[int]:
        return await queue.enqueue(double(n), user_id=f"user {n % 3}")

    async with Worker(queue, concurrency=5, poll_interval=NEVER):
        before = [await enqueue(n) for n in range(60)]
        assert await asyncio.to_thread(watched.replicate)
        stream = asyncio.gather(*(enqueue(n) for n in range(60, 80)))  # some of it is cut off
        watched.master.kill()
        await stream
        after = [await enqueue(n) for n in range(80, 100)]
        for n, handle in enumerate(before):
            assert await handle.result(timeout=PATIENCE) == 2 * n
        for n, handle in enumerate(after, 80):
            assert await handle.result(timeout=PATIENCE) == 2 * n
    assert await is_master(watched.replica)


async def test_messages_come_from_the_new_master_though_the_old_one_only_hangs(watched: Watched, gate: Gate) -> None:
    """A server that hangs closes no connection: nobody hears that there is nothing to hear any more."""
    pid = watched.master.pid
    assert pid is not None
    async with TaskQueue(watched.url, timeout=1) as queue, Worker(queue, poll_interval=NEVER) as worker:
        await eventually(lambda: listens_at(watched.master, queue, worker))
        os.kill(pid, signal.SIGSTOP)
        try:
            await eventually(lambda: has_answered(queue), PATIENCE)
            await eventually(lambda: listens_at(watched.replica, queue, worker), PATIENCE)
            gate.open()
            handle = await queue.enqueue(work(1), user_id="acme")
            assert await handle.result(timeout=PATIENCE) == 1
        finally:
            os.kill(pid, signal.SIGCONT)


async def test_a_master_that_hangs_is_left_by_those_who_are_about_to_connect(watched: Watched) -> None:
    pid = watched.master.pid
    assert pid is not None
    connector = Connector(watched.url, timeout=0.5)
    first, second = Requester(connector), Requester(connector)
    assert await first.request(pack(("PING",))) == b"PONG"
    os.kill(pid, signal.SIGSTOP)
    try:
        await eventually(lambda: answers(second), PATIENCE)
    finally:
        os.kill(pid, signal.SIGCONT)
        await first.close()
        await second.close()


async def answers(wire: Requester) -> bool:
    try:
        return bool(await wire.request(pack(("PING",))))
    except QueueUnavailable:
        return False


async def has_answered(queue: TaskQueue) -> bool:
    try:
        await queue.stats()
    except QueueUnavailable:
        return False
    return True


async def test_a_running_task_is_not_taken_from_its_worker_by_a_failover(
    watched: Watched, queue: TaskQueue, gate: Gate
) -> None:
    lost: list[TaskEvent] = []
    async with Worker(queue, on_lost=lost.append) as worker:
        handle = await queue.enqueue(work(1), user_id="acme")
        await eventually(lambda: gate.started)
        assert await asyncio.to_thread(watched.replicate)
        watched.master.kill()
        await eventually(lambda: is_master(watched.replica), PATIENCE)
        before = await renewed(watched.replica, queue, worker)
        async with Worker(queue, poll_interval=0.1):  # it would steal what is not renewed
            await eventually(lambda: renewed_after(before, watched.replica, queue, worker), PATIENCE)
            gate.open()
            assert await handle.result(timeout=PATIENCE) == 1
    assert (lost, len(gate.started)) == ([], 1)


async def renewed(server: EmbeddedServer, queue: TaskQueue, worker: Worker) -> float:
    found = await asyncio.to_thread(execute, server, "ZSCORE", f"{queue.keys.prefix}workers", worker.worker_id)
    return float(found or 0)


async def renewed_after(before: float, server: EmbeddedServer, queue: TaskQueue, worker: Worker) -> bool:
    return await renewed(server, queue, worker) > before


async def test_one_sentinel_that_answers_is_enough(watched: Watched) -> None:
    watched.sentinels[0].kill()
    watched.sentinels[1].kill()
    async with TaskQueue(watched.url) as queue:
        assert (await queue.stats()).queued == 0


async def test_a_sentinel_that_hangs_costs_a_moment(watched: Watched) -> None:
    process = watched.sentinels[0]._process
    assert process is not None
    process.send_signal(signal.SIGSTOP)
    async with TaskQueue(watched.url, timeout=1) as queue:
        assert (await queue.stats()).queued == 0
    process.send_signal(signal.SIGCONT)


async def test_a_sentinel_that_names_a_replica_is_not_believed(watched: Watched) -> None:
    """It has not heard of the failover yet, or the server came back as a replica."""
    deluded = watched.sentinels[0]
    deluded.execute("SENTINEL", "REMOVE", SERVICE)
    deluded.execute("SENTINEL", "MONITOR", SERVICE, "127.0.0.1", str(watched.replica.port), "2")
    with pytest.raises(QueueUnavailable, match=rf"names 127\.0\.0\.1:{watched.replica.port}: not a master"):
        async with TaskQueue(f"sentinel://127.0.0.1:{deluded.port}/{SERVICE}", timeout=0.5):
            pytest.fail("a replica was taken for the master")


async def test_a_service_that_no_sentinel_knows_is_a_clear_error(watched: Watched) -> None:
    with pytest.raises(StoreError, match=r"unknown service 'theirmaster'"):
        async with TaskQueue(f"sentinel://{watched.hosts}/theirmaster"):
            pytest.fail("it was opened")


async def test_no_sentinel_at_all_is_an_outage(watched: Watched) -> None:
    for sentinel in watched.sentinels:
        sentinel.kill()
    with pytest.raises(QueueUnavailable, match=r"sentinel 127\.0\.0\.1:\d+: .*; sentinel"):
        async with TaskQueue(watched.url, timeout=1):
            pytest.fail("it was opened")


async def test_passwords_of_both_kinds_are_used_and_never_shown(
    tmp_path: Path, server_program: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    with Watched(tmp_path, server_program, sentinel_password=SECRET).running() as watched:
        execute(watched.master, "ACL", "SETUSER", "app", "on", f">{SECRET}", "~*", "&*", "+@all", "-ROLE")
        url = f"sentinel://app:{SECRET}@{watched.hosts}/{SERVICE}/3?sentinel_password="
        async with TaskQueue(url + SECRET) as queue:
            shown = repr(queue) + queue.connector.safe_url
            await queue.enqueue(double(1), user_id="acme")
        assert b"db3:keys" in execute(watched.master, "INFO", "keyspace")
        errors = []
        for wrong in (url + "wrong-" + SECRET, url.replace("app:", "app:wrong-") + SECRET):
            with pytest.raises(StoreError, match=r"invalid username-password pair") as refused:
                async with TaskQueue(wrong, timeout=1):
                    pytest.fail("it was opened")
            errors.append(str(refused.value))
    assert SECRET not in "".join([shown, caplog.text, *errors])


async def test_after_a_gap_in_the_replication_waits_end_what_was_in_it_is_told_and_the_rest_is_whole(
    watched: Watched, queue: TaskQueue, gate: Gate
) -> None:
    """The replica is cut off from its master before that dies: what was acknowledged meanwhile is lost."""
    async with Worker(queue, poll_interval=NEVER) as worker:
        running = await queue.enqueue(work(1), user_id="acme")
        kept = await queue.enqueue(double(2), user_id="acme", delay=PATIENCE / 10)
        await eventually(lambda: gate.started)
        assert await asyncio.to_thread(watched.replicate)
        await asyncio.to_thread(cut_off_replicas, watched.master)
        in_the_gap = await queue.enqueue(double(3), user_id="zoe", delay=NEVER)
        finished = await queue.enqueue(double(4), user_id="zoe")
        assert await finished.result(timeout=PATIENCE) == 8
        waiting = asyncio.create_task(in_the_gap.result(timeout=PATIENCE))
        watching = asyncio.create_task(last_state(in_the_gap))
        watched.master.kill()
        await eventually(lambda: is_master(watched.replica), PATIENCE)
        await eventually(lambda: listens_at(watched.replica, queue, worker), PATIENCE)
        for wait in (waiting, watching):
            with pytest.raises(UnknownTask, match="was never enqueued"):
                await wait
        with pytest.raises(UnknownTask):
            await finished.result(timeout=0)
        gate.open()
        assert await running.result(timeout=PATIENCE) == 1
        assert await kept.result(timeout=PATIENCE) == 4
        after = await queue.enqueue(double(5), user_id="zoe")
        assert await after.result(timeout=PATIENCE) == 10
        await eventually(lambda: nothing_runs(queue))
    check = await queue.check()
    assert check.findings == ()
    assert len(gate.started) == 1


async def test_what_was_put_in_at_an_old_master_that_lives_on_is_told_as_lost_when_it_becomes_a_replica(
    watched: Watched, gate: Gate
) -> None:
    """Sentinels and replica cannot reach it, and those who are connected can: there are two masters for a time."""
    for server in (watched.master, watched.replica):
        execute(server, "ACL", "SETUSER", "app", "on", f">{SECRET}", "~*", "&*", "+@all")
    url = f"sentinel://app:{SECRET}@{watched.hosts}/{SERVICE}"
    lost: list[TaskEvent] = []
    async with TaskQueue(url, timeout=PATIENCE, lease=3.0) as queue:
        async with Worker(queue, poll_interval=NEVER, on_lost=lost.append) as worker:
            running = await queue.enqueue(work(1), user_id="acme")
            await eventually(lambda: gate.started)
            assert await asyncio.to_thread(watched.replicate)
            await asyncio.to_thread(isolate, watched.master)
            await eventually(lambda: is_named_by_all(watched, watched.replica), PATIENCE)
            finished = await queue.enqueue(double(2), user_id="zoe")
            assert await finished.result(timeout=PATIENCE) == 4, "at the old master"
            scheduled = await queue.enqueue(double(3), user_id="zoe", delay=NEVER)
            waits = [asyncio.create_task(scheduled.result(timeout=2 * PATIENCE)) for _ in range(2)]
            async with TaskQueue(url, timeout=PATIENCE) as newcomer:
                of_newcomer = (await newcomer.enqueue(double(4), user_id="zoe")).task_id
            await asyncio.to_thread(reunite, watched.master)
            await eventually(lambda: listens_at(watched.replica, queue, worker), PATIENCE)
            for wait in waits:
                with pytest.raises(UnknownTask, match="was never enqueued"):
                    await wait
            with pytest.raises(UnknownTask):
                await finished.result(timeout=0)
            at_the_new_master = queue.handle("zoe", of_newcomer, task=double)
            assert await at_the_new_master.result(timeout=PATIENCE) == 8
            gate.open()
            assert await running.result(timeout=PATIENCE) == 1
            after = await queue.enqueue(double(5), user_id="zoe")
            assert await after.result(timeout=PATIENCE) == 10
            await eventually(lambda: nothing_runs(queue))
        check = await queue.check(repair=True)
    assert check.findings == ()
    assert (lost, len(gate.started)) == ([], 1)


async def is_named_by_all(watched: Watched, server: EmbeddedServer) -> bool:
    question = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)
    named = [await asyncio.to_thread(sentinel.execute, *question) for sentinel in watched.sentinels]
    return all(int(port) == server.port for _, port in named)


def isolate(master: EmbeddedServer) -> None:
    """From its replica and the sentinels, which are nobody's users, but for those who have a password."""
    cut_off_replicas(master)
    execute(master, "ACL", "SETUSER", "default", "-@all", "+acl|setuser")


def reunite(master: EmbeddedServer) -> None:
    execute(master, "ACL", "SETUSER", "default", "+@all")


async def last_state(handle: TaskHandle[int]) -> TaskState | None:
    state = None
    async for info in handle.watch():
        state = info.state
    return state


async def nothing_runs(queue: TaskQueue) -> bool:
    return (await queue.stats()).started == 0
