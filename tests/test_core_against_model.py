"""The scripts against their model: whatever is done, both give the same answers and keep the same things."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import AsyncIterator

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.stateful import run_state_machine_as_test

from fairque.fairness.model_task import ModelCallback
from fairque.models import ANY_USER
from fairque.redis.assignment import assignments_of
from fairque.redis.delivery import Delivery, Refusal
from fairque.redis.keys import encode_user
from fairque.tasks.message import head_of
from tests.support.core import LONG_LEASE_MS, Core
from tests.support.fair_share import FairShareWitness
from tests.support.mirror import Mirror
from tests.support.order import Order
from tests.support.play import LATE_MS, SHORT_LEASE_MS, BothMachine, ending_of, killings
from tests.support.servers import Server
from tests.support.timed import TimedCore
from tests.support.traffic import Claim, Enqueue, Settle, Step, Steps, steps, tenants

ENDINGS = [ending_of(kind, 0, 0.0, 0.0, size=400) for kind in ("finished", "failed", "retry", "released")]
GAMES = int(os.environ.get("FAIRQUE_GAMES", "100"))
# Shrinking what failed takes longer than a test may: FAIRQUE_SHRINK=1, and pytest's --timeout 0, look for less.
phases = (Phase.explicit, Phase.generate, *([Phase.shrink] if os.environ.get("FAIRQUE_SHRINK") else []))
examples = settings(derandomize=True, phases=phases, deadline=None)


@pytest.mark.timeout(600)
def test_scripts_and_model_agree_whatever_happens(server: Server, queue_name: str) -> None:
    numbers = itertools.count()
    run_state_machine_as_test(
        lambda: BothMachine(lambda: TimedCore(server.url, f"{queue_name}/{next(numbers)}")),  # type: ignore[arg-type]
        settings=settings(
            examples, max_examples=GAMES, stateful_step_count=40, suppress_health_check=list(HealthCheck)
        ),
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
    assert await core.settle(late, "finished") == [Refusal.WAITS]
    assert await core.settle(stolen, "retry", delay_ms=LATE_MS) == [True], "said twice, done once"
    assert core.state()["scheduled"] == "1"


async def test_one_claim_promotes_a_bounded_number_of_tasks(core: Core) -> None:
    for user_id in "abc":
        await core.enqueue(user_id, *map(str, range(90)), delay_ms=1)
    core.wait_until_ms(core.now_us() // 1000 + 1)
    await core.take(100)
    assert core.state()["scheduled"] == "72", "66 of each"


async def test_a_dead_letter_whose_result_has_expired_makes_room_for_a_new_task(core: Core) -> None:
    await core.enqueue("a", "1")
    await core.settle(await core.take(), "failed")
    core.execute("DEL", ":result:a:1")
    assert await core.enqueue("a", "1") == [True]
    assert [of.attempt for of in await core.take()] == [1]


async def test_a_worker_that_got_all_it_wanted_is_not_among_the_waiting(core: Core) -> None:
    await core.enqueue("a", "1", "2")
    [assigned] = assignments_of([["a"]])
    for name in ("waiting", f"waiting:{assigned.name}"):  # from a claim that came back short
        core.execute("SADD", f":{name}", "w")
    assert await core.take(2, wait=True, groups=[["a"], []])
    assert not [name for name in core.dump() if name.startswith("waiting")]


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


async def test_what_was_counted_of_a_user_is_forgotten_also_when_its_weight_was_taken_back(core: Core) -> None:
    await core.store.set_policy("*", {"weight": 0.5})
    await core.enqueue("a", "1")
    await core.store.set_policy("*", {}, ["*"])
    await core.store.cancel("a", "1", "")
    assert core.dump()["user:a"].expires


async def test_nothing_stays_of_tasks_with_callbacks_that_are_canceled_one_after_the_other(core: Core) -> None:
    asked = [Order("a", "1"), *(Order("a", f"{n + 1}", needs=(f"{n}",), on_failure="cancel") for n in range(1, 4))]
    calls_back = (ModelCallback("on_end"),)
    await core.enqueue_all([order._replace(callbacks=calls_back).new_task(b"n" * 8, 0) for order in asked])
    await core.settle(await core.take(), "canceled")
    await core.settle(await core.take(4))
    assert core.state()["canceled"] == "4"
    assert not [name for name in core.dump() if name.startswith("task:")]


DEATHS = ((True, 0, 0), (False, 0, 0), (True, 1, 0), (True, 0, 4))
"""Whether what was taken over arrives, what its worker has beside it, and for how many ms it lives."""


@pytest.mark.leaves_keys
async def test_suspects_run_apart_and_alone_as_the_model_has_it(server: Server, queue_name: str) -> None:
    for at, (first, second) in enumerate(itertools.product(DEATHS, repeat=2)):
        async with TimedCore(server.url, f"{queue_name}/{at}") as core:
            mirror = Mirror(core)
            await mirror.enqueue([Order("a", "1"), Order("b:c", "2")], b"n" * 8)
            await killings(mirror, ANY_USER, 2, [DEATHS[0], *[first, second] * 5], ENDINGS[at % 4])
            await mirror.claim("last", 2, SHORT_LEASE_MS)
            core.forget()


@pytest.mark.leaves_keys
async def test_what_just_fits_into_the_bytes_of_a_user_is_kept_and_what_just_does_not_is_not(
    server: Server, queue_name: str
) -> None:
    for at, (ending, by) in enumerate(itertools.product(ENDINGS, (0, -1))):
        async with TimedCore(server.url, f"{queue_name}/{at}") as core:
            mirror = Mirror(core)
            await mirror.set_policy("a", max_bytes=1000)
            while "weighing" in core.state():
                await mirror.claim("w", 1, LONG_LEASE_MS)
            order = Order("a", "1", size=300, callbacks=(ModelCallback("on_end"),))
            for more in (by, 0):
                await mirror.set_policy("a", max_bytes=order.model_task(b"", 0).bytes + more)
                await mirror.enqueue([order], b"%d" % more)
            [held] = await mirror.claim("w", 1, LONG_LEASE_MS)
            await mirror.set_policy("a", max_bytes=mirror.model.bytes.used("a") + mirror.left_by(held, ending) + by)
            await mirror.settle([held], ending)
            await mirror.cancel("a", "1.on_end")
            await mirror.requeue("a", "1")
            core.forget()


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
                await self.core.store.set_policy(encode_user(user_id), {"weight": weight})
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
