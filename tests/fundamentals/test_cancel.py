"""9. Cancel: a task that nobody wants any more, wherever it is."""

import asyncio
import logging
import signal
import threading
import time

import pytest

from fairque import (
    Retry,
    TaskCanceled,
    TaskQueue,
    TaskState,
    UnknownTask,
    Worker,
    current_task,
    task,
)
from fairque.queue.handle import Cancellation
from fairque.redis.keys import encode_user
from fairque.tasks.registry import registry
from tests.fundamentals import in_processes
from tests.support.core import Core
from tests.support.eventually import eventually
from tests.support.process import WorkerProcess
from tests.support.processes import is_running
from tests.support.stopwatch import Stopwatch
from tests.workers import tasks

USER = "anna: ä"


@task
async def echo(value: object = None) -> object:
    return value


@pytest.fixture(autouse=True)
def _registered():
    known = (echo, in_processes.hangs, tasks.hold)
    registry.update({made.name: made for made in known})


async def traces(server, queue_name: str, task_id: str) -> list[str]:
    """Every key that has the task in its name or among its members, but the record that it was canceled."""
    async with Core(server.url, queue_name) as core:
        dump = core.dump()
    found = []
    for name, key in dump.items():
        parts = key.content if key.kind != "stream" else [task for task, _ in key.holdings]
        members = {part.decode(errors="replace") if isinstance(part, bytes) else part for part in parts}
        if name.endswith(f":{task_id}") or members & {task_id, f"{encode_user(USER)}:{task_id}"}:
            found.append(name)
    return [name for name in found if name != f"result:{encode_user(USER)}:{task_id}"]


async def is_in(handle, state: TaskState) -> bool:
    return await handle.state() is state


