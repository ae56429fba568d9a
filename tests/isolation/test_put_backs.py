"""Deliveries that nobody can run take the time of workers as others do."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.support.core import Core
from tests.support.tenants import fill

pytestmark = [pytest.mark.leaves_keys(), pytest.mark.partitions(1, 4)]


async def test_tasks_that_no_worker_knows_get_no_more_deliveries_than_those_of_an_equal_user(core: Core) -> None:
    await fill(core, "unknown", tasks=50)
    await fill(core, "known", tasks=200)
    delivered: Counter[str] = Counter()
    for _ in range(200):
        [taken] = await core.take(1)
        delivered[taken.user_id] += 1
        if taken.user_id == "known":
            await core.settle([taken])
        else:  # as a worker does with a name that it does not know
            await core.settle([taken], "released", delay_ms=1)
            core.wait_until_ms(core.now_us() // 1000 + 2)
    assert abs(delivered["unknown"] - delivered["known"]) <= 2


async def test_a_task_that_its_worker_returns_as_it_stops_is_not_charged_again(core: Core) -> None:
    await fill(core, "returned", "other", tasks=100)
    stopped = await core.take(10, groups=[["returned"]])
    await core.settle(stopped, "released")
    served = await core.serve(30)
    assert served[:10] == ["other"] * 10, "it is charged for what it was given, once"
    assert served[10:].count("returned") == 15, "what was put back goes first and is free, the rest by turns"
