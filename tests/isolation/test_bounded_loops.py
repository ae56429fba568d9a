"""A script does so much in one call and leaves the rest to the next ones: what it does goes by turns of users.

In each test user `a` has thousands of something, `b` has one, and it came last, but where another order is said.
"""

from __future__ import annotations

import msgspec
import pytest

from fairque.policy import Rate
from fairque.redis.delivery import Needs, NewTask
from fairque.tasks.message import LimitKey
from tests.support.core import HOUR_MS, Core
from tests.support.tenants import claims_until, fill, govern, limit, numbered, place_of, put, tasks_of, whose

pytestmark = pytest.mark.leaves_keys()
MANY = 5_000
WANT = 10
LEASE_MS = 400


async def are_held(core: Core) -> None:
    """Until no claim finds a task that has to wait for its name."""
    while (await core.claim(WANT, wait=True)).sleep == 0:
        pass


async def test_promotion(core: Core) -> None:
    at_ms = core.now_us() // 1000 + 800
    await put(core, tasks_of("a", numbered(MANY), at_ms=at_ms))
    await put(core, tasks_of("b", ["1"], at_ms=at_ms + 1))
    core.wait_until_ms(at_ms + 1)
    assert await claims_until(core, "b", 2, WANT) <= 2


async def test_holding_tasks_for_the_limit_of_their_name(core: Core) -> None:
    await limit(core, "api", 1)
    await fill(core, "runs", tasks=1, name="api")
    await core.take(1)
    await fill(core, "a", tasks=MANY, name="api")
    await fill(core, "b", tasks=1)
    assert await claims_until(core, "b", 2, WANT) <= 2


async def test_letting_held_tasks_in_when_their_limit_is_raised(core: Core) -> None:
    await limit(core, "api", 1)
    await fill(core, "a", tasks=MANY, name="api")
    await fill(core, "b", tasks=1, name="api")
    await are_held(core)
    await limit(core, "api", 100)
    assert await claims_until(core, "b", 2, WANT) <= 2


async def test_letting_held_tasks_in_when_their_limit_is_gone(core: Core) -> None:
    await limit(core, "api", 1)
    await fill(core, "a", tasks=MANY, name="api")
    await fill(core, "b", tasks=1, name="api")
    await are_held(core)
    await limit(core, "api")
    assert await claims_until(core, "b", 2, WANT) <= 2


async def test_letting_in_the_tasks_of_many_names(core: Core) -> None:
    names = numbered(100, "api")
    for name in [*names, "other"]:
        await limit(core, name, 1)
    for name in names:
        await put(core, tasks_of("a", numbered(20, name), name=name))
    await put(core, tasks_of("b", ["1", "2"], name="other"))
    await are_held(core)
    for name in [*names, "other"]:
        await limit(core, name, 100)
    more = 1 if core.is_part else 0  # the place comes from another partition
    assert await claims_until(core, "b", 3, WANT) <= 2 + more


@pytest.mark.parametrize("each_user", [True, False])
async def test_looking_at_thousands_of_keys_whose_rates_open_at_once(core: Core, each_user: bool) -> None:
    """Each has one task that waits, of `a` all but one."""

    async def hold(user_id: str, count: int) -> None:
        await put(core, [task for name in numbered(count, user_id) for task in of_customer(user_id, name, each_user)])
        while await core.take(500, groups=[[user_id]]):
            pass

    await limit(core, "crm:{customer}", rate=Rate(1, per=8))
    await hold("a", 2_000)
    await hold("b", 1)
    moments = core.execute("ZRANGE", ":held", 0, -1, "WITHSCORES")[1::2]
    core.wait_until_ms(max(map(float, moments)) + 1)
    assert await claims_until(core, "b", 2, WANT) <= 2


@pytest.mark.partitions(1, 4)
@pytest.mark.parametrize("each_user", [True, False])
async def test_looking_again_at_thousands_of_keys_whose_limit_is_raised(core: Core, each_user: bool) -> None:
    """Each has one task that waits, of `a` all but one."""

    async def hold(user_id: str, count: int) -> None:
        await put(core, [task for name in numbered(count, user_id) for task in of_customer(user_id, name, each_user)])
        while await core.take(500, groups=[[user_id]]):
            pass

    await limit(core, "crm:{customer}", 1)
    await hold("a", 2_000)
    await hold("b", 1)
    await limit(core, "crm:{customer}", 2)
    assert await claims_until(core, "b", 2, WANT) <= 2


