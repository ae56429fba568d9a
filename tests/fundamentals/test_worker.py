"""4. Workers: they claim what they have free slots for, and nothing that a task does harms another one."""

import asyncio
import contextlib
import logging
import os
import threading
import time
from typing import Any

import pytest

from fairque import (
    EVERYBODY,
    FailureKind,
    InvalidInput,
    Priority,
    Retry,
    Task,
    TaskEvent,
    TaskFailed,
    TaskHandler,
    TaskQueue,
    TaskState,
    Worker,
    current_task,
    task,
)
from fairque.settings import QueueSettings
from fairque.tasks.registry import registry
from tests.fundamentals import in_processes
from tests.fundamentals.in_threads import WorkerThread, loop_blocked_until
from tests.support.eventually import eventually

ESCAPES = [SystemExit, KeyboardInterrupt, MemoryError, GeneratorExit, asyncio.CancelledError]
LEASE = 1.0


@task
async def echo(value: object = None) -> object:
    return value


@task
async def who() -> str:
    return current_task().worker_id


@pytest.fixture(autouse=True)
def _registered():
    registry.update({made.name: made for made in (echo, who)})


class Gate:
    """Tasks that wait at a gate, on the loop, and how many of them do."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.inside = 0
        self.most = 0
        self.wait = task(name="gate")(self._wait)

    async def _wait(self) -> int:
        self.inside += 1
        self.most = max(self.most, self.inside)
        try:
            await self.open.wait()
        finally:
            self.inside -= 1
        return current_task().attempt


@pytest.fixture
async def gate() -> Gate:
    return Gate()


# Claiming


async def test_a_worker_claims_only_what_it_has_free_slots_for(queue: TaskQueue, gate: Gate):
    handles = await queue.enqueue_many([gate.wait()] * 20, user_id="anna")
    async with Worker(queue, concurrency=3):
        await eventually(lambda: gate.inside == 3)
        stats = await queue.stats()
        assert (stats.started, stats.queued) == (3, 17)
        gate.open.set()
        for handle in handles:
            await handle.result(20)
    assert gate.most == 3


async def test_a_freed_slot_is_filled_at_once(queue: TaskQueue, gate: Gate):
    @task
    async def pass_by() -> None: ...

    async with Worker(queue, concurrency=2, poll_interval=60):
        held = await queue.enqueue(gate.wait(), user_id="anna")
        await eventually(lambda: gate.inside == 1)
        for handle in await queue.enqueue_many([pass_by()] * 50, user_id="ben"):
            await handle.result(20)
        gate.open.set()
        await held.result(20)


async def test_an_idle_worker_hears_of_new_work_without_polling(queue: TaskQueue):
    async with Worker(queue, poll_interval=60):
        for at in range(20):
            assert await (await queue.enqueue(echo(at), user_id=f"user-{at % 3}")).result(20) == at


async def test_assigned_users_come_before_steal_targets(queue: TaskQueue):
    ran = []

    @task
    async def note() -> None:
        ran.append(current_task().user_id)

    for user in ("other", "target", "mine", "mine too"):
        await queue.enqueue_many([note()] * 3, user_id=user, priority=Priority.CRITICAL if user == "target" else None)
    worker = Worker(queue, concurrency=1, assigned_users=["mine", "mine too"], steal_targets=["target"])
    await worker.run_until_idle()
    assert ran == ["mine", "mine too"] * 3 + ["target"] * 3
    assert (await queue.user("other")).queued == 3, "not among its users"
    await Worker(queue, concurrency=1, assigned_users=["nobody"], steal_targets=[EVERYBODY]).run_until_idle()
    assert ran[9:] == ["other"] * 3


async def test_everyone_is_the_default_and_includes_who_is_named(queue: TaskQueue):
    handles = [await queue.enqueue(echo(user), user_id=user) for user in ("anna", "**", "b:c", "{}")]
    await Worker(queue, assigned_users=["anna", EVERYBODY], steal_targets=["b:c"]).run_until_idle()
    assert [await handle.result(20) for handle in handles] == ["anna", "**", "b:c", "{}"]


async def test_what_comes_before_a_new_worker_listens_does_not_wait_for_the_poll(
    queue: TaskQueue, monkeypatch: pytest.MonkeyPatch
):
    subscribe, go_on = queue.listener.subscribe, asyncio.Event()

    async def subscribe_late(*args: Any) -> None:
        await go_on.wait()
        await subscribe(*args)

    monkeypatch.setattr(queue.listener, "subscribe", subscribe_late)
    async with Worker(queue, poll_interval=60, scheduler=False):
        handle = await queue.enqueue(echo(1), user_id="anna")
        go_on.set()
        assert await handle.result(20) == 1


async def test_a_worker_of_some_users_is_woken_for_them(queue: TaskQueue):
    async with (
        Worker(queue, assigned_users=["anna"], poll_interval=60) as hers,
        Worker(queue, assigned_users=["ben"], steal_targets=["cleo"], poll_interval=60) as theirs,
    ):
        for user, worker in (("anna", hers), ("ben", theirs), ("cleo", theirs), ("anna", hers)):
            assert await (await queue.enqueue(who(), user_id=user)).result(20) == worker.worker_id


def test_options_that_make_no_sense_are_refused(server, queue_name: str):
    queue = TaskQueue(server.url, name=queue_name)
    for options, text in (
        ({"concurrency": 0}, "concurrency must be a whole number from 1 to 10000, not 0"),
        ({"concurrency": 1.5}, "concurrency must be .*, not 1.5"),
        ({"poll_interval": 0}, "poll_interval must be a number from 0.01 .*, not 0"),
        ({"shutdown_timeout": float("nan")}, "shutdown_timeout must be .*, not nan"),
        ({"stall_timeout": -1}, "stall_timeout must be .*, not -1"),
        ({"max_deliveries": 0}, "max_deliveries must be .*, not 0"),
        ({"unknown_task_patience": "long"}, "unknown_task_patience must be .*, not 'long'"),
        ({"assigned_users": "anna"}, "assigned_users must be a list of user ids, not the str 'anna'"),
        ({"assigned_users": []}, "needs assigned_users or steal_targets"),
        ({"assigned_users": [""]}, "an entry of assigned_users must not be empty"),
        ({"steal_targets": [7]}, "an entry of assigned_users|an entry of steal_targets must be a str, not 7"),
        ({"worker_id": ""}, "worker_id must not be empty"),
        ({"worker_id": "\ud800"}, "worker_id .* cannot be encoded"),
    ):
        with pytest.raises(InvalidInput, match=text):
            Worker(queue, **{"assigned_users": ["anna"], **options})


# Starting and stopping


async def test_until_idle_serves_what_its_own_tasks_add_and_leaves_what_is_not_due(queue: TaskQueue):
    @task
    async def spawn(depth: int) -> None:
        if depth:
            await queue.enqueue_many([spawn(depth - 1)] * 2, user_id=f"user-{depth}")

    later = await queue.enqueue(echo(), user_id="anna", delay=0.5)
    await queue.enqueue(spawn(5), user_id="anna")
    await Worker(queue).run_until_idle()
    stats = await queue.stats()
    assert (stats.finished, stats.queued, stats.started, stats.scheduled) == (63, 0, 0, 1)
    assert stats.workers == ()
    async with Worker(queue):
        await later.result(20)


async def test_until_idle_on_an_empty_queue_returns_at_once(queue: TaskQueue):
    async with asyncio.timeout(20):
        await Worker(queue, poll_interval=60).run_until_idle()


@pytest.mark.smoke
async def test_a_worker_stops_when_told_and_lets_its_tasks_finish(queue: TaskQueue, gate: Gate):
    running = await queue.enqueue(gate.wait(), user_id="anna")
    worker = Worker(queue)
    run = asyncio.create_task(worker.run())
    await eventually(lambda: gate.inside == 1)
    await worker.stop()
    waiting = await queue.enqueue(echo(), user_id="anna")
    gate.open.set()
    assert await running.result(20) == 1
    await asyncio.wait_for(run, 5)
    assert await waiting.state() is TaskState.QUEUED
    await Worker(queue).run_until_idle()


async def test_leaving_the_block_stops_the_worker_and_waits_for_it(queue: TaskQueue, gate: Gate):
    async with Worker(queue) as worker:
        handle = await queue.enqueue(gate.wait(), user_id="anna")
        await eventually(lambda: gate.inside == 1)
        assert [each.worker_id for each in (await queue.stats()).workers] == [worker.worker_id]
        asyncio.get_running_loop().call_later(0.05, gate.open.set)
    assert await handle.state() is TaskState.FINISHED
    assert (await queue.stats()).workers == ()


async def test_what_does_not_end_in_time_is_put_back_in_front_and_counts_no_attempt(queue: TaskQueue, gate: Gate):
    ran = []

    @task
    async def note() -> None:
        ran.append("note")

    handle = await queue.enqueue(gate.wait(), user_id="anna")
    async with Worker(queue, concurrency=1, shutdown_timeout=0.05):
        await eventually(lambda: gate.inside == 1)
        await queue.enqueue(note(), user_id="anna")
    assert gate.inside == 0, "it was cancelled"
    assert await handle.state() is TaskState.QUEUED
    assert (await handle.info()).attempt == 0
    gate.open.set()
    await Worker(queue, concurrency=1).run_until_idle()
    assert await handle.result(20) == 1
    assert ran == ["note"]
    assert (await handle.info()).started_at <= time.time()
    assert (await queue.user("anna")).retried == 0


@pytest.mark.smoke
async def test_a_cancelled_worker_puts_back_what_it_runs(queue: TaskQueue, gate: Gate):
    handle = await queue.enqueue(gate.wait(), user_id="anna")
    run = asyncio.create_task(Worker(queue).run())
    await eventually(lambda: gate.inside == 1)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert await handle.state() is TaskState.QUEUED
    gate.open.set()
    await Worker(queue).run_until_idle()
    assert await handle.result(20) == 1


async def test_an_error_in_the_block_comes_out_of_it_and_the_worker_stops(queue: TaskQueue):
    with pytest.raises(ZeroDivisionError):
        async with Worker(queue) as worker:
            raise ZeroDivisionError
    assert worker.worker_id not in {each.worker_id for each in (await queue.stats()).workers}


async def test_giving_up_on_a_start_leaves_nothing_running(queue_name: str, proxy):
    async with TaskQueue(proxy.url, name=queue_name, timeout=0.3) as queue:
        await proxy.refuse()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5), Worker(queue):
                pytest.fail("it cannot have started")
        await proxy.accept()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        assert not [each for each in others if "worker" in each.get_name()]


async def test_losing_patience_with_a_stop_ends_it_at_once(queue: TaskQueue, gate: Gate):
    handle = await queue.enqueue(gate.wait(), user_id="anna")

    async def serve() -> None:
        async with Worker(queue, shutdown_timeout=60):
            await eventually(lambda: gate.inside == 1)

    serving = asyncio.create_task(serve())
    await eventually(lambda: gate.inside == 1)
    await asyncio.wait([serving], timeout=0.1)
    assert not serving.done(), "it waits for the task"
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(serving, 5)
    assert await handle.state() is TaskState.QUEUED
    gate.open.set()
    await Worker(queue).run_until_idle()


async def test_a_task_may_stop_its_own_worker(queue: TaskQueue):
    @task
    async def last() -> str:
        await worker.stop()
        return "the end"

    async with Worker(queue) as worker:
        handle = await queue.enqueue(last(), user_id="anna")
        assert await handle.result(20) == "the end"


async def test_a_stop_during_a_claim_loses_nothing(server, queue_name: str, proxy):
    async with TaskQueue(server.url, name=queue_name) as direct, TaskQueue(proxy.url, name=queue_name) as queue:
        worker = Worker(queue, poll_interval=0.01)
        run = asyncio.create_task(worker.run())
        await eventually(lambda: worker_is_listed(direct, worker))
        proxy.pause()
        handles = await direct.enqueue_many([echo(at) for at in range(5)], user_id="anna")
        await asyncio.wait([run], timeout=0.1)  # by now a claim is on its way
        await worker.stop()
        proxy.resume()
        await asyncio.wait_for(run, 5)
        await Worker(direct).run_until_idle()
        assert [await handle.result(20) for handle in handles] == list(range(5))
        assert {(await handle.info()).attempt for handle in handles} == {1}


async def test_a_worker_runs_once(queue: TaskQueue):
    worker = Worker(queue)
    await worker.run_until_idle()
    with pytest.raises(InvalidInput, match="a worker runs once: make another one"):
        await worker.run()
    stopped = Worker(queue)
    await stopped.stop()
    await asyncio.wait_for(stopped.run(), 5)


async def test_two_workers_in_one_process_share_the_work(queue: TaskQueue):
    @task
    async def work() -> str:
        await asyncio.sleep(0)
        return current_task().worker_id

    handles = await queue.enqueue_many([work()] * 400, user_id="anna")
    workers = [Worker(queue, concurrency=4) for _ in range(2)]
    await asyncio.gather(*(worker.run_until_idle() for worker in workers))
    served_by = [await handle.result(20) for handle in handles]
    assert set(served_by) == {worker.worker_id for worker in workers}
    stats = await queue.stats()
    assert (stats.finished, stats.started, stats.queued) == (400, 0, 0)


# Hooks


@pytest.mark.smoke
async def test_hooks_are_told_how_tasks_end(queue: TaskQueue):
    told: list[tuple[str, TaskEvent]] = []

    def plain(event: TaskEvent) -> None:
        told.append(("success", event))

    async def slow(event: TaskEvent) -> None:
        await asyncio.sleep(0)
        told.append(("failure", event))

    @task(name="fail", max_retries=1)
    async def fail() -> None:
        if current_task().attempt == 1:
            raise Retry(delay=0)
        raise ValueError("no")

    @task(name="hang", timeout=0.05)
    async def hang() -> None:
        await asyncio.Event().wait()

    worker = Worker(
        queue,
        on_success=plain,
        on_failure=slow,
        on_retry=lambda event: told.append(("retry", event)),
        on_timeout=lambda event: told.append(("timeout", event)),
    )
    fine = await queue.enqueue(echo(), user_id="anna")
    failing = await queue.enqueue(fail(), user_id="ben", task_id="f")
    hanging = await queue.enqueue(hang(), user_id="cleo")
    async with worker:
        for handle in (failing, hanging):
            with pytest.raises(TaskFailed):
                await handle.result(20)
        await fine.result(20)

    def events(user: str) -> list[tuple[str, int, str]]:
        mine = [(kind, event) for kind, event in told if event.user_id == user]
        return [(kind, event.attempt, event.failure.type_name if event.failure else "") for kind, event in mine]

    assert events("anna") == [("success", 1, "")]
    assert events("ben") == [("retry", 1, "Retry"), ("failure", 2, "ValueError")]
    assert events("cleo") == [("timeout", 1, "TimeoutError"), ("failure", 1, "TimeoutError")]
    by_user = {event.user_id: event for _, event in told}
    assert (by_user["ben"].name, by_user["ben"].task_id) == ("fail", "f")
    assert by_user["cleo"].failure.kind is FailureKind.TIMEOUT
    assert 0.05 <= by_user["cleo"].run_seconds < 5


async def test_hooks_are_told_of_running_tasks_that_are_canceled_and_of_none_that_wait(queue: TaskQueue, gate: Gate):
    told: list[TaskEvent] = []
    async with Worker(queue, concurrency=1, on_cancel=told.append):
        running = await queue.enqueue(gate.wait(), user_id="anna", task_id="running")
        waiting = await queue.enqueue(gate.wait(), user_id="anna", task_id="waiting")
        await eventually(lambda: gate.inside == 1)
        await waiting.cancel()
        await running.cancel()
        await eventually(lambda: told)
    [event] = told
    assert (event.user_id, event.task_id, event.name, event.attempt) == ("anna", "running", "gate", 1)
    assert event.failure is None
    assert 0 < event.run_seconds < 20


@pytest.mark.leaves_keys("workers")
async def test_hooks_are_told_of_what_was_canceled_before_it_could_begin(queue: TaskQueue):
    """Its worker died, and another one takes it over."""
    told: list[TaskEvent] = []
    handle = await queue.enqueue(echo(), user_id="anna", task_id="t")
    store = queue.store()
    await store.claim("silent", 1, settings=QueueSettings(lease_ms=100), wait=False)
    await handle.cancel()
    async with Worker(queue, on_cancel=told.append):
        await eventually(lambda: told, 30)
    await store.close()
    assert [(event.task_id, event.run_seconds < 1) for event in told] == [("t", True)]


async def test_hooks_are_told_of_what_a_worker_puts_back_as_it_stops(queue: TaskQueue, gate: Gate):
    told: list[tuple[str, str]] = []

    def tell(event: TaskEvent) -> None:
        told.append((event.task_id, event.name))

    async with Worker(queue, concurrency=2, shutdown_timeout=0, on_release=tell, on_cancel=tell):
        handles = [await queue.enqueue(gate.wait(), user_id="anna", task_id=name) for name in ("a", "b", "c")]
        await eventually(lambda: gate.inside == 2)
    assert sorted(told) == [("a", "gate"), ("b", "gate")]
    assert [await handle.state() for handle in handles] == [TaskState.QUEUED] * 3
    gate.open.set()
    await Worker(queue).run_until_idle()


async def test_hooks_are_told_of_what_a_worker_does_not_know_and_puts_back(queue: TaskQueue):
    told: list[TaskEvent] = []
    handle = await queue.enqueue(Task.create(payload={}, name="unheard"), user_id="anna")
    await Worker(queue, on_release=told.append).run_until_idle()
    assert [(event.name, event.failure) for event in told] == [("unheard", None)]
    await handle.cancel()


@pytest.mark.parametrize("kind", [ValueError, *ESCAPES])
async def test_a_hook_that_fails_harms_nobody(queue: TaskQueue, kind, caplog: pytest.LogCaptureFixture):
    def plain(_: TaskEvent) -> None:
        raise kind("of the hook")

    async def coroutine(_: TaskEvent) -> None:
        await asyncio.sleep(0)
        raise kind("of the hook")

    @task
    async def fail() -> None:
        raise ValueError

    async with Worker(queue, concurrency=1, on_success=plain, on_failure=coroutine):
        for _ in range(3):
            assert await (await queue.enqueue(echo(1), user_id="anna")).result(20) == 1
            with pytest.raises(TaskFailed):
                await (await queue.enqueue(fail(), user_id="anna")).result(20)
    messages = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert messages.count("hook on_success failed") == 3
    assert messages.count("hook on_failure failed") == 3


# Timeouts


@pytest.mark.smoke
async def test_a_timeout_frees_the_slot_of_an_async_body_at_once(queue: TaskQueue, caplog: pytest.LogCaptureFixture):
    give_up = asyncio.Event()

    @task(timeout=0.1)
    async def stubborn() -> str:
        while not give_up.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await give_up.wait()
        return "too late"

    async with Worker(queue, concurrency=1):
        handle = await queue.enqueue(stubborn(), user_id="anna")
        with pytest.raises(TaskFailed, match=r"TimeoutError: ran longer than 0\.1 s") as failed:
            await handle.result(20)
        assert failed.value.kind == "timeout"
        assert await (await queue.enqueue(echo("next"), user_id="anna")).result(20) == "next"
        await eventually(lambda: f"{handle.task_id!r} of user 'anna' goes on after its timeout" in caplog.text)
        [line] = [vars(record) for record in caplog.records if "goes on after" in record.getMessage()]
        told = {name: line[name] for name in ("user_id", "task_id", "task_name", "attempt")}
        assert told == {"user_id": "anna", "task_id": handle.task_id, "task_name": stubborn.name, "attempt": 1}
        give_up.set()
    assert await handle.state() is TaskState.FAILED, "what it returned is not the result"


async def test_a_timeout_frees_the_slot_of_a_thread_at_once(queue: TaskQueue):
    give_up = threading.Event()

    @task(timeout=0.1)
    def stubborn() -> None:
        give_up.wait(20)

    async with Worker(queue, concurrency=1), loop_blocked_until(give_up):
        for _ in range(3):  # more than there are slots
            with pytest.raises(TaskFailed, match="TimeoutError"):
                await (await queue.enqueue(stubborn(), user_id="anna")).result(20)
        plain = task(name="plain")(lambda: "next")
        assert await (await queue.enqueue(plain(), user_id="anna")).result(20) == "next"


async def test_a_timeout_ends_the_subprocess(queue: TaskQueue, tmp_path):
    pid_file = tmp_path / "pid"
    async with Worker(queue, concurrency=1):
        await (await queue.enqueue(in_processes.pid(), user_id="anna")).result(20)
        hanging = await queue.enqueue(in_processes.hangs(str(pid_file)).options(timeout=0.3), user_id="anna")
        with pytest.raises(TaskFailed, match=r"TimeoutError: ran longer than 0\.3 s"):
            await hanging.result(20)
        assert await (await queue.enqueue(echo("next"), user_id="anna")).result(20) == "next"
        await eventually(lambda: not is_alive(int(pid_file.read_text())))


async def test_a_task_without_a_timeout_takes_its_time_and_a_fast_one_keeps_its_result(queue: TaskQueue):
    fast = await queue.enqueue(echo(1).options(timeout=20), user_id="anna")
    await Worker(queue).run_until_idle()
    assert await fast.result(20) == 1


# Containment


@pytest.mark.parametrize("kind", ESCAPES)
@pytest.mark.parametrize("where", ["loop", "thread"])
async def test_whatever_a_body_raises_is_its_own_failure(queue: TaskQueue, gate: Gate, kind, where: str):
    async def on_the_loop() -> None:
        await asyncio.sleep(0)
        raise kind("on purpose")

    def in_a_thread() -> None:
        raise kind("on purpose")

    async with Worker(queue) as worker:
        bystander = await queue.enqueue(gate.wait(), user_id="anna")
        await eventually(lambda: gate.inside == 1)
        raising = task(on_the_loop if where == "loop" else in_a_thread)
        handle = await queue.enqueue(raising(), user_id="anna")
        with pytest.raises(TaskFailed, match="on purpose") as failed:
            await handle.result(20)
        assert (failed.value.kind, failed.value.type_name) == ("error", kind.__name__)
        assert gate.inside == 1
        gate.open.set()
        assert await bystander.result(20) == 1
        assert await (await queue.enqueue(who(), user_id="anna")).result(20) == worker.worker_id


async def test_whatever_a_subprocess_raises_is_the_failure_of_its_task(queue: TaskQueue):
    async with Worker(queue, concurrency=1):
        before = await (await queue.enqueue(in_processes.pid(), user_id="anna")).result(20)
        for name in (*(kind.__name__ for kind in ESCAPES), "TwoPartError", "ValueError"):
            with pytest.raises(TaskFailed, match=r"on purpose|the door: is locked") as failed:
                await (await queue.enqueue(in_processes.raises(name), user_id="anna")).result(20)
            assert (failed.value.kind, failed.value.type_name) == ("error", name)
            assert "in_processes.py" in failed.value.traceback
        with pytest.raises(TaskFailed, match="cannot be encoded"):
            await (await queue.enqueue(in_processes.returns_an_object(), user_id="anna")).result(20)
        assert await (await queue.enqueue(in_processes.pid(), user_id="anna")).result(20) == before
        with pytest.raises(TaskFailed, match="the subprocess of the task died"):
            await (await queue.enqueue(in_processes.dies(), user_id="anna")).result(20)
        assert await (await queue.enqueue(in_processes.pid(), user_id="anna")).result(20) != before


async def test_a_retry_can_be_asked_for_in_a_subprocess(queue: TaskQueue):
    async with Worker(queue):
        handle = await queue.enqueue(in_processes.asks_for_a_retry(), user_id="anna")
        assert await handle.result(20) == 2


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise KeyboardInterrupt


class Broken(Exception):
    def __str__(self) -> str:
        raise ValueError

    __repr__ = __str__


@pytest.mark.parametrize("kind", [Unspeakable, Broken])
async def test_an_error_that_cannot_be_printed_is_a_failure_like_others(queue: TaskQueue, kind):
    @task
    async def fail() -> None:
        raise kind

    @task
    def fail_in_a_thread() -> None:
        raise kind

    async with Worker(queue, concurrency=1):
        for made in (fail, fail_in_a_thread):
            with pytest.raises(TaskFailed) as failed:
                await (await queue.enqueue(made(), user_id="anna")).result(20)
            assert failed.value.type_name == kind.__name__
            assert "its text cannot be had" in failed.value.message
        assert await (await queue.enqueue(echo(1), user_id="anna")).result(20) == 1


async def test_a_body_that_cancels_itself_fails_alone(queue: TaskQueue):
    @task
    async def suicidal() -> None:
        asyncio.current_task().cancel()
        await asyncio.sleep(0)

    @task
    async def almost() -> str:
        asyncio.current_task().cancel()
        return "done"

    async with Worker(queue, concurrency=1):
        with pytest.raises(TaskFailed, match="CancelledError"):
            await (await queue.enqueue(suicidal(), user_id="anna")).result(20)
        assert await (await queue.enqueue(almost(), user_id="anna")).result(20) == "done"
        assert await (await queue.enqueue(echo(1), user_id="anna")).result(20) == 1


@pytest.mark.smoke
async def test_the_traceback_begins_in_the_body(queue: TaskQueue):
    def helper() -> None:
        raise ValueError("deep")

    class Handler(TaskHandler):
        async def process_task(self, payload: dict) -> None:
            assert payload == {}
            helper()

    on_the_loop = task(name="loop")(in_coroutine(helper))
    in_a_thread = task(name="thread")(helper)
    async with Worker(queue, handler=Handler()):
        for made, file, error in (
            (on_the_loop(), "test_worker.py", "ValueError: deep"),
            (in_a_thread(), "test_worker.py", "ValueError: deep"),
            (Task.create(payload={}), "test_worker.py", "ValueError: deep"),
            (in_processes.raises("ValueError"), "in_processes.py", "ValueError: raised on purpose"),
        ):
            with pytest.raises(TaskFailed) as failed:
                await (await queue.enqueue(made, user_id="anna")).result(20)
            frames = [line for line in failed.value.traceback.splitlines() if line.startswith("  File ")]
            assert frames
            assert all(file in frame for frame in frames), frames
            assert failed.value.traceback.rstrip().endswith(error)


def in_coroutine(fn):
    async def call() -> None:
        fn()

    return call


# Blocked loops


async def test_a_task_that_blocks_the_loop_keeps_its_lease_and_is_named(
    server, queue_name: str, caplog: pytest.LogCaptureFixture
):
    released, ran = threading.Event(), []

    @task(name="blocks-the-loop")
    async def block() -> str:
        ran.append(current_task().worker_id)
        released.wait(20)
        return current_task().worker_id

    async with (
        TaskQueue(server.url, name=queue_name, lease=LEASE) as queue,
        WorkerThread(server.url, queue_name, lease=LEASE) as blocked,
        loop_blocked_until(released),
    ):
        handle = await queue.enqueue(block(), user_id="anna")
        await eventually(lambda: len(ran) == 1)
        async with Worker(queue, poll_interval=0.1) as other:
            await eventually(lambda: has_waited(queue, handle, 2.5 * LEASE))
            info = await handle.info()
            assert (info.state, info.attempt, info.worker) == (TaskState.STARTED, 1, blocked.worker_id)
            listed = {each.worker_id for each in (await queue.stats()).workers}
            assert listed == {blocked.worker_id, other.worker_id}
            released.set()
            assert await handle.result(20) == blocked.worker_id
    assert ran == [blocked.worker_id]
    warnings = [record.getMessage() for record in caplog.records if "blocked the event loop" in record.getMessage()]
    assert len(warnings) == 1, "once per blockade"
    assert f"task blocks-the-loop ({handle.task_id!r}) of user 'anna' has blocked the event loop" in warnings[0]


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def has_waited(queue: TaskQueue, handle, seconds: float) -> bool:
    """By the server's clock, as the heartbeat of a worker shows it."""
    started = (await handle.info()).started_at
    seen = max(worker.seen_at for worker in (await queue.stats()).workers)
    return seen - started > seconds


async def worker_is_listed(queue: TaskQueue, worker: Worker) -> bool:
    return worker.worker_id in {each.worker_id for each in (await queue.stats()).workers}
