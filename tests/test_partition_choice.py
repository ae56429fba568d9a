"""The choice between partitions: what it looks at, how far a claim goes, and what is fair in the end."""

from __future__ import annotations

import random
from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairque.fairness.partition import Partition
from fairque.fairness.partition_choice import Chosen, PartitionChoice, Sight
from tests.bench.fleet import Fleet, Plan

FAR = 1000.0
seeds = st.integers(0, 10_000)


def choice_of(*sights: Sight) -> PartitionChoice:
    """One that has looked at all of them."""
    choice = PartitionChoice(len(sights), random.Random(1))
    for at in choice.to_look(0.0):
        choice.saw(at, sights[at], 0.0)
    return choice


def chosen(choice: PartitionChoice, want: int = 1) -> Chosen:
    found = choice.choose(0.0, want)
    assert found is not None
    return found


def test_the_first_look_is_at_all_partitions():
    assert sorted(PartitionChoice(5, random.Random(1)).to_look(0.0)) == [0, 1, 2, 3, 4]


def test_the_lowest_head_is_chosen_up_to_where_the_next_stands():
    choice = choice_of(Sight(3.0), Sight(1.0), Sight(None), Sight(2.0))
    assert chosen(choice)[:2] == (1, 2.0)


def test_a_claim_may_go_as_far_ahead_as_the_queue_moves_by_twice_what_is_wanted():
    choice = choice_of(Sight(0.0, 0.0, 1.0, 10), Sight(1.0, 0.0, 1.0, 30))
    assert chosen(choice, want=10).until == 1.0 + 2 * 10 / 40


def test_where_no_other_partition_has_work_a_claim_has_no_end():
    assert chosen(choice_of(Sight(None), Sight(7.0))).until is None


def test_without_work_there_is_no_choice():
    assert choice_of(Sight(None), Sight(None)).choose(0.0) is None


def test_who_was_served_while_nobody_else_waited_owes_nobody() -> None:
    """Else whoever comes next would be served as much before, in whichever partition."""
    alone = choice_of(Sight(None, passed=50.0), Sight(None, passed=3.0))
    alone.saw(1, Sight(0.0), 1.0)
    assert chosen(alone).latest == 50.0
    beside = choice_of(Sight(None, passed=50.0), Sight(2.0))
    assert chosen(beside).latest == 2.0, "somebody waits, who had less"


def test_one_that_does_not_answer_is_left_alone_for_a_time_that_grows():
    choice = choice_of(Sight(1.0), Sight(2.0))
    choice.failed(0, 0.0)
    assert chosen(choice).partition == 1
    assert 0 not in choice.to_look(0.2)
    assert 0 in choice.to_look(0.3)
    choice.failed(0, 0.3)
    assert 0 not in choice.to_look(0.7)
    assert 0 in choice.to_look(0.9)


def test_one_of_which_a_message_tells_is_looked_at_next():
    choice = choice_of(*[Sight(None)] * 50)
    choice.told(33)
    assert 33 in choice.to_look(0.001)


def test_what_was_seen_a_moment_ago_is_not_looked_at_again():
    choice = choice_of(Sight(1.0), Sight(2.0))
    assert choice.to_look(0.001) == []
    assert sorted(choice.to_look(0.1)) == [0, 1]


def test_many_workers_look_at_idle_partitions_more_rarely():
    few, many = (choice_of(Sight(0.0, workers=count), *[Sight(None)] * 99) for count in (1, 1000))
    assert len(few.to_look(0.5)) > 90
    assert len(many.to_look(0.5)) < 10


# What a partition does with it


def claim(partition: Partition, many: int, latest: float, floor: float = -FAR, until: float | None = None) -> list[str]:
    partition.begin(Chosen(0, until, latest, floor))
    served: list[str] = []
    while len(served) < many and (user := partition.next_user(until)) is not None:
        partition.serve(user, 1.0)
        served.append(user)
    partition.end()
    return served


def test_a_guest_beside_a_user_of_a_tiny_weight_does_not_wait_for_its_rounds():
    partition = Partition()
    partition.choice.set_weight("heavy", 0.01)
    partition.choice.join("heavy")
    assert claim(partition, 1, 0.0) == ["heavy"]
    partition.choice.join("guest")
    assert claim(partition, 2, 50.0, until=60.0) == ["guest"] * 2  # heavy's next turn is at 100


