"""Workers that die, hang or are told to leave: their tasks run elsewhere, and nothing is lost or recorded twice."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from fairque import FailureKind, Priority, TaskFailed, TaskQueue, TaskState, Worker
from tests.support.eventually import eventually
from tests.support.gate import new_gate, work
from tests.support.workers import SCRIPT, Fleet, Storm, release, worker_id
from tests.workers import tasks

if TYPE_CHECKING:
    from fairque import TaskHandle
    from tests.support.process import WorkerProcess
    from tests.support.servers import Server

    StartProcess = Callable[..., Awaitable[WorkerProcess]]

LEASE = 1.0
DEFAULT_LEASE = 10.0

# Whoever was killed said no goodbye: the next heartbeat after a minute, and the next wake-up, forget them.
pytestmark = pytest.mark.leaves_keys("workers", "waiting")


@pytest.fixture
async def queue(server: Server, queue_name: str) -> AsyncIterator[TaskQueue]:
    async with TaskQueue(server.url, name=queue_name, lease=LEASE) as queue:
        yield queue


@pytest.fixture
def fleet(worker_process: StartProcess, server: Server, queue_name: str) -> Fleet:
    return Fleet(worker_process, server.url, queue_name, lease=LEASE)


async def assert_nothing_is_out(queue: TaskQueue, *user_ids: str) -> None:
    stats = await queue.stats()
    assert (stats.queued, stats.started, stats.scheduled) == (0, 0, 0)
    for user_id in user_ids:
        assert (await queue.user(user_id)).started == 0


# SIGKILL

STORM_TASKS = 300
STORM_KILLS = 40
STORM_WORKERS = 4
STORM_USERS = [f"user {n}" for n in range(10)]


class TaskStorm(Storm):
    """Tasks of many users come in meanwhile."""

    def __init__(self, queue: TaskQueue, fleet: Fleet, log: Path) -> None:
        super().__init__(fleet, log)
        self._queue = queue
        self.handles: list[TaskHandle[str]] = []

    async def enqueue(self) -> None:
        user_id = random.choice(STORM_USERS)
        task = tasks.log(str(self._log), random.uniform(0, 0.2))
        priority = random.choice([Priority.NORMAL, Priority.CRITICAL])
        self.handles.append(await self._queue.enqueue(task, user_id=user_id, priority=priority))


async def test_a_storm_of_kills_loses_no_task_and_records_each_result_once(
    queue: TaskQueue, fleet: Fleet, tmp_path: Path
) -> None:
    storm = TaskStorm(queue, fleet, tmp_path / "runs")
    for _ in range(STORM_WORKERS):
        await storm.launch()
    for kill in range(1, STORM_KILLS + 1):
        while len(storm.handles) < STORM_TASKS * kill // STORM_KILLS:
            await storm.enqueue()
        await storm.kill_one_at_work()
        await storm.launch()

    results = [await handle.result(timeout=30) for handle in storm.handles]
    assert results == [handle.task_id for handle in storm.handles]
    runs = Counter(task_id for _, task_id in storm.starts())
    assert runs.keys() == set(results)
    assert runs.total() >= STORM_TASKS + STORM_KILLS // 2, "the kills hit hardly anyone at work"
    stats = await queue.stats()
    assert (stats.finished, stats.failed) == (STORM_TASKS, 0)
    await assert_nothing_is_out(queue, *STORM_USERS)
    await storm.end()


async def test_with_the_default_lease_what_a_killed_worker_had_runs_elsewhere_within_15_seconds_and_one_more_each_lease(
    worker_process: StartProcess, server: Server, queue_name: str, tmp_path: Path
) -> None:
    fleet = Fleet(worker_process, server.url, queue_name)
    async with TaskQueue(server.url, name=queue_name) as queue:
        victim = await fleet.start()
        handles = [await queue.enqueue(tasks.hold(str(tmp_path)), user_id=f"user {n}") for n in range(2)]
        for handle in handles:
            await victim.line(f"runs {handle.task_id}")
        other = await fleet.start()
        victim.send(signal.SIGKILL)
        killed = time.monotonic()
        for suspects in range(2):
            await eventually(lambda most=suspects: runs_again(other, handles) > most, deadline=30)
            assert time.monotonic() - killed < (1.5 + suspects) * DEFAULT_LEASE + 1.0
        release(tmp_path, other)
        assert [await handle.result(timeout=20) for handle in handles] == [other.pid] * 2
        await assert_nothing_is_out(queue, "user 0", "user 1")


def runs_again(worker: WorkerProcess, handles: list[TaskHandle[int]]) -> int:
    return sum(f"runs {handle.task_id} attempt 2" in worker.output for handle in handles)


@pytest.mark.smoke
async def test_the_slots_of_a_killed_worker_are_free_again(queue: TaskQueue, fleet: Fleet, tmp_path: Path) -> None:
    victim = await fleet.start()
    handles = [
        await queue.enqueue(tasks.hold(str(tmp_path)), user_id="acme", priority=priority)
        for priority in (Priority.NORMAL, Priority.CRITICAL)
    ]
    for handle in handles:
        await victim.line(f"runs {handle.task_id}")
    assert (await queue.user("acme")).started == 2
    victim.send(signal.SIGKILL)
    other = await fleet.start()
    for handle in handles:
        await other.line(f"runs {handle.task_id} attempt 2")
    assert (await queue.user("acme")).started == 2, "taken over, not counted twice"
    release(tmp_path, other)
    for handle in handles:
        await handle.result(timeout=20)
    await assert_nothing_is_out(queue, "acme")


def consumers(server: Server, queue_name: str) -> dict[str, int]:
    """The consumers of acme's normal lane, and how much is pending for each."""
    stream = f"fairque:{{{queue_name}}}:normal-stream:acme"
    rows = server.execute("XINFO", "CONSUMERS", stream, "workers")
    return {row[1].decode(): row[3] for row in rows}


