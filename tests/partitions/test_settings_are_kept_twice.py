"""How many partitions a queue has is kept twice: whoever names no number must never take it for one without any."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from redis.crc import key_slot

from fairque import FindingKind, SettingsMismatch, TaskQueue, Worker, task
from fairque.redis.keys import Keys
from fairque.redis.partitions import MOST_PARTITIONS, SLOTS, queue_in_tag, tag_of_copy, tags_of
from tests.partitions.test_cluster_of_partitions import COUNT as NODES_COUNT
from tests.partitions.test_cluster_of_partitions import USERS as USERS_OF_NODES
from tests.partitions.test_cluster_of_partitions import name_on, stopped, users_on
from tests.support.command import call_command
from tests.support.fleet import ClusterNodes, execute

if TYPE_CHECKING:
    from tests.support.servers import Server

COUNT = 4
USERS = [f"user {n}" for n in range(8)]
pytestmark = [pytest.mark.leaves_keys(), pytest.mark.partitions(1)]


@task(name="twice.one")
async def one() -> int:
    return 1


@pytest.fixture(scope="module")
def cluster() -> Iterator[ClusterNodes]:
    with ClusterNodes().running() as cluster:
        for node in cluster.masters:
            execute(node, "CONFIG", "SET", "cluster-require-full-coverage", "no")
        yield cluster


@pytest.fixture
async def spread(server: Server, queue_name: str) -> str:
    """The name of a queue with partitions that has tasks, and settings that nobody would guess."""
    async with TaskQueue(server.url, name=queue_name, partitions=COUNT, lease=7) as queue:
        await queue.enqueue_many([one().options(user_id=user) for user in USERS])
    return queue_name


def of_queue(name: str) -> str:
    return Keys(name).settings


def of_copy(name: str) -> str:
    return Keys(name).copy.settings


# Where they are


@pytest.mark.parametrize("name", ["default", "a", "images/2", "ü" * 90])
def test_the_copy_lies_on_the_other_side_of_the_slots_and_under_no_partitions_name(name: str) -> None:
    root, copy = key_slot(of_queue(name).encode()), key_slot(of_copy(name).encode())
    assert abs(abs(root - copy) - SLOTS // 2) < 200
    assert queue_in_tag(tag_of_copy(name)) == name
    assert tag_of_copy(name) not in {tag for count in (2, 3, 64, MOST_PARTITIONS) for tag in tags_of(name, count)}


async def test_both_say_the_same(server: Server, spread: str) -> None:
    first, second = (server.execute("HGETALL", key) for key in (of_queue(spread), of_copy(spread)))
    assert dict(zip(first[::2], first[1::2], strict=True)) == dict(zip(second[::2], second[1::2], strict=True))
    assert b"partitions" in first


async def test_both_are_changed(server: Server, spread: str) -> None:
    async with TaskQueue(server.url, name=spread) as queue:
        await queue.change_settings(lease=33)
    assert [server.execute("HGET", key, "lease_ms") for key in (of_queue(spread), of_copy(spread))] == [b"33000"] * 2


async def test_a_queue_without_partitions_has_no_copy(server: Server, queue_name: str) -> None:
    async with TaskQueue(server.url, name=queue_name) as queue:
        await queue.enqueue(one(), user_id="acme")
    assert server.execute("EXISTS", of_copy(queue_name)) == 0


# One is lost


@pytest.mark.damages
async def test_who_names_no_number_finds_all_tasks_though_the_settings_are_lost(server: Server, spread: str) -> None:
    server.execute("DEL", of_queue(spread))
    async with TaskQueue(server.url, name=spread) as queue:
        assert (queue.settings.partitions, queue.settings.lease_ms) == (COUNT, 7000)
        assert (await queue.stats()).queued == len(USERS)


async def test_who_puts_in_without_a_look_makes_no_new_queue_though_the_settings_are_lost(
    server: Server, spread: str
) -> None:
    server.execute("DEL", of_queue(spread))
    unopened = TaskQueue(server.url, name=spread)
    await unopened.enqueue(one(), user_id=USERS[0])
    assert (await unopened.user(USERS[0])).queued == 2
    await unopened.close()
    assert server.execute("EXISTS", Keys(spread).state) == 0
    assert server.execute("HGET", of_queue(spread), "partitions") == b"4", "whoever writes puts back what was lost"


@pytest.mark.damages
async def test_a_worker_that_names_no_number_serves_all_though_the_settings_are_lost(
    server: Server, spread: str
) -> None:
    server.execute("DEL", of_queue(spread))
    async with TaskQueue(server.url, name=spread) as queue:
        handles = await queue.enqueue_many([one().options(user_id=user) for user in USERS])
        async with Worker(queue):
            assert await queue.results(handles, timeout=20) == [1] * len(USERS)


@pytest.mark.damages
@pytest.mark.parametrize("partitions", [1, 8])
async def test_who_names_another_number_is_told_though_the_settings_are_lost(
    server: Server, spread: str, partitions: int
) -> None:
    server.execute("DEL", of_queue(spread))
    before = server.keys(spread)
    with pytest.raises(SettingsMismatch, match=f"partitions 4, not {partitions}"):
        await TaskQueue(server.url, name=spread, partitions=partitions).open()
    unopened = TaskQueue(server.url, name=spread, partitions=partitions)
    with pytest.raises(SettingsMismatch):
        await unopened.enqueue(one(), user_id="acme")
    await unopened.close()
    assert server.keys(spread) == before


@pytest.mark.parametrize("lost", [of_queue, of_copy, None], ids=["the queue's", "the copy", "both"])
async def test_a_check_finds_settings_that_are_lost_and_a_repair_brings_them_back(
    server: Server, spread: str, lost: object
) -> None:
    keys = [lost(spread)] if callable(lost) else [of_queue(spread), of_copy(spread)]
    kept = server.execute("HGET", of_queue(spread), "lease_ms")
    server.execute("DEL", *keys)
    queue = TaskQueue(server.url, name=spread)
    found = await queue.check()
    assert [(each.kind, each.key, each.partition) for each in found.findings] == [
        (FindingKind.LOST_SETTINGS, "settings", None)
    ] * len(keys)
    assert "4 partitions" in found.findings[0].detail
    assert server.execute("EXISTS", *keys) == 0, "a check only looks"
    assert (await queue.check(repair=True)).sound
    assert (await queue.check()).findings == ()
    await queue.close()
    for key in (of_queue(spread), of_copy(spread)):
        assert server.execute("HMGET", key, "partitions", "lease_ms") == [b"4", kept]


async def test_settings_of_a_wrong_type_are_mended_from_their_copy(server: Server, spread: str) -> None:
    server.execute("SET", of_queue(spread), "nonsense")
    queue = TaskQueue(server.url, name=spread)
    assert (await queue.check(repair=True)).sound
    assert (await queue.check()).findings == ()
    assert (await queue.stats()).queued == len(USERS)
    await queue.close()
    [aside] = [key for key in server.keys(spread) if "damaged:" in key]
    server.execute("DEL", aside)


async def test_a_queue_that_nobody_has_written_into_lacks_nothing(server: Server, queue_name: str) -> None:
    async with TaskQueue(server.url, name=queue_name, partitions=COUNT) as queue:
        assert (await queue.check()).findings == ()
        assert (await queue.check(repair=True)).findings == ()
    assert server.keys(queue_name) == []


async def test_commands_know_the_queue_though_its_settings_are_lost(server: Server, spread: str) -> None:
    server.execute("DEL", of_queue(spread))
    words = ["--url", server.url, "--queue", spread]
    users = await call_command("users", *words, "--json")
    assert (users.code, len(users.json)) == (0, len(USERS))
    found = await call_command("doctor", *words)
    assert found.code == 3
    assert "lost-settings" in found.out
    assert (await call_command("doctor", "--repair", *words)).code == 0
    assert server.execute("EXISTS", of_queue(spread)) == 1


async def test_nothing_of_a_queue_is_left_when_it_is_erased(server: Server, spread: str) -> None:
    async with TaskQueue(server.url, name=spread) as queue:
        await queue.reader.erase_all()
    assert server.keys(spread) == []


# The node that has them is gone


async def test_who_names_no_number_opens_a_queue_without_the_node_of_its_settings(cluster: ClusterNodes) -> None:
    hanging = cluster.masters[1]
    name = name_on(cluster, hanging)
    async with TaskQueue(cluster.url, name=name, partitions=NODES_COUNT, lease=7) as queue:
        await queue.enqueue_many([one().options(user_id=user) for user in USERS_OF_NODES])
        gone = users_on(cluster, queue, hanging)
    there = next(user for user in USERS_OF_NODES if user not in gone)
    with stopped(hanging):
        async with TaskQueue(cluster.url, name=name, timeout=1.0) as queue:
            assert (queue.settings.partitions, queue.settings.lease_ms) == (NODES_COUNT, 7000)
            await queue.enqueue(one(), user_id=there)
            assert (await queue.user(there)).queued == 2
        seen = await call_command(
            "users", "--url", cluster.url, "--queue", name, "--json", env={"FAIRQUE_REDIS_TIMEOUT": "1"}
        )
        assert {user["user_id"] for user in seen.json} == set(USERS_OF_NODES) - set(gone)


async def test_the_node_of_the_copy_is_not_waited_for(cluster: ClusterNodes) -> None:
    hanging = cluster.masters[1]
    name = next(
        name for name in (f"twice-{n}" for n in range(1000)) if owner(cluster, Keys(name).copy.settings) is hanging
    )
    async with TaskQueue(cluster.url, name=name, partitions=NODES_COUNT) as queue:
        there = next(user for user in USERS_OF_NODES if user not in users_on(cluster, queue, hanging))
    with stopped(hanging):
        async with TaskQueue(cluster.url, name=name, partitions=NODES_COUNT, timeout=1.0) as queue:
            await queue.enqueue(one(), user_id=there)
    async with TaskQueue(cluster.url, name=name) as queue:
        assert [finding.kind for finding in (await queue.check()).findings] == [FindingKind.LOST_SETTINGS]
        assert (await queue.check(repair=True)).sound
        assert (await queue.user(there)).queued == 1


def owner(cluster: ClusterNodes, key: str) -> object:
    return next(node for node in cluster.masters if cluster.has(node, key_slot(key.encode())))
