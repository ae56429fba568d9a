"""Slots that are reserved for some leave one for the others, and the queue tells when they would not."""

from __future__ import annotations

import pytest

from fairque import TaskQueue, Worker
from tests.support.core import Core
from tests.support.eventually import eventually
from tests.support.tenants import fill, govern, has_worker, whose

pytestmark = pytest.mark.leaves_keys()


async def test_health_names_those_for_whom_all_slots_are_reserved(queue: TaskQueue) -> None:
    async with Worker(queue, concurrency=4, scheduler=False):
        for user_id in ("vip-one", "vip-two"):
            await queue.set_policy(user_id, min_running=2)
        await eventually(lambda: has_worker(queue))
        told = repr(await queue.health())
    assert "min_running" in told
    assert "vip-one" in told
    assert "vip-two" in told


async def test_one_slot_is_never_reserved(core: Core) -> None:
    slots = 3
    core.renew("w", [], concurrency=slots)
    await govern(core, "vip", min_running=slots)
    await fill(core, "vip", tasks=100)
    running = await core.take(slots)
    await fill(core, "other", tasks=1)
    for _ in range(20):
        await core.settle([running.pop(0)])
        running += await core.take(1)
        if "other" in whose(running):
            break
    assert "other" in whose(running)
