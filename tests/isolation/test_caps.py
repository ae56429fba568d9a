"""A cap near a user's fair share costs it nothing of that share."""

from __future__ import annotations

import heapq
import random
from collections import Counter
from itertools import count

import pytest

from fairque.redis.delivery import Delivery
from tests.support.core import Core
from tests.support.tenants import fill, govern

pytestmark = pytest.mark.leaves_keys()
SERVICES = 3_000
ERROR = 0.01
"""Of a share, twice the standard error of so many random durations."""


@pytest.mark.parametrize(("slots", "most"), [(2, 1), (4, 2), (10, 5)])
async def test_a_user_with_a_cap_of_its_share_gets_nearly_half_beside_an_equal_one(
    core: Core, slots: int, most: int
) -> None:
    """Durations are random and virtual: what ends first is settled, and its slot is filled."""
    chance, order, now = random.Random(1), count(), 0.0
    running: list[tuple[float, int, Delivery]] = []
    had: Counter[str] = Counter()
    await govern(core, "capped", max_running=most)
    await fill(core, "capped", "free", tasks=SERVICES + slots)
    for _ in range(SERVICES):
        for of in await core.take(slots - len(running)):
            heapq.heappush(running, (now + chance.expovariate(1), next(order), of))
        now, _, ended = heapq.heappop(running)
        had[ended.user_id] += 1
        await core.settle([ended])
    assert had["capped"] / SERVICES >= 0.46 - ERROR


async def test_a_user_whose_backlog_is_gone_is_owed_nothing_for_its_cap(core: Core) -> None:
    await govern(core, "acme", max_running=1)
    await fill(core, "acme", tasks=2)
    await fill(core, "other", tasks=100)
    running = await core.take(2)
    capped = dict(core.dump()["user:acme"].pairs)
    assert capped["capped"] == "1", "its tag"
    [waiting] = {name.rpartition(":")[2] for name in core.dump() if name.startswith("body:acme:")} - {
        of.id for of in running
    }
    assert await core.store.cancel("acme", waiting, "") == "done"
    assert "user:acme" not in core.dump()
