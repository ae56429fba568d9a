"""What is held back asks for no slots, and nothing that may start is forgotten."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import pytest

from fairque import EVERYBODY, Rate, TaskQueue, Worker, task
from tests.support.core import Core
from tests.support.eventually import eventually
from tests.support.gate import new_gate, work
from tests.support.servers import Server

pytestmark = pytest.mark.leaves_keys()
AT_ONCE = 0.001
"""A slot starts one task in that time."""


@task
async def demanding() -> None:
    await asyncio.sleep(0.05)


@task
async def cheap() -> None:
    pass


async def needed(queue: TaskQueue, target_wait: float = AT_ONCE, cooldown: float = 300) -> int:
    return (await queue.demand(target_wait=target_wait, cooldown=cooldown)).slots_needed


async def measure(queue: TaskQueue) -> None:
    """How long a task runs is known from then on."""
    await queue.enqueue_many([demanding() for _ in range(5)], user_id="first")
    await Worker(queue).run_until_idle()


async def put_in(queue: TaskQueue, user_id: str, tasks: int) -> None:
    await queue.enqueue_many([demanding() for _ in range(tasks)], user_id=user_id)


@asynccontextmanager
async def running(queue: TaskQueue, user_id: str, tasks: int, slots: int = 20) -> AsyncIterator[None]:
    gate = new_gate()
    await queue.enqueue_many([work(at) for at in range(tasks)], user_id=user_id)
    async with Worker(queue, concurrency=slots, scheduler=False):
        await eventually(lambda: len(gate.started) == tasks)
        yield
        gate.open()


@pytest.mark.parametrize("is_paused_first", [True, False])
async def test_a_paused_user_asks_for_no_slot_however_much_it_has(queue: TaskQueue, is_paused_first: bool) -> None:
    if is_paused_first:
        await queue.pause("acme")
    await put_in(queue, "acme", 10_000)
    await queue.pause("acme")
    assert await needed(queue) == 0
    assert (await queue.demand()).backlog == 10_000
    await queue.resume("acme")
    assert await needed(queue) > 0


async def test_beside_a_paused_user_others_ask_for_what_they_need(queue: TaskQueue) -> None:
    await measure(queue)
    await queue.pause("acme")
    await put_in(queue, "acme", 500)
    await put_in(queue, "zoe", 3)
    assert await needed(queue) == 3


async def test_many_paused_users_ask_for_no_slot(queue: TaskQueue) -> None:
    users = [f"user-{at}" for at in range(250)]
    await asyncio.gather(*(queue.pause(user) for user in users))
    await queue.enqueue_many([demanding().options(user_id=user) for user in users])
    assert await needed(queue) == 0
    await queue.enqueue(demanding(), user_id="zoe")
    assert await needed(queue) == 1


async def test_nobody_asks_while_everybody_is_paused(queue: TaskQueue) -> None:
    await put_in(queue, "acme", 10)
    await queue.pause(EVERYBODY)
    assert await needed(queue) <= 1, "claims apply a new policy of everybody"
    await Worker(queue).run_until_idle()
    assert await needed(queue) == 0
    await queue.resume(EVERYBODY)
    assert await needed(queue) == 1


async def test_what_waits_for_the_end_of_the_pause_of_everybody_asks_in_time(queue: TaskQueue) -> None:
    await measure(queue)
    await put_in(queue, "acme", 10)
    await queue.pause(EVERYBODY, until=datetime.now(UTC) + timedelta(seconds=100))
    found = await queue.demand(target_wait=200)
    assert (found.backlog, found.slots_needed) == (10, 1)
    assert await needed(queue) >= 1, "a worker has to be there by then"


async def test_a_pause_that_ends_within_the_cooldown_keeps_a_slot(queue: TaskQueue) -> None:
    await queue.pause("acme", until=datetime.now(UTC) + timedelta(seconds=100))
    await put_in(queue, "acme", 10)
    assert await needed(queue, cooldown=50) == 0
    assert await needed(queue, cooldown=200) == 1


async def test_a_user_asks_for_no_more_slots_than_it_may_have(queue: TaskQueue) -> None:
    await measure(queue)
    await queue.set_policy("acme", max_running=5)
    await put_in(queue, "acme", 500)
    assert await needed(queue) == 5


async def test_what_runs_is_all_that_a_user_at_its_limit_asks_for(queue: TaskQueue) -> None:
    await measure(queue)
    await queue.set_policy("acme", max_running=5)
    async with running(queue, "acme", 5, slots=5):
        await put_in(queue, "acme", 500)
        assert await needed(queue) == 5


async def test_what_everybody_may_have_holds_for_each(queue: TaskQueue) -> None:
    await measure(queue)
    await queue.set_policy(EVERYBODY, max_running=2)
    for user_id in ("acme", "zoe", "max"):
        await put_in(queue, user_id, 50)
    assert await needed(queue) == 6


async def test_of_more_slots_a_share_is_more(queue: TaskQueue) -> None:
    await measure(queue)
    await queue.set_policy("acme", max_share=0.5)
    async with running(queue, "acme", 10):
        await put_in(queue, "acme", 30)
        assert await needed(queue) == 40


async def test_a_rate_asks_for_what_may_start_in_time(queue: TaskQueue) -> None:
    await measure(queue)
    await queue.set_policy("acme", rate=Rate(count=6, per=60, burst=2))
    await put_in(queue, "acme", 500)
    assert await needed(queue) == 2, "its burst"
    found = await queue.demand(target_wait=60)
    assert found.slots_needed == 1, "eight tasks in a minute"
    await Worker(queue).run_until_idle()
    assert (await queue.stats()).queued == 498
    assert await needed(queue) >= 1, "the next one is due within the cooldown"


async def test_a_limit_of_a_name_asks_for_no_more_than_its_places(queue: TaskQueue) -> None:
    await queue.set_limit(work.name, max_running=3)
    gate = new_gate()
    await queue.enqueue_many([work(at) for at in range(60)], user_id="acme")
    async with Worker(queue, concurrency=20, scheduler=False):
        await eventually(lambda: len(gate.started) == 3)

        async def are_held() -> bool:
            return (await queue.user("acme")).held == 57

        await eventually(are_held)
        assert await needed(queue) == 3
        await queue.set_limit(work.name, max_running=1)
        assert await needed(queue) == 3, "what runs"
        gate.open()


async def test_a_paused_name_asks_for_no_slot_until_it_goes_on(queue: TaskQueue) -> None:
    await queue.pause_task(cheap.name)
    await queue.enqueue_many([cheap() for _ in range(300)], user_id="acme")
    await Worker(queue).run_until_idle()
    assert (await queue.user("acme")).held == 300
    assert await needed(queue) == 0
    await queue.resume_task(cheap.name)
    assert await needed(queue) == 1
    await Worker(queue).run_until_idle()
    assert (await queue.stats()).queued == 0


async def test_held_tasks_whose_limit_was_lifted_are_not_forgotten_without_a_worker(queue: TaskQueue) -> None:
    await queue.set_limit(cheap.name, rate=Rate(count=1, per=3600))
    await queue.enqueue_many([cheap() for _ in range(5)], user_id="acme")
    await Worker(queue).run_until_idle()
    assert (await queue.user("acme")).held == 4
    assert await needed(queue, cooldown=10) <= 1
    await queue.clear_limit(cheap.name)
    assert await needed(queue) >= 1
    await Worker(queue).run_until_idle()
    assert (await queue.stats()).queued == 0


async def test_held_tasks_of_a_paused_user_ask_for_no_place_of_a_key(queue: TaskQueue) -> None:
    await queue.pause_task(cheap.name)
    await queue.enqueue_many([cheap() for _ in range(20)], user_id="acme")
    await Worker(queue).run_until_idle()
    await queue.pause("acme")
    await queue.resume_task(cheap.name)
    assert await needed(queue) == 0
    await queue.resume("acme")
    await Worker(queue).run_until_idle()
    assert (await queue.stats()).queued == 0


async def test_users_of_groups_ask_once(queue: TaskQueue) -> None:
    await measure(queue)
    await queue.set_policy("a", group="gold")
    await queue.set_policy("b", group="gold/inner", max_running=1)
    for user_id in ("a", "b", "c"):
        await put_in(queue, user_id, 4)
    assert await needed(queue) == 4 + 1 + 4
    await queue.pause("a")
    assert await needed(queue) == 1 + 4


async def test_more_users_than_are_looked_at_ask_for_all_that_they_have(queue: TaskQueue) -> None:
    await measure(queue)
    await queue.set_policy("acme", max_running=1)
    await put_in(queue, "acme", 50)
    await queue.enqueue_many([demanding().options(user_id=f"user-{at}") for at in range(300)])
    assert await needed(queue) in (301, 350)


@pytest.mark.damages
async def test_a_damaged_user_is_passed_over(server: Server, queue: TaskQueue) -> None:
    await measure(queue)
    await queue.set_policy("broken", max_running=1)
    await put_in(queue, "acme", 3)
    async with Core(server.url, queue.name) as core:
        core.execute("SET", ":normal:broken", "nonsense")
        assert await needed(queue) == 3