def of_customer(user_id: str, name: str, each_user: bool) -> list[NewTask]:
    """Two tasks with the same key."""
    key = LimitKey(f"crm:{name}", "crm%3A%7Bcustomer%7D", each_user)
    return tasks_of(user_id, [f"{name} 1", f"{name} 2"], keys=[key])


async def test_letting_parked_users_go_on(core: Core) -> None:
    """Here the many are users: nobody waits for longer than a round of them."""
    ids = numbered(500, "a")
    until_ms = core.now_us() // 1000 + 1500
    await put(core, [task for user_id in ids for task in tasks_of(user_id, ["1", "2", "3"])])
    await fill(core, "b", tasks=1)
    for user_id in ids:
        await core.store.set_policy(user_id, {"paused": until_ms})
    await core.store.set_policy("b", {"paused": until_ms + 1})
    core.wait_until_ms(until_ms + 1)
    assert await place_of(core, "b", len(ids) + 1) <= len(ids) + 1


async def test_stealing(core: Core) -> None:
    await fill(core, "a", tasks=MANY)
    await fill(core, "b", tasks=1)
    await lose(core, ["a"] * 10 + ["b"])
    assert await claims_until(core, "b", 2, WANT, worker="lives", lease_ms=LEASE_MS) <= 2


async def test_stealing_beside_tasks_that_wait(core: Core) -> None:
    await fill(core, "a", tasks=MANY)
    await lose(core, ["a"] * 10)
    await fill(core, "b", tasks=1)
    assert await claims_until(core, "b", 2, WANT, worker="lives", lease_ms=LEASE_MS) <= 2


