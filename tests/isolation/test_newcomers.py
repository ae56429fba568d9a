"""How soon a user with one task is served, beside ten with a backlog: a round is ten services."""

from __future__ import annotations

import pytest

from tests.support.core import Core
from tests.support.tenants import fill, govern, numbered, place_of, put, tasks_of

pytestmark = [pytest.mark.leaves_keys(), pytest.mark.partitions(1, 4)]
BUSY = numbered(10, "busy")


async def worst_place(core: Core, cost: float, most: int) -> int:
    """Of six newcomers in turn, at most one more than `most`."""
    await core.serve(100)
    worst = 0
    for user_id in numbered(6, "new"):
        await put(core, tasks_of(user_id, ["1"], cost=cost))
        worst = max(worst, await place_of(core, user_id, most))
        if worst > most:
            break
        await core.serve(17)
    return worst


@pytest.mark.parametrize(("cost", "most"), [(1, 20), (10, 20), (100, 20), (1000, 100)])
async def test_a_newcomer_is_served_within_two_rounds_even_if_its_task_is_costly(
    core: Core, cost: float, most: int
) -> None:
    """Up to ten times the mean cost: one that is still more costly waits for a tenth of that, in services."""
    await fill(core, *BUSY, tasks=100)
    assert await worst_place(core, cost, most) <= most


async def test_a_newcomer_is_served_within_a_round_beside_users_of_a_large_weight(core: Core) -> None:
    for user_id in BUSY:
        await govern(core, user_id, weight=10)
    await fill(core, *BUSY, tasks=100)
    round_of_all = len(BUSY) + 1
    assert await worst_place(core, 1, round_of_all) <= round_of_all
