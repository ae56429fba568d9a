"""A quota refuses what is new, and never what the user has already."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta

import pytest

from fairque import QueueFull
from tests.support.core import Core, new_task
from tests.support.tenants import fill, govern, numbered

pytestmark = [pytest.mark.leaves_keys(), pytest.mark.partitions(1, 4)]


async def test_dead_letters_that_do_not_fit_are_not_requeued(core: Core) -> None:
    await fill(core, "acme", tasks=20)
    await core.settle(await core.take(20), "failed")
    await govern(core, "acme", max_queued=5)
    with pytest.raises(QueueFull, match="acme"):
        await core.store.requeue("acme", numbered(20))
    user = await core.store.user("acme")
    assert (user.queued, user.dead_letters) == (0, 20), "all or nothing"
    assert all(await core.store.requeue("acme", numbered(5)))
    with pytest.raises(QueueFull):
        await core.store.requeue("acme", ["00005"])


@pytest.mark.parametrize(("kind", "delay_ms"), [("retry", 0), ("retry", 1), ("released", 0), ("released", 1)])
async def test_what_was_started_comes_back_beyond_the_quota(core: Core, kind: str, delay_ms: int) -> None:
    await govern(core, "acme", max_queued=5)
    await fill(core, "acme", tasks=5)
    taken = await core.take(5)
    await core.enqueue("acme", *numbered(5, "more"))
    assert all(await core.settle(taken, kind, delay_ms=delay_ms))
    core.wait_until_ms(core.now_us() // 1000 + delay_ms + 1)
    assert len(await core.take(10)) == 10


async def test_what_is_scheduled_comes_due_beyond_a_quota_that_was_lowered(core: Core) -> None:
    at_ms = int((datetime.now(UTC) + timedelta(milliseconds=50)).timestamp() * 1000)
    await fill(core, "acme", tasks=20, at_ms=at_ms)
    await govern(core, "acme", max_queued=5)
    core.wait_until_ms(at_ms)
    assert len(await core.take(20)) == 20


@pytest.mark.parametrize("users", list(itertools.permutations(["acme", "zoe", "max"])))
async def test_of_several_users_without_room_the_first_one_of_the_call_is_named(core: Core, users: list[str]) -> None:
    for user_id in users:
        await govern(core, user_id, max_queued=0)
    with pytest.raises(QueueFull, match=users[0]):
        await core.enqueue_all([new_task(user_id, "1", 3, 1.0, 0, bytes(8)) for user_id in users])
