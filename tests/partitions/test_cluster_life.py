"""What the life of a cluster does to a queue that is in use: slots that move, nodes that die or hand over."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing
from typing import TYPE_CHECKING, Any

import pytest
from redis.crc import key_slot

from fairque import TaskEvent, TaskHandle, TaskQueue, TaskScheduler, UnknownTask, Worker, current_task, task
from fairque.redis.keys import Keys, encode_user
from fairque.redis.partitions import partition_of
from fairque.redis.requester import pack
from fairque.redis.shared_blocking import BlockingConnections
from tests.support.eventually import eventually
from tests.support.fleet import ClusterNodes, execute, move_key_by_key, move_slot, owns
from tests.support.gate import new_gate, work
from tests.support.resp import RespClient
from tests.support.servers import new_queue_name

if TYPE_CHECKING:
    from fairque.embedded.server import EmbeddedServer

COUNT = 6
PATIENCE = 60.0
USERS = [f"user-{n}" for n in range(24)]
PRODUCERS = 4
UNHARMED = 3.0
"""Seconds that a task of others may take meanwhile, from being put in to its result, on a busy machine."""
starts: Counter[str] = Counter()
ticks: Counter[str] = Counter()


@task(name="life.count")
async def count(n: int) -> int:
    starts[current_task().task_id] += 1
    await asyncio.sleep(0.002)
    return n


@task(name="life.tick")
async def tick(which: str) -> None:
    ticks[which] += 1


streams_go_on = asyncio.Event()


@task(name="life.letters")
async def letters() -> AsyncIterator[int]:
    streams_go_on.set()
    n = 0
    while streams_go_on.is_set():
        yield n
        n += 1
        await asyncio.sleep(0.01)


class Load:
    """Producers that put in and wait, for as long as it lasts.

    Attributes:
        handles: Of all that was acknowledged, with what each returns.
        waits: By user, the seconds of each call and of each task, from when it was put in to its result.
        errors: Of calls.
    """

    def __init__(self, queue: TaskQueue) -> None:
        self._queue = queue
        self._is_over = False
        self.handles: list[tuple[TaskHandle[int], int]] = []
        self.waits: dict[str, list[float]] = {user: [] for user in USERS}
        self.errors: list[BaseException] = []

    async def produce(self, users: list[str]) -> None:
        n = 0
        while not self._is_over:
            user = users[n % len(users)]
            n += 1
            began = time.monotonic()
            try:
                handle = await self._queue.enqueue(count(n), user_id=user)
                self.handles.append((handle, n))
                assert await handle.result(timeout=PATIENCE) == n
            except Exception as exc:
                self.errors.append(exc)
            self.waits[user].append(time.monotonic() - began)
            await asyncio.sleep(0.005)

    def end(self) -> None:
        self._is_over = True

    def longest(self, users: list[str]) -> float:
        return max((seconds for user in users for seconds in self.waits[user]), default=0.0)


@asynccontextmanager
async def under_load(queue: TaskQueue, groups: list[list[str]]) -> AsyncIterator[Load]:
    """Users of one group wait for each other."""
    load = Load(queue)
    producers = [asyncio.create_task(load.produce(users)) for users in groups]
    await eventually(lambda: len(load.handles) > 50)
    try:
        yield load
        many = len(load.handles)
        await eventually(lambda: len(load.handles) > many + 50, PATIENCE)
    finally:
        load.end()
        await asyncio.gather(*producers)


def home_of(queue: TaskQueue, user: str) -> Keys:
    count = queue.settings.partitions
    return Keys(queue.name, (partition_of(encode_user(user), count), count)) if count > 1 else queue.keys


def node_of(cluster: ClusterNodes, keys: Keys) -> EmbeddedServer:
    slot = key_slot(keys.state.encode())
    return next(node for node in cluster.nodes if node.pid is not None and owns(node, slot))


async def came_to_an_end_once(load: Load, lost: list[TaskEvent]) -> None:
    assert load.errors == []
    assert lost == []
    for handle, n in load.handles:
        assert await handle.result(timeout=PATIENCE) == n
        assert starts[handle.task_id] == 1, handle


@pytest.fixture(scope="module")
def cluster() -> Iterator[ClusterNodes]:
    with ClusterNodes().running() as cluster:
        yield cluster


@asynccontextmanager
async def served(
    cluster: ClusterNodes, partitions: int, **options: Any
) -> AsyncIterator[tuple[TaskQueue, list[TaskEvent]]]:
    """A queue with two workers."""
    lost: list[TaskEvent] = []
    given: dict[str, Any] = {"timeout": PATIENCE, "lease": 5.0, **options}
    name = new_queue_name("life")
    async with (
        TaskQueue(cluster.url, name=name, partitions=partitions, **given) as queue,
        TaskQueue(cluster.url, name=name, **given) as other,
        Worker(queue, on_lost=lost.append, concurrency=5),
        Worker(other, on_lost=lost.append, concurrency=5),
    ):
        yield queue, lost


async def is_whole(queue: TaskQueue) -> bool:
    return (await queue.check()).findings == ()


@pytest.mark.parametrize("partitions", [1, COUNT])
@pytest.mark.parametrize("move", [move_key_by_key, move_slot])
async def test_a_slot_that_moves_under_load_loses_nothing_and_doubles_nothing(
    cluster: ClusterNodes, partitions: int, move: Callable[[int, EmbeddedServer, EmbeddedServer], None]
) -> None:
    async with served(cluster, partitions) as (queue, lost):
        keys = home_of(queue, USERS[0])
        slot, source = key_slot(keys.state.encode()), node_of(cluster, keys)
        target = cluster.masters[cluster.masters.index(source) - 1]
        await queue.enqueue_many([count(n).options(user_id=USERS[0], delay=3600) for n in range(300)])
        here = [user for user in USERS if home_of(queue, user).prefix == keys.prefix]
        elsewhere = [user for user in USERS if user not in here]
        groups = [group for group in (here, here, elsewhere, elsewhere) if group]
        async with under_load(queue, groups) as load:
            await asyncio.to_thread(move, slot, source, target)
        await came_to_an_end_once(load, lost)
        assert load.longest(elsewhere) < UNHARMED, "they waited for a slot of others"
        stats = await queue.stats()
        assert (stats.scheduled, stats.started, stats.queued, stats.failed) == (300, 0, 0, 0)
        assert await is_whole(queue)
        assert owns(target, slot)
        await asyncio.to_thread(move, slot, target, source)


@pytest.mark.parametrize("partitions", [1, COUNT])
async def test_what_runs_while_its_slot_moves_for_longer_than_a_lease_is_not_taken_over(
    cluster: ClusterNodes, partitions: int
) -> None:
    """Nobody can renew meanwhile."""
    gate = new_gate()
    async with served(cluster, partitions, lease=1.0) as (queue, lost):
        keys = home_of(queue, USERS[0])
        slot, source = key_slot(keys.state.encode()), node_of(cluster, keys)
        target = cluster.masters[cluster.masters.index(source) - 1]
        await queue.enqueue_many([count(n).options(user_id=USERS[0], delay=3600) for n in range(500)])
        running = [await queue.enqueue(work(n), user_id=USERS[0]) for n in range(6)]
        await eventually(lambda: len(gate.started) == 6)
        began = time.monotonic()
        await asyncio.to_thread(move_key_by_key, slot, source, target)
        assert time.monotonic() - began > 2.0, "it was to last longer than a lease"
        assert await (await queue.enqueue(count(1), user_id=USERS[0])).result(timeout=PATIENCE) == 1
        await asyncio.sleep(2.0)  # leases would be over
        gate.open()
        assert [await handle.result(timeout=PATIENCE) for handle in running] == list(range(6))
        assert (len(gate.started), lost) == (6, [])
        await asyncio.to_thread(move_slot, slot, target, source)


async def test_a_thread_leaves_no_connection_open_whoever_heard_first_that_a_slot_has_moved(
    cluster: ClusterNodes,
) -> None:
    async with TaskQueue(cluster.url, name=new_queue_name("life"), timeout=PATIENCE) as queue:
        await queue.enqueue(count(1), user_id=USERS[0])
        slot, source = key_slot(queue.keys.state.encode()), node_of(cluster, queue.keys)
        target = cluster.masters[cluster.masters.index(source) - 1]
        command = pack(("EXISTS", queue.keys.state))
        with closing(BlockingConnections()) as connections:
            requester = connections.requester(queue.connector)
            await asyncio.to_thread(requester.request, command)
            [first] = connections._by_address.values()
            await asyncio.to_thread(move_slot, slot, source, target)
            await queue.stats()  # which is told where it is
            await asyncio.to_thread(requester.request, command)
            await asyncio.to_thread(move_slot, slot, target, source)
            assert await asyncio.to_thread(requester.request, command) == 1  # which is told itself
            kept = connections._by_address.values()
            assert [each.is_connected for each in kept] == [True]
            assert first in kept


@pytest.mark.parametrize("move", [move_key_by_key, move_slot])
async def test_a_reader_of_a_stream_misses_nothing_while_its_slot_moves(
    cluster: ClusterNodes, move: Callable[[int, EmbeddedServer, EmbeddedServer], None]
) -> None:
    async with served(cluster, COUNT) as (queue, lost):
        keys = home_of(queue, USERS[0])
        slot, source = key_slot(keys.state.encode()), node_of(cluster, keys)
        target = cluster.masters[cluster.masters.index(source) - 1]
        handle = await queue.enqueue(letters(), user_id=USERS[0])
        read: list[int] = []

        async def read_all() -> None:
            async for n in handle.stream():
                read.append(n)  # noqa: PERF401 - it is looked at meanwhile

        reading = asyncio.create_task(read_all())
        for here, there in ((source, target), (target, source)):
            many = len(read)
            await eventually(lambda many=many: len(read) > many + 20, PATIENCE)
            await asyncio.to_thread(move, slot, here, there)
        many = len(read)
        await eventually(lambda: len(read) > many + 20, PATIENCE)
        streams_go_on.clear()
        await asyncio.wait_for(reading, PATIENCE)
        assert read == list(range(len(read)))
        assert (await handle.result(timeout=PATIENCE)).chunks == len(read)
        assert lost == []


# A node hands over, or dies


@pytest.fixture
def guarded() -> Iterator[ClusterNodes]:
    """The first node has a replica, and the others go on without it."""
    with ClusterNodes(replicas=1).running() as cluster:
        for node in cluster.nodes:
            execute(node, "CONFIG", "SET", "cluster-require-full-coverage", "no")
        yield cluster


def users_apart(cluster: ClusterNodes, queue: TaskQueue) -> tuple[list[str], list[str]]:
    """Those on the first node, and the others."""
    here = [user for user in USERS if node_of(cluster, home_of(queue, user)) is cluster.masters[0]]
    return here, [user for user in USERS if user not in here]


async def go_on_ticking(*names: str) -> None:
    before = ticks.copy()
    await eventually(lambda: all(ticks[name] > before[name] + 1 for name in names), PATIENCE)


async def test_a_node_that_hands_over_under_load_loses_nothing_and_doubles_nothing(guarded: ClusterNodes) -> None:
    heir = guarded.nodes[3]
    async with served(guarded, COUNT) as (queue, lost):
        here, elsewhere = users_apart(guarded, queue)
        async with under_load(queue, [here, here, elsewhere, elsewhere]) as load:
            await asyncio.to_thread(execute, heir, "CLUSTER", "FAILOVER")
            await eventually(lambda: owns(heir, slot_of(queue, here[0])), PATIENCE)
        await came_to_an_end_once(load, lost)
        assert load.longest(elsewhere) < UNHARMED
        assert await is_whole(queue)


def slot_of(queue: TaskQueue, user: str) -> int:
    return key_slot(home_of(queue, user).state.encode())


async def test_a_node_that_dies_under_load_loses_what_was_not_copied_and_delays_its_own_users_alone(
    guarded: ClusterNodes,
) -> None:
    """Replication is asynchronous: what the replica has not, is lost. All else goes on: waits, schedules, messages."""
    dying, heir = guarded.masters[0], guarded.nodes[3]
    async with served(guarded, COUNT) as (queue, _):
        here, elsewhere = users_apart(guarded, queue)
        scheduler, names = TaskScheduler(queue), (f"here of {queue.name}", f"elsewhere of {queue.name}")
        for name, users in zip(names, (here, elsewhere), strict=True):
            ticking = tick(name).options(user_id=users[0])
            await scheduler.add_schedule(schedule_id=name, task=ticking, every=1)
        await go_on_ticking(*names)
        later = await queue.enqueue(count(7).options(delay=8), user_id=here[0])
        waiting = asyncio.create_task(later.result(timeout=2 * PATIENCE))
        async with under_load(queue, [here, here, elsewhere, elsewhere]) as load:
            known = len(load.handles)
            assert await asyncio.to_thread(is_copied, dying)
            dying.kill()
            await go_on_ticking(names[1])
            await eventually(lambda: owns(heir, slot_of(queue, here[0])), PATIENCE)
            await go_on_ticking(*names)
        assert await waiting == 7
        assert all(isinstance(error, UnknownTask) for error in load.errors), load.errors
        for at, (handle, n) in enumerate(load.handles):
            if at < known or handle.user_id in elsewhere:
                assert await handle.result(timeout=PATIENCE) == n
            if handle.user_id in elsewhere:
                assert starts[handle.task_id] == 1
        assert load.longest(elsewhere) < UNHARMED
        for name in names:
            await scheduler.remove_schedule(name)
        await eventually(lambda: is_idle(queue), PATIENCE)
        assert await is_whole(queue)


def is_copied(node: EmbeddedServer) -> bool:
    """Whether its replica has all that was written before."""
    with RespClient(node.url, timeout=2 * PATIENCE) as client:
        own = next(f"probe{{{n}}}" for n in range(100_000) if owns(node, key_slot(b"probe{%d}" % n)))
        client.execute("SET", own, "1", "PX", "1")
        return bool(client.execute("WAIT", 1, int(PATIENCE * 1000)))


async def is_idle(queue: TaskQueue) -> bool:
    stats = await queue.stats()
    return stats.queued == stats.started == stats.scheduled == 0
