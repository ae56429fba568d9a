"""Queues in a cluster: each is on one node, is found there, and is followed when its slot moves."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
from redis.crc import key_slot

from fairque import QueueUnavailable, StoreError, TaskCanceled, TaskEvent, TaskQueue, UnknownTask, Worker, task
from fairque.redis.cluster import Cluster, SlotMap
from fairque.redis.keys import Keys
from fairque.redis.url import ServerUrl
from tests.support.eventually import eventually
from tests.support.fleet import ClusterNodes, cut_off_replicas, execute, move_slot, owns, wait_for
from tests.support.gate import Gate, new_gate, work
from tests.support.resp import RespClient
from tests.support.servers import new_queue_name

if TYPE_CHECKING:
    from fairque.embedded.server import EmbeddedServer

NEVER = 3600.0
PATIENCE = 40.0
"""Seconds within which a slot has moved, or a replica has taken over, on a busy machine as well."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[ClusterNodes]:
    with ClusterNodes().running() as cluster:
        yield cluster


@pytest.fixture
def gate() -> Gate:
    return new_gate()


@task
async def double(n: int) -> int:
    return 2 * n


def slot_of(name: str) -> int:
    return key_slot(Keys(name).state.encode())


def name_on(cluster: ClusterNodes, node: EmbeddedServer) -> str:
    """The name of a queue that begins on this node."""
    names = (new_queue_name(f"cluster-{n}") for n in range(1000))
    return next(name for name in names if cluster.has(node, slot_of(name)))


def keys_of(node: EmbeddedServer, name: str) -> list[bytes]:
    found: list[bytes] = execute(node, "KEYS", f"{Keys(name).prefix}*")
    return found


async def on(node: EmbeddedServer, *arguments: Any) -> Any:
    return await asyncio.to_thread(execute, node, *arguments)


# Where a queue is


@pytest.mark.parametrize("at", range(3))
async def test_a_queue_works_on_whichever_node_it_is(cluster: ClusterNodes, gate: Gate, at: int) -> None:
    name = name_on(cluster, cluster.masters[at])
    async with TaskQueue(f"cluster://127.0.0.1:{cluster.masters[0].port}", name=name) as queue:
        async with Worker(queue, poll_interval=NEVER):
            handle = await queue.enqueue(double(21), user_id="acme")
            assert await handle.result(timeout=20) == 42
            running = await queue.enqueue(work(1), user_id="acme")
            await eventually(lambda: gate.started)
            await running.cancel("enough")
            with pytest.raises(TaskCanceled, match="enough"):
                await running.result(timeout=20)
        await queue.enqueue(double(1), user_id="acme")
        assert await asyncio.to_thread(keys_of, cluster.masters[at], name)
        purged = await queue.purge("acme")
    assert (purged.queued, purged.results, purged.complete) == (1, 2, True)


async def test_a_seed_that_is_dead_is_skipped(cluster: ClusterNodes) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"redis+cluster://127.0.0.1:{unused.getsockname()[1]},127.0.0.1:{cluster.masters[1].port}"
        async with TaskQueue(url, name=name_on(cluster, cluster.masters[2])) as queue:
            assert (await queue.stats()).queued == 0


async def test_no_seed_at_all_is_an_outage_that_names_each() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(QueueUnavailable, match=rf"node {host}: Connection refused"):
            async with TaskQueue(f"cluster://{host}", timeout=0.3):
                pytest.fail("it was opened")


async def test_a_server_that_is_no_cluster_is_a_clear_error(own_server) -> None:
    server = own_server(tcp=True)
    with pytest.raises(StoreError, match="cluster support disabled"):
        async with TaskQueue(server.tcp_url.replace("redis:", "cluster:")):
            pytest.fail("it was opened")


async def test_a_plain_url_for_a_cluster_says_what_to_write(cluster: ClusterNodes) -> None:
    name = name_on(cluster, cluster.masters[1])
    with pytest.raises(StoreError, match=r"MOVED .* write cluster:// in the URL"):
        async with TaskQueue(cluster.masters[0].tcp_url, name=name):
            pytest.fail("it was opened")


def test_a_node_that_named_a_wrong_address_is_not_asked_first_again() -> None:
    """It may be cut off from the others, and does not know."""
    guide = Cluster(ServerUrl("cluster://a,b"), "key", SlotMap())
    search = guide.lookup()
    assert "//a:" in next(search).url
    with pytest.raises(StopIteration) as found:
        search.send([[0, 16383, [b"a", 6379, b"id"], [b"c", 6379, b"id"]]])
    assert found.value.value == ("a", 6379)
    guide.doubt()
    assert "//a:" not in next(guide.lookup()).url


