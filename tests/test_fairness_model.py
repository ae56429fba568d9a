"""The fair choice in pure Python: what it promises, for whatever users, weights, costs and arrivals there are."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairque.fairness.choice import FairChoice, SortedSet
from fairque.fairness.model_queue import ModelDelivery, ModelQueue, ModelTask
from fairque.models import TaskState
from tests.support.fair_share import FairShareWitness
from tests.support.traffic import Claim, Enqueue, Settle, Step, Steps, costs, steps, tenants, weights

MINUTE_US = 60_000_000
LEASE_MS = 10_000
examples = settings(derandomize=True, max_examples=300)

USERS = ("anna", "b:c", "zoë")
GUESTS = ("A", "b", "~")  # before, among and behind the others, where ties are concerned


class Traffic:
    """Plays users and workers against a `ModelQueue`, and a witness watches.

    Args:
        of_users: Weight and largest cost of each.
    """

    def __init__(self, of_users: dict[str, tuple[float, float]]) -> None:
        self.queue = ModelQueue()
        self.witness = FairShareWitness({user_id: weight for user_id, (weight, _) in of_users.items()})
        self.largest = {user_id: cost for user_id, (_, cost) in of_users.items()}
        for user_id, (weight, _) in of_users.items():
            self.queue.choice.set_weight(user_id, weight)
        self.now_us = MINUTE_US
        self.held: dict[str, list[ModelDelivery]] = {}
        self.order: list[str] = []
        self._ids = itertools.count()

    def play(self, step: Step) -> None:
        self.now_us += 1000
        match step:
            case Enqueue():
                self.enqueue(*step)
            case Claim():
                self.claim(*step)
            case Settle():
                for delivery in self.held.pop(step.worker, []):
                    assert self.queue.settle(self.now_us, delivery, "finished")

    def enqueue(self, user_id: str, parts: tuple[float, ...]) -> None:
        for part in parts:
            cost = part * self.largest[user_id]
            self.queue.enqueue(self.now_us, [ModelTask(user_id, str(next(self._ids)), cost=cost)])
            self.witness.enqueued(user_id, cost)

    def claim(self, worker: str, want: int) -> None:
        taken = self.queue.claim(self.now_us, worker, want, lease_ms=LEASE_MS)
        self.held.setdefault(worker, []).extend(taken)
        for delivery in taken:
            self.witness.served(delivery.task.user_id, delivery.task.cost)
            self.order.append(delivery.task.user_id)


# The bound of start-time fair queueing


@examples
@given(tenants(USERS), steps(USERS))
def test_service_stays_within_the_bound_for_any_weights_costs_and_arrivals(
    of_users: dict[str, tuple[float, float]], steps: Steps
) -> None:
    traffic = Traffic(of_users)
    for step in steps:
        traffic.play(step)
    traffic.witness.check()


@examples
@given(st.lists(st.tuples(weights, costs), min_size=2, max_size=8), st.integers(1, 200))
def test_users_with_endless_backlogs_are_served_by_their_weights(of: list[tuple[float, float]], services: int) -> None:
    choice = FairChoice()
    for at, (weight, cost) in enumerate(of):
        choice.set_weight(str(at), weight)
        choice.join(str(at), cost)
    served = [0.0] * len(of)
    for _ in range(services):
        user_id = choice.lowest() or ""
        weight, cost = of[int(user_id)]
        choice.serve(user_id, cost)
        served[int(user_id)] += cost / weight
    largest = max(cost / weight for weight, cost in of)
    assert max(served) - min(served) <= 2 * largest * (1 + 1e-6)


# Short wait


@examples
@given(steps(USERS + GUESTS, parts=(1.0,), least=0), st.sampled_from(GUESTS))
def test_whoever_has_nothing_waiting_is_served_before_anybody_gets_two_turns(steps: Steps, guest: str) -> None:
    traffic = Traffic(dict.fromkeys(USERS + GUESTS, (1.0, 1.0)))
    for step in steps:
        traffic.play(step)
    while traffic.queue.waiting(guest):
        traffic.claim("w1", 1)
    before = len(traffic.order)
    traffic.enqueue(guest, (1.0,))
    for user_id in USERS:
        traffic.enqueue(user_id, (1.0,) * 5)
    while traffic.queue.waiting(guest):
        traffic.claim("w2", 1)
    turns = traffic.order[before:-1]
    assert all(turns.count(user_id) == 1 for user_id in turns), turns


@examples
@given(st.lists(st.tuples(weights, costs), min_size=1, max_size=8), st.integers(0, 100), weights, costs)
def test_a_newcomer_waits_for_less_than_half_an_own_task_and_one_task_of_each_other(
    of: list[tuple[float, float]], services: int, weight: float, cost: float
) -> None:
    choice = FairChoice()
    for at, (others_weight, others_cost) in enumerate(of):
        choice.set_weight(str(at), others_weight)
        choice.join(str(at), others_cost)
    for _ in range(services):
        user_id = choice.lowest() or ""
        choice.serve(user_id, of[int(user_id)][1])
    choice.set_weight("new", weight)
    choice.join("new", cost)
    served = [0.0] * len(of)
    while (user_id := choice.lowest() or "") != "new":
        choice.serve(user_id, of[int(user_id)][1])
        served[int(user_id)] += of[int(user_id)][1] / of[int(user_id)][0]
    for got, (others_weight, others_cost) in zip(served, of, strict=True):
        assert got <= (cost / weight / 2 + others_cost / others_weight) * (1 + 1e-6)


# Newcomers, caps, weights and debts


def busy(users: int = 10, services: int = 95, weight: float = 1.0) -> FairChoice:
    choice = FairChoice()
    for at in range(users):
        choice.set_weight(f"busy-{at}", weight)
        choice.join(f"busy-{at}")
    serve(choice, services)
    return choice


def serve(choice: FairChoice, services: int, costs: dict[str, float] | None = None) -> list[str]:
    served = []
    for _ in range(services):
        user_id = choice.lowest() or ""
        choice.serve(user_id, (costs or {}).get(user_id, 1.0))
        served.append(user_id)
    return served


@pytest.mark.parametrize("cost", [1, 10, 100, 1000])
@pytest.mark.parametrize("weight", [1, 10])
def test_a_newcomer_is_served_within_a_round_whatever_it_costs_and_they_weigh(cost: float, weight: float) -> None:
    for services in range(90, 101):
        choice = busy(services=services, weight=weight)
        choice.join("new", cost)
        assert "new" in serve(choice, 11)


def test_who_was_never_served_is_not_behind_those_who_come_when_all_have_left() -> None:
    choice = FairChoice()
    choice.set_weight("h", 0.01)
    choice.join("h")
    choice.serve("h", 1.0)
    choice.join("i")
    choice.leave("i")
    choice.leave("h")
    choice.join("k")
    choice.join("i")
    assert "i" in serve(choice, 2)


def test_who_was_at_its_cap_gets_some_of_what_it_is_owed_and_no_more() -> None:
    choice = busy()
    choice.leave("busy-0", is_capped=True)
    serve(choice, 900)
    choice.join("busy-0")
    turns = serve(choice, 100)
    assert turns[:4] == ["busy-0"] * 4
    assert turns.count("busy-0") <= 10 + 4 + 1


def test_a_user_that_was_away_is_owed_nothing() -> None:
    choice = busy()
    choice.leave("busy-0")
    serve(choice, 900)
    choice.join("busy-0")
    assert serve(choice, 100).count("busy-0") <= 10 + 1


@pytest.mark.parametrize("to", [1.0, 100.0])
def test_a_weight_that_is_raised_holds_at_once(to: float) -> None:
    choice = busy(users=2, services=0)
    choice.set_weight("light", 0.01)
    choice.join("light")
    serve(choice, 20)
    choice.set_weight("light", to)
    assert "light" in serve(choice, 4)


def test_a_weight_that_is_lowered_and_raised_again_changes_nothing() -> None:
    choice, same = busy(), busy()
    for weight in (0.1, 7, 1):
        choice.set_weight("busy-3", weight)
    assert choice.tag("busy-3") == pytest.approx(same.tag("busy-3"))


def test_service_out_of_turn_is_forgiven_beyond_the_horizon() -> None:
    choice = busy()
    for _ in range(1000):
        choice.serve("busy-0", 1.0)
    choice.forgive("busy-0")
    assert 60 <= serve(choice, 200).index("busy-0") <= 110


def test_what_is_charged_late_leaves_the_tags_their_digits() -> None:
    choice = busy(users=1)
    for _ in range(2000):
        choice.adjust("busy-0", 1e9)
    for user_id in ("a", "b"):
        choice.set_weight(user_id, 1000)
        choice.join(user_id, 0.1)
    choice.leave("busy-0")
    turns = serve(choice, 400, {"a": 0.1, "b": 0.1})
    assert abs(turns.count("a") - turns.count("b")) <= 2


# Cases that went wrong in other systems


@pytest.mark.parametrize("name", ["0", "~"])
def test_a_stream_of_newcomers_starves_nobody(name: str) -> None:
    choice = FairChoice()
    choice.join("m")
    turns = []
    for number in range(300):
        choice.join(f"{name}{number:04}")
        user_id = choice.lowest() or ""
        choice.serve(user_id, 1)
        turns.append(user_id)
        if user_id != "m":
            choice.leave(user_id)
    # One newcomer arrives per turn, so the line grows and the share of each in it shrinks, but never to nothing.
    assert turns.count("m") >= 10


@pytest.mark.parametrize("guest", ["0", "~"])
def test_newcomers_one_at_a_time_take_turns_with_a_backlog(guest: str) -> None:
    choice = FairChoice()
    choice.join("m")
    turns = []
    for number in range(100):
        choice.join(f"{guest}{number:04}")
        for _ in range(2):
            user_id = choice.lowest() or ""
            choice.serve(user_id, 1)
            turns.append(user_id)
            if user_id != "m":
                choice.leave(user_id)
    assert turns.count("m") == 100


def test_a_drained_user_gains_nothing_by_coming_back() -> None:
    choice = FairChoice()
    choice.join("patient")
    turns = []
    for _ in range(200):
        choice.join("hasty")
        user_id = choice.lowest() or ""
        choice.serve(user_id, 1)
        turns.append(user_id)
        if user_id == "hasty":
            choice.leave("hasty")
    assert turns.count("hasty") == turns.count("patient")


def test_a_user_with_workers_of_its_own_does_not_push_newcomers_to_the_back() -> None:
    choice = FairChoice()
    choice.join("served apart")
    choice.join("flood")
    for _ in range(1000):
        choice.serve("served apart", 1)
    choice.join("quiet")
    assert choice.lowest() == "flood"
    choice.serve("flood", 1)
    assert choice.lowest() == "quiet"


def test_a_new_weight_holds_from_the_next_service_on() -> None:
    choice = FairChoice()
    choice.join("heavy")
    choice.join("light")
    choice.set_weight("heavy", 4)
    turns = []
    for _ in range(50):
        user_id = choice.lowest() or ""
        choice.serve(user_id, 1)
        turns.append(user_id)
    assert turns.count("heavy") == 40


def test_ties_are_broken_by_the_bytes_of_the_encoded_name() -> None:
    choice = FairChoice()
    for user_id in ("a", "~", "é", "Z", "-"):  # é is %C3%A9
        choice.join(user_id)
    assert list(choice.ready) == ["%C3%A9", "-", "Z", "a", "~"]


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.one_of(st.none(), st.integers(0, 5)))), st.integers(0, 5))
def test_a_sorted_set_is_in_order_whatever_was_changed(changes: list[tuple[str, int | None]], score: int) -> None:
    made, plain = SortedSet[str](str), dict[str, int]()
    for member, value in changes:
        if value is None:
            made.drop(member)
            plain.pop(member, None)
        else:
            made.put(member, value)
            plain[member] = value
    order = sorted(plain, key=lambda member: (plain[member], member))
    assert list(made) == order
    assert made.up_to(score, 2) == [member for member in order if plain[member] <= score][:2]
    assert [made.pop()[0] for _ in order] == order
    assert made.lowest() is None


# Lanes, states, deliveries


@pytest.fixture
def queue() -> ModelQueue:
    return ModelQueue()


def claim(queue: ModelQueue, want: int = 10, *, worker: str = "w", at_ms: int = 60_000) -> list[ModelDelivery]:
    return queue.claim(at_ms * 1000, worker, want, lease_ms=LEASE_MS)


def ids(deliveries: list[ModelDelivery]) -> list[str]:
    return [delivery.task.task_id for delivery in deliveries]


def test_the_critical_lane_goes_first_and_a_level_is_worth_five_minutes(queue: ModelQueue) -> None:
    for minute, (task_id, priority) in enumerate([("low", 2), ("normal", 3), ("high", 4), ("c1", 6), ("c2", 6)]):
        queue.enqueue(minute * MINUTE_US, [ModelTask("u", task_id, priority)])
    queue.enqueue(11 * MINUTE_US, [ModelTask("u", "late", 4)])
    assert ids(claim(queue, at_ms=720_000)) == ["c1", "c2", "high", "normal", "low", "late"]


def test_a_task_that_lives_is_not_added_again_and_a_repeated_call_is_recognised(queue: ModelQueue) -> None:
    def enqueue(nonce: bytes, *names: str) -> list[bool]:
        return queue.enqueue(MINUTE_US, [ModelTask("u", name, nonce=nonce) for name in names])

    assert enqueue(b"1", "t", "t") == [True, False]
    assert enqueue(b"1", "t", "t") == [True, False]
    assert enqueue(b"2", "t", "x") == [False, True]
    first, _ = claim(queue)
    queue.settle(MINUTE_US, first, "finished")
    assert enqueue(b"1", "t") == [True]
    assert not queue.waiting("u")
    assert enqueue(b"3", "t") == [True]
    assert queue.waiting("u") == 1


def test_a_delivery_ends_once_and_a_stale_end_is_refused(queue: ModelQueue) -> None:
    queue.enqueue(MINUTE_US, [ModelTask("u", "t")])
    [old] = claim(queue)
    [stolen] = claim(queue, worker="thief", at_ms=60_000 + LEASE_MS)
    assert stolen.fence.attempt == 2
    assert stolen.history == (0, 1, 0, 0, False, 0, 0)
    assert queue.renew(MINUTE_US, "w", [old]) == [old]
    assert not queue.settle(MINUTE_US, old, "finished")
    assert queue.settle(MINUTE_US, stolen, "retry")
    assert not queue.settle(MINUTE_US, old, "finished")
    assert queue.settle(MINUTE_US, stolen, "retry"), "said twice, done once"
    [again] = claim(queue)
    assert again.history == (1, 0, 0, 0, False, 0, 0)
    assert queue.settle(MINUTE_US, again, "failed")
    assert queue.ended["u", "t"].state is TaskState.FAILED


def test_a_renewed_delivery_is_not_stolen(queue: ModelQueue) -> None:
    queue.enqueue(MINUTE_US, [ModelTask("u", "t")])
    held = claim(queue)
    assert queue.renew(MINUTE_US + LEASE_MS * 900, "w", held) == []
    assert claim(queue, worker="thief", at_ms=60_000 + LEASE_MS) == []
    assert ids(claim(queue, worker="thief", at_ms=60_000 + 2 * LEASE_MS)) == ["t"]


@pytest.mark.parametrize(("kind", "attempt", "tag"), [("retry", 2, 4), ("released", 1, 2)])
def test_what_comes_back_keeps_its_place(queue: ModelQueue, kind: Any, attempt: int, tag: float) -> None:
    queue.enqueue(MINUTE_US, [ModelTask("u", name, cost=2) for name in ("first", "second", "third")])
    [first] = claim(queue, 1)
    queue.settle(MINUTE_US, first, kind)
    [again] = claim(queue, 1)
    assert again.task.task_id == "first"
    assert again.fence.attempt == attempt
    assert queue.choice.tag("u") == tag, "a retry is charged again, a release is not"


def test_what_is_due_later_waits_apart(queue: ModelQueue) -> None:
    queue.enqueue(MINUTE_US, [ModelTask("u", "t", start_ms=61_000), ModelTask("v", "t", start_ms=90_000)])
    assert queue.next_event_ms() == 61_000
    assert claim(queue) == []
    assert not queue.choice.ready
    assert ids(claim(queue, at_ms=61_000)) == ["t"]


def test_nothing_is_left_of_users_whose_tasks_have_ended(queue: ModelQueue) -> None:
    queue.enqueue(MINUTE_US, [ModelTask(user, str(at), priority=at) for user in "abc" for at in range(1, 7)])
    for delivery in claim(queue, 18):
        queue.settle(MINUTE_US, delivery, "finished")
    kept = (queue.tasks, queue.lanes, queue.scheduled, queue.due, queue.choice.ready)
    assert not any(kept)


def test_a_million_users_cost_no_more_per_service_than_a_few() -> None:
    """Counted, not timed: comparisons of one service."""
    assert _comparisons(100_000) < 3 * _comparisons(1000)


class Counted(float):
    made = 0

    def __lt__(self, other: Any) -> bool:
        Counted.made += 1
        return float(self) < float(other)


def _comparisons(users_ready: int) -> float:
    found = SortedSet[int](str)
    for user in range(users_ready):
        found.put(user, Counted(user))
    Counted.made = 0
    for _ in range(100):
        member, score = found.pop()
        found.put(member, Counted(score + users_ready / 2))
    assert Counted.made < 100 * 4 * math.log2(users_ready)
    return Counted.made