def test_who_comes_to_an_empty_partition_has_nothing_in_store():
    partition = Partition()
    partition.choice.join("acme")
    assert len(claim(partition, 9, FAR, until=FAR + 2)) == 3


def test_a_partition_that_was_away_is_owed_no_more_than_the_floor():
    partition = Partition()
    partition.choice.join("acme")
    claim(partition, 2, 0.0)
    assert len(claim(partition, 99, FAR, floor=FAR - 4, until=FAR)) == 5


# What comes of it


@settings(max_examples=20, deadline=None)
@given(seeds, st.integers(2, 4), st.integers(2, 9), st.integers(1, 5))
def test_no_two_users_of_partitions_that_are_looked_at_come_further_apart_than_the_bound(
    seed: int, count: int, users: int, workers: int
):
    """Whatever looks and claims of others lie between a look and its claim."""
    draw = random.Random(seed)
    partitions = [Partition() for _ in range(count)]
    home = [draw.randrange(count) for _ in range(users)]
    weight, cost = ([draw.choice((0.5, 1.0, 2.0, 5.0)) for _ in range(users)] for _ in range(2))
    for user in range(users):
        partitions[home[user]].choice.set_weight(str(user), weight[user])
        partitions[home[user]].choice.join(str(user), cost[user])
    fleet = [PartitionChoice(count, random.Random(draw.random())) for _ in range(workers)]
    looked: list[dict[int, Sight]] = [{at: each.sight() for at, each in enumerate(partitions)} for _ in fleet]
    slack = 0.0

    def tag(user: int) -> float:
        partition = partitions[home[user]]
        return partition.choice.tag(str(user)) + partition.offset

    for step in range(300):
        number = draw.randrange(workers)
        choice, want, now = fleet[number], draw.randint(1, 5), step * 1.0
        asked = choice.to_look(now)
        for at in asked:
            choice.saw(at, looked[number][at], now)
        if (goal := choice.choose(now, want)) is not None:
            slack = max(slack, choice.slack(want))
            partition = partitions[goal.partition]
            partition.begin(goal)
            while want and (name := partition.next_user(goal.until)) is not None:
                partition.serve(name, cost[int(name)])
                want -= 1
            partition.end()
            for i, j in permutations(range(users), 2):
                assert tag(i) - tag(j) <= cost[i] / weight[i] + slack + 1e-6
        looked[draw.randrange(workers)] = {at: each.sight() for at, each in enumerate(partitions)}


def played(**plan: object) -> Fleet:
    return Fleet(
        Plan(quiet=0.0, visitors=0.0, task=0.002, round_trip=0.0005, warm_up=0.0, services=20_000, **plan)
    ).run()  # type: ignore[arg-type]


@pytest.mark.timeout(120)
@settings(max_examples=2, deadline=None)
@given(seeds, st.integers(10, 40), st.sampled_from((1, 2, 5)))
def test_equal_users_over_8_partitions_have_equal_shares(seed: int, users: int, workers: int):
    fleet = played(seed=seed, partitions=8, busy=users, workers=workers, slots=10 // workers)
    assert fleet.share_error() < 0.02


@pytest.mark.timeout(120)
@settings(max_examples=2, deadline=None)
@given(seeds, st.integers(20, 60), st.sampled_from((1, 2, 5)))
def test_users_over_16_partitions_share_by_their_weights(seed: int, users: int, workers: int):
    fleet = played(seed=seed, partitions=16, busy=users, workers=workers, slots=10 // workers, weights=(1, 2, 5))
    assert fleet.share_error() < 0.03


@pytest.mark.timeout(120)
def test_users_that_come_and_go_and_a_node_that_fails_leave_shares_fair():
    fleet = Fleet(Plan(users=10_000, busy=40, partitions=24, workers=20, seconds=40, warm_up=3, away=(12, 16))).run()
    assert fleet.share_error() < 0.03
    assert sorted(fleet.tally.waits)[len(fleet.tally.waits) * 99 // 100] < 2.0


def test_a_few_heavy_users_do_not_delay_guests_beside_them():
    plan = Plan(users=10_000, busy=16, weights=(1, 1, 1, 0.01), partitions=32, workers=20, seconds=30, visitors=0.0)
    beside = sorted(Fleet(plan).run().tally.beside)
    assert beside[len(beside) * 9 // 10] < 0.5
