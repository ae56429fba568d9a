"""What is told of a queue while one of its nodes says nothing: all of it names the partitions that are left out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from fairque import EVERYBODY, QueueUnavailable, TaskQueue, TaskScheduler, sync, task
from fairque.contrib.dashboard import Viewer, dashboard
from fairque.contrib.prometheus import QueueMetrics
from fairque.redis.keys import encode_user
from fairque.redis.missing import is_missing, note_missing, noting_missing
from fairque.redis.partitions import partition_of
from tests.partitions.test_cluster_of_partitions import COUNT, USERS, name_on, stopped, users_on
from tests.partitions.test_queue_of_partitions import fail_all
from tests.support.command import call_command
from tests.support.eventually import eventually
from tests.support.fleet import ClusterNodes, execute

if TYPE_CHECKING:
    from fairque.embedded.server import EmbeddedServer

TIMEOUT = 1.0
HANGING = 1


@task(name="missing.one")
async def one(n: int = 0) -> int:
    return n


@pytest.fixture(scope="module")
def cluster() -> Iterator[ClusterNodes]:
    with ClusterNodes().running() as cluster:
        for node in cluster.masters:
            execute(node, "CONFIG", "SET", "cluster-require-full-coverage", "no")
        yield cluster


@pytest.fixture
async def filled(cluster: ClusterNodes) -> AsyncIterator[TaskQueue]:
    """Each user has a dead letter, a task that waits, a policy, a limit and a schedule."""
    name = name_on(cluster, cluster.masters[0])
    async with TaskQueue(cluster.url, name=name, partitions=COUNT, timeout=TIMEOUT) as queue:
        await queue.enqueue_many([one().options(user_id=user) for user in USERS])
        await fail_all(queue)
        await queue.enqueue_many([one().options(user_id=user) for user in USERS])
        scheduler = TaskScheduler(queue)
        for user in USERS:
            await queue.set_policy(user, weight=2)
            await queue.set_limit("crm", user_id=user, max_running=1)
            await scheduler.add_schedule(every=3600, task=one(), user_id=user)
        yield queue


def gone(cluster: ClusterNodes, queue: TaskQueue) -> set[str]:
    return set(users_on(cluster, queue, cluster.masters[HANGING]))


def partitions_on(cluster: ClusterNodes, queue: TaskQueue) -> tuple[int, ...]:
    """Of those that users live in."""
    return tuple(sorted({partition_of(encode_user(user), COUNT) for user in gone(cluster, queue)}))


def of_user(each: Any) -> str:
    return str(each if isinstance(each, str) else getattr(each, "schedule", each).user_id)


READS: dict[str, Any] = {
    "users": lambda queue: queue.users(limit=1000),
    "active_users": lambda queue: queue.active_users(limit=1000),
    "find_users": lambda queue: queue.find_users(limit=1000),
    "find_users by waiting": lambda queue: queue.find_users(order="waiting", limit=1000),
    "find_users by letters": lambda queue: queue.find_users(order="dead", limit=1000),
    "find_users by prefix": lambda queue: queue.find_users(prefix="user", limit=1000),
    "dead_letters": lambda queue: queue.dead_letters(limit=1000),
    "dead_groups": lambda queue: queue.dead_groups(),
    "policies": lambda queue: queue.policies(limit=1000),
    "groups": lambda queue: queue.groups(),
    "limits": lambda queue: queue.limits(limit=1000),
    "running": lambda queue: queue.running(),
    "shares": lambda queue: queue.shares(),
    "demand": lambda queue: queue.demand(),
    "stats": lambda queue: queue.stats(),
    "list_schedules": lambda queue: TaskScheduler(queue).list_schedules(),
    "schedule_page": lambda queue: TaskScheduler(queue).schedule_page(limit=500),
}
"""Reads of the whole queue whose answers have `missing`."""
LISTS = {"users": None, "active_users": None, "dead_letters": None, "policies": None, "limits": None}
LISTS |= {"list_schedules": None, "find_users": "users", "find_users by prefix": "users", "schedule_page": "schedules"}


async def all_read(queue: TaskQueue) -> dict[str, Any]:
    return dict(zip(READS, await asyncio.gather(*(read(queue) for read in READS.values())), strict=True))


async def test_each_read_of_the_whole_queue_names_the_partitions_that_it_leaves_out(
    cluster: ClusterNodes, filled: TaskQueue
) -> None:
    for name, found in (await all_read(filled)).items():
        assert found.missing == (), name
        if name in LISTS:
            assert {of_user(each) for each in listed(name, found)} == set(USERS), name
    hanging, away = cluster.masters[HANGING], gone(cluster, filled)
    with stopped(hanging):
        for name, found in (await all_read(filled)).items():
            assert set(found.missing) == set(all_partitions_of(filled, cluster)), name
            if name in LISTS:
                assert {of_user(each) for each in listed(name, found)} == set(USERS) - away, name
        assert (await filled.overview()).stats.missing == (await filled.health()).stats.missing != ()
    await eventually(lambda: nothing_is_missing(filled), 20)


def listed(name: str, found: Any) -> Any:
    return found if LISTS[name] is None else getattr(found, LISTS[name])


def all_partitions_of(queue: TaskQueue, cluster: ClusterNodes) -> tuple[int, ...]:
    """Those at the node that hangs, also if no user of the test lives there."""
    from tests.partitions.test_cluster_of_partitions import node_of

    hanging = cluster.masters[HANGING]
    return tuple(part.number for part in queue.reader.parts if node_of(cluster, part.keys) is hanging)


async def nothing_is_missing(queue: TaskQueue) -> bool:
    return (await queue.stats()).missing == ()


async def test_what_acts_on_dead_letters_of_all_says_whose_it_could_not_reach(
    cluster: ClusterNodes, filled: TaskQueue
) -> None:
    away = gone(cluster, filled)
    [group] = (await filled.dead_groups()).groups
    with stopped(cluster.masters[HANGING]):
        step = await filled.discard_group(group, limit=5)
        assert (step.done, step.missing) == (5, all_partitions_of(filled, cluster))
        with pytest.raises(QueueUnavailable, match=rf"^{len(USERS) - len(away) - 5} requeued; no answer from part"):
            await filled.requeue_all()
    await eventually(lambda: nothing_is_missing(filled), 20)
    assert await filled.requeue_all() == len(away)


async def test_what_is_for_bills_is_told_whole_or_not_at_all(cluster: ClusterNodes, filled: TaskQueue) -> None:
    with stopped(cluster.masters[HANGING]), pytest.raises(QueueUnavailable, match="partition"):
        await filled.usage(EVERYBODY)
    await eventually(lambda: nothing_is_missing(filled), 20)


@pytest.mark.parametrize(
    "words",
    [
        ["users"],
        ["info"],
        ["top", "--once", "--interval", "0.1"],
        ["dead", "list"],
        ["dead", "groups"],
        ["policy", "show"],
        ["limits", "list"],
        ["schedule", "list"],
        ["demand"],
    ],
    ids=" ".join,
)
async def test_commands_name_the_partitions_that_they_leave_out(
    cluster: ClusterNodes, filled: TaskQueue, words: list[str]
) -> None:
    where = ["--url", cluster.url, "--queue", filled.name]
    env = {"FAIRQUE_REDIS_TIMEOUT": str(TIMEOUT)}
    whole = await call_command(*words, *where, env=env)
    assert (whole.code, whole.err) == (0, ""), whole
    with stopped(cluster.masters[HANGING]):
        part = await call_command(*words, *where, env=env)
    assert part.code == 0, part
    assert "warning: no answer from partitions" in part.err
    assert len(part.err.splitlines()) == 1
    await eventually(lambda: nothing_is_missing(filled), 20)


async def test_pages_of_the_dashboard_name_the_partitions_that_they_leave_out(
    cluster: ClusterNodes, filled: TaskQueue
) -> None:
    app = dashboard(filled, authorize=lambda _: Viewer("ops", users=EVERYBODY))
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        pages = ["/", "/users", "/workers", "/dead-letters", "/schedules", "/limits", "/health"]
        for page in pages:
            assert "does not answer" not in (await client.get(page)).text, page
        with stopped(cluster.masters[HANGING]):
            answers = await asyncio.gather(*(client.get(page) for page in pages))
        for page, answer in zip(pages, answers, strict=True):
            assert answer.status_code == 200, page
            assert "Part of the queue does not answer (no answer from partitions" in answer.text, page
    await eventually(lambda: nothing_is_missing(filled), 20)


async def test_the_blocking_face_names_the_partitions_that_it_leaves_out(
    cluster: ClusterNodes, filled: TaskQueue
) -> None:
    def look() -> list[tuple[int, ...]]:
        with sync.TaskQueue(cluster.url, name=filled.name, timeout=TIMEOUT) as queue, stopped(hanging):
            return [queue.users().missing, queue.dead_letters().missing, queue.policies().missing]

    hanging: EmbeddedServer = cluster.masters[HANGING]
    found = await asyncio.to_thread(look)
    assert found == [all_partitions_of(filled, cluster)] * 3
    await eventually(lambda: nothing_is_missing(filled), 20)


async def test_metrics_that_lack_a_partition_say_that_something_is_missing(
    cluster: ClusterNodes, filled: TaskQueue
) -> None:
    metrics = QueueMetrics(filled, max_age=0, timeout=10)
    up = f'fairque_up{{queue="{filled.name}"}} '
    assert f"{up}1.0" in (await metrics.render()).decode()
    with stopped(cluster.masters[HANGING]):
        assert f"{up}0.0" in (await metrics.render()).decode()
    await eventually(lambda: nothing_is_missing(filled), 20)


# The notes


def test_what_is_missing_in_a_block_is_missing_in_the_one_around_it() -> None:
    note_missing([9])
    with noting_missing() as outer:
        note_missing([3])
        with noting_missing() as inner:
            note_missing([5, 1])
        assert inner.numbers == (1, 5)
    assert outer.numbers == (1, 3, 5)
    note_missing([7])
    assert outer.numbers == (1, 3, 5)


def test_what_did_not_answer_is_not_waited_for_again_while_it_is_of_one_moment() -> None:
    with noting_missing(is_brief=False) as lasting:
        note_missing([2])
        assert not is_missing(2)
        with noting_missing():
            assert not is_missing(2)
            note_missing([3])
            assert is_missing(3)
        assert not is_missing(3)
    assert lasting.numbers == (2, 3)


async def test_many_steps_wait_for_a_node_that_hangs_once(cluster: ClusterNodes, filled: TaskQueue) -> None:
    with stopped(cluster.masters[HANGING]):
        for look in (filled.health, filled.overview):
            began = time.monotonic()
            found = await look()
            assert time.monotonic() - began < 2 * TIMEOUT
            assert found.stats.missing == all_partitions_of(filled, cluster)
    await eventually(lambda: nothing_is_missing(filled), 20)


async def test_commands_about_one_user_lack_nothing(cluster: ClusterNodes, filled: TaskQueue) -> None:
    there = next(user for user in USERS if user not in gone(cluster, filled))
    where = ["--url", cluster.url, "--queue", filled.name]
    with stopped(cluster.masters[HANGING]):
        for words in (["tasks", there], ["dead", "list", there], ["schedule", "list", there], ["resume", there]):
            told = await call_command(*words, *where, env={"FAIRQUE_REDIS_TIMEOUT": str(TIMEOUT)})
            assert (told.code, told.err) == (0, ""), words
    await eventually(lambda: nothing_is_missing(filled), 20)


async def test_two_reads_at_once_know_nothing_of_each_other() -> None:
    async def read(number: int) -> tuple[int, ...]:
        with noting_missing() as missing:
            await asyncio.sleep(0)
            note_missing([number])
            await asyncio.sleep(0)
        return missing.numbers

    assert await asyncio.gather(read(1), read(2)) == [(1,), (2,)]
