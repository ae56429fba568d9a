"""10. Introspection: what is known of the queue, its users and its workers, at the price of what is returned."""

import asyncio
import os
import re
import socket
import time
from collections import Counter

import pytest

from fairque import (
    InvalidInput,
    Priority,
    QueueStats,
    Retry,
    TaskQueue,
    UserInfo,
    Worker,
    __version__,
    current_task,
    task,
)
from fairque.settings import QueueSettings
from fairque.tasks.registry import registry
from tests.support.core import Core
from tests.support.eventually import eventually
from tests.support.resp import RespClient


@task
async def echo(value: object = None) -> object:
    return value


@task
async def fail() -> None:
    raise ValueError


@pytest.fixture(autouse=True)
def _registered():
    registry.update({made.name: made for made in (echo, fail)})


def counted(stats: QueueStats | UserInfo) -> dict[str, int]:
    """The counters that are not zero."""
    names = (
        "critical",
        "normal",
        "started",
        "scheduled",
        "finished",
        "failed",
        "retried",
        "dead_letters",
        "users_ready",
    )
    return {name: count for name in names if (count := getattr(stats, name, 0))}


async def test_an_empty_queue_is_all_zeros(queue: TaskQueue, server, queue_name: str):
    stats = await queue.stats()
    assert counted(stats) == {}
    assert (stats.users_known, stats.workers, stats.queued) == (0, (), 0)
    assert await queue.users() == []
    assert server.keys(queue_name) == [], "looking writes nothing"


async def test_a_user_never_heard_of_is_all_zeros(queue: TaskQueue, server, queue_name: str):
    user = await queue.user("nobody")
    assert (user.user_id, counted(user), user.queued) == ("nobody", {}, 0)
    assert (user.weight, user.tag, user.seen_at) == (1.0, None, None)
    assert server.keys(queue_name) == []


@pytest.mark.leaves_keys
async def test_waiting_tasks_are_counted_by_lane(queue: TaskQueue):
    await queue.enqueue_many([echo()] * 3, user_id="anna")
    await queue.enqueue_many([echo()] * 2, user_id="anna", priority=Priority.CRITICAL)
    await queue.enqueue(echo(), user_id="ben", delay=60)
    await queue.enqueue(echo(), user_id="ben", priority=Priority.LOW)
    stats = await queue.stats()
    assert counted(stats) == {"critical": 2, "normal": 4, "scheduled": 1, "users_ready": 2}
    assert (stats.queued, stats.users_known) == (6, 2)
    assert counted(await queue.user("anna")) == {"critical": 2, "normal": 3}
    assert counted(await queue.user("ben")) == {"normal": 1, "scheduled": 1}


async def test_every_way_a_task_can_go_is_counted_and_ends_at_zero(queue: TaskQueue):
    go_on = asyncio.Event()

    @task(timeout=0.05)
    async def hang() -> None:
        await asyncio.Event().wait()

    @task
    async def flaky(delay: float) -> None:
        if current_task().attempt == 1:
            raise Retry(delay=delay)

    @task
    async def hold() -> None:
        await go_on.wait()

    calls = [*[echo()] * 5, fail(), hang(), flaky(0), flaky(0.05), hold(), echo().options(delay=0.05)]
    calls += [echo().options(result_ttl=0), echo().options(task_id="t"), echo().options(task_id="t")]
    for user in ("anna", "b:c"):
        for priority in (Priority.NORMAL, Priority.CRITICAL):
            await queue.enqueue_many(
                [call.options(task_id=f"t{priority}") if call.task_options.task_id else call for call in calls],
                user_id=user,
                priority=priority,
            )
    async with Worker(queue, concurrency=50):
        await eventually(lambda: started_is(queue, 4))
        assert counted(await queue.stats()) == {"started": 4, "finished": 40, "failed": 8, "retried": 8}
        for user in ("anna", "b:c"):
            of_user = counted(await queue.user(user))
            assert of_user == {"started": 2, "finished": 20, "failed": 4, "retried": 4, "dead_letters": 4}
        go_on.set()
    assert counted(await queue.stats()) == {"finished": 44, "failed": 8, "retried": 8}
    assert counted(await queue.user("b:c")) == {"finished": 22, "failed": 4, "retried": 4, "dead_letters": 4}


async def test_what_a_stopped_worker_puts_back_is_counted_as_waiting(queue: TaskQueue):
    entered, go_on = asyncio.Event(), asyncio.Event()

    @task
    async def hold() -> None:
        entered.set()
        await go_on.wait()

    await queue.enqueue(hold(), user_id="anna")
    async with Worker(queue, shutdown_timeout=0):
        await entered.wait()
        assert counted(await queue.stats()) == {"started": 1}
    assert counted(await queue.stats()) == {"normal": 1, "users_ready": 1}
    go_on.set()
    await Worker(queue).run_until_idle()
    assert counted(await queue.stats()) == {"finished": 1}


async def test_what_was_taken_over_is_counted_once(server, queue_name: str):
    async with TaskQueue(server.url, name=queue_name, lease=0.1) as queue:
        await queue.enqueue_many([echo()] * 10, user_id="anna")
        store = queue.store()
        silent = await store.claim("silent", 4, settings=QueueSettings(lease_ms=100), wait=False)
        assert len(silent.deliveries) == 4
        assert counted(await queue.stats()) == {"normal": 6, "started": 4, "users_ready": 1}
        async with Worker(queue):
            await eventually(lambda: finished_is(queue, 10))
        await store.leave("silent", [])
        await store.close()
        assert counted(await queue.stats()) == {"finished": 10}
        assert counted(await queue.user("anna")) == {"finished": 10}


