"""11. Purge: everything of a user goes, and nothing of anybody else."""

import asyncio
from typing import Any

import msgspec
import pytest

from fairque import TaskQueue, TaskState, UnknownTask, Worker, current_task, task
from fairque.metrics import Metrics
from fairque.models import UserInfo
from fairque.redis.keys import encode_user
from fairque.tasks.registry import registry
from tests.support.core import Core, Key
from tests.support.eventually import eventually
from tests.support.resp import RespClient

USER, OTHER = "anna: *ä", "anna"


@task
async def echo(value: object = None) -> object:
    return value


@task
async def fail() -> None:
    raise ValueError


@task
async def share() -> None:
    await current_task().xcom.push("key", "secret")


@pytest.fixture(autouse=True)
def _registered():
    registry.update({made.name: made for made in (echo, fail, share)})


async def traces(server, queue: TaskQueue, user_id: str) -> list[str]:
    """Whatever any key of the server tells of the user: in its name, its members or its fields."""
    name = encode_user(user_id)
    async with Core(server.url, queue.name) as core:
        dump = core.dump()
    found = [key for key in dump if name in key.split(":")]
    for key, content in dump.items():
        found += [f"{key}: {text}" for text in texts(content) if name in text.split(":")]
    return found


def texts(key: Key) -> list[str]:
    parts: list[Any] = [task_id for task_id, _ in key.holdings] if key.kind == "stream" else key.content
    return [part.decode(errors="replace") if isinstance(part, bytes) else str(part) for part in parts]


async def fill(queue: TaskQueue, user_id: str) -> None:
    """Everything that a user can have, but running tasks."""
    await queue.set_policy(user_id, weight=2)
    kept = await queue.enqueue(echo(1), user_id=user_id)
    await queue.enqueue(fail(), user_id=user_id, task_id="dead")
    await queue.enqueue(share(), user_id=user_id)
    await queue.xcom(user_id, "another: space").push("key", 1)
    await Worker(queue, assigned_users=[user_id]).run_until_idle()
    await queue.enqueue(echo(), user_id=user_id, task_id="queued")
    await queue.enqueue(echo(), user_id=user_id, priority=6)
    await queue.enqueue(echo(), user_id=user_id, task_id="scheduled", delay=60)
    unknown = echo().options(allow_unknown=True)
    await queue.enqueue(unknown, user_id=user_id, task_id="deferred", depends_on=["never", "dead", "queued", kept])
    await queue.enqueue(echo(), user_id=user_id, depends_on=["deferred", "scheduled"])
    canceled = await queue.enqueue(echo(), user_id=user_id)
    await canceled.cancel()


def without_what_fades(user: UserInfo) -> UserInfo:
    return msgspec.structs.replace(user, metrics=Metrics(), wait_seconds=None, at=0.0)


async def test_nothing_of_the_user_is_left_and_nobody_else_is_touched(queue: TaskQueue, server):
    await fill(queue, USER)
    await fill(queue, OTHER)
    before, others = await queue.user(OTHER), sorted(await traces(server, queue, OTHER))
    assert len(await traces(server, queue, USER)) > 20
    purged = await queue.purge(USER)
    assert await traces(server, queue, USER) == []
    assert (purged.queued, purged.scheduled, purged.deferred, purged.dead_letters) == (2, 1, 2, 1)
    assert (purged.running, purged.xcom_namespaces, purged.complete) == (0, 2, True)
    assert purged.results >= 3
    assert without_what_fades(await queue.user(OTHER)) == without_what_fades(before)
    assert sorted(await traces(server, queue, OTHER)) == others
    stats = await queue.stats()
    assert (stats.queued, stats.scheduled, stats.deferred, stats.started) == (2, 1, 2, 0)
    await queue.purge(OTHER)
    stats = await queue.stats()
    assert (stats.queued, stats.scheduled, stats.deferred, stats.users_known, stats.users_ready) == (0, 0, 0, 0, 0)


async def test_running_tasks_are_canceled_first(queue: TaskQueue, server):
    told = []

    @task
    async def wait() -> None:
        told.append("started")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            told.append("cancelled")
            raise

    running = await queue.enqueue_many([wait()] * 3, user_id=USER)
    async with Worker(queue):
        await eventually(lambda: len(told) == 3)
        await queue.enqueue(echo(), user_id=USER, depends_on=running)
        purged = await queue.purge(USER)
        assert (purged.running, purged.deferred, purged.complete) == (3, 1, True)
        assert told == ["started"] * 3 + ["cancelled"] * 3
        assert await traces(server, queue, USER) == []
        with pytest.raises(UnknownTask):
            await running[0].state()
    assert await traces(server, queue, USER) == []