async def lose(core: Core, users: list[str]) -> None:
    """Claim up to 500 tasks of each in turn, and fall silent. Others have slots for many suspects at once."""
    core.renew("others", [], concurrency=1000)
    for user_id in users:
        await core.take(500, worker="dies", lease_ms=LEASE_MS, groups=[[user_id]], steal=False)
    core.wait_until_ms(core.now_us() // 1000 + LEASE_MS)


def waiting_for(user_id: str, root: str, dependents: int) -> list[NewTask]:
    needs = msgspec.msgpack.encode(Needs("wait", False, [root]))
    return tasks_of(user_id, numbered(dependents, f"after {root} "), needs=needs)


async def test_announcing_the_end_of_a_task_that_thousands_wait_for(core: Core) -> None:
    await fill(core, "a", "b", tasks=1, priority=6)
    [root] = numbered(1)
    await put(core, [*waiting_for("a", root, MANY), *waiting_for("b", root, 1)])
    for user_id in ("a", "b"):
        await core.settle(await core.take(1, groups=[[user_id]]))
    assert await claims_until(core, "b", 2, WANT) <= 2


async def test_announcing_the_ends_of_many_tasks(core: Core) -> None:
    """Here the one of `b` came in the middle: a worker reported all in one call."""
    roots = numbered(80)
    await fill(core, "a", tasks=len(roots), priority=6)
    await fill(core, "b", tasks=1, priority=6)
    await put(core, [task for root in roots for task in waiting_for("a", root, 100)])
    await put(core, waiting_for("b", roots[0], 1))
    taken = await core.take(len(roots), groups=[["a"]])
    [of_b] = await core.take(1, groups=[["b"]])
    await core.settle([*taken[:40], of_b, *taken[40:]])
    assert await claims_until(core, "b", 2, WANT) <= 2


async def fail(core: Core, user_id: str, *, ttl_ms: int) -> None:
    """All tasks of this user become dead letters, which are given up after so many ms."""
    core.take_for(dead_letter_ttl_ms=ttl_ms)
    while taken := await core.take(500, groups=[[user_id]]):
        await core.settle(taken, "failed")
    core.take_for(dead_letter_ttl_ms=core.settings["dead_letter_ttl_ms"])


async def fail_what_others_wait_for(core: Core, user_id: str, letters: int) -> None:
    """Their time is over at once."""
    roots = numbered(letters)
    await put(core, tasks_of(user_id, roots))
    await put(core, [task for root in roots for task in waiting_for(user_id, root, 1)])
    await fail(core, user_id, ttl_ms=1)
    core.wait_until_ms(core.now_us() // 1000 + 2)


async def test_giving_up_dead_letters_that_others_wait_for(core: Core) -> None:
    await fail_what_others_wait_for(core, "a", MANY)
    await fail_what_others_wait_for(core, "b", 1)
    for _ in range(2):
        await core.claim(1, lease_ms=LEASE_MS)
    assert await core.store.records("b", ["after 00000 00000"]) != [None], "it was told"


async def test_giving_dead_letters_up_goes_on_in_each_call_until_there_are_no_more(core: Core) -> None:
    await fail_what_others_wait_for(core, "a", 1000)
    for _ in range(12):
        await core.claim(1, lease_ms=60_000)
    assert not core.execute("EXISTS", ":lapsing", ":lapsing:a", ":deferred:a")


async def test_forgetting_letters_whose_time_is_over(core: Core) -> None:
    """One failure, of another user, is not the one that takes thousands out of the list."""
    await fill(core, "a", tasks=MANY)
    await fill(core, "b", tasks=2)
    await fail(core, "a", ttl_ms=60_000)
    core.execute("EVAL", _SET_BACK, 2, ":dead", ":dead:a", 2 * HOUR_MS)
    await core.settle(await core.take(1, groups=[["b"]]), "failed")
    left = core.execute("ZCARD", ":dead")
    assert MANY - 100 < left <= MANY, "some, more than one"
    await core.settle(await core.take(1, groups=[["b"]]), "failed")
    assert core.execute("ZCARD", ":dead") < left


_SET_BACK = """
for _, key in ipairs(KEYS) do
  for _, member in ipairs(redis.call('ZRANGE', key, 0, -1)) do redis.call('ZINCRBY', key, -ARGV[1], member) end
end
"""
"""Keys with moments, as if all of them had been so many ms earlier."""


async def test_purging(core: Core) -> None:
    await fill(core, "a", tasks=MANY)
    await fill(core, "b", tasks=1)
    assert (await core.store.purge_step("a", 100))[-1] == 1, "more is left"
    assert "b" in whose(await core.take(2))


async def test_the_sweep_after_the_policy_of_everybody_changed(core: Core) -> None:
    few = numbered(5, "b")
    await put(core, [task for user_id in numbered(2_000, "a") for task in tasks_of(user_id, ["1"])])
    for _ in range(4):
        await core.settle(await core.take(500))
    await govern(core, "*", max_running=1)
    await core.claim(1)
    for user_id in few:
        await fill(core, user_id, tasks=2)
        await core.take(1, groups=[[user_id]])
    assert await core.take(WANT) == []
    await govern(core, "*", max_running=2)
    assert set(whose([*await core.take(WANT), *await core.take(WANT)])) == set(few)


async def test_an_idle_worker_looks_at_full_keys_a_few_at_a_time_however_many_there_are(core: Core) -> None:
    names = [f"api {n}" for n in range(1000)]
    for name in names:
        await limit(core, name, 1)
        await put(core, tasks_of("a", [name], name=name))
    while await core.take(100):
        pass
    for name in names:
        await put(core, tasks_of("a", [f"{name} again"], name=name))
    await are_held(core)
    until_ms = core.now_us() // 1000 + 3000
    looks = 0
    while core.now_us() // 1000 < until_ms:
        before = held_now(core)
        sleep = (await core.claim(1, wait=True)).sleep
        looks += len(before - held_now(core))
        core.wait_until_ms(core.now_us() // 1000 + 1000 * min(1.0, sleep or 0.0))
    assert looks <= 4 * 200, "200 a second, however many there are; three seconds may begin in the middle of one"


def held_now(core: Core) -> set[tuple[bytes, bytes]]:
    found = core.execute("ZRANGE", ":held", 0, -1, "WITHSCORES")
    return set(zip(found[::2], found[1::2], strict=True))