async def test_the_consumer_of_a_killed_worker_is_removed_when_its_last_task_is_taken_over(
    queue: TaskQueue, fleet: Fleet, server: Server, queue_name: str, tmp_path: Path
) -> None:
    victim = await fleet.start(concurrency=2)
    handles = [await queue.enqueue(tasks.hold(str(tmp_path)), user_id="acme") for _ in range(2)]
    for handle in handles:
        await victim.line(f"runs {handle.task_id}")
    assert consumers(server, queue_name) == {worker_id(victim): 2}
    victim.send(signal.SIGKILL)
    other = await fleet.start()
    await eventually(lambda: consumers(server, queue_name) == {worker_id(other): 2})
    release(tmp_path, other)
    for handle in handles:
        await handle.result(timeout=20)


async def test_consumers_of_workers_that_died_idle_are_removed_from_a_busy_lane(
    queue: TaskQueue, fleet: Fleet, server: Server, queue_name: str, tmp_path: Path
) -> None:
    keeper = await fleet.start(concurrency=1)
    held = await queue.enqueue(tasks.hold(str(tmp_path)), user_id="acme")
    await keeper.line(f"runs {held.task_id}")
    dead = []
    for n in range(3):
        victim = await fleet.start()
        assert await (await queue.enqueue(tasks.add(n, n), user_id="acme")).result(timeout=20) == 2 * n
        await eventually(lambda of=victim: consumers(server, queue_name)[worker_id(of)] == 0)
        victim.send(signal.SIGKILL)
        await victim.wait()
        dead.append(worker_id(victim))
    assert consumers(server, queue_name).keys() >= set(dead)
    for name in dead:
        server.execute("ZADD", f"fairque:{{{queue_name}}}:workers", 1, name)  # a minute of silence is over
    other = await fleet.start()
    await eventually(lambda: not consumers(server, queue_name).keys() & set(dead))
    assert consumers(server, queue_name)[worker_id(keeper)] == 1
    assert other.returncode is None
    release(tmp_path, keeper)
    assert await held.result(timeout=20) == keeper.pid


