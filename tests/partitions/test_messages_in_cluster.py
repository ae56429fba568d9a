"""Messages in a cluster: each is told at the node of its slot alone, and heard there, wherever that moves."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from redis.crc import key_slot

from fairque import TaskHandle, TaskQueue, Worker, task
from fairque.queue import changes
from fairque.redis.keys import Keys, encode_user
from fairque.redis.partitions import partition_of
from tests.support.eventually import eventually
from tests.support.fleet import ClusterNodes, execute, move_slot, owns
from tests.support.servers import new_queue_name

if TYPE_CHECKING:
    from fairque.embedded.server import EmbeddedServer

COUNT = 6
NEVER = 3600.0
PATIENCE = 40.0


@task(name="messages.echo")
async def echo(text: str) -> str:
    return text


@pytest.fixture(scope="module")
def cluster() -> Iterator[ClusterNodes]:
    with ClusterNodes().running() as cluster:
        yield cluster


@pytest.fixture
async def queue(cluster: ClusterNodes, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[TaskQueue]:
    """Nothing but messages tells who waits."""
    monkeypatch.setattr(changes, "FIRST_LOOK_SECONDS", NEVER)
    monkeypatch.setattr(changes, "LONGEST_LOOK_SECONDS", NEVER)
    async with TaskQueue(cluster.url, name=new_queue_name("messages"), partitions=COUNT) as queue:
        yield queue


@pytest.fixture
async def far(cluster: ClusterNodes, queue: TaskQueue) -> AsyncIterator[TaskQueue]:
    """Another process, as it were."""
    async with TaskQueue(cluster.url, name=queue.name, partitions=COUNT) as far:
        yield far


def home_of(queue: TaskQueue, user: str) -> Keys:
    return Keys(queue.name, (partition_of(encode_user(user), COUNT), COUNT))


def node_of(cluster: ClusterNodes, keys: Keys) -> EmbeddedServer:
    slot = key_slot(keys.state.encode())
    return next(node for node in cluster.masters if owns(node, slot))


def heard_at(node: EmbeddedServer, queue: TaskQueue) -> set[str]:
    channels = execute(node, "PUBSUB", "SHARDCHANNELS", f"fairque:{{{queue.name}*")
    return {channel.decode() for channel in channels}


async def is_heard_at(node: EmbeddedServer, queue: TaskQueue, handle: TaskHandle[Any]) -> bool:
    channels = await asyncio.to_thread(heard_at, node, queue)
    return any(channel.endswith(f":done:{handle.user_id}:{handle.task_id}") for channel in channels)


async def test_a_channel_is_heard_at_the_node_of_its_slot_by_one_connection_to_each(
    cluster: ClusterNodes, queue: TaskQueue
) -> None:
    async with Worker(queue, poll_interval=NEVER, concurrency=1):
        users = [f"user-{n}" for n in range(30)]
        handles = [await queue.enqueue(echo(user).options(delay=NEVER), user_id=user) for user in users]
        waits = [asyncio.create_task(handle.result()) for handle in handles]
        for handle in handles:
            node = node_of(cluster, home_of(queue, handle.user_id))
            await eventually(lambda node=node, handle=handle: is_heard_at(node, queue, handle))
        for node in cluster.masters:
            for channel in heard_at(node, queue):
                assert owns(node, key_slot(channel.encode())), channel
            clients = execute(node, "CLIENT", "LIST").decode().splitlines()
            assert sum(bool(re.search(r" ssub=[1-9]", line)) for line in clients) == 1, clients
        for wait in waits:
            wait.cancel()
        await asyncio.wait(waits)


def told_over_the_bus(cluster: ClusterNodes) -> int:
    facts = [execute(node, "CLUSTER", "INFO").decode() for node in cluster.masters]
    return sum(int(count) for each in facts for count in re.findall(r"messages_publish\w*_sent:(\d+)", each))


async def test_no_message_goes_from_node_to_node(cluster: ClusterNodes, queue: TaskQueue) -> None:
    before = told_over_the_bus(cluster)
    async with Worker(queue, poll_interval=NEVER):
        for n in range(30):
            handle = await queue.enqueue(echo(f"{n}"), user_id=f"user-{n}")
            assert await handle.result(timeout=PATIENCE) == f"{n}"
    assert told_over_the_bus(cluster) == before


@pytest.mark.parametrize("partitions", [1, COUNT])
async def test_who_does_nothing_but_wait_is_told_also_after_the_slot_has_moved(
    cluster: ClusterNodes, monkeypatch: pytest.MonkeyPatch, partitions: int
) -> None:
    monkeypatch.setattr(changes, "FIRST_LOOK_SECONDS", NEVER)
    name = new_queue_name("moves")
    async with (
        TaskQueue(cluster.url, name=name, partitions=partitions, timeout=PATIENCE) as queue,
        TaskQueue(cluster.url, name=name, timeout=PATIENCE) as far,
    ):
        handle = await queue.enqueue(echo("acme"), user_id="acme")
        wait = asyncio.create_task(handle.result())
        keys = queue.reader.keys_of("acme")
        for _ in range(3):
            source = node_of(cluster, keys)
            await eventually(lambda source=source: is_heard_at(source, queue, handle), PATIENCE)
            target = cluster.masters[cluster.masters.index(source) - 1]
            await asyncio.to_thread(move_slot, key_slot(keys.state.encode()), source, target)
            await eventually(lambda target=target: is_heard_at(target, queue, handle), PATIENCE)
            assert not await is_heard_at(source, queue, handle)
        await Worker(far).run_until_idle()
        assert await asyncio.wait_for(wait, 5) == "acme"


async def test_an_end_between_two_nodes_is_not_missed(
    cluster: ClusterNodes, queue: TaskQueue, far: TaskQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The slot moves, and the task ends there before anybody listens."""
    handle = await queue.enqueue(echo("acme"), user_id="acme")
    wait = asyncio.create_task(handle.result())
    keys = home_of(queue, "acme")
    source = node_of(cluster, keys)
    await eventually(lambda: is_heard_at(source, queue, handle), PATIENCE)
    connector, may_find = queue.listener._connector_of(keys.state), asyncio.Event()
    find = connector.find

    async def find_late() -> Any:
        await may_find.wait()
        return await find()

    monkeypatch.setattr(connector, "find", find_late)
    target = cluster.masters[cluster.masters.index(source) - 1]
    await asyncio.to_thread(move_slot, key_slot(keys.state.encode()), source, target)
    await Worker(far).run_until_idle()
    assert not wait.done()
    may_find.set()
    assert await asyncio.wait_for(wait, 10) == "acme"


async def test_who_begins_to_wait_by_an_old_map_of_the_slots_is_sent_on(
    cluster: ClusterNodes, queue: TaskQueue, far: TaskQueue
) -> None:
    handle = await queue.enqueue(echo("acme"), user_id="acme")  # it knows where that is
    keys = home_of(queue, "acme")
    source = node_of(cluster, keys)
    target = cluster.masters[cluster.masters.index(source) - 1]
    await asyncio.to_thread(move_slot, key_slot(keys.state.encode()), source, target)
    heard: list[bytes | None] = []
    async with asyncio.timeout(PATIENCE):
        await queue.listener.subscribe(keys.done_channel("acme", handle.task_id), heard.append)
    assert await is_heard_at(target, queue, handle)
    await Worker(far).run_until_idle()
    await eventually(lambda: len(heard) == 1)
