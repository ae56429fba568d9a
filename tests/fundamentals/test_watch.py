"""12. Watch: what becomes of a task, as it happens."""

import asyncio
import re
import time

import pytest

from fairque import (
    InvalidInput,
    Retry,
    RetryPolicy,
    TaskInfo,
    TaskQueue,
    TaskState,
    UnknownTask,
    Worker,
    current_task,
    task,
)
from fairque.settings import QueueSettings
from fairque.tasks.registry import registry
from fairque.worker.progress import INTERVAL
from tests.support.calls import scripts_called
from tests.support.core import outcome
from tests.support.eventually import eventually
from tests.support.resp import RespClient


@task
async def echo(value: object = None) -> object:
    return value


@pytest.fixture(autouse=True)
def _registered():
    registry.update({made.name: made for made in (echo,)})


HOW = {"settings": QueueSettings(lease_ms=60_000), "wait": False}


class Watcher:
    """Keeps what it was told."""

    def __init__(self, handle) -> None:
        self.told: list[TaskInfo] = []
        self.task = asyncio.create_task(self._watch(handle))

    async def _watch(self, handle) -> None:
        async for info in handle.watch():
            self.told.append(info)

    async def sees(self, state: TaskState) -> None:
        await eventually(lambda: any(info.state is state for info in self.told))

    async def ends(self) -> list[TaskState]:
        await asyncio.wait_for(self.task, 10)
        states = [info.state for info in self.told]
        return [state for at, state in enumerate(states) if at == 0 or states[at - 1] is not state]


def script_calls(server) -> int:
    return scripts_called(server.execute)


@pytest.mark.smoke
async def test_a_watcher_sees_a_task_start_and_end(queue: TaskQueue):
    go_on = asyncio.Event()

    @task
    async def wait() -> None:
        await go_on.wait()

    watcher = Watcher(await queue.enqueue(wait(), user_id="anna"))
    await watcher.sees(TaskState.QUEUED)
    async with Worker(queue) as worker:
        await watcher.sees(TaskState.STARTED)
        assert watcher.told[-1].worker == worker.worker_id
        go_on.set()
        assert await watcher.ends() == ["queued", "started", "finished"]
    assert watcher.told[-1].run_seconds is not None


async def test_a_watcher_sees_retries_and_the_end(queue: TaskQueue):
    @task(max_retries=2)
    async def second_time() -> None:
        if current_task().attempt == 1:
            raise Retry(delay=0.3)

    watcher = Watcher(await queue.enqueue(second_time(), user_id="anna"))
    await watcher.sees(TaskState.QUEUED)
    async with Worker(queue):
        states = await watcher.ends()
    assert states[0] == "queued"
    assert states[-1] == "finished"
    assert "scheduled" in states
    assert len(watcher.told[-1].errors) <= 1


async def test_a_watcher_sees_that_a_dependent_is_released(queue: TaskQueue):
    first = await queue.enqueue(echo(), user_id="anna", priority=6)
    watcher = Watcher(await queue.enqueue(echo(), user_id="anna", depends_on=[first]))
    await watcher.sees(TaskState.DEFERRED)
    store = queue.store()
    [delivery] = (await store.claim("w", 1, **HOW)).deliveries
    await store.settle("w", [outcome(delivery, "finished")])
    await watcher.sees(TaskState.QUEUED)
    await store.leave("w", [])
    await store.close()
    await Worker(queue).run_until_idle()
    assert (await watcher.ends())[-1] is TaskState.FINISHED


