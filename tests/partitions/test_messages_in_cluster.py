"""Messages in a cluster: each is told at the node of its slot alone, and heard there, wherever that moves."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterator
from itertools import combinations
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest
from redis.crc import key_slot

from fairque import QueueUnavailable, TaskHandle, TaskQueue, Worker, task
from fairque.queue import changes
from fairque.redis.keys import Keys, encode_user
from fairque.redis.partitions import partition_of
from fairque.redis.requester import pack
from tests.support.eventually import eventually
from tests.support.fleet import ClusterNodes, execute, move_key_by_key, move_slot, owns
from tests.support.servers import new_queue_name, program

if TYPE_CHECKING:
    from fairque.embedded.server import EmbeddedServer

COUNT = 6
NEVER = 3600.0
PATIENCE = 40.0
Move: TypeAlias = "Callable[[int, EmbeddedServer, EmbeddedServer], None]"


@task(name="messages.echo")
async def echo(text: str) -> str:
    return text


@pytest.fixture(scope="module", params=["valkey", "redis8"])
def cluster(request: pytest.FixtureRequest) -> Iterator[ClusterNodes]:
    binary = program(request.param)
    if binary is None and request.param != "valkey":
        pytest.skip("there is no such server here")
    with ClusterNodes(binary=binary).running() as cluster:
        yield cluster


@pytest.fixture
def move(cluster: ClusterNodes) -> Move:
    """As a whole where the server can do that."""
    return move_slot if cluster.binary is None else move_key_by_key


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
    cluster: ClusterNodes, move: Move, monkeypatch: pytest.MonkeyPatch, partitions: int
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
            await asyncio.to_thread(move, key_slot(keys.state.encode()), source, target)
            await eventually(lambda target=target: is_heard_at(target, queue, handle), PATIENCE)
            assert not await is_heard_at(source, queue, handle)
        await Worker(far).run_until_idle()
        assert await asyncio.wait_for(wait, 5) == "acme"


async def test_an_end_between_two_nodes_is_not_missed(
    cluster: ClusterNodes, move: Move, queue: TaskQueue, far: TaskQueue, monkeypatch: pytest.MonkeyPatch
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
    await asyncio.to_thread(move, key_slot(keys.state.encode()), source, target)
    await Worker(far).run_until_idle()
    assert not wait.done()
    may_find.set()
    assert await asyncio.wait_for(wait, 10) == "acme"


async def test_who_begins_to_wait_by_an_old_map_of_the_slots_is_sent_on(
    cluster: ClusterNodes, move: Move, queue: TaskQueue, far: TaskQueue
) -> None:
    handle = await queue.enqueue(echo("acme"), user_id="acme")  # it knows where that is
    keys = home_of(queue, "acme")
    source = node_of(cluster, keys)
    target = cluster.masters[cluster.masters.index(source) - 1]
    await asyncio.to_thread(move, key_slot(keys.state.encode()), source, target)
    heard: list[bytes | None] = []
    async with asyncio.timeout(PATIENCE):
        await queue.listener.subscribe(keys.done_channel("acme", handle.task_id), heard.append)
    assert await is_heard_at(target, queue, handle)
    await Worker(far).run_until_idle()
    await eventually(lambda: len(heard) == 1)


# Users at one node


async def test_who_waits_for_very_much_is_no_delay_to_a_user_of_another_partition_at_the_same_node(
    cluster: ClusterNodes, queue: TaskQueue
) -> None:
    """What a node is asked for goes by turns of users, whichever partition they are in."""
    await queue.stats()
    pairs = combinations([part.keys for part in queue.reader.parts], 2)
    first, beside = next(pair for pair in pairs if node_of(cluster, pair[0]) is node_of(cluster, pair[1]))
    listen = queue.listener.subscribe
    heard: list[bytes | None] = []
    await listen(f"{beside.prefix}connected", heard.append)
    many = [asyncio.create_task(listen(f"{first.prefix}{n}", heard.append, "acme")) for n in range(20_000)]
    await asyncio.sleep(0)
    await listen(f"{beside.prefix}one", heard.append, "zoe")
    assert sum(task.done() for task in many) < 4_000
    await asyncio.gather(*many)


# Nodes that disagree


async def test_a_partition_that_nodes_send_to_and_fro_is_asked_for_ever_more_rarely(
    cluster: ClusterNodes, queue: TaskQueue
) -> None:
    """A move that was broken off in its last step: each of the two says that it is the other."""
    await queue.stats()
    keys = next(part.keys for part in queue.reader.parts)
    slot, source = key_slot(keys.state.encode()), node_of(cluster, keys)
    target = cluster.masters[cluster.masters.index(source) - 1]
    heir = execute(target, "CLUSTER", "MYID").decode()
    heard: list[bytes | None] = []
    await queue.listener.subscribe(f"{keys.prefix}any", heard.append)
    for part in queue.reader.parts[1:]:  # so each node is connected to, whatever comes of that one
        await queue.listener.subscribe(f"{part.keys.prefix}any", lambda _: None)
    execute(source, "CLUSTER", "SETSLOT", slot, "NODE", heir)
    await asyncio.sleep(2.0)  # it is sent to and fro meanwhile
    asked = refused(source) + refused(target)
    assert 2 <= asked <= 40
    with pytest.raises(QueueUnavailable, match="moved 5 times within one request"):
        await queue.reader.parts[0]._insist(pack(("HGETALL", keys.settings)), 0.5)
    execute(target, "CLUSTER", "SETSLOT", slot, "NODE", heir)
    await eventually(lambda: execute(target, "PUBSUB", "SHARDNUMSUB", f"{keys.prefix}any")[1] == 1, PATIENCE)
    await eventually(lambda: None in heard)
    execute(target, "SPUBLISH", f"{keys.prefix}any", "here")
    await eventually(lambda: b"here" in heard)


def refused(node: EmbeddedServer) -> int:
    """How many subscriptions it has sent elsewhere."""
    told = execute(node, "INFO", "commandstats").decode()
    found = re.search(r"cmdstat_ssubscribe:.*?rejected_calls=(\d+)", told)
    return int(found[1]) if found else 0
