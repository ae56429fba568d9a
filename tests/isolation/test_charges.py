"""What a task uses while it runs is charged while it runs."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence

import pytest

from fairque import TaskQueue, Worker, current_task, task
from fairque.redis.delivery import Delivery
from fairque.settings import QueueSettings
from fairque.tasks.registry import unregister
from tests.support.core import HOUR_MS, Core, outcome
from tests.support.resp import RespClient
from tests.support.servers import Server
from tests.support.tenants import fill, whose

pytestmark = pytest.mark.leaves_keys()
BY_TIME = QueueSettings(lease_ms=HOUR_MS, fairness="time")
SLOTS = 4
RUN_MS = 10
THOUGHT_MS = 100
"""What a task is thought to take of which nothing is known."""
LEASE_MS = 1_000
RENEWAL_MS = 200


async def claim(
    core: Core, want: int, *, worker: str = "w", lease_ms: int = HOUR_MS, **options: object
) -> list[Delivery]:
    settings = QueueSettings(lease_ms=lease_ms, fairness="time")
    return (await core.store.claim(worker, want, wait=False, settings=settings, **options)).deliveries  # type: ignore[arg-type]


async def end(
    core: Core, deliveries: Sequence[Delivery], kind: str = "finished", *, run_ms: float, worker: str = "w"
) -> None:
    outcomes = [outcome(of, kind) for of in deliveries]
    for each in outcomes:
        each.run_ms = run_ms
    await core.store.settle(worker, outcomes)


async def expect_to_take(core: Core, name: str, run_ms: float) -> None:
    """Tasks of this name took so long."""
    await fill(core, "before", tasks=1, name=name)
    await end(core, await claim(core, 1), run_ms=run_ms)


def charged(core: Core, user_id: str, task_id: str) -> float:
    return float(core.execute("HGET", f":task:{user_id}:{task_id}", "charged"))


def tag_of(core: Core, user_id: str) -> float:
    return core.ready()[user_id]


reads_tags = pytest.mark.partitions(1)
"""In a queue with partitions a tag also moves to the time of the queue, when its user has its first turn."""


async def test_tasks_that_do_not_end_fill_no_more_than_the_share_of_their_user(core: Core) -> None:
    """Of four slots two, and one more for what is in flight."""
    await fill(core, "short", tasks=500, name="short")
    await fill(core, "long", tasks=SLOTS, name="long")
    running: list[Delivery] = []
    for _ in range(60):
        claim = await core.store.claim("w", SLOTS - len(running), wait=False, settings=BY_TIME)
        running += claim.deliveries
        await asyncio.sleep(RUN_MS / 1000)
        ended = [outcome(of, "finished") for of in running if of.user_id == "short"]
        for each in ended:
            each.run_ms = RUN_MS
        await core.store.settle("w", ended)
        running = [of for of in running if of.user_id == "long"]
        await asyncio.to_thread(core.renew, "w", running)
    assert whose(running)["long"] <= SLOTS // 2 + 1


async def test_a_newcomer_waits_no_longer_for_who_took_less_than_was_thought_than_for_one_renewal(core: Core) -> None:
    """It enters beside one that was charged for ten minutes a task, and gets nearly all of that back."""
    await expect_to_take(core, "misjudged", 600_000)
    await fill(core, "first", tasks=1_000, name="misjudged")
    taken = await claim(core, SLOTS, lease_ms=LEASE_MS)
    await fill(core, "newcomer", tasks=1)
    await end(core, taken, run_ms=RUN_MS)
    used_ms = 0
    while "newcomer" not in whose(taken):
        taken = await claim(core, 1, lease_ms=LEASE_MS)
        await end(core, taken, run_ms=RUN_MS)
        used_ms += RUN_MS
        assert used_ms <= SLOTS * RENEWAL_MS, "so much was in flight when it came"


@reads_tags
async def test_a_claim_charges_no_more_than_what_runs_until_the_first_renewal(core: Core) -> None:
    await expect_to_take(core, "t", 600_000)
    await fill(core, "acme", tasks=2, cost=5)
    before = tag_of(core, "acme")
    [taken] = await claim(core, 1, lease_ms=LEASE_MS)
    assert tag_of(core, "acme") - before == pytest.approx(5 * RENEWAL_MS / 1000)
    assert charged(core, "acme", taken.id) == pytest.approx(5 * RENEWAL_MS / 1000)


@reads_tags
async def test_a_renewal_charges_what_has_run_since_and_the_end_makes_it_exact(core: Core) -> None:
    await expect_to_take(core, "t", 1)
    await fill(core, "acme", tasks=2, cost=5)
    before = tag_of(core, "acme")
    [taken] = await claim(core, 1)
    core.wait_until_ms(taken.started_ms + 50)
    core.renew("w", [taken])
    so_far = tag_of(core, "acme") - before
    assert so_far >= 5 * 0.05
    assert charged(core, "acme", taken.id) == pytest.approx(so_far)
    await end(core, [taken], run_ms=60.0)
    assert tag_of(core, "acme") - before == pytest.approx(5 * 0.06)
    assert (await core.store.user("acme")).metrics.cost == pytest.approx(5 * 0.06)


async def test_a_renewal_of_what_was_stolen_charges_nothing(core: Core) -> None:
    await fill(core, "acme", tasks=2)
    [lost] = await claim(core, 1, worker="dies", lease_ms=20)
    core.wait_until_ms(lost.started_ms + 20)
    [stolen] = await claim(core, 1, worker="lives", lease_ms=20)
    assert stolen.id == lost.id
    before = tag_of(core, "acme")
    core.wait_until_ms(stolen.started_ms + 150)
    assert core.renew("dies", [lost]) == [lost]
    assert tag_of(core, "acme") == before


@reads_tags
@pytest.mark.parametrize("renewed", [True, False])
async def test_each_delivery_of_a_stolen_task_is_charged_once(core: Core, renewed: bool) -> None:
    """The sum of what its user was charged is its tag, and what stands in its bill."""
    await expect_to_take(core, "t", 10)
    await fill(core, "acme", tasks=2, cost=2)
    before = tag_of(core, "acme")
    [lost] = await claim(core, 1, worker="dies", lease_ms=50)
    if renewed:
        core.wait_until_ms(lost.started_ms + 30)
        core.renew("dies", [lost])
    of_the_first = charged(core, "acme", lost.id)
    assert (of_the_first >= 2 * 0.03) is renewed
    core.wait_until_ms(core.now_us() // 1000 + 100)
    [stolen] = await claim(core, 1, worker="lives", lease_ms=50)
    assert stolen.id == lost.id
    assert charged(core, "acme", lost.id) == 0
    await end(core, [lost], run_ms=1e6, worker="dies")
    await end(core, [stolen], run_ms=40.0, worker="lives")
    assert tag_of(core, "acme") - before == pytest.approx(of_the_first + 2 * 0.04)
    assert (await core.store.user("acme")).metrics.cost == pytest.approx(of_the_first + 2 * 0.04)


@reads_tags
@pytest.mark.parametrize(
    ("kind", "delay_ms", "run_ms", "costs"), [("released", 0, 70.0, 0.07), ("released", 1, 0.0, 0.01)]
)
async def test_what_a_task_ran_before_it_was_put_back_is_charged_beside_what_it_ran_then(
    core: Core, kind: str, delay_ms: int, run_ms: float, costs: float
) -> None:
    """By a worker that stops, and by one that does not know its name: that stays charged as it was thought to."""
    await expect_to_take(core, "t", 10)
    await fill(core, "acme", tasks=2)
    before = tag_of(core, "acme")
    [taken] = await claim(core, 1)
    put_back = outcome(taken, kind, delay_ms)
    put_back.run_ms = run_ms
    await core.store.settle("w", [put_back])
    core.wait_until_ms(core.now_us() // 1000 + 2)
    again = await claim(core, 1)
    assert [of.id for of in again] == [taken.id]
    await end(core, again, run_ms=30.0)
    assert (await core.store.user("acme")).metrics.cost == pytest.approx(costs + 0.03)
    assert tag_of(core, "acme") - before == pytest.approx(costs + 0.03)


async def test_each_try_of_a_task_is_charged_for_itself(core: Core) -> None:
    await fill(core, "acme", tasks=1)
    for run_ms in (500.0, 250.0):
        taken = await claim(core, 1)
        await end(core, taken, "retry", run_ms=run_ms)
    await end(core, await claim(core, 1), run_ms=250.0)
    assert (await core.store.user("acme")).metrics.cost == pytest.approx(1)


async def test_who_runs_while_nobody_waits_owes_nothing_for_it(core: Core) -> None:
    await fill(core, "alone", tasks=1)
    await end(core, await claim(core, 1), run_ms=600_000.0)
    await fill(core, "other", "alone", tasks=100, name="t2")
    served: Counter[str] = Counter()
    for _ in range(20):
        taken = await claim(core, 1)
        served += whose(taken)
        await end(core, taken, run_ms=RUN_MS)
    ahead = THOUGHT_MS / 2 / RUN_MS if core.is_part else 0  # a newcomer is half a service above the time of the queue
    assert abs(served["alone"] - served["other"]) <= 2 + ahead


async def test_a_task_that_blocks_the_loop_of_its_worker_is_charged_while_it_does(
    server: Server, queue_name: str
) -> None:
    client, seen = RespClient(server.url), []

    @task(name="blocks")
    async def blocks() -> None:
        deadline = time.monotonic() + 10
        while not seen or seen[-1] < 0.3:
            assert time.monotonic() < deadline, f"charged {seen} after ten seconds"
            time.sleep(0.05)  # noqa: ASYNC251
            key = f"{queue.reader.keys_of('acme').prefix}task:acme:{current_task().task_id}"
            found = client.execute("HGET", key, "charged")
            seen.append(float(found))

    try:
        async with TaskQueue(server.url, name=queue_name, lease=0.5, fairness="time") as queue:
            handle = await queue.enqueue(blocks(), user_id="acme")
            async with Worker(queue):
                await handle.result(timeout=15)
            metrics = (await queue.user("acme")).metrics
            assert metrics.cost == pytest.approx(metrics.busy_seconds, abs=1e-6)  # which is in whole microseconds
    finally:
        client.close()
        unregister("blocks")