async def test_a_watcher_is_told_that_a_dependent_has_started(queue: TaskQueue, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("fairque.queue.changes.FIRST_LOOK_SECONDS", 60.0)
    first = await queue.enqueue(echo(), user_id="anna", priority=6)
    watcher = Watcher(await queue.enqueue(echo(), user_id="anna", depends_on=[first]))
    await watcher.sees(TaskState.DEFERRED)
    store = queue.store()
    [delivery] = (await store.claim("w", 1, **HOW)).deliveries
    await store.settle("w", [outcome(delivery, "finished")])
    await watcher.sees(TaskState.QUEUED)
    [delivery] = (await store.claim("w", 1, **HOW)).deliveries
    await watcher.sees(TaskState.STARTED)
    await store.settle("w", [outcome(delivery, "released")])
    await store.leave("w", [])
    await store.close()
    await Worker(queue).run_until_idle()
    assert (await watcher.ends())[-1] is TaskState.FINISHED


async def test_a_watcher_sees_that_a_scheduled_task_has_come_due(queue: TaskQueue):
    watcher = Watcher(await queue.enqueue(echo(), user_id="anna", delay=0.05))
    await watcher.sees(TaskState.SCHEDULED)
    store = queue.store()

    async def promoted() -> bool:
        await store.claim("w", 0, **HOW)
        return (await queue.stats()).queued == 1

    await eventually(promoted)
    await watcher.sees(TaskState.QUEUED)
    await store.leave("w", [])
    await store.close()
    await Worker(queue).run_until_idle()
    await watcher.ends()


@pytest.mark.parametrize("state", ["failed", "canceled"])
async def test_a_watcher_sees_other_ends(queue: TaskQueue, state: str):
    @task
    async def fail() -> None:
        raise ValueError

    handle = await queue.enqueue(fail(), user_id="anna")
    watcher = Watcher(handle)
    await watcher.sees(TaskState.QUEUED)
    await (handle.cancel() if state == "canceled" else Worker(queue).run_until_idle())
    assert (await watcher.ends())[-1] == state


async def test_watching_what_has_ended_yields_the_outcome(queue: TaskQueue):
    handle = await queue.enqueue(echo(), user_id="anna")
    await Worker(queue).run_until_idle()
    watcher = Watcher(handle)
    assert await watcher.ends() == ["finished"]
    assert watcher.told == [await handle.info()]


async def test_watching_what_is_not_known_is_an_error(queue: TaskQueue):
    with pytest.raises(UnknownTask):
        await Watcher(queue.handle("anna", "nothing")).ends()


async def test_several_may_watch_and_one_may_leave(queue: TaskQueue):
    handle = await queue.enqueue(echo(), user_id="anna")
    watchers = [Watcher(handle) for _ in range(3)]
    for watcher in watchers:
        await watcher.sees(TaskState.QUEUED)
    watchers[0].task.cancel()
    async for info in handle.watch():
        assert info.state is TaskState.QUEUED
        break
    await Worker(queue).run_until_idle()
    for watcher in watchers[1:]:
        assert (await watcher.ends())[-1] is TaskState.FINISHED


async def test_a_watcher_does_not_poll(own_server):
    server = own_server()

    def commands() -> int:
        with RespClient(server.url) as client:
            return int(re.search(rb"total_commands_processed:(\d+)", client.execute("INFO", "stats"))[1])

    async with TaskQueue(server.url) as queue:
        handle = await queue.enqueue(echo(), user_id="anna")
        watcher = Watcher(handle)
        await watcher.sees(TaskState.QUEUED)
        before = commands()
        await asyncio.sleep(0.5)
        assert commands() - before <= 2, "nothing but the counting itself"
        await handle.cancel()
        await watcher.ends()


# Progress


async def test_a_watcher_sees_progress(queue: TaskQueue):
    go_on = asyncio.Event()

    @task
    async def resize() -> None:
        current_task().progress(0.4, "resizing")
        await go_on.wait()

    handle = await queue.enqueue(resize(), user_id="anna")
    watcher = Watcher(handle)
    async with Worker(queue):
        await eventually(lambda: any(info.progress for info in watcher.told))
        info = watcher.told[-1]
        assert (info.state, info.progress, info.message) == (TaskState.STARTED, 0.4, "resizing")
        assert await handle.info() == info
        go_on.set()
        assert (await watcher.ends())[-1] is TaskState.FINISHED


async def test_progress_comes_from_threads_as_well(queue: TaskQueue):
    ends = time.monotonic() + 30
    seen = []

    @task
    def resize() -> None:
        current_task().progress(1, "nearly")
        while not seen and time.monotonic() < ends:
            time.sleep(0.005)

    watcher = Watcher(await queue.enqueue(resize(), user_id="anna"))
    async with Worker(queue):
        await eventually(lambda: any(info.message == "nearly" for info in watcher.told))
        seen.append(True)
        await watcher.ends()


async def test_many_reports_cost_few_calls_and_the_last_one_arrives(queue: TaskQueue, server):
    go_on = asyncio.Event()

    @task
    async def busy() -> None:
        ends = time.monotonic() + 4 * INTERVAL
        while time.monotonic() < ends:
            current_task().progress(0.5, "busy")
            await asyncio.sleep(0)
        current_task().progress(0.9, "last")
        await go_on.wait()

    handle = await queue.enqueue(busy(), user_id="anna")
    async with Worker(queue, poll_interval=60) as worker:
        await eventually(lambda: is_started(handle))
        before = script_calls(server)
        await asyncio.wait_for(message_of(handle, "last"), 30)
        assert script_calls(server) - before < 40
        go_on.set()
        await handle.result(20)
        assert not worker._parts.progress._sent, "nothing is kept of a task that has ended"


async def is_started(handle) -> bool:
    return await handle.state() is TaskState.STARTED


async def message_of(handle, text: str) -> None:
    async for info in handle.watch():
        if info.message == text:
            return


async def test_progress_is_a_number(queue: TaskQueue):
    @task
    async def wrong() -> list[str]:
        found = []
        for value in (float("nan"), "half", None):
            try:
                current_task().progress(value)
            except InvalidInput as exc:
                found.append(str(exc))
        return found

    handle = await queue.enqueue(wrong(), user_id="anna")
    await Worker(queue).run_until_idle()
    assert len(await handle.result(20)) == 3


async def test_progress_of_an_attempt_does_not_outlive_a_requeue(queue: TaskQueue):
    @task
    async def fail() -> None:
        current_task().progress(0.7, "far")
        await eventually(lambda: is_told(handle))
        raise ValueError

    async def is_told(handle) -> bool:
        return (await handle.info()).message == "far"

    handle = await queue.enqueue(fail(), user_id="anna")
    await Worker(queue).run_until_idle()
    await queue.requeue(handle)
    info = await handle.info()
    assert (info.progress, info.message) == (None, "")
    await handle.cancel()


async def test_progress_of_an_attempt_is_not_shown_for_the_next(queue: TaskQueue):
    seen: list[object] = []

    @task(max_retries=1, retry=RetryPolicy(base=0))
    async def fail_once() -> None:
        if current_task().attempt == 1:
            current_task().progress(0.7, "far")
            await eventually(is_told)
            raise ValueError
        info = await handle.info()
        seen.append((info.attempt, info.progress, info.message))

    async def is_told() -> bool:
        return (await handle.info()).message == "far"

    handle = await queue.enqueue(fail_once(), user_id="anna")
    await Worker(queue).run_until_idle()
    assert seen == [(2, None, "")]


async def test_progress_of_a_worker_that_stopped_is_not_shown_for_the_next(queue: TaskQueue):
    seen: list[object] = []

    @task
    async def tell() -> None:
        if not seen:
            current_task().progress(0.7, "far")
            await asyncio.sleep(60)
        info = await handle.info()
        seen.append((info.attempt, info.progress, info.message))

    async def is_told() -> bool:
        return (await handle.info()).message == "far"

    handle = await queue.enqueue(tell(), user_id="anna")
    async with Worker(queue, shutdown_timeout=0):
        await eventually(is_told)
    info = await handle.info()
    seen.append((info.state, info.progress, info.message))
    await Worker(queue).run_until_idle()
    assert seen == [(TaskState.QUEUED, None, ""), (1, None, "")]


# Dependencies in the information


async def test_info_shows_dependencies_and_dependents(queue: TaskQueue):
    first = await queue.enqueue(echo(), user_id="anna", task_id="first")
    middle = await queue.enqueue(echo(), user_id="anna", task_id="middle", depends_on=[first])
    last = await queue.enqueue(echo(), user_id="anna", task_id="last", depends_on=[first, middle])
    assert ((await first.info()).dependencies, (await first.info()).dependents) == ((), ("last", "middle"))
    assert ((await middle.info()).dependencies, (await middle.info()).dependents) == (("first",), ("last",))
    assert ((await last.info()).dependencies, (await last.info()).dependents) == (("first", "middle"), ())
    await Worker(queue).run_until_idle()
    assert (await first.info()).dependents == ()