async def test_progress_of_a_worker_that_died_is_not_shown_for_the_next(
    queue: TaskQueue, fleet: Fleet, tmp_path: Path
) -> None:
    victim = await fleet.start()
    handle = await queue.enqueue(tasks.tell_once_and_hold(str(tmp_path)), user_id="acme")
    await eventually(lambda: tells(handle, 1, 0.5, "half of it"))
    victim.send(signal.SIGKILL)
    other = await fleet.start()
    await eventually(lambda: tells(handle, 2, None, ""))
    release(tmp_path, other)
    assert await handle.result(timeout=20) == other.pid


async def tells(handle: TaskHandle[int], *expected: object) -> bool:
    info = await handle.info()
    return (info.attempt, info.progress, info.message) == expected


# A task that kills its worker


async def test_a_task_that_kills_its_worker_each_time_is_convicted_by_killing_it_alone(
    queue: TaskQueue, fleet: Fleet
) -> None:
    handle = await queue.enqueue(tasks.kill_worker(), user_id="acme")
    as_any_other, as_the_only_suspect, alone = 1, 1, 3
    for _ in range(as_any_other + as_the_only_suspect + alone):
        victim = await fleet.launch(max_deliveries=alone)
        assert await victim.wait() == 9
    assert await handle.state() is TaskState.STARTED
    survivor = await fleet.start(max_deliveries=alone)
    with pytest.raises(TaskFailed, match="TaskLost: 3 workers fell silent that ran nothing else") as caught:
        await handle.result(timeout=20)
    assert caught.value.kind == FailureKind.LOST
    error = (await handle.info()).error
    assert error is not None
    assert (error.kind, error.worker) == (FailureKind.LOST, worker_id(survivor))
    assert (await queue.user("acme")).dead_letters == 1
    assert await (await queue.enqueue(tasks.add(1, 2), user_id="acme")).result(timeout=20) == 3
    assert survivor.returncode is None
    await assert_nothing_is_out(queue, "acme")


async def test_a_task_whose_arguments_kill_its_worker_when_they_are_decoded_is_convicted_as_well(
    queue: TaskQueue, worker_process: StartProcess, server: Server, queue_name: str
) -> None:
    handle = await queue.enqueue(tasks.take_deadly(tasks.Deadly(1)), user_id="acme")
    options = json.dumps({"queue": {"lease": LEASE}, "worker": {"max_deliveries": 1}})
    as_any_other, as_the_only_suspect, alone = 1, 1, 1
    for _ in range(as_any_other + as_the_only_suspect + alone):
        victim = await worker_process(SCRIPT, server.url, queue_name, options, env={"deadly": "1"})
        assert await victim.wait() == 9
    await worker_process(SCRIPT, server.url, queue_name, options, env={"deadly": "1"})
    with pytest.raises(TaskFailed, match="TaskLost: 1 worker fell"):
        await handle.result(timeout=20)


# SIGSTOP


async def stop_and_take_over(
    queue: TaskQueue, fleet: Fleet, releases: Path
) -> tuple[WorkerProcess, WorkerProcess, TaskHandle[int]]:
    """A worker stopped in the middle of a task, another one that runs it now, and the task."""
    zombie = await fleet.start(concurrency=1)
    handle = await queue.enqueue(tasks.hold(str(releases)), user_id="acme")
    await zombie.line(f"runs {handle.task_id} attempt 1")
    zombie.send(signal.SIGSTOP)
    other = await fleet.start(concurrency=1)
    await other.line(f"runs {handle.task_id} attempt 2")
    return zombie, other, handle


