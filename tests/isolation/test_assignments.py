"""Workers that serve some users only: what they do, or do not, is no matter of the others."""

from __future__ import annotations

from collections import Counter
from itertools import groupby

import pytest

from fairque import TaskQueue, Worker
from fairque.queue.explanation import Reason
from tests.support.core import Core
from tests.support.eventually import eventually
from tests.support.starts import start
from tests.support.tenants import fill, govern, has_worker, numbered, place_of

pytestmark = pytest.mark.leaves_keys()
OTHERS = numbered(10, "other")
HORIZON = 8
"""Mean services above the lowest up to which service out of turn is remembered."""
WITHIN = HORIZON * (len(OTHERS) + 1) + 2 * (len(OTHERS) + 1)
"""Services in which a user's turn comes, whatever it had before: the horizon, and two rounds."""


async def test_a_ready_user_whom_no_worker_serves_lets_no_newcomer_in_front_of_the_others(core: Core) -> None:
    served_ones = [["established", "new"]]
    await fill(core, "orphan", tasks=1)
    await fill(core, "established", tasks=600)
    await core.serve(400, groups=served_ones)
    await fill(core, "new", tasks=300)
    served = await core.serve(100, groups=served_ones)
    assert max(len(list(turns)) for _, turns in groupby(served)) <= 2
    assert abs(served.count("new") - 50) <= 1


async def test_a_ready_user_whom_no_worker_serves_lets_no_stream_of_new_users_in_front_of_the_others(
    core: Core,
) -> None:
    await fill(core, "orphan", tasks=1)
    await fill(core, "established", tasks=600)
    named = ["established", *numbered(200, "new")]
    await core.serve(300, groups=[named])
    served: Counter[str] = Counter()
    for user_id in named[1:]:
        await fill(core, user_id, tasks=1)
        served.update(await core.serve(1, groups=[named]))
    assert served["established"] >= 10, "an ideal fluid system gives it about 20"


async def test_users_of_a_pool_stay_equal_beside_one_whom_no_worker_serves(core: Core) -> None:
    await fill(core, "orphan", tasks=1)
    await fill(core, "a", "b", tasks=300)
    served = await core.serve(200, groups=[["a", "b"]])
    assert abs(served.count("a") - served.count("b")) <= 2


async def test_explain_says_that_no_worker_serves_a_user(queue: TaskQueue) -> None:
    await queue.enqueue(start(), user_id="orphan")
    async with Worker(queue, assigned_users=["other"], scheduler=False):
        await eventually(lambda: has_worker(queue))
        assert Reason.NO_WORKER in [held.reason for held in (await queue.explain("orphan")).waiting]


async def test_health_names_a_ready_user_whom_no_worker_serves(queue: TaskQueue) -> None:
    await queue.enqueue(start(), user_id="orphan")
    async with Worker(queue, assigned_users=["other"], scheduler=False):
        await eventually(lambda: has_worker(queue))
        assert "orphan" in repr(await queue.health())


async def test_the_turn_of_a_user_comes_within_a_horizon_after_a_worker_of_its_own_has_gone(core: Core) -> None:
    await fill(core, "x", tasks=1_100)
    await fill(core, *OTHERS, tasks=50)
    for _ in range(10):
        taken = await core.take(100, worker="own", groups=[["x"]])
        assert len(taken) == 100
        await core.settle(taken, worker="own")
    await core.store.leave("own", [["x"]])
    assert await place_of(core, "x", WITHIN) <= WITHIN


async def test_the_turn_of_a_user_comes_within_a_horizon_after_its_reservation_was_taken_back(core: Core) -> None:
    await fill(core, "x", tasks=1_100)
    await fill(core, *OTHERS, tasks=50)
    await govern(core, "x", min_running=1_000)
    taken = await core.take(1_000)
    assert {of.user_id for of in taken} == {"x"}
    await core.settle(taken)
    await govern(core, "x", min_running=None)
    assert await place_of(core, "x", WITHIN) <= WITHIN


async def test_the_service_of_a_worker_of_its_own_counts_while_that_works(core: Core) -> None:
    """Shares are max-min over the workers: who has one to itself asks for nothing of the others'."""
    await fill(core, "x", tasks=300)
    await fill(core, "a", "b", tasks=100)
    served: Counter[str] = Counter()
    for _ in range(100):
        assert await core.serve(1, worker="own", groups=[["x"]]) == ["x"]
        served.update(await core.serve(1))
    assert served["x"] <= 2
    assert abs(served["a"] - served["b"]) <= 2
