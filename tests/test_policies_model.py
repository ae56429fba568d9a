"""Policies in pure Python: what they promise, for whatever users, limits, costs and arrivals there are."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairque import Breaker, QueueFull, Rate
from fairque.fairness.choice import FairChoice
from fairque.fairness.model_queue import Kind, ModelDelivery, ModelQueue, ModelTask
from tests.support.fair_share import FairShareWitness
from tests.support.traffic import Claim, Enqueue, Settle, Step, Steps, costs, steps, tenants, weights

MINUTE_US = 60_000_000
LEASE_MS = 10_000
examples = settings(derandomize=True, max_examples=200)
GROUP_OF = {"anna": "plan", "b:c": "plan", "zoë": "plan", "ada": "other", "bob": "other", "alone": None}
USERS = tuple(GROUP_OF)


class Traffic:
    """Plays users and workers against a model."""

    def __init__(self) -> None:
        self.queue = ModelQueue()
        self.now_us = MINUTE_US
        self.held: dict[str, list[ModelDelivery]] = {}
        self._ids = itertools.count()

    def govern(self, user_id: str, **fields: Any) -> None:
        self.queue.set_policy(self.now_us, user_id, **fields)

    def enqueue(self, user_id: str, tasks: int = 1, **fields: Any) -> None:
        made = [ModelTask(user_id, str(next(self._ids)), **fields) for _ in range(tasks)]
        assert all(self.queue.enqueue(self.now_us, made))

    def claim(self, want: int = 1, worker: str = "w") -> list[ModelDelivery]:
        taken = self.queue.claim(self.now_us, worker, want, lease_ms=LEASE_MS)
        self.held.setdefault(worker, []).extend(taken)
        return taken

    def settle(self, worker: str = "w", kind: Kind = "finished") -> None:
        for delivery in self.held.pop(worker, []):
            self.queue.settle(self.now_us, delivery, kind)

    def serve(self, services: int) -> list[str]:
        """One task after another, all of them finished."""
        turns = []
        for _ in range(services):
            turns += [delivery.task.user_id for delivery in self.claim()]
            self.settle()
        return turns

    def play(self, steps: Steps) -> Iterator[tuple[Step, list[ModelDelivery]]]:
        for step in steps:
            self.now_us += 1000
            taken: list[ModelDelivery] = []
            match step:
                case Enqueue():
                    self.enqueue(step.user_id, len(step.parts))
                case Claim():
                    taken = self.claim(step.want, step.worker)
                case Settle():
                    self.settle(step.worker)
            yield step, taken


# Groups


@examples
@given(
    st.fixed_dictionaries(dict.fromkeys(("plan", "other"), weights)),
    tenants(USERS),
    steps(USERS),
)
def test_the_bound_holds_between_groups_and_inside_each(
    of_groups: dict[str, float], of_users: dict[str, tuple[float, float]], steps: Steps
) -> None:
    traffic = Traffic()
    for user_id, (weight, _) in of_users.items():
        traffic.govern(user_id, weight=weight, group=GROUP_OF[user_id])
    for group, weight in of_groups.items():
        traffic.queue.choice.set_group_weight(group, weight)
    between = FairShareWitness(of_groups | {"alone": of_users["alone"][0]})
    inside = {
        group: FairShareWitness({user: of_users[user][0] for user, of in GROUP_OF.items() if of == group})
        for group in (*of_groups, None)
    }
    for step in steps:
        if isinstance(step, Enqueue):
            for part in step.parts:
                cost = part * of_users[step.user_id][1]
                traffic.enqueue(step.user_id, cost=cost)
                between.enqueued(GROUP_OF[step.user_id] or step.user_id, cost)
                inside[GROUP_OF[step.user_id]].enqueued(step.user_id, cost)
        elif isinstance(step, Claim):
            for delivery in traffic.claim(step.want, step.worker):
                user_id, cost = delivery.task.user_id, delivery.task.cost
                between.served(GROUP_OF[user_id] or user_id, cost)
                inside[GROUP_OF[user_id]].served(user_id, cost)
        else:
            traffic.settle(step.worker)
    for witness in (between, *inside.values()):
        witness.check()


def test_a_tenant_gains_nothing_by_splitting_into_many_users_of_its_group() -> None:
    traffic = Traffic()
    for at in range(20):
        traffic.govern(f"sybil{at}", group="many")
        traffic.enqueue(f"sybil{at}", 20)
    traffic.govern("honest", group="one")
    for user_id in ("honest", "alone"):
        traffic.enqueue(user_id, 200)
    served = Counter(user_id[:5] for user_id in traffic.serve(300))
    assert served == {"hones": 100, "sybil": 100, "alone": 100}


def test_new_users_of_a_group_starve_nobody_in_it_and_give_it_nothing() -> None:
    choice = FairChoice()
    choice.set_group("m", "plan")
    choice.join("m")
    choice.join("other")
    turns = []
    for number in range(300):
        name = f"0{number:04}"
        choice.set_group(name, "plan")
        choice.join(name)
        for _ in range(2):
            user_id = choice.lowest() or ""
            choice.serve(user_id, 1)
            turns.append(user_id)
            if user_id[0] == "0":
                choice.leave(user_id)
    assert turns.count("other") == 300
    assert turns.count("m") >= 10


PATHS = ("", "plan", "plan/team", "plan/team/squad", "plan/team/squad/pair")


def in_groups(*paths: str) -> FairChoice:
    """A user in each of them, named by its number."""
    choice = FairChoice()
    for at, path in enumerate(paths):
        choice.set_group(str(at), path or None)
        choice.join(str(at))
    return choice


def turns_of(choice: FairChoice, services: int, users: tuple[str, ...] = ()) -> list[str]:
    turns = []
    for _ in range(services):
        user_id = choice.lowest(users)
        assert user_id is not None
        choice.serve(user_id, 1)
        turns.append(user_id)
    return turns


def test_groups_in_groups_share_at_each_level() -> None:
    assert Counter(turns_of(in_groups(*PATHS), 320)) == {"0": 160, "1": 80, "2": 40, "3": 20, "4": 20}


def test_a_group_leaves_with_the_last_of_its_users_and_enters_with_the_first() -> None:
    choice = in_groups("", "plan/team", "plan")
    choice.leave("1")
    assert list(choice.ready) == ["0", "@plan"]
    choice.leave("2")
    assert list(choice.ready) == ["0"]
    choice.join("1")
    assert [list(choice.lines[path].ready) for path in ("", "plan", "plan/team")] == [
        ["0", "@plan"],
        ["@plan/team"],
        ["1"],
    ]


def test_a_group_whose_users_are_at_their_caps_is_owed_as_a_user_is() -> None:
    choice = in_groups("", "plan")
    turns_of(choice, 40)
    choice.leave("1", is_capped=True)
    turns_of(choice, 40)
    choice.join("1")
    assert turns_of(choice, 8).count("1") >= 6


def test_a_default_weight_holds_for_each_as_soon_as_its_turn_comes() -> None:
    choice = in_groups("", "", "plan")
    choice.set_weight("0", 1.0)
    choice.default_weight = 4.0
    assert turns_of(choice, 60).count("1") == 40


# Workers of some users


def test_who_is_served_by_nobody_lets_no_newcomer_in_front_of_the_others() -> None:
    choice = FairChoice()
    choice.note_workers(frozenset(("established", "new")))
    for user_id in ("orphan", "established"):
        choice.join(user_id)
    turns_of(choice, 1000, ("established", "new"))
    choice.join("new")
    assert turns_of(choice, 10, ("established", "new")).count("new") == 5
    assert not choice.is_served("orphan")


def test_who_was_served_by_nobody_is_owed_four_services_when_a_worker_comes() -> None:
    choice = FairChoice()
    choice.note_workers(frozenset("a"))
    for user_id in "ab":
        choice.join(user_id)
    turns_of(choice, 1000, ("a",))
    choice.note_workers(frozenset("ab"))
    assert turns_of(choice, 12, ("a", "b")).count("b") == 8


def test_who_comes_between_two_pools_enters_where_the_faster_one_is() -> None:
    choice = FairChoice()
    fast, slow = ("fast", "both"), ("slow", "both")
    for users in (fast, slow):
        choice.note_workers(frozenset(users))
    for user_id in ("fast", "slow"):
        choice.join(user_id)
    turns_of(choice, 1000, fast)
    turns_of(choice, 10, slow)
    choice.join("both")
    assert turns_of(choice, 10, fast).count("both") == 5


def test_what_a_list_of_users_was_served_is_forgiven_when_nobody_serves_it_any_more() -> None:
    choice = FairChoice()
    for users in ("", "a"):
        choice.note_workers(frozenset(users))
    for user_id in "ab":
        choice.join(user_id)
    turns_of(choice, 1000, ("a",))
    choice.end_workers(frozenset("a"))
    assert turns_of(choice, 20).count("a") >= 5


def test_a_user_that_changes_its_group_takes_no_tag_with_it() -> None:
    choice = FairChoice()
    choice.join("a", 5)
    choice.serve("a", 5)
    choice.set_group("a", "plan")
    assert (choice.tag("a"), list(choice.ready)) == (0, [])
    choice.join("a")
    choice.set_group("a", None)
    assert (choice.tag("a"), list(choice.ready)) == (0, [])


# Charges


@examples
@given(st.lists(st.tuples(weights, costs, st.floats(0, 5)), min_size=2, max_size=6), st.integers(10, 150))
def test_shares_follow_what_was_used(of: list[tuple[float, float, float]], services: int) -> None:
    """Each task is charged its cost, and its end adds to that: the sum is what users have equal shares of."""
    choice = FairChoice()
    for at, (weight, cost, _) in enumerate(of):
        choice.set_weight(str(at), weight)
        choice.set_group(str(at), f"of {at % 2}" if at < 4 else None)
        choice.join(str(at), cost)
    used: Counter[str] = Counter()
    for _ in range(services):
        user_id = choice.lowest() or ""
        weight, cost, more = of[int(user_id)]
        choice.serve(user_id, cost)
        choice.adjust(user_id, more)
        used[user_id] += (cost + more) / weight  # type: ignore[assignment]
    for one, other in itertools.combinations(range(len(of)), 2):
        if choice.line_of(str(one)) is choice.line_of(str(other)):
            bound = sum((cost + more) / weight for weight, cost, more in (of[one], of[other]))
            assert abs(used[str(one)] - used[str(other)]) <= bound * (1 + 1e-6)


def test_a_charge_counts_for_a_user_that_has_left_as_well() -> None:
    choice = FairChoice()
    choice.set_group("a", "plan")
    choice.set_group_weight("plan", 2)
    choice.join("a")
    choice.serve("a", 1)
    choice.leave("a")
    choice.adjust("a", 3)
    assert choice.tag("a") == 4
    assert list(choice.kept.values()) == [2]


# Limits


@examples
@given(st.dictionaries(st.sampled_from(USERS), st.integers(1, 3)), st.integers(1, 4), steps(USERS, parts=(1.0,)))
def test_no_instant_shows_more_of_a_user_than_may_run(own: dict[str, int], default: int, played: Steps) -> None:
    traffic = Traffic()
    traffic.govern("*", max_running=default)
    for user_id, most in own.items():
        traffic.govern(user_id, max_running=most)
    for step, taken in traffic.play(played):
        for user_id in USERS:
            assert traffic.queue.running(user_id) <= own.get(user_id, default)
        if isinstance(step, Claim) and len(taken) < step.want:
            full = [traffic.queue.running(user_id) == own.get(user_id, default) for user_id in USERS]
            assert all(is_full or not traffic.queue.waiting(user) for user, is_full in zip(USERS, full, strict=True))


@examples
@given(st.dictionaries(st.sampled_from(USERS), st.integers(1, 3)), steps(USERS, parts=(1.0,)))
def test_whoever_is_below_its_reservation_is_served_first(least: dict[str, int], played: Steps) -> None:
    traffic = Traffic()
    for user_id, slots in least.items():
        traffic.govern(user_id, min_running=slots, group=GROUP_OF[user_id])

    def below() -> set[str]:
        queue = traffic.queue
        return {user for user, slots in least.items() if queue.waiting(user) and queue.running(user) < slots}

    for step in played:
        if not isinstance(step, Claim):
            list(traffic.play([step]))
            continue
        for _ in range(step.want):
            entitled = below()
            for delivery in traffic.claim(1, step.worker):
                assert not entitled or delivery.task.user_id in entitled


@examples
@given(
    st.builds(Rate, st.sampled_from([3.0, 70.0, 1000.0]), st.sampled_from([1.0, 7.0]), st.integers(1, 4)),
    st.lists(st.tuples(st.integers(0, 400_000), st.integers(1, 5)), min_size=5, max_size=60),
)
def test_starts_stay_within_a_rate_over_every_window(rate: Rate, claims: list[tuple[int, int]]) -> None:
    traffic = Traffic()
    traffic.govern("a", rate=rate)
    traffic.enqueue("a", 400)
    starts: list[int] = []
    for wait_us, want in claims:
        traffic.now_us += wait_us
        starts += [traffic.now_us for _ in traffic.claim(want)]
        traffic.settle()
    for first, last in itertools.combinations(range(len(starts)), 2):
        window = starts[last] - starts[first]
        assert last - first + 1 <= rate.burst + window / rate.interval_us
    assert len(starts) >= min(rate.burst, sum(want for _, want in claims))


@examples
@given(st.builds(Rate, st.sampled_from([3.0, 70.0, 900.0]), st.just(1.0), st.integers(1, 4)))
def test_a_worker_that_sleeps_until_it_is_told_keeps_up_with_a_rate(rate: Rate) -> None:
    traffic = Traffic()
    traffic.govern("a", rate=rate)
    traffic.enqueue("a", 60)
    claims = 0
    while traffic.queue.waiting("a"):
        at_ms = traffic.queue.next_event_ms()
        traffic.now_us = max(traffic.now_us, int(at_ms or 0) * 1000)
        assert traffic.claim(60), "nobody gets up in vain"
        traffic.settle()
        claims += 1
    late_us = traffic.now_us - MINUTE_US - (60 - rate.burst) * rate.interval_us
    assert 0 <= late_us <= 1000 * (1 if rate.burst > 1 else 60), "it sleeps for whole ms, for which a burst makes up"


def test_a_pause_ends_by_itself_and_saves_up_nothing() -> None:
    traffic = Traffic()
    for user_id in ("a", "b"):
        traffic.enqueue(user_id, 100)
    traffic.govern("a", paused=datetime.fromtimestamp(70, UTC))
    assert traffic.serve(40) == ["b"] * 40
    assert traffic.queue.next_event_ms() == 70_000
    traffic.now_us = 70_000_000
    assert Counter(traffic.serve(20))["a"] in (10, 11)


def test_a_default_reaches_those_who_wait_and_an_own_policy_wins() -> None:
    traffic = Traffic()
    for user_id in ("a", "b"):
        traffic.enqueue(user_id, 9)
    traffic.govern("*", max_running=1)
    traffic.govern("b", max_running=3)
    assert Counter(of.task.user_id for of in traffic.claim(18)) == {"a": 1, "b": 3}
    traffic.govern("*", max_running=None)
    assert Counter(of.task.user_id for of in traffic.claim(18)) == {"a": 8}


def test_a_breaker_parks_probes_and_lets_in_again() -> None:
    traffic = Traffic()
    traffic.govern("a", breaker=Breaker(failures=2, window=60, cooldown=30))
    traffic.enqueue("a", 20)
    kinds: list[Kind] = ["failed", "retry"]
    for kind in kinds:
        assert traffic.claim(1)
        traffic.settle(kind=kind)
    assert traffic.claim(5) == []
    assert traffic.queue.next_event_ms() == 90_000
    traffic.now_us = 90_000_000
    assert len(traffic.claim(5)) == 1
    traffic.settle(kind="failed")
    traffic.now_us = 120_000_000
    assert len(traffic.claim(5)) == 1
    traffic.settle()
    assert len(traffic.claim(5)) == 5


# Quotas


@pytest.mark.parametrize(("overflow", "left"), [("reject", "abc"), ("drop_oldest", "cde")])
def test_a_backlog_is_not_longer_than_its_quota(overflow: Any, left: str) -> None:
    queue = ModelQueue()
    queue.set_policy(0, "a", max_queued=3, overflow=overflow)
    queue.enqueue(1, [ModelTask("a", name) for name in "abc"])
    try:
        queue.enqueue(2, [ModelTask("a", name, nonce=b"2") for name in "de"])
    except QueueFull:
        assert overflow == "reject"
    assert [of.task.task_id for of in queue.claim(3, "w", 9, lease_ms=LEASE_MS)] == list(left)


def test_what_cannot_be_dropped_leaves_less_room() -> None:
    queue = ModelQueue()
    queue.set_policy(0, "a", max_queued=3, overflow="drop_oldest")
    queue.enqueue(1, [ModelTask("a", "later", start_ms=90_000), ModelTask("a", "b"), ModelTask("a", "c")])
    with pytest.raises(QueueFull):
        queue.enqueue(2, [ModelTask("a", name, nonce=b"2") for name in "xyz"])
    assert queue.queued("a") == 3, "nothing was dropped in vain"
    assert queue.enqueue(3, [ModelTask("a", name, nonce=b"3") for name in "xy"]) == [True, True]
    assert queue.queued("a") == 3


# Limits of names


@examples
@given(st.integers(1, 3), steps(USERS, parts=(1.0,)), st.lists(st.booleans(), min_size=10, max_size=20))
def test_a_name_keeps_its_limit_and_blocks_nothing(most: int, played: Steps, named: list[bool]) -> None:
    traffic, which = Traffic(), itertools.cycle(named)
    traffic.queue.set_limit(0, ":api", most)
    for step in played:
        if isinstance(step, Enqueue):
            for _ in step.parts:
                traffic.enqueue(step.user_id, name="api" if next(which) else "t")
            continue
        [(_, taken)] = traffic.play([step])
        out = [of.task for held in traffic.held.values() for of in held]
        assert sum(task.name == "api" for task in out) <= most
        if isinstance(step, Claim) and len(taken) < step.want:
            assert not any(traffic.queue.waiting(user_id) for user_id in USERS)
            assert sum(task.name == "api" for task in out) == most or not traffic.queue.tasks.keys() - {
                task.key for task in out
            }


def test_those_who_wait_for_a_name_come_in_by_turns() -> None:
    traffic = Traffic()
    traffic.queue.set_limit(0, ":api", 1)
    for user_id in "abc":
        traffic.enqueue(user_id, 6, name="api")
    turns = []
    for _ in range(18):
        turns += [of.task.user_id for of in traffic.claim(5)]
        traffic.now_us += 1000
        traffic.settle()
    assert len(turns) == 18
    assert all(len({*three}) == 3 for three in zip(turns[1:], turns[2:], turns[3:15], strict=False)), turns


def test_the_rate_of_a_name_holds_for_all_users() -> None:
    traffic = Traffic()
    traffic.queue.set_limit(0, ":api", rate=Rate(10))
    for user_id in "ab":
        traffic.enqueue(user_id, 5, name="api")
    starts: list[int] = []
    while len(starts) < 10:
        traffic.now_us = max(traffic.now_us, int(traffic.queue.next_event_ms() or 0) * 1000)
        starts += [traffic.now_us for _ in traffic.claim(9)]
    assert all(later - earlier == 100_000 for earlier, later in pairwise(starts)), "though none of them has ended yet"
