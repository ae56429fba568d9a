"""Policies in the scripts: what governs a user is kept at every service, and costs nothing where it does not apply."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import msgspec
import pytest

from fairque import Breaker, DependencyError, QueueFull, Rate
from fairque.policy import changes_of
from fairque.redis.arguments import EndedRuns
from fairque.redis.delivery import Delivery, Needs
from fairque.redis.keys import encode_user
from fairque.redis.store import Store
from fairque.settings import QueueSettings
from fairque.tasks.message import Message, encode_body, new_nonce
from fairque.worker.run_times import RunTimes
from tests.support.core import HOUR_MS, MAX_BODY, Core, new_task, outcome
from tests.support.eventually import eventually
from tests.support.servers import Server
from tests.support.tenants import limit

pytestmark = pytest.mark.leaves_keys()
BY_TIME = QueueSettings(lease_ms=HOUR_MS, fairness="time")
NO_ARGS = msgspec.Raw(b"\x90")


@pytest.fixture
async def core(server: Server, queue_name: str) -> AsyncIterator[Core]:
    async with Core(server.url, queue_name) as core:
        yield core


def names(count: int, prefix: str = "") -> list[str]:
    return [f"{prefix}{at:04}" for at in range(count)]


async def govern(core: Core, user_id: str, **fields: Any) -> None:
    whose = user_id if user_id == "*" else encode_user(user_id)
    await core.store.set_policy(whose, *changes_of(fields))


async def fill(core: Core, *user_ids: str, tasks: int = 100, cost: float = 1.0) -> None:
    for user_id in user_ids:
        await core.enqueue(user_id, *names(tasks), cost=cost)


def whose(deliveries: Sequence[Delivery]) -> Counter[str]:
    return Counter(of.user_id for of in deliveries)


# Most at once


async def test_no_more_of_a_user_run_than_may_and_the_others_get_the_rest(core: Core) -> None:
    await govern(core, "acme", max_running=3)
    await fill(core, "acme", "other")
    assert whose(await core.take(20)) == {"acme": 3, "other": 17}


async def test_what_ends_makes_room_for_as_many(core: Core) -> None:
    await govern(core, "acme", max_running=3)
    await fill(core, "acme")
    taken = await core.take(10)
    assert len(taken) == 3
    assert await core.take(10) == []
    await core.settle(taken[:2])
    assert len(await core.take(10)) == 2
    await core.settle(taken[2:], "retry")
    assert len(await core.take(10)) == 1


async def test_a_user_at_its_limit_is_not_looked_at(core: Core) -> None:
    await govern(core, "acme", max_running=1)
    await fill(core, "acme", "other")
    await core.take(2)
    assert set(core.ready()) == {"other"}


async def test_a_stolen_delivery_goes_on_counting_once(core: Core) -> None:
    await govern(core, "acme", max_running=2)
    await fill(core, "acme", tasks=5)
    await core.take(2, worker="dies", lease_ms=20)
    stolen = []
    for _ in range(2):
        core.wait_until_ms(core.now_us() // 1000 + 22)
        stolen += await core.take(5, worker="lives", lease_ms=20)
    assert [of.lost for of in stolen] == [1, 1], "one after the other is taken over, and nothing is started beside them"


async def test_a_limit_that_is_lowered_holds_for_what_waits_already_and_one_that_is_raised_too(core: Core) -> None:
    await fill(core, "acme")
    first = await core.take(4)
    await govern(core, "acme", max_running=4)
    assert await core.take(4) == []
    await govern(core, "acme", max_running=6)
    assert len(await core.take(10)) == 2
    await govern(core, "acme", max_running=None)
    assert len(await core.take(10)) == 10
    await core.settle(first)


async def test_no_instant_shows_more_than_may_run_with_many_claims_at_once(core: Core) -> None:
    await govern(core, "*", max_running=3)
    users = names(7, "u")
    await fill(core, *users, tasks=30)
    stores = [Store(core.backend) for _ in range(5)]
    running: Counter[str] = Counter()
    served = 0

    async def work(at: int) -> None:
        nonlocal served
        for _ in range(200):
            claim = await stores[at].claim(f"w{at}", 4, wait=False)
            running.update(of.user_id for of in claim.deliveries)
            assert max(running.values(), default=0) <= 3
            await asyncio.sleep(0)
            for of in claim.deliveries:
                running[of.user_id] -= 1  # before the call: it runs no more from then on
            if claim.deliveries:
                done = [outcome(of, "finished") for of in claim.deliveries]
                accepted = sum(await stores[at].settle(f"w{at}", done))
                served += accepted
            if served == 210:
                return

    await asyncio.gather(*(work(at) for at in range(5)))
    assert served == 210
    for store in stores:
        await store.close()


# Reservations


async def test_a_user_below_its_reservation_is_served_before_the_others(core: Core) -> None:
    await fill(core, "flood", "other")
    await core.serve(40)
    await govern(core, "vip", min_running=4)
    await fill(core, "vip")
    assert whose(await core.take(4)) == {"vip": 4}
    assert whose(await core.take(6)) != {"vip": 6}, "beyond it, everybody has the same right"


async def test_what_a_reservation_leaves_is_borrowed_by_all(core: Core) -> None:
    await govern(core, "vip", min_running=4)
    await fill(core, "flood")
    assert whose(await core.take(10)) == {"flood": 10}


async def test_a_reservation_holds_again_when_one_of_its_tasks_ends(core: Core) -> None:
    await govern(core, "vip", min_running=2)
    await fill(core, "vip", "flood")
    first = await core.take(2)
    assert whose(first) == {"vip": 2}
    await core.take(20, groups=[["flood"]])
    await core.settle(first)
    assert whose(await core.take(2)) == {"vip": 2}


async def test_a_reservation_of_everybody_that_is_taken_back_leaves_nobody_in_front(core: Core) -> None:
    await govern(core, "*", min_running=2)
    await fill(core, "a", tasks=2)
    await govern(core, "*", min_running=None)
    await core.take(2)
    assert "reserved" not in core.dump()
    await fill(core, "b", tasks=2)
    assert whose(await core.take(5)) == {"b": 2}


async def test_of_users_below_their_reservations_the_same_goes_first_whoever_asks(core: Core) -> None:
    for user_id, weight in (("a", 100), ("b", 0.01)):
        await govern(core, user_id, group=f"of {user_id}", weight=weight)
        await fill(core, user_id)
    await core.serve(20, groups=[["a"]])
    await core.serve(1, groups=[["b"]])
    for user_id in ("a", "b"):
        await govern(core, user_id, min_running=1)
    assert await core.serve(1) == ["a"]
    assert await core.serve(1, groups=[["a", "b"]]) == ["a"], "though its group has the higher tag"


# Rates


async def test_starts_keep_their_distance_over_every_window(core: Core) -> None:
    await govern(core, "acme", rate=Rate(500, burst=3))
    await fill(core, "acme", tasks=60)
    starts: list[int] = []

    async def all_started() -> bool:
        taken = await core.take(20)
        starts.extend(of.started_ms for of in taken)
        await core.settle(taken)
        return len(starts) == 60

    await eventually(all_started)
    for first, start in enumerate(starts):
        for last in range(first, 60):
            window_ms = starts[last] - start + 1
            assert last - first + 1 <= 3 + window_ms / 2, "burst + t * count / per"
    assert starts[-1] - starts[0] >= (60 - 3) * 2 - 1


async def test_a_limited_user_is_parked_and_the_worker_told_when_to_come_back(core: Core) -> None:
    await govern(core, "acme", rate="1/m")
    await fill(core, "acme", tasks=3)
    assert len(await core.take(3)) == 1
    claim = await core.claim(3, wait=True)
    assert claim.deliveries == []
    assert claim.sleep is not None
    assert 50 < claim.sleep < 60.01
    assert core.ready() == {}


async def test_a_rate_that_is_taken_back_lets_the_user_go_on_at_once(core: Core) -> None:
    await govern(core, "acme", rate="1/h")
    await fill(core, "acme", tasks=5)
    assert len(await core.take(5)) == 1
    await govern(core, "acme", rate=None)
    assert len(await core.take(5)) == 4


# Quotas


async def test_a_batch_that_does_not_fit_is_refused_as_a_whole(core: Core) -> None:
    await govern(core, "acme", max_queued=10)
    await fill(core, "acme", tasks=8)
    before = core.dump()
    with pytest.raises(QueueFull, match="acme") as caught:
        await core.enqueue("acme", "x", "y", "z")
    assert caught.value.retry_after is not None
    assert caught.value.retry_after > 0
    assert core.dump() == before
    await core.enqueue("acme", "x", "y")


async def test_what_waits_for_its_time_counts_as_well(core: Core) -> None:
    await govern(core, "acme", max_queued=2)
    await core.enqueue("acme", "later", delay_ms=60_000)
    await core.enqueue("acme", "now")
    with pytest.raises(QueueFull):
        await core.enqueue("acme", "more")


async def test_a_call_that_is_repeated_after_a_cut_reply_is_not_refused_for_its_own_tasks(core: Core) -> None:
    await govern(core, "acme", max_queued=2)
    nonce = new_nonce()
    assert await core.enqueue("acme", "a", "b", nonce=nonce) == [True, True]
    assert await core.enqueue("acme", "a", "b", nonce=nonce) == [True, True]
    assert await core.enqueue("acme", "a", "b") == [False, False]


async def test_the_time_to_wait_follows_from_how_fast_the_user_is_served(core: Core) -> None:
    await govern(core, "acme", max_queued=100)
    await fill(core, "acme", tasks=60)
    for _ in range(50):
        await core.settle(await core.take(1))
        core.wait_until_ms(core.now_us() // 1000 + 1)
    with pytest.raises(QueueFull) as caught:
        await core.enqueue("acme", *names(100, "more"))
    assert caught.value.retry_after is not None
    assert 0.1 <= caught.value.retry_after < 10, "ten too many, at some hundred a second"


async def test_a_quota_is_exact_with_fifty_producers(core: Core) -> None:
    await govern(core, "acme", max_queued=200)
    stores = [Store(core.backend) for _ in range(50)]

    async def produce(at: int) -> int:
        added = 0
        for n in range(10):
            batch = [new_task("acme", f"{at}.{n}.{i}", 3, 1.0, 0, new_nonce()) for i in range(3)]
            try:
                added += sum(await stores[at].enqueue(batch))
            except QueueFull:
                continue
        return added

    added = await asyncio.gather(*(produce(at) for at in range(50)))
    assert sum(added) == 198, "66 batches of three fit into 200"
    assert (await core.store.user("acme")).queued == 198
    for store in stores:
        await store.close()


async def test_drop_oldest_makes_room_and_cancels_the_first_in_line(core: Core) -> None:
    await govern(core, "acme", max_queued=3, overflow="drop_oldest")
    await core.enqueue("acme", "a", "b", "c")
    assert await core.enqueue("acme", "d", "e") == [True, True]
    assert [of.id for of in await core.take(5)] == ["c", "d", "e"]
    records = await core.store.records("acme", ["a", "b"])
    assert [record and record[9:10] for record in records] == [b"C", b"C"]


async def test_drop_oldest_refuses_a_batch_that_is_larger_than_the_quota(core: Core) -> None:
    await govern(core, "acme", max_queued=3, overflow="drop_oldest")
    await core.enqueue("acme", "a", "b")
    with pytest.raises(QueueFull):
        await core.enqueue("acme", "c", "d", "e", "f")
    assert [of.id for of in await core.take(5)] == ["a", "b"]


async def test_nothing_is_dropped_for_a_call_that_is_refused(core: Core) -> None:
    await govern(core, "acme", max_queued=3, overflow="drop_oldest")
    await govern(core, "full", max_queued=1)
    await core.enqueue("acme", "now")
    await core.enqueue("acme", "later", "later still", delay_ms=60_000)
    await core.enqueue("full", "1")
    before = core.dump()
    with pytest.raises(QueueFull):
        await core.enqueue("acme", "x", "y", "z")
    with pytest.raises(QueueFull, match="full"):
        await core.enqueue_all([new_task(user, "more", 3, 1.0, 0, new_nonce()) for user in ("acme", "full")])
    needs = msgspec.msgpack.encode(Needs("wait", False, ["unknown"]))
    linked = [new_task("acme", id_, 3, 1.0, 0, new_nonce())._replace(needs=needs) for id_ in ("x", "y")]
    with pytest.raises(DependencyError):
        await core.enqueue_all(linked)
    assert core.dump() == before


async def test_a_task_that_is_put_in_again_while_it_is_dropped_counts_once(core: Core) -> None:
    await govern(core, "acme", max_queued=2, overflow="drop_oldest")
    await core.enqueue("acme", "a", "b")
    assert await core.enqueue("acme", "a", "c") == [True, True]
    assert [of.id for of in await core.take(5)] == ["a", "c"]


# Pauses


async def test_a_paused_user_keeps_everything_and_goes_on_where_it_was(core: Core) -> None:
    await fill(core, "acme", tasks=3)
    await govern(core, "acme", paused=True)
    await core.enqueue("acme", "new")
    assert await core.take(10) == []
    await govern(core, "acme", paused=None)
    assert [of.id for of in await core.take(10)] == [*names(3), "new"]


async def test_a_pause_saves_up_nothing(core: Core) -> None:
    await fill(core, "acme", "other")
    await govern(core, "acme", paused=True)
    await core.serve(50)
    await govern(core, "acme", paused=None)
    served = await core.serve(20)
    assert 9 <= served.count("acme") <= 11


async def test_paused_users_cost_a_claim_nothing(core: Core) -> None:
    await govern(core, "x", weight=2)  # the queue is governed, with and without them

    async def commands_of_a_claim() -> Counter[str]:
        await fill(core, "a", "b", tasks=30)
        core.execute("CONFIG", "RESETSTAT")
        await core.take(20)
        stats = core.execute("INFO", "commandstats").decode()
        lines = [line.split(":") for line in stats.splitlines() if "calls=" in line]
        return Counter({name: int(told.split("calls=")[1].split(",")[0]) for name, told in lines})

    await commands_of_a_claim()  # which may have to load the script
    core.forget()
    await govern(core, "x", weight=2)
    without = await commands_of_a_claim()
    core.forget()
    await govern(core, "x", weight=2)
    for user_id in names(1000, "paused"):
        await core.enqueue(user_id, "1")
        await govern(core, user_id, paused=True)
    assert await commands_of_a_claim() == without


async def test_pausing_everybody_reaches_those_who_wait_already(core: Core) -> None:
    users = names(120, "u")
    await fill(core, *users, tasks=2)
    await govern(core, "*", paused=True)
    assert await core.take(100) == []
    await govern(core, "*", paused=None)
    taken = 0

    async def all_taken() -> bool:
        nonlocal taken
        taken += len(await core.take(100))
        return taken == 240

    await eventually(all_taken)


async def test_one_claim_holds_back_a_bounded_number_of_users(core: Core) -> None:
    users = names(500, "u")
    await core.enqueue_all([new_task(user_id, id_, 3, 1.0, 0, new_nonce()) for user_id in users for id_ in "12"])
    await core.take(500)
    await govern(core, "*", max_running=1)
    claim = await core.claim(10, wait=True)
    assert not claim.deliveries
    assert claim.sleep == 0, "it comes back at once"
    assert len(core.ready()) > 100
    while (await core.claim(10, wait=True)).sleep == 0:
        pass
    assert core.ready() == {}


async def test_a_policy_of_everybody_is_taken_back_from_all_even_when_the_last_other_one_is_purged(core: Core) -> None:
    await govern(core, "other", weight=2)
    await govern(core, "*", paused=True)
    await fill(core, "acme", tasks=1)
    await govern(core, "*", paused=None)
    await core.store.purge_step("other", 100)
    assert len(await core.take(2)) == 1


async def test_a_user_that_is_let_in_before_the_sweep_is_not_parked_any_more(core: Core) -> None:
    await govern(core, "*", paused=datetime.now(UTC) + timedelta(hours=1))
    await core.enqueue("acme", "1")
    await govern(core, "*", paused=None)
    await core.enqueue("acme", "2")
    assert len(await core.take(5)) == 2
    assert "parked" not in core.dump()


async def test_a_user_whose_last_task_was_canceled_is_not_parked_any_more(core: Core) -> None:
    await govern(core, "acme", rate="1/h")
    await fill(core, "acme", tasks=2)
    await core.settle(await core.take(2))
    await core.store.cancel("acme", "0001", "")
    assert (await core.claim(1, wait=True)).sleep is None


async def test_a_policy_of_everybody_is_the_default_and_an_own_one_wins(core: Core) -> None:
    await govern(core, "*", max_running=2)
    await govern(core, "big", max_running=5)
    await fill(core, "big", "small")
    assert whose(await core.take(50)) == {"big": 5, "small": 2}


# Shares


async def test_services_follow_weights(core: Core) -> None:
    for user_id, weight in (("one", 1), ("two", 2), ("five", 5)):
        await govern(core, user_id, weight=weight)
        for _ in range(7):
            await core.enqueue(user_id, *names(1000, new_nonce().hex()))
    served: Counter[str] = Counter()
    for _ in range(400):
        taken = await core.take(25)
        served += whose(taken)
        await core.settle(taken)
    assert sum(served.values()) == 10_000
    for user_id, share in (("one", 1 / 8), ("two", 2 / 8), ("five", 5 / 8)):
        assert abs(served[user_id] / 10_000 / share - 1) < 0.02


async def test_a_weight_that_is_changed_takes_effect_within_ten_services(core: Core) -> None:
    await fill(core, "a", "b", tasks=300)
    await core.serve(50)
    await govern(core, "b", weight=4)
    await core.serve(10)
    served = await core.serve(100)
    assert 78 <= served.count("b") <= 82


async def test_a_tenant_gains_nothing_by_splitting_into_many_users(core: Core) -> None:
    await govern(core, "honest", group="one")
    for user_id in names(20, "sybil"):
        await govern(core, user_id, group="many")
        await core.enqueue(user_id, *names(20))
    await core.enqueue("honest", *names(200))
    await core.enqueue("alone", *names(200))
    served = Counter(user_id[:5] for user_id in await core.serve(300))
    assert served == {"hones": 100, "sybil": 100, "alone": 100}


async def test_users_of_a_group_share_what_the_group_gets_by_their_weights(core: Core) -> None:
    await core.store.set_policy("@plan", {"weight": 2.0})
    for user_id, weight in (("a", 1), ("b", 3)):
        await govern(core, user_id, group="plan", weight=weight)
    await fill(core, "a", "b", "alone", tasks=200)
    served = Counter(await core.serve(120))
    assert abs(served["alone"] - 40) <= 1
    assert abs(served["b"] - 60) <= 2
    assert abs(served["a"] - 20) <= 2


async def test_a_user_that_changes_its_group_is_served_in_the_new_one(core: Core) -> None:
    for user_id in ("a", "b"):
        await govern(core, user_id, group="plan")
    await fill(core, "a", "b", "alone", tasks=200)
    await core.serve(40)
    await govern(core, "b", group=None)
    served = Counter(await core.serve(90))
    assert all(29 <= served[user_id] <= 31 for user_id in ("a", "b", "alone"))
    await govern(core, "b", group="plan")
    served = Counter(await core.serve(80))
    assert abs(served["alone"] - 40) <= 1


async def test_a_user_keeps_its_place_in_its_group_when_something_else_changes(core: Core) -> None:
    for user_id in ("a", "b"):
        await govern(core, user_id, group="plan")
    await fill(core, "a", "b")
    await core.serve(3)
    before = core.dump()["ready:plan"]
    await govern(core, "b", max_running=50)
    assert core.dump()["ready:plan"] == before


async def test_a_group_that_was_drained_and_comes_back_has_saved_up_nothing(core: Core) -> None:
    await govern(core, "a", group="plan")
    await fill(core, "a", tasks=5)
    await fill(core, "other", tasks=200)
    await core.serve(60)
    await fill(core, "a", tasks=50)
    served = Counter(await core.serve(40))
    assert abs(served["a"] - 20) <= 1


async def test_named_users_are_served_fairly_across_groups(core: Core) -> None:
    for user_id in ("a", "b"):
        await govern(core, user_id, group="plan")
    await fill(core, "a", "b", "alone", "not served", tasks=100)
    served = Counter(await core.serve(80, groups=[["a", "b", "alone"]]))
    assert abs(served["alone"] - 40) <= 1
    assert abs(served["a"] - served["b"]) <= 1


# Charges


async def settle(core: Core, deliveries: Sequence[Delivery], kind: str = "finished", **used: float) -> None:
    outcomes = [outcome(of, kind) for of in deliveries]
    for each in outcomes:
        each.charge, each.run_ms = used.get("charge", 0.0), used.get("run_ms", 0.0)
    await core.store.settle("w", outcomes)


async def test_what_a_task_adds_to_its_cost_counts_against_its_user(core: Core) -> None:
    await fill(core, "plain", "dear", tasks=200)
    served: Counter[str] = Counter()
    for _ in range(100):
        [taken] = await core.take(1)
        served[taken.user_id] += 1
        await settle(core, [taken], charge=3.0 if taken.user_id == "dear" else 0.0)
    assert abs(served["plain"] - 80) <= 1
    user = await core.store.user("dear")
    assert user.metrics.cost == served["dear"] * 4


async def test_a_charge_counts_for_the_group_as_well(core: Core) -> None:
    await govern(core, "dear", group="plan")
    await fill(core, "plain", "dear", tasks=200)
    served: Counter[str] = Counter()
    for _ in range(100):
        [taken] = await core.take(1)
        served[taken.user_id] += 1
        await settle(core, [taken], charge=3.0 if taken.user_id == "dear" else 0.0)
    assert abs(served["plain"] - 80) <= 1


async def test_a_retry_is_charged_again_and_what_is_released_is_not(core: Core) -> None:
    async def tag_after(user_id: str, kind: str) -> float:
        await core.enqueue(user_id, "1", "2", cost=5)
        before = core.ready()[user_id]
        await core.settle(await core.take(1), kind)
        await core.take(1)
        return core.ready()[user_id] - before

    assert await tag_after("again", "retry") == 10
    core.forget()
    assert await tag_after("back", "released") == 5


async def test_time_is_shared_instead_of_tasks(core: Core) -> None:
    """Virtual time, one slot: tasks of 100 ms against tasks of 10 ms."""
    run_ms = {"long": 100.0, "short": 10.0}
    for user_id in run_ms:
        for _ in range(2):
            await core.enqueue(user_id, *names(1000, new_nonce().hex()))
    used: Counter[str] = Counter()
    for _ in range(1100):
        claim = await core.store.claim("w", 1, settings=BY_TIME, wait=False)
        [taken] = claim.deliveries
        used[taken.user_id] += int(run_ms[taken.user_id])
        await settle(core, [taken], run_ms=run_ms[taken.user_id])
    assert abs(used["long"] / used["short"] - 1) < 0.05


@pytest.mark.parametrize(("kind", "run_ms", "costs"), [("failed", 0.0, 5 * 0.1), ("finished", 40.0, 5 * 0.04)])
async def test_what_could_not_run_is_charged_as_it_was_estimated(
    core: Core, kind: str, run_ms: float, costs: float
) -> None:
    """Else whoever kills workers is served for nothing."""
    await core.enqueue("acme", "1", "2", cost=5)
    before = core.ready()["acme"]
    claim = await core.store.claim("w", 1, settings=BY_TIME, wait=False)
    await settle(core, claim.deliveries, kind, run_ms=run_ms)
    assert core.ready()["acme"] - before == pytest.approx(costs)
    assert (await core.store.user("acme")).metrics.cost == pytest.approx(costs)


async def test_times_of_a_task_with_the_longest_name_are_learnt(core: Core) -> None:
    await core.store.enqueue(named("acme", "n" * 512, "1"))
    claim = await core.store.claim("w", 1, settings=BY_TIME, wait=False)
    await settle(core, claim.deliveries, run_ms=2000.0)
    assert core.execute("HGET", ":run-times", "n" * 512) == b"1 2"


async def test_run_times_are_known_of_a_thousand_names_and_a_new_one_takes_the_place_of_another(core: Core) -> None:
    core.execute("HSET", ":run-times", "", "1 2", *(word for n in range(999) for word in (f"old {n}", "1 2")))
    for number in range(50):
        await core.store.enqueue(named("acme", f"new {number}", f"t {number}"))
        claim = await core.store.claim("w", 1, settings=BY_TIME, wait=False)
        await settle(core, claim.deliveries, run_ms=2000.0)
        assert core.execute("HLEN", ":run-times") == 1000
        assert core.execute("HMGET", ":run-times", f"new {number}", "")[0] == b"1 2"
    assert core.execute("HEXISTS", ":run-times", "")


async def test_ended_runs_are_told_in_the_mean_by_name(core: Core) -> None:
    assert core.renew("w", [], run_times=[EndedRuns("a", 3, 2.0), EndedRuns("b", 1, 6.0)]) == []
    assert core.execute("HMGET", ":run-times", "a", "b", "") == [b"3 2", b"1 6", b"4 3"]
    core.renew("w", [], run_times=[EndedRuns("a", 1, 6.0)])
    assert core.execute("HGET", ":run-times", "a") == b"4 3"
    core.renew("w", [], run_times=[EndedRuns("a", 1000, 7.0)])
    assert core.execute("HGET", ":run-times", "a") == b"32 7"


def test_a_worker_notes_the_times_of_so_many_names_of_payloads_only() -> None:
    times = RunTimes(2)
    for name, run_ms in (("a", 1000), ("b", 500), ("c", 9), ("a", 2000)):
        times.note(name, run_ms, is_payload=True)
    times.note("function", 3000)
    assert times.take() == [EndedRuns("a", 2, 1.5), EndedRuns("b", 1, 0.5), EndedRuns("function", 1, 3.0)]
    assert len(times) == 0
    nothing = RunTimes(0)
    nothing.note("function", 1)
    assert len(nothing) == 0


# The breaker


async def test_a_user_whose_tasks_keep_failing_is_parked_probed_and_let_in_again(core: Core) -> None:
    await govern(core, "broken", breaker=Breaker(failures=3, window=60, cooldown=0.1))
    await fill(core, "broken", "other", tasks=100)
    for _ in range(3):
        await core.settle(await core.take(1, groups=[["broken"]]), "failed")
    assert await core.take(1, groups=[["broken"]]) == []
    user = await core.store.user("broken")
    assert user.breaker_open_until is not None
    assert whose(await core.take(5)) == {"other": 5}, "nobody else notices"

    probes: list[Delivery] = []

    async def is_probed() -> bool:
        probes.extend(await core.take(5, groups=[["broken"]]))
        return bool(probes)

    await eventually(is_probed)
    assert len(probes) == 1, "one at a time"
    await core.settle(probes, "failed")
    assert await core.take(5, groups=[["broken"]]) == [], "open again"
    probes.clear()
    await eventually(is_probed)
    await core.settle(probes)
    assert len(await core.take(5, groups=[["broken"]])) == 5, "closed"


async def test_failures_that_are_far_apart_open_nothing(core: Core) -> None:
    await govern(core, "acme", breaker=Breaker(failures=2, window=0.01, cooldown=60))
    await fill(core, "acme", tasks=10)
    for _ in range(4):
        await core.settle(await core.take(1), "failed")
        core.wait_until_ms(core.now_us() // 1000 + 15)
    assert len(await core.take(1)) == 1


# Limits of task names


def named(user_id: str, name: str, *ids: str, priority: int = 3) -> list[Any]:
    message = Message(name, NO_ARGS)
    return [
        new_task(user_id, id_, priority, 1.0, 0, new_nonce())._replace(
            body=encode_body(message, new_nonce(), 1.0, priority, MAX_BODY)
        )
        for id_ in ids
    ]


async def test_no_more_of_a_name_run_than_may_and_what_is_behind_them_is_not_blocked(core: Core) -> None:
    await limit(core, "api", 2)
    await core.enqueue_all(named("acme", "api", *names(10)) + named("acme", "local", "x", "y"))
    assert Counter(of.id for of in await core.take(12)) == Counter([*names(2), "x", "y"])
    assert (await core.store.user("acme")).queued == 8


async def test_those_who_wait_for_a_name_come_in_by_turns(core: Core) -> None:
    await limit(core, "api", 1)
    for user_id in ("a", "b", "c"):
        await core.enqueue_all(named(user_id, "api", *names(6)))
    served = []
    for _ in range(18):
        [taken] = await core.take(5)
        served.append(taken.user_id)
        await core.settle([taken])
    for at in range(1, 14):  # the first one found the name free
        assert len(set(served[at : at + 3])) == 3, served
    assert await core.take(5) == []


async def test_tasks_of_a_name_keep_their_order_within_a_user(core: Core) -> None:
    await limit(core, "api", 1)
    await core.enqueue_all(named("acme", "api", *names(6)))
    order = []
    for _ in range(6):
        taken = await core.take(6)
        order += [of.id for of in taken]
        await core.settle(taken)
    assert order == names(6)


async def test_the_rate_of_a_name_holds_for_all_users_together(core: Core) -> None:
    await limit(core, "api", rate=Rate(200))
    for user_id in ("a", "b"):
        await core.enqueue_all(named(user_id, "api", *names(10)))
    starts: list[int] = []

    async def all_started() -> bool:
        taken = await core.take(20)
        starts.extend(of.started_ms for of in taken)
        await core.settle(taken)
        return len(starts) == 20

    await eventually(all_started)
    assert all(later - earlier >= 4 for earlier, later in pairwise(starts)), "5 ms, as whole ms are told"


async def test_tasks_that_run_for_long_are_started_at_the_rate_of_their_name_as_well(core: Core) -> None:
    await limit(core, "api", rate=Rate(50))
    await core.enqueue_all(named("acme", "api", *names(4)))
    for left in (3, 2, 1, 0):
        [taken] = await core.take(5)
        claim = await core.claim(5, wait=True)
        assert not left or (claim.sleep is not None and claim.sleep <= 0.021), "not until something ends"
        core.wait_until_ms(taken.started_ms + 22)


async def test_a_slot_of_a_name_is_not_lost_with_a_worker(core: Core) -> None:
    await limit(core, "api", 1)
    await core.enqueue_all(named("acme", "api", "1", "2"))
    await core.take(1, worker="dies", lease_ms=1)
    core.wait_until_ms(core.now_us() // 1000 + 3)
    stolen = await core.take(5, worker="lives", lease_ms=1)
    assert [of.id for of in stolen] == ["1"]
    await core.settle(stolen, worker="lives")
    assert [of.id for of in await core.take(5)] == ["2"]


async def test_a_held_task_can_be_canceled_and_purged(core: Core) -> None:
    await limit(core, "api", 1)
    await core.enqueue_all(named("acme", "api", *names(5)))
    taken = await core.take(5)
    assert await core.store.cancel("acme", "0003", "") == "done"
    assert (await core.store.user("acme")).queued == 3
    await core.settle(taken)
    while (await core.store.purge_step("acme", 2))[-1]:
        pass
    held = [name for name in core.dump() if name.startswith(("held", "critical", "normal", "running"))]
    assert held == []
    assert int(core.state().get("normal", 0)) == 0


async def test_what_was_held_comes_back_when_the_limit_is_taken_away(core: Core) -> None:
    await limit(core, "api", 1)
    await core.enqueue_all(named("acme", "api", *names(5)))
    await core.take(5)
    await limit(core, "api")
    taken = 0

    async def all_taken() -> bool:
        nonlocal taken
        taken += len(await core.take(5))
        return taken == 4

    await eventually(all_taken)


async def test_what_was_held_for_a_rate_comes_back_with_the_next_claim_when_that_is_taken_away(core: Core) -> None:
    await limit(core, "api", rate=Rate(1, per=3600))
    await core.enqueue_all(named("acme", "api", *names(3)))
    assert len(await core.take(5)) == 1
    assert await core.take(5) == []
    await limit(core, "api")
    assert len(await core.take(5)) == 2


async def test_what_runs_while_a_limit_is_taken_away_does_not_keep_its_slot_for_ever(core: Core) -> None:
    await limit(core, "api", 1)
    await core.enqueue_all(named("acme", "api", *names(3)))
    first = await core.take(1)
    await limit(core, "api")
    await core.settle(first)
    await limit(core, "api", 1)
    assert [of.id for of in await core.take(5)] == ["0001"]