async def test_what_does_not_stop_in_time_is_left_for_another_purge(queue: TaskQueue, server):
    inside, go_on = asyncio.Event(), asyncio.Event()

    @task
    async def deaf() -> None:
        inside.set()
        while not go_on.is_set():
            try:
                await go_on.wait()
            except asyncio.CancelledError:
                continue

    await queue.enqueue(deaf(), user_id=USER)
    async with Worker(queue, cancel_grace=60):
        await inside.wait()
        purged = await queue.purge(USER, timeout=0.1)
        assert (purged.running, purged.complete) == (1, False)
        go_on.set()
        assert (await queue.purge(USER)).complete
        assert await traces(server, queue, USER) == []


async def test_it_works_in_bounded_steps_and_may_be_broken_off_after_any(queue: TaskQueue, server):
    chain = [echo().options(task_id="0")]
    chain += [echo().options(task_id=str(at), depends_on=[str(at - 1)]) for at in range(1, 30)]
    await queue.enqueue_many(chain, user_id=USER)
    store = queue.store()
    for left in (28, 21, 14, 7):
        await store.purge_step(USER, 7)
        user = await queue.user(USER)
        assert user.queued + user.deferred - left in range(-6, 3)
    await store.close()
    purged = await queue.purge(USER)
    assert purged.complete
    assert await traces(server, queue, USER) == []
    again = await queue.purge(USER)
    assert (again.queued, again.deferred, again.results) == (0, 0, 0)


async def test_a_large_backlog_is_erased(queue: TaskQueue, server):
    await queue.enqueue_many([echo()] * 2200, user_id=USER)
    first = await queue.enqueue(echo(), user_id=USER)
    await queue.enqueue_many([echo().options(depends_on=[first])] * 700, user_id=USER)
    purged = await queue.purge(USER)
    assert (purged.queued, purged.deferred) == (2201, 700)
    assert await traces(server, queue, USER) == []


async def test_a_waiting_result_is_told(queue: TaskQueue):
    handle = await queue.enqueue(echo(), user_id=USER)
    waiting = asyncio.create_task(handle.result(20))
    await eventually(lambda: is_watched(queue))
    await queue.purge(USER)
    with pytest.raises(UnknownTask):
        await waiting


async def is_watched(queue: TaskQueue) -> bool:
    with RespClient(queue.connector.url) as client:
        return bool(client.execute("PUBSUB", "SHARDCHANNELS", f"*{queue.name}*done:*"))


async def test_the_user_may_come_back(queue: TaskQueue):
    await fill(queue, USER)
    await queue.purge(USER)
    handle = await queue.enqueue(echo("again"), user_id=USER, task_id="queued")
    assert handle.created
    await Worker(queue).run_until_idle()
    assert await handle.result(20) == "again"
    user = await queue.user(USER)
    assert (user.weight, user.finished, user.failed, user.deferred) == (1, 1, 0, 0)


async def test_a_worker_of_the_user_still_hears_of_new_work(queue: TaskQueue):
    async with Worker(queue, assigned_users=[USER], poll_interval=60):
        await (await queue.enqueue(echo(), user_id=USER)).result(20)
        await queue.purge(USER)
        assert await (await queue.enqueue(echo(7), user_id=USER)).result(20) == 7


async def test_purging_nobody_is_fine(queue: TaskQueue):
    purged = await queue.purge("nobody")
    assert purged.complete
    assert (purged.queued, purged.results) == (0, 0)
    assert await (await queue.enqueue(echo(), user_id="nobody")).state() is TaskState.QUEUED
    await queue.purge("nobody")


async def test_nothing_is_left_of_a_group_when_its_user_and_the_workers_assigned_to_it_are_gone(
    queue: TaskQueue, server
):
    await queue.set_policy("acme", group="gold")
    async with Worker(queue, assigned_users=["acme"], scheduler=False):
        await (await queue.enqueue(echo(1), user_id="acme")).result(timeout=10)
        await queue.purge("acme")
    await Worker(queue, scheduler=False).run_until_idle()
    assert [key for key in server.keys(queue.name) if "ready@" in key or "assignments:" in key] == []
