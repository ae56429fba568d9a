"""The simulator: policies in virtual time, and what is said of a run."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator

import pytest

from fairque.errors import InvalidInput
from fairque.fairness.contention import Contention, jains_index
from fairque.fairness.report import bounded_slowdown, percentile, report_on
from fairque.fairness.simulate import (
    POLICIES,
    PolicyName,
    SchedulingPolicy,
    Simulation,
    check_policy,
    new_policy,
    simulate,
)
from fairque.fairness.trace_files import TraceJob, in_order
from fairque.redis.delivery import Delivery
from fairque.redis.keys import encode_user
from tests.support.core import Core
from tests.support.servers import Server

Step = tuple[str, list[int]]
ONE_OWNER = "everyone"


def flood(tasks: int = 20) -> list[TraceJob]:
    """One user has it all at once; two others want one task each, a moment later."""
    return [TraceJob(0, "flood", 1.0)] * tasks + [TraceJob(0.5, "ann", 1.0), TraceJob(0.5, "bob", 1.0)]


def run(jobs: list[TraceJob], name: PolicyName, slots: int = 1, weights: dict[str, float] | None = None) -> Simulation:
    return simulate(jobs, new_policy(name, weights or {}), slots, weights)


def served(of: Simulation) -> list[str]:
    return [of.jobs[number].user_id for number in of.order]


def bursts(seed: int, tasks: int = 250, users: int = 7) -> list[TraceJob]:
    """As real traces are: few users put in most of it, in bursts, and few tasks are most of the work."""
    draw = random.Random(seed)
    jobs: list[TraceJob] = []
    while len(jobs) < tasks:
        at, user_id = draw.uniform(0, 300), f"user {int(users * draw.random() ** 2)}/é"
        length = draw.choice([1, 1, 5, 30])
        jobs += [
            TraceJob(at, user_id, draw.lognormvariate(1, 1.5), draw.choice([0.25, 1.0, 1.0, 7.3]))
            for _ in range(length)
        ]
    return in_order(jobs[:tasks])


# Policies


def test_fair_serves_newcomers_before_the_backlog_of_others() -> None:
    assert served(run(flood(), "fair"))[:4] == ["flood", "ann", "bob", "flood"]


def test_first_in_is_first_out_whoever_it_is() -> None:
    assert list(run(flood(), "fifo").order) == list(range(22))


def test_round_robin_takes_one_of_each_whatever_it_costs() -> None:
    jobs = [TraceJob(0, "dear", 1.0, 9.0)] * 3 + [TraceJob(0, "cheap", 1.0)] * 3
    assert served(run(jobs, "round-robin")) == ["dear", "cheap"] * 3
    assert served(run(jobs, "fair"))[:5] == ["cheap", "dear", "cheap", "cheap", "dear"]


def test_weights_are_shares() -> None:
    jobs = [TraceJob(0, user_id, 1.0) for user_id in "ab" for _ in range(300)]
    first = served(run(jobs, "fair", weights={"b": 2}))[:300]
    assert abs(first.count("b") - 200) <= 2


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("slots", [1, 3, 1000])
def test_every_policy_serves_every_task_once_and_leaves_no_slot_idle(name: PolicyName, slots: int) -> None:
    jobs = bursts(1)
    made = run(jobs, name, slots)
    assert sorted(made.order) == list(range(len(jobs)))
    assert all(start >= job.time for start, job in zip(made.starts, jobs, strict=True))
    if slots > len(jobs):
        assert list(made.starts) == [job.time for job in jobs]
    for number in made.order:  # whoever waited, did so because all slots were busy just before
        if (start := made.starts[number]) > jobs[number].time:
            spans = [(at, at + job.seconds) for at, job in zip(made.starts, jobs, strict=True)]
            assert sum(began < start <= ended for began, ended in spans) == slots


def test_those_who_come_at_the_same_moment_are_served_as_if_they_came_together() -> None:
    jobs = [TraceJob(0, "a", 1.0)] * 4 + [TraceJob(0, "b", 1.0)] * 4
    assert served(run(jobs, "fair", slots=4)) == ["a", "b"] * 4


@pytest.mark.parametrize(("slots", "weights"), [(0, {}), (1_000_001, {}), (1, {"a": 0}), (1, {"a": float("nan")})])
def test_slots_and_weights_have_limits(slots: int, weights: dict[str, float]) -> None:
    with pytest.raises(InvalidInput, match="must be a"):
        simulate(flood(), new_policy("fair", {}), slots, weights)


def test_an_unknown_policy_is_refused_by_name() -> None:
    with pytest.raises(InvalidInput, match="one of fair, fifo, round-robin, not 'lifo'"):
        check_policy("lifo")


# The scripts


class Witness:
    """Notes what a policy is asked and what it says."""

    def __init__(self, policy: SchedulingPolicy) -> None:
        self.policy = policy
        self.steps: list[Step] = []

    def add(self, now_us: int, number: int, job: TraceJob) -> None:
        self.policy.add(now_us, number, job)
        self.steps.append(("add", [number]))

    def take(self, now_us: int, want: int) -> list[int]:
        taken = self.policy.take(now_us, want)
        self.steps.append((f"take {want}", taken))
        return taken

    def finish(self, now_us: int, number: int) -> None:
        self.policy.finish(now_us, number)
        self.steps.append(("finish", [number]))


@pytest.fixture
async def core(server: Server, queue_name: str) -> AsyncIterator[Core]:
    async with Core(server.url, queue_name) as core:
        yield core
        core.forget()


@pytest.mark.parametrize(
    ("name", "seed", "slots", "weights"),
    [
        ("fair", 1, 1, {}),
        ("fair", 2, 4, {}),
        ("fair", 3, 2, {"user 0/é": 3.0, "user 2/é": 0.5}),
        ("fifo", 4, 3, {}),
    ],
)
async def test_the_scripts_serve_a_trace_in_the_order_of_the_simulator(
    core: Core, name: PolicyName, seed: int, slots: int, weights: dict[str, float]
) -> None:
    jobs = bursts(seed)
    witness = Witness(new_policy(name, weights))
    expected = simulate(jobs, witness, slots, weights)
    assert (sorted(expected.order) == list(expected.order)) == (name == "fifo")
    for user_id, weight in weights.items():
        await core.store.set_policy(encode_user(user_id), {"weight": weight})
    assert await order_of_the_scripts(core, jobs, witness.steps, one_owner=name == "fifo") == list(expected.order)


async def order_of_the_scripts(core: Core, jobs: list[TraceJob], steps: list[Step], *, one_owner: bool) -> list[int]:
    """The same calls in the same order."""
    held: dict[int, Delivery] = {}
    order: list[int] = []
    for verb, numbers in steps:
        if verb == "add":
            job = jobs[numbers[0]]
            await core.enqueue(ONE_OWNER if one_owner else job.user_id, str(numbers[0]), cost=job.cost)
        elif verb == "finish":
            await core.settle([held.pop(numbers[0])])
        else:
            taken = await core.take(int(verb.removeprefix("take ")))
            held |= {int(delivery.id): delivery for delivery in taken}
            order += [int(delivery.id) for delivery in taken]
            assert order[-len(numbers) :] == numbers, "who is served now, and what ends later, would differ from here"
    return order


# Contention


def test_entitled_is_the_weight_in_relation_to_those_who_wait() -> None:
    contention = Contention({"b": 3.0})
    for user_id in "aab":
        contention.wait(user_id)
    contention.serve("a", 4.0)  # 1 of it for a, 3 for b
    contention.serve("b", 4.0)
    contention.serve("a", 100.0)  # nobody else waits: that is no contention
    assert (contention.share("a"), contention.entitlement("a")) == (0.5, 0.25)
    assert (contention.share("b"), contention.entitlement("b")) == (0.5, 0.75)


def test_the_index_is_of_what_was_received_and_a_task_for_what_was_due() -> None:
    contention = Contention({})
    for user_id in ["a"] * 10 + ["b"]:
        contention.wait(user_id)
    for _ in range(8):
        contention.serve("a", 1.0)
    contention.serve("b", 1.0)
    assert contention.index() == pytest.approx(jains_index([1.0, 2 / 4.5]))


def test_nobody_is_wronged_where_nobody_competes() -> None:
    alone = run([TraceJob(0, "a", 1.0)] * 5, "fifo")
    assert (alone.contention.index(), alone.contention.share("a")) == (1.0, 0.0)


def test_the_index_tells_fair_from_first_come() -> None:
    assert run(flood(), "fair").contention.index() > 0.999
    assert run(flood(200), "fifo").contention.index() < 0.5
    jobs = bursts(6)
    assert run(jobs, "fair", 2).contention.index() > run(jobs, "fifo", 2).contention.index() + 0.1


def test_shares_and_entitlements_are_parts_of_one_whole() -> None:
    made = run(bursts(5), "round-robin", 2)
    users = {job.user_id for job in made.jobs}
    assert sum(map(made.contention.share, users)) == pytest.approx(1)
    assert sum(map(made.contention.entitlement, users)) == pytest.approx(1)


@pytest.mark.parametrize(("values", "index"), [([], 1.0), ([2, 2, 2], 1.0), ([1, 0, 0, 0], 0.25), ([0, 0], 1.0)])
def test_jains_index_is_1_for_equals_and_1_of_n_for_one_of_n(values: list[float], index: float) -> None:
    assert jains_index(values) == index


# The report


def test_a_report_has_the_waits_of_each_user() -> None:
    report = report_on("fifo", run([TraceJob(0, "a", 2.0)] * 3 + [TraceJob(1, "b", 2.0)], "fifo"), 1, bound=1)
    a, b = report.users
    assert (a.user, a.tasks, a.wait_mean, a.wait_p50, a.wait_p95) == ("a", 3, 2.0, 2.0, 4.0)
    assert (b.wait_mean, b.slowdown) == (5.0, 3.5)
    assert (report.seconds, report.utilization, report.wait_median, report.wait_worst) == (8.0, 1.0, 3.5, 5.0)
    assert (report.slowdown_median, report.slowdown_worst) == (2.75, 3.5)


def test_short_tasks_count_as_long_as_the_bound() -> None:
    assert bounded_slowdown(9.0, 1.0, bound=10.0) == 1.0
    assert bounded_slowdown(30.0, 0.0, bound=10.0) == 3.0
    assert bounded_slowdown(30.0, 15.0, bound=10.0) == 3.0


def test_a_percentile_is_one_of_the_values() -> None:
    values = list(range(1, 101))
    assert [percentile(values, part) for part in (0.0, 0.5, 0.95, 1.0)] == [1, 50, 95, 100]


def test_a_long_trace_does_not_fill_the_memory() -> None:
    """What the policy keeps of tasks that have ended would grow with the trace."""
    policy = new_policy("fair", {})
    simulate([TraceJob(number * 1.0, f"u{number % 5}", 3.0) for number in range(3000)], policy, 2)
    model = policy._queue  # type: ignore[attr-defined]
    assert not model.ended
    assert not model.tasks
    assert not model.lanes
