"""A queue over the nodes of a real cluster: what each of them has, and what is left while one is gone."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest
from redis.crc import key_slot

from fairque import InvalidInput, Limit, QueueUnavailable, TaskHandle, TaskQueue, TaskState, Worker, task
from fairque.contrib.sqlalchemy import Outbox, OutboxRelay
from fairque.queue.sender import LARGE
from fairque.redis.delivery import Outcome
from fairque.redis.keys import Keys, encode_user
from fairque.redis.partitions import partition_of
from fairque.redis.places import MovedUser
from fairque.redis.requester import pack
from fairque.tasks.message import Record, encode_record, encode_value
from tests.support.eventually import eventually
from tests.support.fleet import ClusterNodes, execute, move_slot
from tests.support.servers import new_queue_name
from tests.test_outbox import Database, opened

if TYPE_CHECKING:
    from fairque.embedded.server import EmbeddedServer

COUNT = 12
NEVER = 3600.0
USERS = [f"user-{n}" for n in range(60)]


@task(name="partitions.long")
async def long(text: str = "") -> int:
    return len(text)


@pytest.fixture(scope="module")
def cluster() -> Iterator[ClusterNodes]:
    with ClusterNodes().running() as cluster:
        for node in cluster.masters:
            execute(node, "CONFIG", "SET", "cluster-require-full-coverage", "no")
        yield cluster


@contextmanager
def stopped(node: EmbeddedServer) -> Iterator[None]:
    """It takes what is sent to it, and says nothing."""
    assert node.pid is not None
    os.kill(node.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(node.pid, signal.SIGCONT)


def node_of(cluster: ClusterNodes, keys: Keys) -> EmbeddedServer:
    slot = key_slot(keys.state.encode())
    return next(node for node in cluster.masters if cluster.has(node, slot))


def home_of(queue: TaskQueue, user: str) -> Keys:
    return Keys(queue.name, (partition_of(encode_user(user), COUNT), COUNT))


def users_on(cluster: ClusterNodes, queue: TaskQueue, node: EmbeddedServer) -> list[str]:
    return [user for user in USERS if node_of(cluster, home_of(queue, user)) is node]


def name_on(cluster: ClusterNodes, node: EmbeddedServer) -> str:
    """Of a queue whose settings lie there."""
    names = (new_queue_name(f"spread-{n}") for n in range(1000))
    return next(name for name in names if node_of(cluster, Keys(name)) is node)


def connections(node: EmbeddedServer, name: str) -> int:
    return sum(f" name={name} ".encode() in line for line in execute(node, "CLIENT", "LIST").splitlines())


async def test_users_live_on_all_nodes_evenly(cluster: ClusterNodes) -> None:
    async with TaskQueue(cluster.url, name=new_queue_name("even"), partitions=COUNT) as queue:
        await queue.enqueue_many([long().options(user_id=user) for user in USERS])
        found = [len(users_on(cluster, queue, node)) for node in cluster.masters]
        assert sum(found) == len(USERS)
        for node, expected in zip(cluster.masters, found, strict=True):
            keys = execute(node, "KEYS", f"fairque:{{{queue.name}/*}}:normal:*")
            assert len(keys) == expected > 0
        stats = await queue.stats()
        assert (stats.queued, stats.users_known, stats.missing) == (len(USERS), len(USERS), ())
        assert (await queue.check()).findings == ()


async def test_a_queue_has_at_most_three_connections_to_each_node(cluster: ClusterNodes) -> None:
    name = "spreadcount"
    async with TaskQueue(cluster.url, name=name, partitions=COUNT) as queue:
        handles = await queue.enqueue_many([long().options(user_id=user) for user in USERS])
        await asyncio.gather(*(queue.enqueue(long("x" * (LARGE + 1)), user_id=user) for user in USERS))
        waits = [asyncio.create_task(handle.result()) for handle in handles]
        await eventually(lambda: sum(connections(node, f"fairque-{name}") for node in cluster.masters) == 9)
        await asyncio.gather(*(handle.info() for handle in handles), queue.stats(), queue.users())
        found = sorted(connections(node, f"fairque-{name}") for node in cluster.masters)
        assert found == [3, 3, 3], "one for calls, one for what is large, one for messages"
        for wait in waits:
            wait.cancel()
        await asyncio.wait(waits)
    await eventually(lambda: sum(connections(node, f"fairque-{name}") for node in cluster.masters) == 0)


async def finish_all(queue: TaskQueue, keys: Keys) -> None:
    [part] = [part for part in queue.reader.parts if part.keys.prefix == keys.prefix]
    claim = await part.claim("w", 100, wait=False)
    record = encode_record(b"", TaskState.FINISHED, Record("", 1, 0, 0, 1.0, "w", msgspec.Raw(encode_value(7))))
    await part.settle("w", [Outcome(of, "finished", ttl_ms=60_000, record=record) for of in claim.deliveries])
    await part.leave("w", ())


@pytest.mark.parametrize("has_settings", [True, False])
async def test_a_node_that_hangs_harms_only_its_users(cluster: ClusterNodes, has_settings: bool) -> None:
    hanging, other = cluster.masters[1], cluster.masters[0]
    name = name_on(cluster, hanging if has_settings else other)
    async with TaskQueue(cluster.url, name=name, partitions=COUNT, timeout=3.0) as queue:
        handles = await queue.enqueue_many([long().options(user_id=user) for user in USERS])
        gone = users_on(cluster, queue, hanging)
        there = [user for user in USERS if user not in gone]
        missing = {partition_of(encode_user(user), COUNT) for user in gone}
        with stopped(hanging):
            lost = [asyncio.create_task(queue.enqueue(long(), user_id=user)) for user in gone[:4]]
            await asyncio.sleep(0.01)
            began = time.monotonic()
            for user in there:
                await queue.enqueue(long(), user_id=user)
                assert (await queue.user(user)).queued == 2
            assert time.monotonic() - began < 2.5, "nobody waits for the node that says nothing"
            for call in lost:
                with pytest.raises(QueueUnavailable):
                    await call
            waiting = asyncio.create_task(handles[USERS.index(there[0])].result(timeout=20))
            await asyncio.sleep(0.1)
            await finish_all(queue, home_of(queue, there[0]))
            assert await waiting == 7
            began = time.monotonic()
            stats = await queue.stats()
            assert time.monotonic() - began < 3.5
            assert missing <= set(stats.missing) < set(range(COUNT))
            assert stats.queued > 0
            seen = {user.user_id for user in await queue.users(limit=1000)}
            assert seen == set(there)
            overview = await queue.overview()
            assert overview.severity == "critical"
            critical = [check.name for check in overview.problems if check.status == "critical"]
            assert "partitions" in critical
            with pytest.raises(QueueUnavailable, match="partition"):
                await queue.pause_task("partitions.long")
        await eventually(lambda: nothing_is_missing(queue), 20)
        await queue.resume_task("partitions.long")
        for user in gone:
            await queue.enqueue(long(), user_id=user)
        found = await queue.check()
        assert (found.findings, found.missing) == ((), ())


async def nothing_is_missing(queue: TaskQueue) -> bool:
    return (await queue.stats()).missing == ()


async def test_who_names_the_partitions_opens_a_queue_also_without_the_node_of_its_settings(
    cluster: ClusterNodes,
) -> None:
    hanging = cluster.masters[1]
    name = name_on(cluster, hanging)
    async with TaskQueue(cluster.url, name=name, partitions=COUNT, lease=7) as queue:
        await queue.enqueue_many([long().options(user_id=user) for user in USERS])
        there = [user for user in USERS if user not in users_on(cluster, queue, hanging)]
    with stopped(hanging):
        async with TaskQueue(cluster.url, name=name, partitions=COUNT, timeout=1.0) as queue:
            assert queue.settings.lease_ms == 7000
            await queue.enqueue(long(), user_id=there[0])
            assert (await queue.user(there[0])).queued == 2


async def test_an_outbox_is_emptied_for_users_of_nodes_that_answer(cluster: ClusterNodes, tmp_path: Path) -> None:
    hanging = cluster.masters[1]
    name = name_on(cluster, cluster.masters[0])
    async with TaskQueue(cluster.url, name=name, partitions=COUNT, timeout=1.0) as queue:
        await queue.enqueue_many([long().options(user_id=user) for user in USERS])
        gone = users_on(cluster, queue, hanging)
        async with opened(f"sqlite:///{tmp_path / 'app.db'}") as database:
            outbox, relay = Outbox(queue), OutboxRelay(queue, database.engine)
            for user in USERS:
                await database.put(outbox, long(), user_id=user)
            with stopped(hanging):
                await relay.move()
                assert await database.left() == len(gone)
            await eventually(lambda: nothing_is_missing(queue), 20)
            await eventually(lambda: is_emptied(relay, database), 20)
        assert (await queue.stats()).queued == 2 * len(USERS)


async def is_emptied(relay: OutboxRelay, database: Database) -> bool:
    await relay.move()
    return await database.left() == 0


async def test_a_partition_is_followed_to_the_node_that_it_is_moved_to_and_back(cluster: ClusterNodes) -> None:
    source, target = cluster.masters[2], cluster.masters[0]
    async with TaskQueue(cluster.url, name=new_queue_name("moving"), partitions=COUNT) as queue:
        await queue.enqueue_many([long().options(user_id=user) for user in USERS])
        slot = key_slot(home_of(queue, users_on(cluster, queue, source)[0]).state.encode())
        for here, there, times in ((source, target, 2), (target, source, 3)):
            await asyncio.to_thread(move_slot, slot, here, there)
            for user in USERS:
                await queue.enqueue(long(), user_id=user)
            assert (await queue.stats()).queued == times * len(USERS)
            assert (await queue.check()).findings == ()


@pytest.mark.parametrize("at", range(3))
async def test_an_idle_worker_is_woken_by_what_is_put_in_at_any_node(cluster: ClusterNodes, at: int) -> None:
    """Who publishes is told how many hear it at that node: there the worker has to listen."""
    name = name_on(cluster, cluster.masters[at])
    async with (
        TaskQueue(cluster.url, name=name, partitions=COUNT) as queue,
        Worker(queue, poll_interval=NEVER) as worker,
    ):
        await eventually(lambda: is_idle(queue, worker), 20)
        for part in queue.reader.parts:
            channel = part.keys.wake_channel(worker.worker_id)
            assert execute(node_of(cluster, part.keys), "PUBSUB", "SHARDNUMSUB", channel)[1] == 1
        for node in cluster.masters:
            await eventually(lambda: is_idle(queue, worker), 20)
            handle = await queue.enqueue(long("abc"), user_id=users_on(cluster, queue, node)[0])
            assert await handle.result(timeout=10) == 3


async def is_idle(queue: TaskQueue, worker: Worker) -> bool:
    """It waits in all partitions."""
    waiting = [
        part._insist(pack((b"SISMEMBER", f"{part.keys.prefix}waiting", worker.worker_id)))
        for part in queue.reader.parts
    ]
    return all(await asyncio.gather(*waiting))


async def test_who_is_known_to_live_elsewhere_is_served_while_its_first_home_is_gone(cluster: ClusterNodes) -> None:
    gone, other = cluster.masters[:2]
    async with TaskQueue(cluster.url, name=name_on(cluster, other), timeout=1, partitions=COUNT) as queue:
        await queue.reader.agree()
        user = users_on(cluster, queue, gone)[0]
        home = queue.reader.part_of(encode_user(user))
        to = next(at for at, part in enumerate(queue.reader.parts) if node_of(cluster, part.keys) is other)
        assert await home.forward(MovedUser(encode_user(user), to, 1))
        await queue.enqueue(long(), user_id=user)
        with stopped(gone):
            handle = await queue.enqueue(long("abc"), user_id=user)
            await finish_all(queue, queue.reader.parts[to].keys)
            assert await handle.result(timeout=5) == 7
            async with TaskQueue(cluster.url, name=queue.name, timeout=1, partitions=COUNT) as stranger:
                with pytest.raises(QueueUnavailable):
                    await stranger.enqueue(long(), user_id=user)


@task(name="partitions.limited", limits=[Limit("crm")])
async def limited(seconds: float = 0.0) -> int:
    await asyncio.sleep(seconds)
    return 1


def home_of_key(key: str) -> int:
    return int(hashlib.sha1(f":{key}".encode(), usedforsecurity=False).hexdigest()[:8], 16) % COUNT


async def test_places_of_a_partition_that_is_gone_are_used_by_others_once_they_are_forfeited(
    cluster: ClusterNodes,
) -> None:
    hanging = cluster.masters[1]
    async with TaskQueue(
        cluster.url, name=name_on(cluster, cluster.masters[0]), partitions=COUNT, timeout=1.0
    ) as queue:
        await queue.set_limit("crm", max_running=1)
        gone = users_on(cluster, queue, hanging)
        there = [user for user in USERS if user not in gone]
        holder = gone[0]
        partition = partition_of(holder, COUNT)
        assert home_of_key("crm") == COUNT - 1, "on a node that is there"
        with pytest.raises(InvalidInput, match="answers: what it has comes back by itself"):
            await queue.forfeit_places(partition)
        async with Worker(queue, scheduler=False, concurrency=10, shutdown_timeout=0):
            held = await queue.enqueue(limited(NEVER), user_id=holder)
            await eventually(lambda: runs(held), 20)
            with stopped(hanging):
                waits = await queue.enqueue(limited(), user_id=there[0])
                await asyncio.sleep(0.5)
                assert await waits.state() is TaskState.QUEUED
                assert await queue.forfeit_places(partition) == 1
                assert await waits.result(timeout=20) == 1
            await eventually(lambda: nothing_is_missing(queue), 20)
            assert await (await queue.enqueue(limited(), user_id=there[0])).result(timeout=20) == 1

            async def knows() -> bool:
                return (await queue.reader.parts[partition].heads()).revision > 1

            await eventually(knows, 20)
            await held.cancel()
            assert await (await queue.enqueue(limited(), user_id=holder)).result(timeout=20) == 1


async def runs(handle: TaskHandle[int]) -> bool:
    return await handle.state() is TaskState.STARTED
