"""Shares hold however much was charged before."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.support.core import Core, outcome
from tests.support.tenants import fill, govern

pytestmark = pytest.mark.leaves_keys()


async def test_equal_users_stay_equal_after_another_was_charged_as_much_as_can_be(core: Core) -> None:
    await fill(core, "dear", tasks=2_001)
    for _ in range(20):
        outcomes = [outcome(of, "finished") for of in await core.take(100)]
        assert len(outcomes) == 100
        for each in outcomes:
            each.charge = 1e9
        await core.store.settle("w", outcomes)
    await core.serve(1)
    for user_id in ("a", "b"):
        await govern(core, user_id, weight=1000)
    await fill(core, "a", "b", tasks=400, cost=0.1)
    served = Counter(await core.serve(400))
    assert abs(served["a"] - served["b"]) <= 2