# A queue that moves


async def test_a_queue_in_use_is_followed_to_another_node(cluster: ClusterNodes, gate: Gate) -> None:
    source, target = cluster.masters[0], cluster.masters[2]
    name = name_on(cluster, source)
    lost: list[TaskEvent] = []
    moved = asyncio.Event()

    async def enqueue_all_along() -> int:
        n = 0
        while not moved.is_set() or n < 200:
            handles.append(await queue.enqueue(double(n), user_id=f"user {n % 3}"))
            n += 1
        return n

    async with (
        TaskQueue(cluster.url, name=name, lease=1.0, timeout=PATIENCE) as queue,
        Worker(queue, poll_interval=NEVER, on_lost=lost.append) as worker,
    ):
        handles: list[Any] = []
        running = await queue.enqueue(work(1), user_id="acme")
        await eventually(lambda: gate.started)
        enqueuing = asyncio.create_task(enqueue_all_along())
        await eventually(lambda: len(handles) > 20)
        await asyncio.to_thread(move_slot, slot_of(name), source, target)
        moved.set()
        total = await enqueuing
        assert [await handle.result(timeout=PATIENCE) for handle in handles] == [2 * n for n in range(total)]
        await eventually(lambda: listens_at(target, queue, worker), PATIENCE)
        await eventually(lambda: has_renewed(queue, worker), PATIENCE)
        gate.open()
        assert await running.result(timeout=PATIENCE) == 1
        assert (lost, len(gate.started)) == ([], 1)
        assert not await asyncio.to_thread(keys_of, source, name)


async def listens_at(node: EmbeddedServer, queue: TaskQueue, worker: Worker) -> bool:
    return bool((await on(node, "PUBSUB", "SHARDNUMSUB", queue.keys.wake_channel(worker.worker_id)))[1])


async def has_renewed(queue: TaskQueue, worker: Worker) -> bool:
    """By the thread, which has a connection of its own, at the new node."""
    assert worker._parts is not None
    return worker._parts.renewal._rounds[0].renewed > 0 and bool((await queue.stats()).workers)