class Stage:
    """A task that runs until it is let go, and what it noticed."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()
        self.told: list[str] = []
        self.wait = task(name="stage")(self._wait)

    async def _wait(self) -> str:
        self.told.append("started")
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.told.append(f"cancelled, {current_task().canceled}")
            await asyncio.sleep(0.01)
            self.told.append("cleaned up")
            raise
        return "done"


@pytest.fixture
async def stage() -> Stage:
    return Stage()


# What waits


@pytest.mark.parametrize("priority", [3, 6])
async def test_a_queued_task_ends_at_once_and_nothing_is_left_of_it(
    queue: TaskQueue, server, queue_name: str, priority: int
):
    handle = await queue.enqueue(echo(), user_id=USER, task_id="t", priority=priority)
    other = await queue.enqueue(echo("other"), user_id=USER, priority=priority)
    assert await traces(server, queue_name, "t")
    assert await handle.cancel("not needed") is Cancellation.CANCELED
    assert await traces(server, queue_name, "t") == []
    with pytest.raises(TaskCanceled, match="not needed") as caught:
        await handle.result(20)
    assert caught.value.reason == "not needed"
    await Worker(queue).run_until_idle()
    assert await other.result(20) == "other"
    user, stats = await queue.user(USER), await queue.stats()
    assert (user.canceled, user.finished, stats.canceled, stats.finished, stats.queued) == (1, 1, 1, 1, 0)


async def test_a_user_whose_last_ready_task_is_canceled_is_not_ready_any_more(queue: TaskQueue):
    normal = await queue.enqueue(echo(), user_id=USER)
    critical = await queue.enqueue(echo(), user_id=USER, priority=6)
    await critical.cancel()
    assert (await queue.stats()).users_ready == 1
    await normal.cancel()
    assert (await queue.stats()).users_ready == 0
    assert (await queue.user(USER)).tag is None
    again = await queue.enqueue(echo("again"), user_id=USER)
    await Worker(queue).run_until_idle()
    assert await again.result(20) == "again"


async def test_a_scheduled_task_ends_at_once_and_nothing_is_left_of_it(queue: TaskQueue, server, queue_name: str):
    first = await queue.enqueue(echo(), user_id=USER, task_id="t", delay=0.2)
    second = await queue.enqueue(echo("second"), user_id=USER, delay=0.3)
    assert await first.cancel() is Cancellation.CANCELED
    assert await traces(server, queue_name, "t") == []
    async with Worker(queue, poll_interval=60):
        assert await second.result(20) == "second"
    last = await queue.enqueue(echo(), user_id=USER, task_id="u", delay=60)
    await last.cancel()
    assert server.execute("EXISTS", queue.keys.prefix + "due") == 0
    assert (await queue.stats()).scheduled == 0


async def test_a_deferred_task_ends_at_once_and_nothing_is_left_of_it(queue: TaskQueue, server, queue_name: str):
    first = await queue.enqueue(echo(), user_id=USER, task_id="first")
    handle = await queue.enqueue(echo(), user_id=USER, task_id="t", depends_on=[first])
    assert await handle.cancel("why") is Cancellation.CANCELED
    assert await traces(server, queue_name, "t") == []
    assert (await queue.stats()).deferred == 0
    await Worker(queue).run_until_idle()
    assert await handle.state() is TaskState.CANCELED


async def test_a_task_that_waits_for_its_retry_can_be_canceled(queue: TaskQueue, server, queue_name: str):
    @task(max_retries=3)
    async def later() -> None:
        raise Retry(delay=60)

    handle = await queue.enqueue(later(), user_id=USER, task_id="t")
    await Worker(queue).run_until_idle()
    assert await handle.state() is TaskState.SCHEDULED
    assert await handle.cancel() is Cancellation.CANCELED
    assert await traces(server, queue_name, "t") == []
    assert (await handle.info()).attempt == 1


async def test_what_was_canceled_may_be_enqueued_again(queue: TaskQueue):
    first = await queue.enqueue(echo(1), user_id=USER, task_id="t")
    await first.cancel()
    again = await queue.enqueue(echo(2), user_id=USER, task_id="t")
    assert again.created
    await Worker(queue).run_until_idle()
    assert await again.result(20) == 2


async def test_info_tells_who_was_canceled_and_when(queue: TaskQueue):
    began = time.time()
    handle = await queue.enqueue(echo(), user_id=USER, delay=30)
    await handle.cancel("why")
    info = await handle.info()
    assert (info.state, info.attempt, info.worker) == (TaskState.CANCELED, 0, "")
    assert info.name.endswith("echo")
    assert began - 1 <= info.queued_at <= info.ended_at <= time.time() + 1


async def test_a_waiting_result_hears_of_the_cancellation(queue: TaskQueue):
    handle = await queue.enqueue(echo(), user_id=USER)
    waiting = asyncio.create_task(handle.result(20))
    await asyncio.sleep(0)
    await handle.cancel("why")
    with pytest.raises(TaskCanceled, match="why"):
        await waiting


# Twice, too late, unknown


async def test_canceling_twice_says_so_and_changes_nothing(queue: TaskQueue):
    handle = await queue.enqueue(echo(), user_id=USER)
    assert await handle.cancel("first") is Cancellation.CANCELED
    before = await handle.info()
    assert await handle.cancel("second") is Cancellation.ENDED
    assert await handle.info() == before
    with pytest.raises(TaskCanceled, match="first"):
        await handle.result(20)
    assert (await queue.stats()).canceled == 1


async def test_canceling_what_has_ended_says_so_and_changes_nothing(queue: TaskQueue):
    @task
    async def fail() -> None:
        raise ValueError

    good, bad = await queue.enqueue(echo(7), user_id=USER), await queue.enqueue(fail(), user_id=USER)
    await Worker(queue).run_until_idle()
    assert [await good.cancel(), await bad.cancel()] == [Cancellation.ENDED, Cancellation.ENDED]
    assert await good.result(20) == 7
    assert await bad.state() is TaskState.FAILED
    assert (await queue.stats()).canceled == 0
    assert (await queue.user(USER)).dead_letters == 1


async def test_canceling_what_is_not_known_is_an_error(queue: TaskQueue):
    with pytest.raises(UnknownTask, match="'nothing'"):
        await queue.handle(USER, "nothing").cancel()


# What runs


@pytest.mark.smoke
async def test_a_running_task_is_cancelled_by_message_and_may_clean_up(
    queue: TaskQueue, stage: Stage, server, queue_name: str
):
    handle = await queue.enqueue(stage.wait(), user_id=USER, task_id="t")
    async with Worker(queue, poll_interval=60) as worker:
        await eventually(lambda: stage.told)
        watch = Stopwatch()
        assert await handle.cancel("not needed") is Cancellation.CANCELING
        with pytest.raises(TaskCanceled, match="not needed"):
            await handle.result(20)
        assert watch.seconds < 2.5, "before the next renewal would have told"
        assert stage.told == ["started", "cancelled, True", "cleaned up"]
        info = await handle.info()
        assert (info.worker, info.attempt) == (worker.worker_id, 1)
        assert info.queued_at <= info.started_at <= info.ended_at
    assert await traces(server, queue_name, "t") == []
    assert (await queue.stats()).started == 0


async def test_the_first_reason_counts(queue: TaskQueue, stage: Stage):
    handle = await queue.enqueue(stage.wait(), user_id=USER)
    async with Worker(queue):
        await eventually(lambda: stage.told)
        answers = [await handle.cancel("first"), await handle.cancel("second")]
        assert answers[0] is Cancellation.CANCELING
        assert answers[1] in (Cancellation.CANCELING, Cancellation.ENDED)
        with pytest.raises(TaskCanceled, match="first"):
            await handle.result(20)
    assert stage.told.count("cleaned up") == 1


async def test_a_cancellation_without_a_reason(queue: TaskQueue, stage: Stage):
    handle = await queue.enqueue(stage.wait(), user_id=USER)
    async with Worker(queue):
        await eventually(lambda: stage.told)
        await handle.cancel()
        with pytest.raises(TaskCanceled) as caught:
            await handle.result(20)
    assert caught.value.reason == ""


@pytest.mark.parametrize("how", ["returns", "raises", "retries"])
async def test_a_body_that_makes_something_else_of_its_cancellation_is_canceled_all_the_same(queue: TaskQueue, how):
    inside = asyncio.Event()

    @task(max_retries=5)
    async def stubborn() -> str:
        inside.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if how == "raises":
                raise ValueError("no") from None
            if how == "retries":
                raise Retry(delay=0.01) from None
        return "done all the same"

    handle = await queue.enqueue(stubborn(), user_id=USER)
    async with Worker(queue):
        await inside.wait()
        await handle.cancel("why")
        with pytest.raises(TaskCanceled, match="why"):
            await handle.result(20)
    stats = await queue.stats()
    assert (stats.canceled, stats.retried, stats.scheduled, stats.failed) == (1, 0, 0, 0)


async def test_a_body_that_swallows_its_cancellation_loses_its_slot_after_the_grace(queue: TaskQueue, caplog):
    inside, go_on = asyncio.Event(), asyncio.Event()

    @task
    async def deaf() -> str:
        inside.set()
        while not go_on.is_set():
            try:
                await go_on.wait()
            except asyncio.CancelledError:
                continue
        return "too late"

    handle = await queue.enqueue(deaf(), user_id=USER)
    with caplog.at_level(logging.WARNING, "fairque.worker"):
        async with Worker(queue, concurrency=1, cancel_grace=0.2):
            await inside.wait()
            await handle.cancel("why")
            with pytest.raises(TaskCanceled, match="why"):
                await handle.result(20)
            assert await (await queue.enqueue(echo("next"), user_id=USER)).result(20) == "next"
            await eventually(lambda: "goes on after its cancellation and 0.2 s of grace" in caplog.text)
            go_on.set()
    assert await handle.state() is TaskState.CANCELED


@pytest.mark.smoke
async def test_a_thread_is_told_and_may_end_early(queue: TaskQueue):
    inside = threading.Event()

    @task
    def counting() -> str:
        inside.set()
        ends = time.monotonic() + 30
        while not current_task().canceled:
            assert time.monotonic() < ends
            time.sleep(0.005)
        return "stopped half way"

    handle = await queue.enqueue(counting(), user_id=USER)
    async with Worker(queue, cancel_grace=10):
        await eventually(inside.is_set)
        await handle.cancel("why")
        with pytest.raises(TaskCanceled, match="why"):
            await handle.result(20)


async def test_a_thread_that_does_not_look_is_left_alone_after_the_grace(queue: TaskQueue):
    inside, go_on = threading.Event(), threading.Event()

    @task
    def deaf() -> None:
        inside.set()
        go_on.wait(20)

    handle = await queue.enqueue(deaf(), user_id=USER)
    try:
        async with Worker(queue, concurrency=2, cancel_grace=0.2):
            await eventually(inside.is_set)
            await handle.cancel("why")
            with pytest.raises(TaskCanceled, match="why"):
                await handle.result(20)
            go_on.set()
    finally:
        go_on.set()


@pytest.mark.smoke
async def test_a_subprocess_is_killed(queue: TaskQueue, tmp_path):
    handle = await queue.enqueue(in_processes.hangs(str(tmp_path / "pid")), user_id=USER)
    async with Worker(queue, cancel_grace=10):
        await eventually(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text(), 20)
        pid = int((tmp_path / "pid").read_text())
        await handle.cancel("why")
        with pytest.raises(TaskCanceled, match="why"):
            await handle.result(20)
        await eventually(lambda: not is_running(pid))


async def test_a_worker_that_missed_the_message_is_told_when_it_renews(queue: TaskQueue, stage: Stage, server):
    await queue.change_settings(lease=1)
    async with TaskQueue(server.url, name=queue.name) as own, Worker(own):
        handle = await own.enqueue(stage.wait(), user_id=USER, task_id="t")
        await eventually(lambda: stage.told)
        server.execute("HSET", f"{queue.keys.prefix}task:{encode_user(USER)}:t", "canceling", "silently")
        with pytest.raises(TaskCanceled, match="silently"):
            await handle.result(20)


async def test_a_canceled_task_whose_result_came_first_is_finished(queue: TaskQueue):
    @task
    async def cancels_itself() -> str:
        await queue.handle(USER, current_task().task_id).cancel()
        return "done"

    handle = await queue.enqueue(cancels_itself(), user_id=USER)
    await Worker(queue).run_until_idle()
    assert await handle.state() in (TaskState.FINISHED, TaskState.CANCELED)
    assert (await queue.stats()).started == 0


@pytest.mark.leaves_keys("waiting", "workers")
async def test_a_canceled_task_whose_worker_dies_is_not_run_again(
    server, queue_name: str, worker_process, tmp_path, capsys
):
    async with TaskQueue(server.url, name=queue_name, lease=1.0) as queue:
        handle = await queue.enqueue(tasks.hold(str(tmp_path)), user_id=USER, task_id="t")
        process: WorkerProcess = await worker_process(
            "tests/workers/worker.py", server.url, queue_name, '{"queue": {"lease": 1.0}, "worker": {}}'
        )
        await process.line("runs t")
        process.send(signal.SIGSTOP)
        await handle.cancel("why")
        process.send(signal.SIGKILL)
        async with Worker(queue):
            with pytest.raises(TaskCanceled, match="why"):
                await handle.result(15)
    assert "runs t" not in capsys.readouterr().out, "here, for this worker"
    assert await traces(server, queue_name, "t") == []


async def test_a_canceled_task_is_not_put_back_by_a_worker_that_stops(queue: TaskQueue, server):
    """Its worker never heard of the cancellation."""
    inside = asyncio.Event()

    @task
    async def wait() -> None:
        inside.set()
        await asyncio.Event().wait()

    handle = await queue.enqueue(wait(), user_id=USER, task_id="t")
    async with Worker(queue, shutdown_timeout=0.01):
        await inside.wait()
        server.execute("HSET", f"{queue.keys.prefix}task:{encode_user(USER)}:t", "canceling", "why")
    with pytest.raises(TaskCanceled, match="why"):
        await handle.result(0)
    assert (await queue.stats()).queued == 0


async def test_canceling_a_running_task_lets_those_that_wait_follow_their_policy(queue: TaskQueue, stage: Stage):
    first = await queue.enqueue(stage.wait(), user_id=USER, task_id="a")
    made = {policy: echo(policy).options(on_dependency_failure=policy) for policy in ("wait", "cancel", "run")}
    handles = {policy: await queue.enqueue(made[policy], user_id=USER, depends_on=[first]) for policy in made}
    async with Worker(queue):
        await eventually(lambda: stage.told)
        await first.cancel()
        assert await handles["run"].result(20) == "run"
        for policy in ("wait", "cancel"):  # what was canceled cannot be requeued
            with pytest.raises(TaskCanceled, match="dependency a canceled"):
                await handles[policy].result(20)
