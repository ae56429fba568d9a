"""Workers that serve some users only: what they do, or do not, is no matter of the others."""

from __future__ import annotations

from collections import Counter
from itertools import groupby

import msgspec
import pytest

from fairque import TaskQueue, Worker
from fairque.queue.explanation import Reason
from fairque.redis.assignment import assignments_of
from tests.support.core import Core, outcome
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


def commands(core: Core) -> int:
    """How many the server has carried out, those within scripts as well."""
    lines = core.execute("INFO", "commandstats").decode().splitlines()
    return sum(int(line.partition("calls=")[2].partition(",")[0]) for line in lines if line.startswith("cmdstat_"))


@pytest.mark.parametrize("is_governed", [False, True])
@pytest.mark.parametrize("want", [1, 20])
async def test_a_claim_by_a_worker_with_a_thousand_users_costs_little_more_than_one_for_everybody(
    core: Core, want: int, is_governed: bool
) -> None:
    users, cost = numbered(1_000), []
    if is_governed:
        await govern(core, "*", max_running=50)
    await fill(core, *users, tasks=2)
    for groups in ([[]], [users]):
        await core.take(want, groups=groups)
        before = commands(core)
        for _ in range(10):
            assert len(await core.take(want, groups=groups)) == want
        cost.append(commands(core) - before)
    assert cost[1] <= 1.3 * cost[0] + 10 * 3, "three more commands for a claim of one task"


async def test_users_who_leave_a_group_are_not_served_twice_in_the_tree_of_a_worker(core: Core) -> None:
    served_ones = [["a", "b"]]
    for user_id in ("a", "b"):
        await govern(core, user_id, group="team/one")
    await fill(core, "a", "b", "other", tasks=50)
    await core.serve(10, groups=served_ones)
    await govern(core, "a", group="team/two")
    await govern(core, "b", group=None)
    served = Counter(await core.serve(40, groups=served_ones))
    assert abs(served["a"] - served["b"]) <= 1


async def test_a_refund_to_one_user_of_a_group_reaches_the_workers_of_another(core: Core) -> None:
    """Both stand in one group: the tag of the group goes down in the tree of each."""
    for user_id in ("x", "y"):
        await govern(core, user_id, group="team")
    await fill(core, "x", "y", "z", tasks=30, cost=4)
    for user_id in ("x", "y"):
        await core.serve(3, groups=[[user_id, "z"]])
    [taken] = await core.take(1, groups=[["x"]])
    await core.store.settle("w", [msgspec.structs.replace(outcome(taken, "finished"), charge=-3.9)])
    dump = core.dump()
    true = dict(dump["ready"].scores)
    trees = {name: dict(key.scores) for name, key in dump.items() if name.startswith("ready@") and ":" not in name}
    assert len(trees) == 3
    for tree in trees.values():
        assert all(tag <= true[member] for member, tag in tree.items() if member in true)


async def test_who_was_served_by_nobody_gets_what_a_capped_user_gets_when_workers_come(core: Core) -> None:
    await fill(core, "orphan", "established", tasks=1_000)
    await core.serve(100, groups=[["established"]])
    core.execute("ZREM", ":assignments", "*")  # as after a minute in which no worker served everybody
    served = await core.serve(40, worker="new", groups=[["orphan", "established"]])
    assert served[:4] == ["orphan"] * 4
    assert abs(served.count("orphan") - served.count("established")) <= 5


async def test_who_was_served_by_nobody_does_not_pass_the_others_when_workers_for_everybody_come_back(
    core: Core,
) -> None:
    await fill(core, *numbered(300, "orphan-"), tasks=2)
    await fill(core, "established", tasks=1_000)
    await core.serve(900, groups=[["established"]])
    core.execute("ZREM", ":assignments", "*")
    await fill(core, *numbered(20, "late-"), tasks=5)
    assert await place_of(core, "established", 2_000, worker="back") <= 5 * (300 + 20) + 2
    assert "returning" not in core.state()


async def test_what_a_worker_that_was_killed_served_its_users_is_forgiven(core: Core) -> None:
    await fill(core, "x", tasks=1_100)
    await fill(core, *OTHERS, tasks=50)
    await core.serve(1_000, worker="killed", groups=[["x"]])
    [assignment] = assignments_of([["x"]])
    core.execute("ZADD", ":assignments", 1, assignment.name)  # its last sign of life was long ago
    core.execute("ZADD", ":assignments", 1, "*")
    assert await place_of(core, "x", WITHIN) <= WITHIN
    assert not [name for name in core.dump() if "assign" in name or "@" in name]
