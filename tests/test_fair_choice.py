"""The fair choice in the scripts: the cases that went wrong in other systems, each by its name."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator

import pytest

from tests.support.core import Core
from tests.support.servers import Server

pytestmark = pytest.mark.leaves_keys()


@pytest.fixture
async def core(server: Server, queue_name: str) -> AsyncIterator[Core]:
    async with Core(server.url, queue_name) as core:
        yield core


def names(count: int, prefix: str = "") -> list[str]:
    return [f"{prefix}{at:04}" for at in range(count)]


async def clock(core: Core) -> float:
    return float(core.state()["clock"])


# A flood and the others


async def test_one_task_of_a_quiet_user_waits_for_one_service_of_a_flood(core: Core) -> None:
    await core.enqueue("flood", *names(1000))
    await core.serve(20)
    await core.enqueue("quiet", "1")
    assert "quiet" in await core.serve(2)


async def test_users_with_backlogs_take_turns_whatever_their_length(core: Core) -> None:
    await core.enqueue("flood", *names(300))
    for user_id in ("a", "b", "z"):
        await core.enqueue(user_id, *names(10))
    served = await core.serve(40)
    assert {user_id: served.count(user_id) for user_id in served} == {"flood": 10, "a": 10, "b": 10, "z": 10}


async def test_a_batch_for_one_worker_is_chosen_as_fairly_as_one_task_at_a_time(core: Core) -> None:
    for user_id in ("a", "b", "c"):
        await core.enqueue(user_id, *names(4))
    assert [of.user_id for of in await core.take(12)] == ["a", "b", "c"] * 4


async def test_what_a_task_costs_is_charged(core: Core) -> None:
    await core.enqueue("cheap", *names(40), cost=1)
    await core.enqueue("dear", *names(40), cost=4)
    served = await core.serve(25)
    assert served.count("cheap") == 20
    assert served.count("dear") == 5


async def test_a_waiting_task_of_a_user_weighs_nothing_once_it_is_gone(core: Core) -> None:
    await core.enqueue("a", "1")
    await core.serve(1)
    assert not core.ready()
    assert core.state()["normal"] == core.state()["started"] == "0"


# A drained user comes back


async def test_a_drained_user_gains_nothing_by_coming_back(core: Core) -> None:
    await core.enqueue("patient", *names(100))
    served = []
    for task_id in names(100):
        await core.enqueue("hasty", task_id)
        served += await core.serve(1)
        if served[-1] == "patient":
            served += await core.serve(1)
    assert abs(served.count("hasty") - served.count("patient")) <= 1


async def test_a_drained_user_keeps_its_tag_until_the_lowest_has_passed_it(core: Core) -> None:
    await core.enqueue("a", "1", cost=7)
    await core.enqueue("b", *names(10))
    assert await core.serve(1) == ["a"]
    assert core.dump()["left"].scores == [("a", 7)]
    await core.enqueue("a", "2")
    assert core.ready() == {"a": 7, "b": 0}
    await core.serve(11)
    assert "left" not in core.dump()
    assert not [name for name in core.dump() if name.startswith("user:")]
    await core.enqueue("a", "3")
    assert core.ready() == {"a": await clock(core)}


# Brand-new users in a stream


@pytest.mark.parametrize("prefix", ["0", "~"])
async def test_a_stream_of_new_users_starves_nobody(core: Core, prefix: str) -> None:
    await core.enqueue("m", *names(100))
    served = []
    for user_id in names(100, prefix):
        await core.enqueue(user_id, "1")
        served += await core.serve(1)
    # One arrives per service, so the line grows and the share of each in it shrinks, but never to nothing.
    assert served.count("m") >= 8


@pytest.mark.parametrize("prefix", ["0", "~"])
async def test_new_users_who_come_one_at_a_time_take_turns_with_a_backlog(core: Core, prefix: str) -> None:
    await core.enqueue("m", *names(50))
    served = []
    for user_id in names(50, prefix):
        await core.enqueue(user_id, "1")
        served += await core.serve(2)
    assert served.count("m") == 50


async def test_a_new_user_does_not_wait_for_what_a_costly_service_moved_the_clock(core: Core) -> None:
    await core.enqueue("dear", *names(3), cost=100)
    await core.enqueue("flood", *names(60))
    assert await core.serve(1) == ["dear"]
    await core.enqueue("quiet", "1")
    assert await core.serve(2) == ["flood", "quiet"]


async def test_a_new_user_of_large_weight_does_not_wait_for_users_of_small_weight(core: Core) -> None:
    await core.store.set_policy("light", {"weight": 0.1})
    await core.store.set_policy("heavy", {"weight": 10.0})
    await core.store.set_policy("quiet", {"weight": 10.0})
    await core.enqueue("heavy", *names(100))
    await core.enqueue("light", *names(3))
    await core.serve(40)
    await core.enqueue("quiet", "1")
    assert "quiet" in await core.serve(2)


async def test_a_user_with_workers_of_its_own_does_not_push_new_users_to_the_back(core: Core) -> None:
    await core.enqueue("served apart", *names(100))
    await core.enqueue("flood", *names(100))
    assert await core.serve(50, groups=[["served apart"]]) == ["served apart"] * 50
    await core.enqueue("quiet", "1")
    assert await core.serve(2) == ["flood", "quiet"]


async def test_a_user_who_comes_into_an_idle_queue_enters_at_the_clock(core: Core) -> None:
    await core.enqueue("a", *names(5))
    await core.serve(5)
    await core.enqueue("b", "1")
    assert core.ready() == {"b": await clock(core)}


# The lowest tag, and nothing to serve


async def test_a_user_with_the_lowest_tag_and_nothing_to_serve_holds_nobody_up(core: Core) -> None:
    await core.enqueue("busy", "1")
    await core.take()
    await core.enqueue("later", "1", delay_ms=60_000)
    await core.enqueue("other", *names(3))
    assert set(core.ready()) == {"other"}
    assert await core.serve(3) == ["other"] * 3


async def test_groups_are_served_in_their_order_and_the_lowest_tag_first_within_one(core: Core) -> None:
    for user_id in "abcd":
        await core.enqueue(user_id, *names(2))
    await core.serve(1, groups=[["c"]])
    assert await core.serve(6, groups=[["c", "b"], ["d"], []]) == ["b", "b", "c", "d", "d", "a"]


async def test_a_worker_serves_only_the_users_of_its_groups(core: Core) -> None:
    for user_id in "abc":
        await core.enqueue(user_id, "1")
    assert await core.serve(5, groups=[["b"], ["nobody"]]) == ["b"]


async def test_a_user_named_twice_by_one_worker_is_served_once_at_a_time(core: Core) -> None:
    await core.enqueue("a", "1")
    await core.enqueue("b", "1")
    assert [of.user_id for of in await core.take(5, groups=[["a", "a"], ["a"]])] == ["a"]


# Ties


async def test_ties_are_broken_by_the_name_and_each_gets_one_before_anybody_gets_two(core: Core) -> None:
    for user_id in ("~", "é", "Z", "a", "-"):  # é is %C3%A9
        await core.enqueue(user_id, *names(2))
    assert await core.serve(10) == ["é", "-", "Z", "a", "~"] * 2


async def test_ties_within_a_group_are_broken_like_those_between_all(core: Core) -> None:
    users = ["~", "é", "Z", "a", "-"]
    for user_id in users:
        await core.enqueue(user_id, *names(2))
    assert await core.serve(10, groups=[users]) == ["é", "-", "Z", "a", "~"] * 2


# Only future tasks


async def test_a_user_with_only_future_tasks_is_not_among_the_ready(core: Core) -> None:
    await core.enqueue("a", "1", "2", delay_ms=60_000)
    claim = await core.claim(wait=True)
    assert not claim.deliveries
    assert claim.sleep == pytest.approx(60, abs=1)
    assert not core.ready()
    assert core.state()["scheduled"] == "2"


async def test_a_task_that_comes_due_in_an_idle_queue_moves_the_clock_like_any_other(core: Core) -> None:
    await core.enqueue("a", "1", delay_ms=1)
    core.wait_until_ms(core.now_us() // 1000 + 1)
    assert await core.serve(1) == ["a"]
    assert await clock(core) == 1
    await core.enqueue("b", "1")
    ready = core.ready()
    assert list(ready) == ["b"]
    assert math.isfinite(ready["b"])


async def test_those_who_come_due_are_counted_when_the_clock_moves(core: Core) -> None:
    for user_id in "abc":
        await core.enqueue(user_id, "1", delay_ms=1)
    await core.enqueue("d", "1")
    core.wait_until_ms(core.now_us() // 1000 + 1)
    await core.serve(1)
    assert await clock(core) == 1 / 4


# The last task goes without being served


async def test_a_user_whose_last_task_expired_leaves_the_others_alone(core: Core) -> None:
    await core.enqueue("a", "gone")
    await core.enqueue("b", "1")
    core.execute("DEL", ":body:a:gone")
    assert [of.user_id for of in await core.take(2)] == ["b"]
    assert not core.ready()
    assert "normal:a" not in core.dump()
    await core.enqueue("a", "1")
    await core.enqueue("b", "2")
    assert await core.serve(2) == ["a", "b"], "what was not served is not charged"


async def test_a_user_whose_last_task_became_a_dead_letter_comes_back_as_any_other(core: Core) -> None:
    await core.enqueue("a", "1")
    assert await core.settle(await core.take(), "failed") == [True]
    assert not core.ready()
    await core.enqueue("b", *names(3))
    await core.enqueue("a", "2")
    assert sorted(await core.serve(2)) == ["a", "b"]


async def test_a_delivery_whose_task_is_gone_leaves_nothing_behind(core: Core) -> None:
    await core.enqueue("a", "1")
    await core.take(lease_ms=1)
    core.execute("DEL", ":body:a:1")
    core.wait_until_ms(core.now_us() // 1000 + 3)
    assert await core.take(worker="thief", lease_ms=1) == []
    assert core.state()["started"] == "0"
    assert {name for name, key in core.dump().items() if not key.expires} <= {"state", "users", "workers"}


# Names


async def test_no_two_names_run_into_each_other(core: Core) -> None:
    users = ["a:b", "a", "a%3Ab", "{x}", "x", "*", " ", "\n", "\0", "normal", "é", "e\u0301"]
    for user_id in users:
        assert await core.enqueue(user_id, "c", "b:c", ":") == [True] * 3
    deliveries = await core.take(3 * len(users))
    expected = sorted((user_id, task_id) for user_id in users for task_id in ("c", "b:c", ":"))
    assert sorted((of.user_id, of.id) for of in deliveries) == expected
    assert await core.settle(deliveries) == [True] * len(deliveries)
    assert not core.ready()


# An idle poll


async def test_an_idle_poll_changes_nothing_but_the_heartbeat(core: Core) -> None:
    await core.enqueue("a", *names(3))
    await core.serve(3)
    await core.enqueue("later", "1", delay_ms=60_000)
    await core.claim(wait=True)
    before = core.dump()
    for _ in range(5):
        await core.claim(wait=True)
    after = core.dump()
    assert before.keys() == after.keys()
    changed = [name for name in after if after[name].content != before[name].content]
    assert changed in ([], ["workers"])


async def test_a_poll_that_finds_nothing_for_its_groups_charges_nobody(core: Core) -> None:
    await core.enqueue("a", "1")
    before = core.ready(), core.state()
    assert await core.serve(3, groups=[["b"]]) == []
    after = core.state()
    assert after.pop("assigned") == "1"
    assert float(after.pop("silent_at")) > float(after.pop("checked_at")) > 0
    assert (core.ready(), after) == before


# A policy changes


async def test_a_weight_that_changes_while_a_backlog_waits_holds_from_the_next_service_on(core: Core) -> None:
    for user_id in ("grows", "stays"):
        await core.enqueue(user_id, *names(100))
    assert (await core.serve(10)).count("grows") == 5
    await core.store.set_policy("grows", {"weight": 4.0})
    assert (await core.serve(50)).count("grows") == 40
    await core.store.set_policy("grows", {}, ["*"])
    assert (await core.serve(10)).count("grows") == 5


# Slots of the dead


async def test_the_tasks_of_a_killed_worker_run_elsewhere_and_its_slots_come_back(core: Core) -> None:
    await core.enqueue("a", *names(4))
    lost = await core.take(3, worker="killed", lease_ms=400)
    assert (await core.store.user("a")).started == 3
    core.wait_until_ms(core.now_us() // 1000 + 403)
    core.renew("others", [], concurrency=100)  # enough slots for as many suspects at once
    stolen = [of for _ in range(3) for of in await core.take(2, worker="thief", lease_ms=400)]
    assert sorted((of.id, of.attempt, of.lost) for of in stolen) == [
        ("0000", 2, 1),
        ("0001", 2, 1),
        ("0002", 2, 1),
        ("0003", 1, 0),
    ]
    assert await core.settle(lost, worker="killed") == [False] * 3
    assert await core.settle(stolen, worker="thief") == [True] * 4
    assert (await core.store.user("a")).started == 0
    assert core.state()["started"] == "0"


async def test_what_is_stolen_or_given_back_is_paid_for_once(core: Core) -> None:
    await core.enqueue("a", "1", cost=5)
    await core.take(lease_ms=1)
    core.wait_until_ms(core.now_us() // 1000 + 3)
    stolen = await core.take(worker="thief", lease_ms=1)
    await core.settle(stolen, "released")
    assert core.ready() == {"a": 5}
    await core.take()
    await core.enqueue("a", "2")
    assert core.ready() == {"a": 5}


@pytest.mark.parametrize("kind", ["retry", "released"])
async def test_what_comes_back_keeps_its_place_in_front(core: Core, kind: str) -> None:
    await core.enqueue("a", *names(3))
    first = await core.take()
    await core.enqueue("a", "late")
    await core.settle(first, kind)
    assert [of.id for of in await core.take(9)] == ["0000", "0001", "0002", "late"]


# A lane


@pytest.mark.parametrize("user_id", ["a", "b:c"])
async def test_the_critical_lane_of_a_user_goes_first_and_in_order(core: Core, user_id: str) -> None:
    await core.enqueue(user_id, "n", priority=5)
    await core.enqueue(user_id, *names(3), priority=6)
    assert [of.id for of in await core.take(9)] == [*names(3), "n"]


async def test_a_critical_task_goes_ahead_of_its_own_users_tasks_only(core: Core) -> None:
    await core.enqueue("a", *names(2))
    await core.enqueue("b", "c1", "c2", priority=6)
    assert [of.user_id for of in await core.take(9)] == ["a", "b", "a", "b"]


async def test_a_level_of_priority_is_a_head_start_and_no_more(core: Core) -> None:
    await core.enqueue("a", "low", priority=1)
    await core.enqueue("a", "high", priority=4)
    core.execute("ZINCRBY", ":normal:a", str(-4 * 300_000_000), "low")  # as if it had waited for twenty minutes
    assert [of.id for of in await core.take(2)] == ["low", "high"]
