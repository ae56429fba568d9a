"""What a task uses while it runs is charged while it runs."""

from __future__ import annotations

import asyncio

import pytest

from fairque.redis.delivery import Delivery
from fairque.settings import QueueSettings
from tests.support.core import HOUR_MS, Core, outcome
from tests.support.tenants import fill, whose

pytestmark = pytest.mark.leaves_keys()
BY_TIME = QueueSettings(lease_ms=HOUR_MS, fairness="time")
SLOTS = 4
RUN_MS = 10


@pytest.mark.xfail(
    strict=True, raises=AssertionError, reason="by time, a task is charged an estimate until it has ended"
)
async def test_tasks_that_do_not_end_fill_no_more_than_the_share_of_their_user(core: Core) -> None:
    """Of four slots two, and one more for what is in flight."""
    await fill(core, "short", tasks=500, name="short")
    await fill(core, "long", tasks=SLOTS, name="long")
    running: list[Delivery] = []
    for _ in range(60):
        claim = await core.store.claim("w", SLOTS - len(running), wait=False, settings=BY_TIME)
        running += claim.deliveries
        await asyncio.sleep(RUN_MS / 1000)
        ended = [outcome(of, "finished") for of in running if of.user_id == "short"]
        for each in ended:
            each.run_ms = RUN_MS
        await core.store.settle("w", ended)
        running = [of for of in running if of.user_id == "long"]
        await asyncio.to_thread(core.renew, "w", running)
    assert whose(running)["long"] <= SLOTS // 2 + 1
