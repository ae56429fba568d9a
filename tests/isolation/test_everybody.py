"""Policies of everybody hold at once, however many users there are."""

from __future__ import annotations

import time

import pytest

from fairque import EVERYBODY, TaskQueue, Worker
from tests.support.core import Core
from tests.support.starts import Starts, start
from tests.support.tenants import claims_until, govern, numbered, put, tasks_of, whose

pytestmark = [pytest.mark.leaves_keys(), pytest.mark.partitions(1, 4)]
KNOWN = 2_000
FEW = ("a", "b", "c", "d", "e")


async def make_known(core: Core) -> None:
    """Users that were served and have nothing any more, and a few with one task each."""
    await put(core, [task for user_id in numbered(KNOWN, "known") for task in tasks_of(user_id, ["1"])])
    for _ in range(KNOWN // 500):
        await core.settle(await core.take(500))


async def test_an_idle_worker_starts_what_waits_as_soon_as_everybody_is_resumed(core: Core, queue: TaskQueue) -> None:
    await make_known(core)
    starts = Starts()
    async with Worker(queue, concurrency=10, poll_interval=30.0, scheduler=False):
        await queue.pause(EVERYBODY)
        for user_id in FEW:
            await queue.enqueue(start(), user_id=user_id)
        resumed = time.time()
        await queue.resume(EVERYBODY)
        await starts.reach(len(FEW), deadline=1.5)
    assert max(starts.times) - resumed < 1.0
    assert sorted(starts.users) == sorted(FEW)


async def test_whoever_is_resumed_with_everybody_is_served_by_the_next_claims(core: Core) -> None:
    await make_known(core)
    await govern(core, "*", paused=True)
    for user_id in FEW:
        await put(core, tasks_of(user_id, ["1"]))
    await govern(core, "*", paused=None)
    assert set(whose([*await core.take(10), *await core.take(10)])) == set(FEW)


async def test_nobody_starts_anything_once_everybody_is_paused(core: Core) -> None:
    await make_known(core)
    for user_id in FEW:
        await put(core, tasks_of(user_id, ["1"]))
    await govern(core, "*", paused=True)
    assert await claims_until(core, "e", 3, want=10) == 4