async def test_the_weight_of_a_user_is_shown(queue: TaskQueue):
    await queue.set_policy("anna", weight=2.5)
    assert (await queue.user("anna")).weight == 2.5
    assert (await queue.user("ben")).weight == 1
    await queue.clear_policy("anna")
    assert (await queue.user("anna")).weight == 1


async def test_a_user_with_work_has_a_tag(queue: TaskQueue):
    await queue.enqueue_many([echo().options(cost=2.5)] * 2, user_id="anna")
    await queue.enqueue(echo(), user_id="ben")
    before = (await queue.user("anna")).tag
    assert before is not None
    await Worker(queue).run_until_idle()
    assert (await queue.user("anna")).tag is None
    assert (await queue.stats()).clock > 0


async def test_users_are_listed_the_most_recently_active_first(queue: TaskQueue):
    names = ["anna", "b:c", "{}", "**", "d%3Ae", "\n", "ü"]
    for name in names:
        await queue.enqueue(echo(), user_id=name)
        await asyncio.sleep(0.002)  # the clock of the list has milliseconds
    listed = await queue.users()
    assert [user.user_id for user in listed] == names[::-1]
    assert [counted(user) for user in listed] == [{"normal": 1}] * len(names)
    assert abs(listed[0].seen_at - time.time()) < 60
    assert [user.user_id for user in await queue.users(offset=1, limit=2)] == [names[-2], names[-3]]
    assert await queue.users(offset=100) == []
    for options in ({"offset": -1}, {"limit": 0}, {"limit": 1001}):
        with pytest.raises(InvalidInput, match="offset must be at least 0 and limit 1 to 1000"):
            await queue.users(**options)
    await Worker(queue).run_until_idle()


async def test_a_worker_is_listed_in_full_before_it_runs_anything(queue: TaskQueue):
    async with Worker(queue, concurrency=3):  # from here on it has claimed
        [worker] = (await queue.stats()).workers
        assert (worker.host, worker.concurrency) == (socket.gethostname(), 3)
        assert (await queue.demand()).slots == 3


async def test_a_worker_without_a_record_is_not_listed(queue: TaskQueue):
    async with Worker(queue), Core(queue.connector.url, queue.name) as core:
        [worker] = (await queue.stats()).workers
        core.execute("ZADD", ":workers", 10**15, "nobody")
        assert [each.worker_id for each in (await queue.stats()).workers] == [worker.worker_id]
        core.execute("ZREM", ":workers", "nobody")


async def test_workers_are_listed_while_they_live(queue: TaskQueue):
    entered, go_on = asyncio.Event(), asyncio.Event()

    @task
    async def hold() -> None:
        entered.set()
        await go_on.wait()

    async with Worker(queue, concurrency=7, worker_id="w:1"), Worker(queue, worker_id="w 2"):
        await queue.enqueue(hold(), user_id="anna")
        await entered.wait()
        await eventually(lambda: running_is(queue, 1))
        workers = {worker.worker_id: worker for worker in (await queue.stats()).workers}
        assert set(workers) == {"w:1", "w 2"}
        first = workers["w:1"]
        assert (first.concurrency, first.pid, first.host) == (7, os.getpid(), socket.gethostname())
        assert first.version == __version__
        assert abs(first.seen_at - time.time()) < 60
        assert abs(first.started_at - time.time()) < 60
        go_on.set()
    assert (await queue.stats()).workers == ()


@pytest.mark.leaves_keys
@pytest.mark.parametrize("look", ["stats", "user", "users"])
async def test_a_look_costs_what_it_returns_however_much_there_is(queue: TaskQueue, server, look: str):
    looks = {"stats": queue.stats, "user": lambda: queue.user("user-1"), "users": lambda: queue.users(limit=5)}
    costs = []
    with RespClient(server.url) as client:
        for users in range(10, 3010, 1000):
            await queue.enqueue_many([echo().options(user_id=f"user-{at}") for at in range(users)])
            await queue.enqueue_many([echo()] * 500, user_id="user-1")
            await looks[look]()
            before = commands(client)
            await looks[look]()
            costs.append(commands(client) - before)
    assert costs[0] == costs[1] == costs[2]
    assert not costs[0].keys() & {"keys", "scan", "hscan", "sscan", "zscan", "randomkey"}


def commands(client: RespClient) -> Counter[str]:
    """How often each ran so far, those inside scripts included."""
    found = re.findall(r"cmdstat_(\w+):calls=(\d+)", client.execute("INFO", "commandstats").decode())
    return Counter({name: int(calls) for name, calls in found})


async def started_is(queue: TaskQueue, count: int) -> bool:
    stats = await queue.stats()
    return stats.started == count and stats.queued == stats.scheduled == 0


async def finished_is(queue: TaskQueue, count: int) -> bool:
    return (await queue.stats()).finished == count


async def running_is(queue: TaskQueue, count: int) -> bool:
    return sum(worker.running for worker in (await queue.stats()).workers) == count
