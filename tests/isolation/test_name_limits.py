"""Limits over all users, of a task name or of another key: nobody uses them up by waiting for them."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from tests.support.core import Core
from tests.support.eventually import eventually
from tests.support.tenants import claims_until, fill, govern, limit, numbered, put, tasks_of

pytestmark = [pytest.mark.leaves_keys(), pytest.mark.partitions(1, 4)]
CHOKERS = ("x", "y", "z")


async def all_reach_their_cap(core: Core) -> None:
    for _ in range(20):
        await core.settle([of for of in await core.take(10) if of.lane == b"normal"])
        if all([(await core.store.user(user_id)).started == 2 for user_id in CHOKERS]):
            return
    raise AssertionError("their critical tasks do not start")


async def services_of(core: Core, user_id: str, claims: int) -> int:
    """How many of its tasks these claims give, when what they give of the name ends before the next."""
    served: Counter[str] = Counter()
    for _ in range(claims):
        taken = await core.take(10)
        served.update(of.user_id for of in taken)
        await core.settle([of for of in taken if of.lane == b"normal"])
    return served[user_id]


async def test_users_at_their_own_limit_get_no_place_in_that_of_a_name(core: Core) -> None:
    await limit(core, "api", 5)
    for user_id in CHOKERS:
        await govern(core, user_id, max_running=2)
        await fill(core, user_id, tasks=500, name="api")
    await fill(core, "other", tasks=200, name="api")
    first = await core.take(20)
    for user_id in CHOKERS:
        await put(core, tasks_of(user_id, ["long 1", "long 2"], priority=6))
    await core.settle(first)
    await all_reach_their_cap(core)
    assert await services_of(core, "other", 30) >= 100, "at least four of five places in each claim"


async def test_paused_users_get_no_place_in_the_limit_of_a_name(core: Core) -> None:
    await limit(core, "api", 5)
    await fill(core, *CHOKERS, tasks=300, name="api")
    await fill(core, "other", tasks=200, name="api")
    first = await core.take(20)
    for user_id in CHOKERS:
        await govern(core, user_id, paused=True)
    await core.settle(first)
    assert await services_of(core, "other", 30) >= 100


@pytest.mark.parametrize("busy", [1, 10])
async def test_the_first_claim_finds_a_free_task_behind_thousands_that_wait_for_their_name(
    core: Core, busy: int
) -> None:
    await limit(core, "api", 1)
    await fill(core, "runs", tasks=1, name="api")
    await core.take(1)
    for user_id in numbered(busy, "a"):
        await fill(core, user_id, tasks=5_000 // busy, name="api")
    await fill(core, "b", tasks=1)
    assert await claims_until(core, "b", 5, want=1) == 1


async def test_a_limit_that_is_set_later_counts_what_runs_once_it_was_renewed(core: Core) -> None:
    await fill(core, "acme", tasks=30, name="api")
    running = await core.take(10)
    await limit(core, "api", 5)
    assert await core.take(10) == [], "until what runs is known, starts wait"
    assert await asyncio.to_thread(core.renew, "w", running) == []
    assert await core.take(10) == []
    await core.settle(running[:5])
    assert await core.take(10) == [], "five run"
    await core.settle(running[5:8])
    assert len(await core.take(10)) == 3


async def test_a_limit_that_is_set_later_counts_what_runs_for_many_users(core: Core) -> None:
    await fill(core, *numbered(300, "u"), tasks=1, name="api")
    running = await core.take(300)
    await fill(core, "acme", tasks=5, name="api")
    await limit(core, "api", 298)
    for _ in range(20):
        assert await core.take(10) == []
    await core.settle(running[:4])
    assert len(await core.take(10)) == 2


async def test_users_whom_no_worker_serves_get_no_place(core: Core) -> None:
    await limit(core, "api", 1)
    await fill(core, *numbered(20, "orphan"), "served", tasks=50, name="api")
    served = 0
    for _ in range(30):
        taken = await core.take(5, groups=[["served"]])
        served += len(taken)
        await core.settle(taken)
    assert served == 30
    assert not [name for name in core.dump() if name.startswith("offers:orphan")]


async def test_what_was_given_to_users_whom_no_worker_serves_any_more_comes_back_and_leaves_nothing(core: Core) -> None:
    await limit(core, "api", 3)
    await fill(core, *numbered(3, "orphan"), "served", tasks=5, name="api")
    first = await core.take(3)
    await core.take(5)
    await core.settle(first)
    served = 0

    async def all_are_served() -> bool:
        nonlocal served
        taken = await core.take(5, groups=[["served"]])
        served += len(taken)
        await core.settle(taken)
        return served == 5

    await eventually(all_are_served)
    offered = sum(len(key.pairs) for name, key in core.dump().items() if name.startswith("offers"))
    assert offered <= 3, "as many as there are places"
