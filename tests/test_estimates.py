"""`explain` says when a task starts: what then really happens, under each kind of load."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest

from fairque import Certainty, Explanation, Rate, Reason, TaskQueue, Worker, task
from tests.support.core import Core
from tests.support.eventually import eventually
from tests.support.servers import Server

pytestmark = pytest.mark.leaves_keys()
WITHIN = 0.5
"""Much less on a machine that does nothing else."""


@task
async def nap(seconds: float) -> None:
    await asyncio.sleep(seconds)


@task
async def long_nap(seconds: float) -> None:
    await asyncio.sleep(seconds)


class Load(NamedTuple):
    """What a user puts in: so many tasks, what each costs, and for how many seconds it runs."""

    user_id: str
    tasks: int
    seconds: float = 0.1
    cost: float = 1.0
    limits: Sequence[str] = ()


class Told(NamedTuple):
    """What was said of a task, and when."""

    handle: Any
    at: float
    found: Explanation

    @property
    def starts_in(self) -> float:
        assert self.found.starts_in is not None, str(self.found)
        return self.found.starts_in


class Sight:
    """A queue under load, with a worker of so many slots.

    Args:
        queue: It has its policies.
        loads: Who puts in what.
    """

    def __init__(self, queue: TaskQueue, *loads: Load) -> None:
        self._queue = queue
        self._loads = loads
        self._handles: dict[str, list[Any]] = {}

    async def fill(self) -> None:
        for load in self._loads:
            make = long_nap if load.seconds > 0.2 else nap
            tasks = [
                make(load.seconds).options(user_id=load.user_id, cost=load.cost, limits=load.limits or None)
                for _ in range(load.tasks)
            ]
            self._handles[load.user_id] = list(await self._queue.enqueue_many(tasks))

    async def finished(self, tasks: int) -> bool:
        return (await self._queue.stats()).finished >= tasks

    async def ask(self, user_id: str, position: int) -> Told:
        handle = self._handles[user_id][position]
        at = time.time()
        return Told(handle, at, await self._queue.explain(user_id, handle.task_id))

    async def errors(self, told: Sequence[Told]) -> list[float]:
        """How far each estimate was off: 0.25 where the task started a quarter later, or earlier, than was said."""
        found = []
        for each in told:
            await each.handle.result(timeout=60)
            started_at = (await each.handle.info()).started_at
            took = started_at - each.at
            found.append(each.starts_in / took - 1)
        return found

    async def purge(self) -> None:
        for load in self._loads:
            await self._queue.purge(load.user_id)


async def errors_of(
    queue: TaskQueue, loads: Sequence[Load], asked: Sequence[tuple[str, int]], slots: int = 8, after: int = 30
) -> list[float]:
    """Asks once so many tasks have ended."""
    sight = Sight(queue, *loads)
    await sight.fill()
    async with Worker(queue, concurrency=slots, scheduler=False):
        await eventually(lambda: sight.finished(after))
        told = [await sight.ask(*each) for each in asked]
        errors = await sight.errors(told)
        await sight.purge()
    return errors


async def test_tasks_of_different_cost(queue: TaskQueue) -> None:
    loads = [Load("heavy", 60, cost=10), Load("light", 200), Load("middle", 100, cost=3)]
    errors = await errors_of(queue, loads, [("heavy", 12), ("light", 120), ("middle", 40)])
    assert max(map(abs, errors)) < WITHIN, errors


async def test_tasks_that_run_for_different_times(queue: TaskQueue) -> None:
    loads = [Load("long", 40, seconds=0.4), Load("short", 150, seconds=0.05)]
    errors = await errors_of(queue, loads, [("long", 35), ("short", 50), ("short", 130)])
    assert max(map(abs, errors)) < WITHIN, errors


async def test_a_user_of_a_group(queue: TaskQueue) -> None:
    await queue.set_group("team", weight=2)
    for user_id in ("a", "b", "c"):
        await queue.set_policy(user_id, group="team")
    await queue.set_policy("d", group="other/inner")
    await queue.set_policy("e", group="other")
    loads = [Load("a", 60), Load("b", 60), Load("c", 60), Load("d", 60), Load("e", 60), Load("alone", 60)]
    errors = await errors_of(queue, loads, [("a", 25), ("b", 40), ("d", 20), ("e", 15), ("alone", 35)])
    assert max(map(abs, errors)) < WITHIN, errors


async def test_groups_of_different_cost_of_which_some_are_done_soon(queue: TaskQueue) -> None:
    await queue.set_group("large/one", weight=2)
    for user_id in ("a", "b"):
        await queue.set_policy(user_id, group="large/one")
    await queue.set_policy("c", group="large/two")
    await queue.set_policy("d", group="small")
    loads = [Load("a", 60, cost=4), Load("b", 100), Load("c", 40, seconds=0.3), Load("d", 12)]
    loads.append(Load("alone", 90, cost=2))
    asked = [("a", 30), ("b", 90), ("c", 30), ("alone", 85)]
    errors = await errors_of(queue, loads, asked, after=40)
    assert max(map(abs, errors)) < WITHIN, errors


async def test_services_that_cost_their_time(server: Server, queue_name: str) -> None:
    loads = [Load("long", 30, seconds=0.4), Load("short", 200, seconds=0.05)]
    async with TaskQueue(server.url, name=queue_name, fairness="time") as queue:
        errors = await errors_of(queue, loads, [("long", 16), ("short", 150)], after=40)
    assert max(map(abs, errors)) < WITHIN, errors


async def test_a_line_behind_a_rate(queue: TaskQueue) -> None:
    await queue.set_policy("fast", rate=Rate(10, per=1, burst=10))
    loads = [Load("fast", 50, seconds=0.02)]
    errors = await errors_of(queue, loads, [("fast", 25), ("fast", 49)], after=12)
    assert max(map(abs, errors)) < WITHIN, errors


async def test_a_line_behind_a_cap(queue: TaskQueue) -> None:
    await queue.set_policy("capped", max_running=2)
    loads = [Load("capped", 30, seconds=0.2), Load("other", 200)]
    errors = await errors_of(queue, loads, [("capped", 20), ("capped", 29), ("other", 120)], after=20)
    assert max(map(abs, errors)) < WITHIN, errors


async def test_a_line_at_a_full_limit(queue: TaskQueue) -> None:
    await queue.set_limit("crm", max_running=2)
    loads = [Load("a", 12, seconds=0.2, limits=["crm"]), Load("b", 12, seconds=0.2, limits=["crm"])]
    loads.append(Load("other", 100))
    errors = await errors_of(queue, loads, [("a", 8), ("b", 11), ("other", 95)], after=20)
    assert max(map(abs, errors)) < WITHIN, errors
    await queue.clear_limit("crm")


async def test_a_line_behind_the_rate_of_a_limit(queue: TaskQueue) -> None:
    await queue.set_limit("crm", rate="10/s")
    loads = [
        Load("a", 20, seconds=0.02, limits=["crm"]),
        Load("b", 20, seconds=0.02, limits=["crm"]),
        Load("other", 100),
    ]
    errors = await errors_of(queue, loads, [("a", 15), ("b", 19), ("other", 95)], after=20)
    assert max(map(abs, errors)) < WITHIN, errors
    await queue.clear_limit("crm")


async def test_without_a_worker_there_is_no_estimate(queue: TaskQueue) -> None:
    await queue.enqueue_many([nap(0.001) for _ in range(40)], user_id="acme")
    await Worker(queue, concurrency=10, scheduler=False).run_until_idle()
    handle = await queue.enqueue(nap(0.001), user_id="acme")
    found = await queue.explain("acme", handle.task_id)
    assert (found.starts_in, found.certainty) == (None, Certainty.NONE)
    await queue.purge("acme")


@pytest.mark.damages
@pytest.mark.leaves_keys
@pytest.mark.parametrize("key", ["normal", "metrics", "policy", "normal-stream"])
async def test_a_damaged_key_of_another_user_keeps_nobody_from_asking(
    server: Server, queue: TaskQueue, key: str
) -> None:
    async with Worker(queue, concurrency=2, scheduler=False, shutdown_timeout=0), Core(server.url, queue.name) as core:
        await queue.enqueue_many([long_nap(30).options(user_id="hurt") for _ in range(3)])
        await eventually(lambda: are_running(queue, 2))
        handle = await queue.enqueue(nap(0.1), user_id="acme")
        core.execute("DEL", f":{key}:hurt")
        core.execute("SET", f":{key}:hurt", "nonsense")
        assert (await queue.explain("acme", handle.task_id)).ahead_own == 0
        assert (await queue.demand()).slots_needed > 0


async def test_who_fills_a_limit_is_told_in_numbers_only(queue: TaskQueue) -> None:
    await queue.set_limit("crm", max_running=2)
    made = long_nap(30).options(limits=["crm"])
    async with Worker(queue, concurrency=4, scheduler=False, shutdown_timeout=0):
        for user_id in ("secret-tenant", "acme"):
            await queue.enqueue(made, user_id=user_id)
        await eventually(lambda: are_running(queue, 2))
        handle = await queue.enqueue(made, user_id="acme")
        found = await queue.explain("acme", handle.task_id)
        assert [held.reason for held in found.waiting] == [Reason.LIMIT]
        assert "as many 'crm' run as may, 2 of 2 (1 of its user, 1 of others)" in str(found)
        assert "secret-tenant" not in str(found) + repr(found)
        for user_id in ("secret-tenant", "acme"):
            await queue.purge(user_id)
    await queue.clear_limit("crm")


async def test_a_task_whose_turn_has_not_come_is_told_of_a_full_limit(queue: TaskQueue) -> None:
    """All slots are taken, so that nobody has looked at it."""
    await queue.set_limit("crm", max_running=1)
    async with Worker(queue, concurrency=1, scheduler=False, shutdown_timeout=0):
        for _ in range(2):
            handle = await queue.enqueue(long_nap(30).options(limits=["crm"]), user_id="acme")
        await eventually(lambda: are_running(queue, 1))
        found = await queue.explain("acme", handle.task_id)
        assert [held.reason for held in found.waiting] == [Reason.LIMIT]
        await queue.purge("acme")
    await queue.clear_limit("crm")


async def are_running(queue: TaskQueue, tasks: int) -> bool:
    return (await queue.stats()).started == tasks