async def assert_goes_on(queue: TaskQueue, worker: WorkerProcess, *, without: WorkerProcess) -> None:
    """It serves, alone."""
    without.send(signal.SIGTERM)
    assert await without.wait() == 0
    handle = await queue.enqueue(tasks.add(1, 2), user_id="acme")
    assert await handle.result(timeout=20) == 3
    assert (await handle.info()).worker == worker_id(worker)


async def test_a_worker_that_wakes_up_late_can_neither_end_nor_take_back_what_another_one_runs(
    queue: TaskQueue, fleet: Fleet, server: Server, queue_name: str, tmp_path: Path
) -> None:
    zombie, other, handle = await stop_and_take_over(queue, fleet, tmp_path)
    release(tmp_path, zombie)
    zombie.send(signal.SIGCONT)
    await zombie.line(f"lost {handle.task_id} attempt 1")
    info = await handle.info()
    assert (info.state, info.attempt, info.worker) == (TaskState.STARTED, 2, worker_id(other))
    assert consumers(server, queue_name) == {worker_id(other): 1}
    release(tmp_path, other)
    assert await handle.result(timeout=20) == other.pid
    await assert_goes_on(queue, zombie, without=other)
    assert (await queue.stats()).finished == 2
    await assert_nothing_is_out(queue, "acme")


async def test_a_worker_that_wakes_up_late_cannot_overwrite_a_result(
    queue: TaskQueue, fleet: Fleet, tmp_path: Path
) -> None:
    zombie, other, handle = await stop_and_take_over(queue, fleet, tmp_path)
    release(tmp_path, other)
    assert await handle.result(timeout=20) == other.pid
    release(tmp_path, zombie)
    zombie.send(signal.SIGCONT)
    await zombie.line(f"lost {handle.task_id} attempt 1")
    assert await handle.result(timeout=0) == other.pid
    await assert_goes_on(queue, zombie, without=other)
    assert (await queue.stats()).finished == 2


async def test_a_body_that_still_runs_when_its_worker_wakes_up_late_is_cancelled(
    queue: TaskQueue, fleet: Fleet, tmp_path: Path
) -> None:
    zombie, other, handle = await stop_and_take_over(queue, fleet, tmp_path)
    zombie.send(signal.SIGCONT)
    await zombie.line(f"cancelled {handle.task_id}")
    assert f"lost {handle.task_id} attempt 1" in zombie.lines
    release(tmp_path, other)
    assert await handle.result(timeout=20) == other.pid
    await assert_goes_on(queue, zombie, without=other)


@pytest.mark.parametrize("concurrency", [1, 10])
@pytest.mark.parametrize("processes", [1, 2])
async def test_workers_that_were_stopped_together_keep_what_they_have(
    queue: TaskQueue, fleet: Fleet, tmp_path: Path, concurrency: int, processes: int
) -> None:
    """As those of a machine that slept: nobody else was there to take it over."""
    workers = [await fleet.start(concurrency=concurrency) for _ in range(processes)]
    count = max(1, concurrency - 1) * processes  # where there are ten slots, one is free to take something over
    handles = [await queue.enqueue(tasks.hold(str(tmp_path)), user_id=f"user {n % 4}") for n in range(count)]
    await eventually(lambda: sum(line.startswith("runs") for worker in workers for line in worker.lines) == count)
    for worker in workers:
        worker.send(signal.SIGSTOP)
    await asyncio.sleep(5 * LEASE)
    for worker in workers:
        worker.send(signal.SIGCONT)
    for worker in workers:
        await worker.line("this process was stopped for")
    await asyncio.sleep(2 * LEASE)  # in which nothing may happen
    for worker in workers:
        release(tmp_path, worker)
    assert {await handle.result(timeout=20) for handle in handles} <= {worker.pid for worker in workers}
    assert {(await handle.info()).attempt for handle in handles} == {1}
    assert not any("taken over" in worker.output or "refused" in worker.output for worker in workers)


# A blocked event loop