async def test_a_slot_that_moves_key_by_key_is_waited_for(cluster: ClusterNodes) -> None:
    """Half of the keys are here and half are there: a script that ran on either side would see half of a queue."""
    source, target = cluster.masters[1], cluster.masters[0]
    name = name_on(cluster, source)
    slot = slot_of(name)
    async with TaskQueue(cluster.url, name=name, timeout=0.5) as queue:
        first = await queue.enqueue(double(1), user_id="acme")
        await on(target, "CLUSTER", "SETSLOT", slot, "IMPORTING", cluster.id_of(source))
        await on(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", cluster.id_of(target))
        with pytest.raises(QueueUnavailable):  # new keys cannot be made here any more
            await queue.enqueue(double(2), user_id="zoe")
        await migrate(source, target, Keys(name).state.encode())
        with pytest.raises(QueueUnavailable, match=r"is not available: "):
            await queue.enqueue(double(3), user_id="acme")
        assert await on(target, "CLUSTER", "COUNTKEYSINSLOT", slot) == 1
        await migrate(source, target, *await asyncio.to_thread(keys_of, source, name))
        for node in (target, source):
            await on(node, "CLUSTER", "SETSLOT", slot, "NODE", cluster.id_of(target))
        second = await queue.enqueue(double(4), user_id="acme")
        await Worker(queue).run_until_idle()
        assert [await first.result(timeout=20), await second.result(timeout=20)] == [2, 8]


async def migrate(source: EmbeddedServer, target: EmbeddedServer, *keys: bytes) -> None:
    await on(source, "MIGRATE", "127.0.0.1", target.port or 0, "", 0, 5000, "KEYS", *keys)


async def test_a_replica_takes_over_when_the_node_dies(gate: Gate) -> None:
    gate.open()
    with ClusterNodes(replicas=1).running() as cluster:
        dying, heir = cluster.masters[0], cluster.nodes[3]
        seed = f"cluster://127.0.0.1:{dying.port}"  # nobody else is named: the others are learned
        async with TaskQueue(seed, name=name_on(cluster, dying), timeout=PATIENCE, lease=2.0) as queue:
            async with Worker(queue, poll_interval=NEVER):
                before = await queue.enqueue(work(1), user_id="acme")
                assert await before.result(timeout=20) == 1
                wait_for(lambda: keys_of(heir, queue.name))
                dying.kill()
                after = await queue.enqueue(work(2), user_id="acme")
                assert await after.result(timeout=PATIENCE) == 2
            assert owns(heir, slot_of(queue.name))


async def test_a_promotion_that_cuts_no_connection_ends_no_wait_and_loses_no_task(gate: Gate) -> None:
    """The old master lives on as a replica: whoever is connected to it is told by its answers only."""
    lost: list[TaskEvent] = []
    with ClusterNodes(replicas=1).running() as cluster:
        old, heir = cluster.masters[0], cluster.nodes[3]
        async with TaskQueue(cluster.url, name=name_on(cluster, old), timeout=PATIENCE, lease=2.0) as queue:
            async with Worker(queue, poll_interval=NEVER, on_lost=lost.append):
                running = await queue.enqueue(work(1), user_id="acme")
                await eventually(lambda: gate.started)
                waiting = asyncio.create_task(running.result(timeout=PATIENCE))
                wait_for(lambda: keys_of(heir, queue.name))
                await on(heir, "CLUSTER", "FAILOVER")
                await eventually(lambda: owns(heir, slot_of(queue.name)), PATIENCE)
                handles = [await queue.enqueue(double(n), user_id="zoe") for n in range(10)]
                assert [await handle.result(timeout=PATIENCE) for handle in handles] == [2 * n for n in range(10)]
                gate.open()
                assert await waiting == 1
            assert (await queue.check()).findings == ()
    assert (lost, len(gate.started)) == ([], 1)


async def test_after_a_gap_in_the_replication_waits_end_what_was_in_it_is_told_and_the_rest_is_whole(
    gate: Gate,
) -> None:
    """What was acknowledged by the old node and not copied is lost. What ended then runs again."""
    with ClusterNodes(replicas=1).running() as cluster:
        dying, heir = cluster.masters[0], cluster.nodes[3]
        name = name_on(cluster, dying)
        async with (
            TaskQueue(cluster.url, name=name, timeout=5, lease=2.0) as served,  # who was cut off steals nothing as long
            TaskQueue(cluster.url, name=name, timeout=PATIENCE) as queue,
        ):
            async with Worker(served, poll_interval=NEVER):
                ends_in_the_gap = await queue.enqueue(work(1), user_id="acme")
                await eventually(lambda: gate.started)
                await asyncio.to_thread(copy, dying, heir, queue)
                await asyncio.to_thread(cut_off_replicas, dying)
                gate.open()
                assert await ends_in_the_gap.result(timeout=20) == 1
                finished = await queue.enqueue(double(2), user_id="zoe")
                assert await finished.result(timeout=20) == 4
                scheduled = await queue.enqueue(double(3), user_id="zoe", delay=NEVER)
                waiting = asyncio.create_task(scheduled.result(timeout=2 * PATIENCE))
                dying.kill()
                await eventually(lambda: owns(heir, slot_of(queue.name)), PATIENCE)
                await fall_silent(queue)
                with pytest.raises(UnknownTask, match="was never enqueued"):
                    await waiting
                with pytest.raises(UnknownTask):
                    await finished.result(timeout=0)
                assert await ends_in_the_gap.result(timeout=PATIENCE) == 1
                after = await queue.enqueue(double(4), user_id="zoe")
                assert await after.result(timeout=PATIENCE) == 8
                assert (await queue.stats()).started == 0
            check = await queue.check(repair=True)
    assert check.findings == ()
    assert len(gate.started) == 2, "it ran again"


async def fall_silent(queue: TaskQueue) -> None:
    """Another worker, which dies: so all lanes are looked at, each of which else is once in thirty leases.

    Other nodes may still send it to the old one.
    """
    store = queue.store(patience=PATIENCE)
    await store.claim("died", 0)
    await store.close()


def copy(node: EmbeddedServer, replica: EmbeddedServer, queue: TaskQueue) -> None:
    """Until the replica has all that was written before."""
    with RespClient(node.url) as client:
        client.execute("SET", f"{queue.keys.prefix}answer:0", "1", "PX", "1")
        assert client.execute("WAIT", 1, int(PATIENCE * 1000))
    assert keys_of(replica, queue.name)
