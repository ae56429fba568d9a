"""What living tasks need of others lives as long as they do, and nobody waits for what cannot come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from fairque import (
    PipelineBlocked,
    PipelineHandle,
    Reason,
    ResultTimeout,
    TaskCanceled,
    TaskFailed,
    TaskHandle,
    TaskQueue,
    TaskState,
    Worker,
    task,
)
from fairque.redis.delivery import Delivery
from fairque.settings import QueueSettings
from fairque.tasks.registry import registry
from tests.support.core import outcome
from tests.support.eventually import eventually
from tests.support.servers import Server

is_broken = False


@task
async def number(value: int) -> int:
    return value


@task
async def add(one: int, other: int) -> int:
    return one + other


@task
async def fragile(value: int = 0) -> int:
    if is_broken:
        raise OSError("the disk")
    return value


@task(auto_xcom=True)
async def total(number: int = -1, fragile: int = -1) -> int:
    return number + fragile


@pytest.fixture(autouse=True)
def _registered() -> None:
    global is_broken
    is_broken = False
    registry.update({made.name: made for made in (number, add, fragile, total)})


@pytest.fixture
async def queue(server: Server, queue_name: str) -> AsyncIterator[TaskQueue]:
    """Results are forgotten at once, where nobody needs them."""
    async with TaskQueue(server.url, name=queue_name, result_ttl=0.05, dead_letter_ttl=1, lease=0.5) as queue:
        yield queue


async def serve(queue: TaskQueue) -> None:
    await Worker(queue, scheduler=False).run_until_idle()


async def outlive() -> None:
    """Longer than results and dead letters are kept."""
    await asyncio.sleep(1.1)


def ttl_of(server: Server, handle: TaskHandle[Any], queue_name: str) -> int:
    found: int = server.execute("PTTL", f"fairque:{{{queue_name}}}:result:{handle.user_id}:{handle.task_id}")
    return found


# Inputs


async def test_an_output_waits_for_a_late_sibling(queue: TaskQueue) -> None:
    run = await queue.enqueue(add(number(1).output, number(2).options(delay=1.5).output), user_id="anna")
    async with Worker(queue, poll_interval=0.5):
        assert await run.result(20) == 3


async def test_a_result_waits_for_a_late_sibling_of_one_that_takes_results_by_name(queue: TaskQueue) -> None:
    run = await queue.enqueue([number(1), fragile(2).options(delay=1.5)] >> total(), user_id="anna")
    async with Worker(queue, poll_interval=0.5):
        assert await run.result(20) == 3, "not the default without a word"


async def test_an_output_waits_as_long_as_the_delay_of_the_one_that_needs_it(queue: TaskQueue) -> None:
    run = await queue.enqueue(add(number(1).output, 2).options(delay=1.5), user_id="anna")
    async with Worker(queue, poll_interval=0.5):
        assert await run.result(20) == 3


async def test_a_dependency_that_has_finished_is_kept_for_who_comes_later(
    queue: TaskQueue, server: Server, queue_name: str
) -> None:
    first = await queue.enqueue(number(1).options(result_ttl=60), user_id="anna", task_id="first")
    await serve(queue)
    last = await queue.enqueue(total(), user_id="anna", depends_on=[first])
    assert ttl_of(server, first, queue_name) == -1, "it stays"
    await serve(queue)
    assert await last.result(20) == 0
    assert 50_000 < ttl_of(server, first, queue_name) <= 60_000


async def test_a_time_to_live_begins_when_the_last_that_needs_it_has_ended(
    queue: TaskQueue, server: Server, queue_name: str
) -> None:
    first = number(1).options(result_ttl=60, task_id="first")
    run = await queue.enqueue(
        [
            total().options(task_id="soon", depends_on=[first]),
            total().options(task_id="late", depends_on=[first], delay=1),
        ]
        << first,
        user_id="anna",
    )
    async with Worker(queue, poll_interval=0.5):
        await run["soon"].result(20)
        assert ttl_of(server, run["first"], queue_name) == -1
        await run["late"].result(20)
    assert 59_000 < ttl_of(server, run["first"], queue_name) <= 60_000


async def test_a_canceled_dependent_needs_nothing_any_more(queue: TaskQueue, server: Server, queue_name: str) -> None:
    first = await queue.enqueue(number(1), user_id="anna", task_id="first")
    last = await queue.enqueue(total().options(delay=600), user_id="anna", depends_on=[first])
    await serve(queue)
    assert ttl_of(server, first, queue_name) == -1
    await last.cancel()
    assert ttl_of(server, first, queue_name) <= 50


async def test_inputs_live_through_retries(queue: TaskQueue) -> None:
    tries = []

    @task(name="thrice", max_retries=2)
    async def thrice(value: int) -> int:
        tries.append(value)
        if len(tries) < 3:
            raise OSError
        return value

    run = await queue.enqueue(thrice(number(7).output), user_id="anna")
    async with Worker(queue, poll_interval=0.5):
        assert await run.result(20) == 7
    assert tries == [7, 7, 7]


async def test_a_dead_letter_finds_its_inputs_when_it_is_requeued(queue: TaskQueue) -> None:
    global is_broken
    is_broken = True
    run = await enqueue_pair(queue)
    await serve(queue)
    await asyncio.sleep(0.2)  # longer than a result lives
    is_broken = False
    await queue.requeue(run["fragile"])
    await serve(queue)
    assert await run.result(20) == 7


@pytest.mark.parametrize("how", ["discarded", "expired"])
async def test_a_dead_letter_that_is_given_up_needs_nothing_any_more(
    queue: TaskQueue, server: Server, queue_name: str, how: str
) -> None:
    global is_broken
    is_broken = True
    run = await enqueue_pair(queue)
    await serve(queue)
    assert ttl_of(server, run["number"], queue_name) == -1
    if how == "discarded":
        await queue.discard(run["fragile"])
    else:
        await outlive()
        async with Worker(queue, poll_interval=0.2):
            await eventually(lambda: not ours(server, queue_name, "lapsing", "uses"))
    assert ttl_of(server, run["number"], queue_name) <= 50
    assert ours(server, queue_name, "uses", "feeds", "lapsing", "task") == []


async def test_an_id_that_is_used_again_gives_its_result_up_and_nothing_stays(
    queue: TaskQueue, server: Server, queue_name: str
) -> None:
    """Whoever was to be given it is not run with something else, or with nothing."""
    first = await queue.enqueue(number(1), user_id="anna", task_id="first")
    late = await queue.enqueue(total().options(delay=0.5), user_id="anna", depends_on=[first])
    await serve(queue)
    await queue.enqueue(number(2).options(delay=600), user_id="anna", task_id="first")
    async with Worker(queue, poll_interval=0.5):
        with pytest.raises(TaskFailed, match="'first'"):
            await late.result(20)
    await queue.handle("anna", "first").cancel()
    await queue.discard(late)
    assert ours(server, queue_name, "uses", "feeds", "lapsing", "task") == []


async def test_an_end_lets_a_part_of_what_it_used_go(queue: TaskQueue, server: Server, queue_name: str) -> None:
    """However many inputs it had, it holds up nobody else: the calls that follow let the others go."""
    parts = await queue.enqueue_many([number(1)] * 1200, user_id="anna")
    last = await queue.enqueue(number(2), user_id="anna", depends_on=parts)
    store = queue.store()
    claim = await store.claim("w", 1200, settings=QueueSettings(lease_ms=60_000), wait=False)
    for at in range(0, 1200, 200):
        await store.settle("w", [outcome(delivery, "finished") for delivery in claim.deliveries[at : at + 200]])
    [delivery] = await take(store)
    assert delivery.id == last.task_id
    uses = f"fairque:{{{queue_name}}}:uses:anna:{last.task_id}"
    left = server.execute("SCARD", uses)
    assert left == 1200
    await store.settle("w", [outcome(delivery, "finished")])
    while left:
        now_left = server.execute("SCARD", uses)
        assert 0 < left - now_left <= 500
        left = now_left
        await take(store)
    await store.leave("w", [])
    await store.close()
    assert ours(server, queue_name, "uses", "feeds", "task") == []


async def test_a_purge_lets_everything_go(queue: TaskQueue, server: Server, queue_name: str) -> None:
    global is_broken
    is_broken = True
    held = await queue.enqueue(number(1) >> total().options(delay=600), user_id="anna")
    failed = await enqueue_pair(queue)
    await serve(queue)
    assert await held["total"].state() is TaskState.SCHEDULED
    assert await failed["fragile"].state() is TaskState.FAILED
    await queue.purge("anna")
    assert ours(server, queue_name, "uses", "feeds", "lapsing", "task", "result", "needs") == []


async def test_bytes_of_a_kept_result_count_until_it_is_let_go(queue: TaskQueue) -> None:
    await queue.set_policy("anna", max_bytes=100_000)
    run = await queue.enqueue(number(1) >> total().options(delay=600), user_id="anna")
    await serve(queue)
    assert not (await queue.check()).findings
    await run["total"].cancel()
    assert not (await queue.check()).findings
    await queue.clear_policy("anna")


# Ends that will not come


@pytest.mark.parametrize("policy", ["wait", "cancel"])
async def test_a_discarded_dependency_ends_who_waits_for_it(queue: TaskQueue, policy: Any) -> None:
    global is_broken
    is_broken = True
    first = await queue.enqueue(fragile(), user_id="anna", task_id="first")
    last = await queue.enqueue(number(1).options(on_dependency_failure=policy), user_id="anna", depends_on=[first])
    await serve(queue)
    assert await last.state() is (TaskState.DEFERRED if policy == "wait" else TaskState.CANCELED)
    await queue.discard(first)
    with pytest.raises(TaskCanceled, match="dependency first discarded" if policy == "wait" else "first failed"):
        await last.result(20)


async def test_an_expired_dependency_ends_who_waits_for_it_and_who_waits_for_that(queue: TaskQueue) -> None:
    global is_broken
    is_broken = True
    run = await queue.enqueue(fragile() >> number(1) >> number(2).options(task_id="last"), user_id="anna")
    async with Worker(queue, poll_interval=0.2):
        with pytest.raises(TaskCanceled, match="canceled"):
            await run.result(20)
    with pytest.raises(TaskCanceled, match="expired"):
        await run["number"].result(20)


async def test_who_comes_behind_a_dead_letter_is_told_when_that_expires(queue: TaskQueue) -> None:
    global is_broken
    is_broken = True
    first = await queue.enqueue(fragile(), user_id="anna", task_id="first")
    await serve(queue)
    last = await queue.enqueue(number(1), user_id="anna", depends_on=[first])
    async with Worker(queue, poll_interval=0.2):
        with pytest.raises(TaskCanceled, match="dependency first expired"):
            await last.result(20)


async def test_a_requeued_dependency_is_not_given_up(queue: TaskQueue, server: Server, queue_name: str) -> None:
    global is_broken
    is_broken = True
    first = await queue.enqueue(fragile(), user_id="anna", task_id="first")
    last = await queue.enqueue(number(1), user_id="anna", depends_on=[first])
    await serve(queue)
    await queue.requeue(first)
    assert ours(server, queue_name, "lapsing") == []
    is_broken = False
    await outlive()
    await serve(queue)
    assert await last.result(20) == 1


async def test_who_runs_all_the_same_does_so_when_the_end_was_not_told_before_the_discard(queue: TaskQueue) -> None:
    global is_broken
    is_broken = True
    first = await queue.enqueue(fragile(), user_id="anna", task_id="first")
    made = number(1).options(depends_on=[first], on_dependency_failure="run", result_ttl=60)
    handles = await queue.enqueue_many([made] * 700, user_id="anna")
    store = queue.store()
    [delivery] = await take(store)
    await store.settle("w", [outcome(delivery, "failed")])
    assert (await queue.stats()).deferred > 0, "not all have been told"
    await queue.discard(first)
    await store.leave("w", [])
    await store.close()
    await serve(queue)
    assert {await handle.result(20) for handle in handles} == {1}


async def test_half_a_run_is_canceled(queue: TaskQueue) -> None:
    """What comes behind it goes as well, the rest runs."""
    left, right = number(1).options(task_id="left", delay=600), number(2).options(task_id="right")
    behind, other = number(3).options(task_id="behind"), number(4).options(task_id="other", result_ttl=60)
    run = await queue.enqueue((left >> behind) | (right >> other), user_id="anna")
    await run["left"].cancel("not needed")
    await serve(queue)
    assert await run["other"].state() is TaskState.FINISHED
    assert await run["behind"].state() is TaskState.CANCELED


# Told why


async def test_what_each_dependency_came_to_is_told(queue: TaskQueue) -> None:
    global is_broken
    is_broken = True
    failed = await queue.enqueue(fragile(), user_id="anna", task_id="failed")
    await queue.enqueue(number(1), user_id="anna", task_id="later", delay=600)
    done = await queue.enqueue(number(1), user_id="anna", task_id="done")
    made = number(2).options(allow_unknown=True, task_id="last")
    last = await queue.enqueue(made, user_id="anna", depends_on=[failed, "later", done, "nobody"])
    await serve(queue)
    states = {"failed": TaskState.FAILED, "later": TaskState.SCHEDULED, "nobody": None}
    assert (await last.info()).dependency_states == {**states, "done": TaskState.FINISHED}
    found = await queue.explain("anna", "last")
    assert found.dependency_states == states
    assert found.dependencies == ("failed", "later", "nobody")
    assert found.blocked_by == ("failed",)
    assert "waits for 3 tasks: 'failed' (failed), 'nobody' (not known), 'later' (scheduled)" in str(found)
    assert "goes on when what failed is requeued and finishes: 'failed'" in str(found)
    await queue.purge("anna")


async def test_many_dependencies_are_told_in_part(queue: TaskQueue) -> None:
    parts = await queue.enqueue_many([number(1).options(delay=600)] * 150, user_id="anna")
    last = await queue.enqueue(number(2), user_id="anna", depends_on=parts)
    found = await queue.explain("anna", last.task_id)
    assert len(found.dependency_states) == len((await last.info()).dependency_states) == 100
    assert "waits for 150 tasks: " in str(found)
    await queue.purge("anna")


async def test_who_waits_for_a_dead_letter_in_the_end_is_told(queue: TaskQueue) -> None:
    global is_broken
    is_broken = True
    run = await queue.enqueue(fragile() >> number(1) >> number(2) >> number(3).options(task_id="last"), user_id="anna")
    await serve(queue)
    found = await queue.explain("anna", run["last"].task_id)
    assert found.blocked_by == (run["fragile"].task_id,)
    assert found.dependency_states == {run["number-2"].task_id: TaskState.DEFERRED}
    assert Reason.BLOCKED in {each.reason for each in found.waiting}
    await queue.purge("anna")


async def test_the_state_of_a_run_tells_what_cannot_end(queue: TaskQueue) -> None:
    global is_broken
    is_broken = True
    slow = number(5).options(task_id="slow", delay=600)
    run = await queue.enqueue((fragile() >> number(1) >> number(2).options(task_id="last")) | slow, user_id="anna")
    assert not (await run.state()).blocked
    await serve(queue)
    state = await run.state()
    assert state.blocked == ("number", "last")
    assert state.blockers == (run["fragile"].task_id,)
    assert (state.stuck, state.failed, state.ended) == (False, True, False), "something is still to run"
    assert (await queue.health()).blocking == 1
    await run["slow"].cancel()
    assert (await run.state()).stuck
    await queue.discard(run["fragile"])
    assert (await queue.health()).blocking == 0
    with pytest.raises(TaskCanceled):
        await run.result(20)


@pytest.mark.parametrize("when", ["before", "meanwhile"])
async def test_who_waits_for_a_run_that_cannot_end_may_be_told(queue: TaskQueue, when: str) -> None:
    global is_broken
    is_broken = True
    run = await queue.enqueue(fragile() >> number(1) >> number(2).options(task_id="last"), user_id="anna")
    waiting = asyncio.create_task(run.result(20, raise_blocked=True))
    if when == "before":
        await serve(queue)
    async with Worker(queue, scheduler=False):
        with pytest.raises(PipelineBlocked, match="cannot end before what failed is requeued or discarded") as raised:
            await waiting
    assert raised.value.task_ids == (run["fragile"].task_id,)
    is_broken = False
    await queue.requeue(run["fragile"])
    made = asyncio.create_task(run.result(20, raise_blocked=True))
    await serve(queue)
    assert await made == 2


async def test_a_failure_that_others_do_without_blocks_nobody(queue: TaskQueue) -> None:
    global is_broken
    is_broken = True
    last = number(2).options(task_id="last", on_dependency_failure="run", result_ttl=60)
    run = await queue.enqueue(fragile() >> last, user_id="anna")
    waiting = asyncio.create_task(run.result(20, raise_blocked=True))
    await serve(queue)
    assert await waiting == 2
    assert (await queue.health()).blocking == 0


async def test_a_time_limit_holds_for_who_wants_to_be_told(queue: TaskQueue) -> None:
    run = await queue.enqueue(number(1) >> number(2).options(delay=600), user_id="anna")
    with pytest.raises(ResultTimeout):
        await run.result(0.1, raise_blocked=True)
    await run.cancel()


# What the tests use


async def enqueue_pair(queue: TaskQueue) -> PipelineHandle:
    first = number(7)
    return await queue.enqueue(first >> fragile(first.output).options(result_ttl=60), user_id="anna")


async def take(store: Any) -> list[Delivery]:
    claim = await store.claim("w", 1, settings=QueueSettings(lease_ms=60_000), wait=False)
    found: list[Delivery] = claim.deliveries
    return found


def ours(server: Server, queue_name: str, *kinds: str) -> list[str]:
    """Keys of these kinds."""
    prefix = f"fairque:{{{queue_name}}}:"
    names = [key.removeprefix(prefix) for key in server.keys(queue_name)]
    return [name for name in names if name.partition(":")[0] in kinds]