async def test_a_task_that_blocks_the_loop_costs_nobody_a_lease(queue: TaskQueue, fleet: Fleet, tmp_path: Path) -> None:
    worker = await fleet.start()
    held = await queue.enqueue(tasks.hold(str(tmp_path)), user_id="acme")
    await worker.line(f"runs {held.task_id}")
    blocking = await queue.enqueue(tasks.block_loop(str(tmp_path)), user_id="acme")
    await worker.line(f"blocks {blocking.task_id}")
    other = await fleet.start()
    warning = await worker.line("has blocked the event loop")
    assert f"task tests.workers.tasks.block_loop ({blocking.task_id!r}) of user 'acme'" in warning
    await asyncio.sleep(2 * LEASE)  # in which nothing may happen
    release(tmp_path, worker)
    assert await blocking.result(timeout=20) == await held.result(timeout=20) == worker.pid
    assert not any(line.startswith(("runs", "blocks")) for line in other.lines)


async def test_a_process_whose_loop_is_blocked_for_longer_than_the_stall_timeout_ends_and_only_the_blocker_is_suspected(
    queue: TaskQueue, fleet: Fleet, tmp_path: Path
) -> None:
    worker = await fleet.start(stall_timeout=1.0)
    held = await queue.enqueue(tasks.nap(2), user_id="quiet")
    await eventually(lambda: is_started(held))
    blocking = await queue.enqueue(tasks.block_loop(str(tmp_path)), user_id="acme")
    assert await worker.wait() == 1
    assert (
        f"({blocking.task_id!r}) of user 'acme' has blocked the event loop for longer than stall_timeout"
        in worker.output
    )
    assert "in block_loop" in worker.output, "where it stands"
    info = await held.info()
    assert (info.state, info.attempt) == (TaskState.QUEUED, 0), "put back before the process ended"
    other = await fleet.launch(max_deliveries=2, stall_timeout=1.0)
    assert await other.wait() == 1, "alone, it blocked another one"
    await fleet.launch(max_deliveries=2, stall_timeout=1.0)
    assert await held.result(timeout=20) is None
    with pytest.raises(TaskFailed, match="TaskLost: 2 workers") as caught:
        await blocking.result(timeout=20)
    assert caught.value.kind is FailureKind.LOST
    await assert_nothing_is_out(queue, "acme", "quiet")


async def is_started(handle: TaskHandle[Any]) -> bool:
    return await handle.state() is TaskState.STARTED


async def test_without_a_stall_timeout_a_worker_waits_for_its_loop(
    queue: TaskQueue, fleet: Fleet, tmp_path: Path
) -> None:
    worker = await fleet.start(stall_timeout=None)
    blocking = await queue.enqueue(tasks.block_loop(str(tmp_path)), user_id="acme")
    await worker.line("has blocked the event loop")
    await asyncio.sleep(2 * LEASE)  # in which nothing may happen
    release(tmp_path, worker)
    assert await blocking.result(timeout=20) == worker.pid


async def test_a_process_that_was_stopped_for_longer_than_the_stall_timeout_goes_on(
    queue: TaskQueue, fleet: Fleet, tmp_path: Path
) -> None:
    worker = await fleet.start(stall_timeout=1.5)
    held = await queue.enqueue(tasks.hold(str(tmp_path)), user_id="acme")
    await worker.line(f"runs {held.task_id}")
    worker.send(signal.SIGSTOP)
    await asyncio.sleep(3)
    worker.send(signal.SIGCONT)
    await worker.line("this process was stopped for")
    release(tmp_path, worker)
    assert await held.result(timeout=20) == worker.pid


# Code that keeps the interpreter to itself

LONG_LEASE = 4.0


