"""A worker of a queue over the nodes of a cluster: one that does not answer harms only the users that live there."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from fairque import TaskQueue, Worker, current_task, task
from fairque.redis.keys import encode_user
from fairque.tasks.registry import unregister
from tests.support.eventually import eventually
from tests.support.fleet import ClusterNodes, execute
from tests.support.servers import new_queue_name

if TYPE_CHECKING:
    from fairque.embedded.server import EmbeddedServer
    from fairque.redis.store import Store

PARTITIONS = 6
PATIENCE = 40.0
LEASE = 1.0
starts: Counter[str] = Counter()


@pytest.fixture(scope="module")
def cluster() -> Iterator[ClusterNodes]:
    with ClusterNodes().running() as cluster:
        for node in cluster.masters:  # else all are down with one
            execute(node, "CONFIG", "SET", "cluster-require-full-coverage", "no")
        yield cluster


@pytest.fixture
async def spread(cluster: ClusterNodes) -> AsyncIterator[TaskQueue]:
    name = new_queue_name("over-nodes")
    async with TaskQueue(cluster.url, name=name, partitions=PARTITIONS, lease=LEASE, timeout=1) as queue:
        await queue.stats()
        yield queue


@task
async def run_over_nodes(seconds: float = 0.0) -> int:
    starts[current_task().task_id] += 1
    await asyncio.sleep(seconds)
    return 1


@task
async def use_over_nodes() -> AsyncIterator[int]:
    current_task().progress(0.5)
    await current_task().xcom.push("number", 1)
    yield 1


@contextmanager
def standing_still(node: EmbeddedServer) -> Iterator[None]:
    assert node.pid is not None
    os.kill(node.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(node.pid, signal.SIGCONT)


async def users_on(queue: TaskQueue, node: EmbeddedServer) -> tuple[list[str], list[str]]:
    """Some that live there, and some that do not."""
    store = queue.store()
    here: list[str] = []
    elsewhere: list[str] = []
    for user in (f"user-{n}" for n in range(40)):
        address = await store.part_of(encode_user(user)).backend.connector.find()
        assert address is not None
        (here if address.port == node.port else elsewhere).append(user)
    await store.close()
    return here, elsewhere


async def node_of(cluster: ClusterNodes, part: Store) -> EmbeddedServer:
    address = await part.backend.connector.find()
    assert address is not None
    return next(node for node in cluster.masters if node.port == address.port)


def connections(node: EmbeddedServer, queue: TaskQueue) -> int:
    clients = execute(node, "CLIENT", "LIST").decode()
    return len(re.findall(rf" name=fairque-{queue.name} ", clients))


async def test_a_worker_has_four_connections_to_each_node_beside_those_of_its_queue(cluster: ClusterNodes) -> None:
    """For claims and reports, for what tasks ask for, for what they yield, and for renewals."""
    users = [f"user-{n}" for n in range(30)]
    async with TaskQueue(cluster.url, name="counted", partitions=PARTITIONS, timeout=PATIENCE) as queue:
        handles = [await queue.enqueue(use_over_nodes(), user_id=user) for user in users]
        waits = [asyncio.create_task(handle.result(timeout=PATIENCE)) for handle in handles]
        await eventually(lambda: all(connections(node, queue) == 2 for node in cluster.masters))
        async with Worker(queue, concurrency=20):
            await asyncio.gather(*waits)
            for user in users:
                await (await queue.enqueue(use_over_nodes(), user_id=user)).result(timeout=PATIENCE)
            assert [connections(node, queue) for node in cluster.masters] == [2 + 4] * 3
        await eventually(lambda: all(connections(node, queue) == 2 for node in cluster.masters))


async def test_a_node_that_stands_still_harms_only_its_own_users(cluster: ClusterNodes, spread: TaskQueue) -> None:
    node = cluster.masters[0]
    here, elsewhere = await users_on(spread, node)
    async with Worker(spread, scheduler=False, concurrency=10):
        await (await spread.enqueue(run_over_nodes(), user_id=here[0])).result(timeout=PATIENCE)
        long_one = await spread.enqueue(run_over_nodes(4 * LEASE), user_id=elsewhere[0])
        stuck = [await spread.enqueue(run_over_nodes(0.2), user_id=user) for user in here]
        with standing_still(node):
            await asyncio.sleep(1.0)  # calls are under way there by now
            began = time.monotonic()
            for n in range(100):
                user = elsewhere[n % len(elsewhere)]
                handle = await spread.enqueue(run_over_nodes(), user_id=user)
                assert await handle.result(timeout=PATIENCE) == 1
            assert time.monotonic() - began < 30.0, "each of them waited for the node that says nothing"
            assert await long_one.result(timeout=PATIENCE) == 1
            assert starts[long_one.task_id] == 1, "its lease was renewed"
        assert sum([await handle.result(timeout=PATIENCE) for handle in stuck]) == len(here)


@pytest.mark.parametrize("gone", ["its settings", "its first partition"])
async def test_a_worker_begins_though_the_node_is_gone_that_has(
    gone: str, cluster: ClusterNodes, spread: TaskQueue
) -> None:
    async def limited() -> None: ...

    made = task(name="over-nodes.limited", max_running=5, rate="100/m burst 20")(limited)
    try:
        await Worker(spread, scheduler=False).run_until_idle()  # one before it, which declares them
        store = spread.store()
        part = store if gone == "its settings" else store.parts[0]
        node = await node_of(cluster, part)
        await store.close()
        _, others = await users_on(spread, node)
        with standing_still(node):
            handle = await spread.enqueue(run_over_nodes(), user_id=others[0])
            async with TaskQueue(cluster.url, name=spread.name, timeout=1) as another, Worker(another):
                assert await handle.result(timeout=PATIENCE) == 1
    finally:
        unregister(made.name)
