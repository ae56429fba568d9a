"""Groups in groups: what happens in one branch of the tree is no matter of the others."""

from __future__ import annotations

import random
from collections import Counter
from itertools import chain, pairwise

import pytest

from tests.support.core import Core
from tests.support.tenants import fill, govern, numbered, place_of

pytestmark = [pytest.mark.leaves_keys(), pytest.mark.partitions(1, 4)]
DEEP = "plan/organisation/team/squad"


async def test_an_attacker_with_many_groups_in_its_own_gets_no_more_than_one_user_beside_it(core: Core) -> None:
    for number, user_id in enumerate(numbered(30, "attacker-")):
        await govern(core, user_id, group=f"evil/{number % 6}/{number % 3}")
        await fill(core, user_id, tasks=20)
    await fill(core, "quiet", tasks=200)
    served = await core.serve(200)
    assert abs(served.count("quiet") - 100) <= 1


async def test_groups_that_come_anew_in_a_group_are_no_matter_of_who_is_beside_it(core: Core) -> None:
    await govern(core, "quiet", group="acme/quiet")
    await fill(core, "quiet", "outside", tasks=200)
    served: Counter[str] = Counter()
    for user_id in numbered(200, "new-"):
        await govern(core, user_id, group=f"acme/{user_id}")
        await fill(core, user_id, tasks=1)
        served.update(await core.serve(1))
    assert abs(served["outside"] - 100) <= 1
    assert served["quiet"] >= 3, "two come for each service of the group: an ideal fluid system gives it about three"


async def test_a_user_that_hops_from_group_to_group_gains_nothing(core: Core) -> None:
    await fill(core, "hopper", "quiet", tasks=300)
    await govern(core, "neighbour", group="a")
    await fill(core, "neighbour", tasks=300)
    served: Counter[str] = Counter()
    for service in range(200):
        await govern(core, "hopper", group="ab"[service % 2])
        served.update(await core.serve(1))
    # Alone in b it gets a third, beside its neighbour in a half of that.
    assert served["hopper"] <= 200 / 3 + 2
    assert served["quiet"] >= 200 / 3 - 2


async def test_users_deep_in_groups_have_their_turn_within_a_round_of_each_line(core: Core) -> None:
    for user_id in numbered(4, "busy-"):
        await govern(core, user_id, group=DEEP)
    await fill(core, *numbered(4, "busy-"), tasks=100)
    await fill(core, "outside", tasks=100)
    await core.serve(40)
    await govern(core, "new", group=DEEP)
    await fill(core, "new", tasks=1)
    # Its squad is served every second time, and five users share in that.
    assert await place_of(core, "new", 20) <= 2 * (5 + 1)


def steps_of(path: str, user_id: str) -> list[tuple[str, str]]:
    """The lines above a user, each with the member that it is, or that it is in."""
    steps = [(path, user_id)]
    while path:
        outer = path.rpartition("/")[0]
        steps.append((outer, f"@{path}"))
        path = outer
    return steps


async def fill_tree(core: Core, draw: random.Random) -> tuple[dict[str, float], dict[str, float]]:
    """Two users at each depth. Returns the weights of members, and what a task of each user costs."""
    paths = ["a", "a/b", "a/b/c", "a/b/c/d", "e"]
    weights = {f"@{path}": draw.choice([0.5, 1.0, 2.0, 5.0]) for path in paths}
    for path, weight in weights.items():
        await core.store.set_policy(path, {"weight": weight})
    costs: dict[str, float] = {}
    for path in ["", *paths]:
        for number in range(2):
            user_id = f"{path.replace('/', '-')}.{number}"
            weights[user_id], costs[user_id] = draw.choice([0.5, 1.0, 2.0]), draw.choice([0.5, 1.0, 7.0])
            await govern(core, user_id, group=path or None, weight=weights[user_id])
            await fill(core, user_id, tasks=200, cost=costs[user_id])
    return weights, costs


@pytest.mark.parametrize("seed", range(3))
async def test_the_bound_holds_between_siblings_at_each_depth(core: Core, seed: int) -> None:
    """By what was served since all are ready; costs and weights are drawn."""
    weights, costs = await fill_tree(core, random.Random(seed))
    above = {user_id: steps_of(user_id.split(".")[0].replace("-", "/"), user_id) for user_id in costs}
    lines = {line for steps in above.values() for line, _ in steps}
    siblings = {
        line: sorted({step[1] for steps in above.values() for step in steps if step[0] == line}) for line in lines
    }
    largest = {
        member: max(costs[user_id] for user_id, steps in above.items() for step in steps if step[1] == member)
        for members in siblings.values()
        for member in members
    }
    had = dict.fromkeys(largest, 0.0)
    for user_id in await core.serve(300):
        for _, member in above[user_id]:
            had[member] += costs[user_id]
        for one, other in chain.from_iterable(map(pairwise, siblings.values())):
            allowed = largest[one] / weights[one] + largest[other] / weights[other]
            assert abs(had[one] / weights[one] - had[other] / weights[other]) <= allowed + 1e-9


async def test_a_group_whose_users_are_all_held_back_is_in_no_line(core: Core) -> None:
    for user_id in ("a", "b"):
        await govern(core, user_id, group=DEEP, max_running=1)
    await fill(core, "a", "b", "outside", tasks=10)
    assert Counter(of.user_id for of in await core.take(8)) == {"a": 1, "b": 1, "outside": 6}
    assert core.ready().keys() == {"outside"}
    assert not [name for name in core.dump() if name.startswith("ready:")]


async def test_a_capped_user_alone_in_its_group_gets_nearly_half_beside_an_equal_one(core: Core) -> None:
    """Two slots, of which it may have one; what runs ends in turn."""
    await govern(core, "capped", group="team/squad", max_running=1)
    await fill(core, "capped", "free", tasks=400)
    draw, had, running = random.Random(1), Counter[str](), []
    for _ in range(400):
        running += await core.take(2 - len(running))
        ended = running.pop(draw.randrange(len(running)))
        had[ended.user_id] += 1
        await core.settle([ended])
    assert had["capped"] / 400 >= 0.45
