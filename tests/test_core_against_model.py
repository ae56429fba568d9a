"""The scripts against their model: whatever is done, both give the same answers and keep the same things."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from fairque.delivery import Delivery
from fairque.fairness import EVERYONE
from fairque.message import head_of
from fairque.models import TaskState
from tests.support.core import LONG_LEASE_MS, Core
from tests.support.fair_share import FairShareWitness
from tests.support.mirror import Held, Mirror, Order
from tests.support.servers import Server
from tests.support.traffic import Claim, Enqueue, Settle, Step, Steps, steps, tenants

# Shrinking what failed takes longer than a test may: add Phase.shrink, and pytest's --timeout 0, to look for less.
examples = settings(derandomize=True, deadline=None, phases=(Phase.explicit, Phase.generate))
SHORT_LEASE_MS = 1
SOON_MS, LATE_MS = 2, 600_000
USERS = ["a", "b:c", "b%3Ac", "{é}*\n\0"]
IDS = ["1", "2", "b:c", "*\n", "é", "x" * 80]
WORKERS = ["w1", "w2", "w3"]

users = st.sampled_from(USERS)
orders = st.builds(
    Order,
    users,
    st.sampled_from(IDS),
    st.integers(1, 6),
    st.sampled_from([1.0, 1.0, 0.25, 7.3]),
    st.sampled_from([0, 0, 0, SOON_MS, LATE_MS]),
)
groups = st.sampled_from(
    [
        EVERYONE,
        EVERYONE,
        (("a", "b:c"),),
        (("b:c",), ()),
        (("nobody",), ("b%3Ac",)),
        (("a", "a"), ("{é}*\n\0", "a")),
        (("a",), ("a",)),
    ]
)
kinds = st.sampled_from(["finished", "finished", "failed", "retry", "released"])
picks = st.lists(st.integers(0, 7), min_size=1, max_size=4)


class BothMachine(RuleBasedStateMachine):
    """Producers, workers that come, go, fall silent and wake up too late, and an operator who changes weights."""

    def __init__(self, new_core: Callable[[], Core]) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.core = new_core()
        self.runner.run(self.core.__aenter__())
        self.mirror = Mirror(self.core)
        self.nonces = itertools.count(1)
        self.calls: list[tuple[list[Order], bytes]] = []
        self.is_sound = True

    def both(self, call: Any) -> None:
        self.is_sound = False
        self.runner.run(call)
        self.is_sound = True

    @initialize(later=st.booleans())
    def some_tasks_are_for_much_later(self, later: bool) -> None:
        self.longest_delay = LATE_MS if later else SOON_MS

    @rule(batch=st.lists(orders, min_size=1, max_size=6))
    def enqueue(self, batch: list[Order]) -> None:
        batch = [order._replace(delay_ms=min(order.delay_ms, self.longest_delay)) for order in batch]
        self.calls.append((batch, next(self.nonces).to_bytes(8)))
        self.both(self.mirror.enqueue(*self.calls[-1]))

    @precondition(lambda self: self.calls)
    @rule(back=st.integers(1, 3))
    def enqueue_again_because_the_reply_was_cut(self, back: int) -> None:
        self.both(self.mirror.enqueue(*self.calls[-min(back, len(self.calls))]))

    @rule(
        worker=st.sampled_from(WORKERS),
        want=st.integers(1, 6),
        lease=st.sampled_from([SHORT_LEASE_MS, SHORT_LEASE_MS, LONG_LEASE_MS]),
        of=groups,
        steal=st.sampled_from([True, True, True, False]),
    )
    def claim(self, worker: str, want: int, lease: int, of: Any, steal: bool) -> None:
        self.both(self.mirror.claim(worker, want, lease, of, steal=steal))

    @precondition(lambda self: self.mirror.held)
    @rule(picks=picks, kind=kinds, delay=st.sampled_from([0, 0, SOON_MS, LATE_MS]))
    def settle(self, picks: list[int], kind: Any, delay: int) -> None:
        delay = min(delay, self.longest_delay) if kind in ("retry", "released") else 0
        self.both(self.mirror.settle(self.picked(picks), kind, delay))

    @rule(want=st.integers(1, 4), stolen=st.integers(1, 4), kind=kinds, late=kinds)
    def a_worker_falls_silent_and_wakes_up_too_late(self, want: int, stolen: int, kind: Any, late: Any) -> None:
        self.both(self.robbery(want, stolen, kind, late))

    async def robbery(self, want: int, stolen: int, kind: Any, late: Any) -> None:
        silent = await self.mirror.claim("silent", want, SHORT_LEASE_MS)
        taken = await self.mirror.claim("thief", stolen, SHORT_LEASE_MS)
        self.mirror.renew("silent", silent)
        await self.mirror.settle(taken, kind, 0)
        await self.mirror.settle(silent, late, 0)

    @precondition(lambda self: self.mirror.held)
    @rule(worker=st.sampled_from(WORKERS), picks=picks)
    def renew(self, worker: str, picks: list[int]) -> None:
        self.is_sound = False
        self.mirror.renew(worker, self.picked(picks))
        self.is_sound = True

    @rule(user_id=users, weight=st.sampled_from([None, 0.5, 3.0, 10.0]))
    def change_weight(self, user_id: str, weight: float | None) -> None:
        self.both(self.mirror.set_weight(user_id, weight))

    @rule()
    def time_passes(self) -> None:
        self.core.wait_until_ms(self.core.now_us() // 1000 + SOON_MS)

    def picked(self, picks: list[int]) -> list[Held]:
        """The last deliveries more often than old ones; among them such as are settled or lost to others."""
        held = self.mirror.held
        return [held[max(-len(held), -1 - pick)] for pick in picks]

    def teardown(self) -> None:
        try:
            if self.is_sound:
                self.runner.run(self.finish())
        finally:
            self.core.forget()
            self.runner.run(self.core.__aexit__(None, None, None))
            self.runner.close()

    async def finish(self) -> None:
        """All is served in the end, and nothing stays."""
        mirror = self.mirror
        for _ in range(50):
            self.core.wait_until_ms(self.core.now_us() // 1000 + SOON_MS)
            await mirror.claim("last", 50, SHORT_LEASE_MS)
            await mirror.settle([held for held in mirror.held if held.is_out], "finished", 0)
            if not (mirror.model.lanes or self.is_something_due_soon()):
                break
        assert all(task.state is TaskState.SCHEDULED for task in mirror.model.tasks.values())
        if not mirror.model.tasks:
            await self.nothing_stays()

    def is_something_due_soon(self) -> bool:
        soon = self.core.now_us() / 1000 + LATE_MS / 2
        return any(at < soon for at in self.mirror.model.due.scores.values())

    async def nothing_stays(self) -> None:
        for user_id in USERS:
            await self.mirror.set_weight(user_id, None)
        for worker in [*WORKERS, "silent", "thief", "last"]:
            await self.core.store.leave(worker, [[*USERS, "nobody"]])
        lasting = {name for name, key in self.core.dump().items() if not key.expires}
        assert lasting <= {"state", "users"}
        assert not [field for field in self.core.state() if field.startswith("cursor:")]


def test_scripts_and_model_agree_whatever_happens(server: Server, queue_name: str) -> None:
    numbers = itertools.count()
    run_state_machine_as_test(
        lambda: BothMachine(lambda: Core(server.url, f"{queue_name}/{next(numbers)}")),  # type: ignore[arg-type]
        settings=settings(examples, max_examples=120, stateful_step_count=40, suppress_health_check=list(HealthCheck)),
    )


# What random play rarely reaches


@pytest.fixture
async def core(server: Server, queue_name: str) -> AsyncIterator[Core]:
    async with Core(server.url, queue_name) as core:
        yield core
        core.forget()


async def test_a_late_outcome_is_refused_even_after_the_thief_gave_the_task_back(core: Core) -> None:
    await core.enqueue("a", "1")
    late = await core.take(lease_ms=SHORT_LEASE_MS)
    core.wait_until_ms(core.now_us() // 1000 + 3)
    stolen = await core.take(worker="thief", lease_ms=SHORT_LEASE_MS)
    assert await core.settle(stolen, "retry", delay_ms=LATE_MS) == [True]
    assert await core.settle(late, "finished") == [False]
    assert await core.settle(stolen, "retry", delay_ms=LATE_MS) == [True], "said twice, done once"
    assert core.state()["scheduled"] == "1"


async def test_a_look_that_stopped_half_way_leaves_no_cursor_when_the_lane_is_done(core: Core) -> None:
    await core.enqueue("a", "1", "2", "3")
    held = await core.take(3, lease_ms=SHORT_LEASE_MS)
    core.wait_until_ms(core.now_us() // 1000 + 3)
    stolen = await core.take(1, worker="thief", lease_ms=SHORT_LEASE_MS)
    assert "cursor:normal:a" in core.state()
    await core.settle(stolen, worker="thief")
    await core.settle(held[1:])
    assert "cursor:normal:a" not in core.state()


async def test_one_claim_promotes_a_bounded_number_of_tasks(core: Core) -> None:
    for user_id in "abc":
        await core.enqueue(user_id, *map(str, range(90)), delay_ms=1)
    core.wait_until_ms(core.now_us() // 1000 + 1)
    await core.take(1)
    assert core.state()["scheduled"] == "70"


async def test_a_dead_letter_whose_result_has_expired_makes_room_for_a_new_task(core: Core) -> None:
    await core.enqueue("a", "1")
    await core.settle(await core.take(), "failed")
    core.execute("DEL", ":result:a:1")
    assert await core.enqueue("a", "1") == [True]
    assert [of.attempt for of in await core.take()] == [1]


async def test_a_worker_that_got_all_it_wanted_is_not_among_the_waiting(core: Core) -> None:
    await core.enqueue("a", "1", "2")
    for name in (
        ":waiting",
        ":waiting:a",
    ):  # from a claim that came back short
        core.execute("SADD", name, "w")
    assert await core.take(2, wait=True, groups=[["a"], []])
    assert not {"waiting", "waiting:a"} & core.dump().keys()


async def test_a_worker_does_not_get_up_for_lanes_it_may_not_look_at(core: Core) -> None:
    await core.enqueue("b", "1")
    await core.take(lease_ms=SHORT_LEASE_MS)
    core.wait_until_ms(core.now_us() // 1000 + 3)
    assert (await core.claim(wait=True, worker="of a", groups=[["a"]])).sleep is None
    assert await core.take(worker="of b", groups=[["b"]], lease_ms=SHORT_LEASE_MS)


async def test_the_same_task_twice_in_one_call_is_created_once(core: Core) -> None:
    for _ in range(2):
        assert await core.enqueue("a", "1", "1", "2", nonce=b"one call") == [True, False, True]
    assert core.state()["normal"] == "2"


# The bound, on the scripts themselves

TENANTS = ("a", "b:c", "zoë")


class RealTraffic:
    """Plays users and workers against the scripts, and a witness watches."""

    def __init__(self, core: Core, of_users: dict[str, tuple[float, float]]) -> None:
        self.core = core
        self.of_users = of_users
        self.witness = FairShareWitness({user_id: weight for user_id, (weight, _) in of_users.items()})
        self.held: dict[str, list[Delivery]] = {}
        self._ids = itertools.count()

    async def play(self, steps: Steps) -> None:
        async with self.core:
            for user_id, (weight, _) in self.of_users.items():
                await self.core.store.set_policy(user_id, {"weight": weight})
            for step in steps:
                await self.take(step)
            self.core.forget()
        self.witness.check()

    async def take(self, step: Step) -> None:
        match step:
            case Enqueue():
                for part in step.parts:
                    cost = part * self.of_users[step.user_id][1]
                    await self.core.enqueue(step.user_id, str(next(self._ids)), cost=cost)
                    self.witness.enqueued(step.user_id, cost)
            case Claim():
                taken = await self.core.take(step.want, worker=step.worker)
                self.held.setdefault(step.worker, []).extend(taken)
                for delivery in taken:
                    self.witness.served(delivery.user_id, head_of(delivery.body)[1])
            case Settle():
                await self.core.settle(self.held.pop(step.worker, []), worker=step.worker)


def test_the_scripts_stay_within_the_bound_for_any_weights_costs_and_arrivals(server: Server, queue_name: str) -> None:
    numbers = itertools.count()

    @settings(examples, max_examples=200)
    @given(tenants(TENANTS), steps(TENANTS))
    def play(of_users: dict[str, tuple[float, float]], played: Steps) -> None:
        asyncio.run(RealTraffic(Core(server.url, f"{queue_name}/{next(numbers)}"), of_users).play(played))

    play()