async def test_a_body_that_keeps_the_interpreter_for_less_than_most_of_a_lease_costs_nobody_anything_but_a_warning(
    worker_process: StartProcess, server: Server, queue_name: str, tmp_path: Path
) -> None:
    fleet = Fleet(worker_process, server.url, queue_name, lease=LONG_LEASE)
    async with TaskQueue(server.url, name=queue_name, lease=LONG_LEASE) as queue:
        worker = await fleet.start()
        held = await queue.enqueue(tasks.hold(str(tmp_path)), user_id="quiet")
        await worker.line(f"runs {held.task_id}")
        await asyncio.sleep(0.5)  # so that its lease has begun some time ago, as that of any task beside it
        stubborn = await queue.enqueue(tasks.keep_interpreter(0.65 * LONG_LEASE), user_id="acme")
        await eventually(lambda: is_started(stubborn))
        await fleet.start()
        assert await stubborn.result(timeout=20) == worker.pid
        warning = await worker.line("kept the interpreter for")
        assert f"task tests.workers.tasks.keep_interpreter ({stubborn.task_id!r}) of user 'acme'" in warning
        release(tmp_path, worker)
        assert await held.result(timeout=20) == worker.pid
        assert [(await handle.info()).attempt for handle in (held, stubborn)] == [1, 1]


# SIGTERM


async def test_a_worker_told_to_leave_lets_running_tasks_end_and_claims_nothing_more(
    queue: TaskQueue, fleet: Fleet, tmp_path: Path
) -> None:
    worker = await fleet.start(concurrency=2, shutdown_timeout=20)
    handle = await queue.enqueue(tasks.hold(str(tmp_path)), user_id="acme")
    await worker.line(f"runs {handle.task_id}")
    worker.send(signal.SIGTERM)
    await worker.line("stopping")
    late = await queue.enqueue(tasks.add(1, 2), user_id="acme")
    release(tmp_path, worker)
    assert await worker.wait() == 0
    assert await handle.result(timeout=0) == worker.pid
    assert await late.state() is TaskState.QUEUED
    assert (await queue.stats()).workers == ()
    await fleet.start()
    assert await late.result(timeout=20) == 3


async def test_what_does_not_end_in_time_goes_back_to_the_front_of_its_lane_without_an_attempt(
    queue: TaskQueue, fleet: Fleet, tmp_path: Path
) -> None:
    worker = await fleet.start(concurrency=2, shutdown_timeout=0.2)
    handles = [await queue.enqueue(tasks.hold(str(tmp_path)), user_id="acme") for _ in range(2)]
    for handle in handles:
        await worker.line(f"runs {handle.task_id} attempt 1")
    last = await queue.enqueue(tasks.hold(str(tmp_path)), user_id="acme")
    worker.send(signal.SIGTERM)
    assert await worker.wait() == 0
    for handle in handles:
        assert f"cancelled {handle.task_id}" in worker.lines
        info = await handle.info()
        assert (info.state, info.attempt, info.errors) == (TaskState.QUEUED, 0, ())
    assert (await queue.user("acme")).started == 0

    other = await fleet.launch(concurrency=1)
    release(tmp_path, other)
    for handle in (*handles, last):
        assert await handle.result(timeout=20) == other.pid
        assert (await handle.info()).attempt == 1
    began = [line for line in other.lines if line.startswith("runs")]
    assert began == [f"runs {handle.task_id} attempt 1" for handle in (*handles, last)]


async def test_a_worker_whose_scope_is_cancelled_puts_back_what_it_runs_at_once(queue: TaskQueue) -> None:
    gate = new_gate()
    handle = await queue.enqueue(work(1), user_id="acme")
    async with anyio.create_task_group() as group:
        group.start_soon(Worker(queue).run)
        await eventually(lambda: gate.started)
        cancelled = time.monotonic()
        group.cancel_scope.cancel()
    assert time.monotonic() - cancelled < 2.5
    info = await handle.info()
    assert (info.state, info.attempt) == (TaskState.QUEUED, 0)
    gate.open()
    await Worker(queue).run_until_idle()
    assert await handle.result(timeout=0) == 1
