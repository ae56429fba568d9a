"""What becomes possible by time alone starts at its moment, on a worker that sleeps and does not look for itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from fairque import EVERYBODY, Breaker, Everybody, TaskQueue, Worker
from fairque.redis.assignment import assignments_of
from fairque.redis.store import Store
from tests.support.core import Core
from tests.support.eventually import eventually
from tests.support.servers import Server
from tests.support.starts import Starts, fail, start
from tests.support.tenants import put, tasks_of

pytestmark = pytest.mark.leaves_keys()
LATE = 0.15
"""Seconds: 0.05, and what a small machine with other work takes."""
NO_LOOK = 30.0


@asynccontextmanager
async def sleeping_worker(
    server: Server, queue: TaskQueue, concurrency: int = 2, **options: Any
) -> AsyncIterator[Worker]:
    """It has looked, found nothing, and hears what it is told."""
    async with Worker(queue, concurrency=concurrency, poll_interval=NO_LOOK, scheduler=False, **options) as worker:
        channel = queue.reader.keys_of("acme").wake_channel(worker.worker_id)
        await eventually(lambda: server.execute("PUBSUB", "SHARDNUMSUB", channel)[1])
        yield worker


@pytest.fixture
async def worker(server: Server, queue: TaskQueue) -> AsyncIterator[Worker]:
    async with sleeping_worker(server, queue) as worker:
        yield worker


async def starts_at(starts: Starts, moment: float, count: int = 1) -> None:
    await starts.reach(count, deadline=max(0.0, moment - time.time()) + 3 * LATE)
    assert -LATE <= starts.times[-1] - moment <= LATE


@pytest.mark.usefixtures("worker")
async def test_one_task_after_another_starts_when_the_rate_of_its_user_allows_it(queue: TaskQueue) -> None:
    await queue.set_policy("acme", rate="4/s")
    starts = Starts()
    await queue.enqueue(start(), user_id="acme")
    await starts.reach(1, deadline=5.0)
    for count in (2, 3, 4):
        due = starts.times[-1] + 0.25
        await queue.enqueue(start(), user_id="acme")
        await starts_at(starts, due, count)


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize("whose", ["acme", EVERYBODY])
async def test_a_task_starts_when_the_pause_of_its_user_ends(queue: TaskQueue, whose: str | Everybody) -> None:
    starts, until = Starts(), datetime.now(UTC) + timedelta(seconds=0.6)
    await queue.pause(whose, until=until)
    await queue.enqueue(start(), user_id="acme")
    await starts_at(starts, until.timestamp())


@pytest.mark.usefixtures("worker")
async def test_a_task_starts_when_the_breaker_of_its_user_has_cooled_down(queue: TaskQueue) -> None:
    await queue.set_policy("acme", breaker=Breaker(failures=1, window=60, cooldown=0.5))
    starts = Starts()
    await queue.enqueue(fail(), user_id="acme")

    async def opened() -> float | None:
        return (await queue.user("acme")).breaker_open_until

    until = await eventually(opened)
    assert until is not None
    await queue.enqueue(start(), user_id="acme")
    await starts_at(starts, until)


@pytest.mark.usefixtures("worker")
async def test_one_task_after_another_starts_when_the_rate_of_its_name_allows_it(queue: TaskQueue) -> None:
    await queue.set_limit(start.name, rate="4/s")
    starts = Starts()
    await queue.enqueue(start(), user_id="acme")
    await starts.reach(1, deadline=5.0)
    for count in (2, 3, 4):
        due = starts.times[-1] + 0.25
        await queue.enqueue(start(), user_id="acme")
        await starts_at(starts, due, count)


@pytest.mark.usefixtures("worker")
async def test_a_scheduled_task_starts_when_it_is_due(queue: TaskQueue) -> None:
    starts, due = Starts(), datetime.now(UTC) + timedelta(seconds=0.4)
    await queue.enqueue(start(), user_id="acme", execute_after=due)
    await starts_at(starts, due.timestamp())


@pytest.mark.parametrize("which", [0, 1])
async def test_the_moment_is_kept_when_one_of_two_workers_goes(server: Server, queue: TaskQueue, which: int) -> None:
    await queue.set_policy("acme", rate="1/s")
    starts = Starts()
    async with sleeping_worker(server, queue) as first, sleeping_worker(server, queue) as second:
        await queue.enqueue(start(), user_id="acme")
        await starts.reach(1, deadline=5.0)
        await queue.enqueue(start(), user_id="acme")
        await (first, second)[which].stop()
        await starts_at(starts, starts.times[0] + 1, 2)


async def test_two_of_many_idle_workers_get_up_for_a_moment(
    server: Server, queue: TaskQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    claiming: list[str] = []
    claim = Store.claim

    def counted(store: Store, worker: str, *args: Any, **options: Any) -> Any:
        claiming.append(worker)
        return claim(store, worker, *args, **options)

    async def are_quiet() -> bool:
        claims = len(claiming)
        await asyncio.sleep(0.1)
        return claims == len(claiming)

    monkeypatch.setattr(Store, "claim", counted)
    starts = Starts()
    async with AsyncExitStack() as stack:
        for _ in range(6):
            await stack.enter_async_context(sleeping_worker(server, queue))
        await eventually(are_quiet)
        claiming.clear()
        due = datetime.now(UTC) + timedelta(seconds=0.5)
        await queue.enqueue(start(), user_id="acme", execute_after=due)
        await starts_at(starts, due.timestamp())
        await eventually(lambda: time.time() > due.timestamp() + 0.2)
        assert len(set(claiming)) == 2


async def test_a_pause_of_everybody_ends_at_its_moment_for_workers_of_some_users_as_well(
    server: Server, queue: TaskQueue
) -> None:
    async with sleeping_worker(server, queue, assigned_users=["acme"]) as worker:
        starts = Starts()
        handle = await queue.enqueue(start(), user_id="acme")
        await handle.result(timeout=10)
        [assignment] = assignments_of([["acme"]])
        waiting = f"{queue.reader.keys_of('acme').prefix}waiting:{assignment.name}"
        await eventually(lambda: server.execute("SISMEMBER", waiting, worker.worker_id))
        until = datetime.now(UTC) + timedelta(seconds=0.5)
        await queue.pause(EVERYBODY, until=until)
        await queue.enqueue(start(), user_id="acme")
        await starts_at(starts, until.timestamp(), 2)


async def test_the_one_that_follows_a_keeper_that_is_gone_hands_the_next_moment_on(core: Core) -> None:
    at = core.now_us() // 1000 + 60
    await put(core, tasks_of("a", ["1"], at_ms=at))
    await put(core, tasks_of("b", ["1"], at_ms=at + 60_000))
    for worker in ("keeper", "second", "third"):
        await core.claim(1, worker=worker, wait=True)
    assert core.state()["second"] == "second"
    core.wait_until_ms(at + 55)
    assert await core.take(1, worker="second", wait=True)
    assert "second" not in core.state()
