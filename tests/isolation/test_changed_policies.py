"""A policy that is changed holds at once, whatever happened under the one before."""

from __future__ import annotations

import pytest

from fairque import Rate
from tests.support.core import Core
from tests.support.eventually import eventually
from tests.support.tenants import fill, govern, limit, place_of

pytestmark = [pytest.mark.leaves_keys(), pytest.mark.partitions(1, 4)]
SLOW, FAST = "1/h", "1000/s burst 100"


@pytest.mark.parametrize("whose", ["light", "*"])
@pytest.mark.parametrize("weight", [1, 100])
async def test_a_weight_that_is_raised_while_a_backlog_waits_holds_within_ten_services(
    core: Core, whose: str, weight: float
) -> None:
    await govern(core, "other", weight=1)
    await govern(core, whose, weight=0.01)
    await fill(core, "light", "other", tasks=100)
    await core.serve(10)
    await core.serve(1, groups=[["light"]])
    await govern(core, whose, weight=weight)
    assert await place_of(core, "light", 10) <= 10


async def all_start(core: Core, tasks: int) -> None:
    """Within a moment, where the rate in force takes less."""
    started = 0

    async def have_started() -> bool:
        nonlocal started
        started += len(await core.take(tasks))
        return started == tasks

    await eventually(have_started, deadline=0.5)


async def test_a_rate_that_is_raised_holds_at_once(core: Core) -> None:
    await govern(core, "acme", rate=SLOW)
    await fill(core, "acme", tasks=30)
    assert len(await core.take(30)) == 1
    await govern(core, "acme", rate=FAST)
    await all_start(core, 29)


async def test_a_rate_that_is_taken_back_and_set_anew_starts_anew(core: Core) -> None:
    await govern(core, "acme", rate=SLOW)
    await fill(core, "acme", tasks=30)
    assert len(await core.take(30)) == 1
    await govern(core, "acme", rate=None)
    assert len(await core.take(5)) == 5
    await govern(core, "acme", rate=FAST)
    await all_start(core, 24)


async def test_a_rate_of_everybody_that_is_raised_holds_at_once(core: Core) -> None:
    await govern(core, "*", rate=SLOW)
    await fill(core, "acme", tasks=30)
    assert len(await core.take(30)) == 1
    await govern(core, "*", rate=FAST)
    await all_start(core, 29)


async def test_a_rate_of_a_task_name_that_is_raised_holds_at_once(core: Core) -> None:
    await limit(core, "api", rate=Rate(1, per=3600))
    await fill(core, "acme", tasks=30, name="api")
    assert len(await core.take(30)) == 1
    await limit(core, "api", rate=Rate(1000, burst=100))
    await all_start(core, 29)


async def test_a_rate_of_a_task_name_that_is_taken_back_and_set_anew_starts_anew(core: Core) -> None:
    await limit(core, "api", rate=Rate(1, per=3600))
    await fill(core, "acme", tasks=30, name="api")
    assert len(await core.take(30)) == 1
    await limit(core, "api")
    await limit(core, "api", rate=Rate(1000, burst=100))
    await all_start(core, 29)
