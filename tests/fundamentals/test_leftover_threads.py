"""Threads that go on after their tasks are over: counted, limited for each user and in all, waited for by nobody."""

import asyncio
import logging
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from fairque import FairqueError, TaskFailed, TaskQueue, Worker, current_task, task
from tests.support.eventually import eventually


def hangs_until(let_go: threading.Event, name: str = "hangs"):
    def work() -> None:
        let_go.wait(60)

    return task(name=name, timeout=0.5)(work)  # in which its thread starts, whatever else runs


@task
def thread_name() -> str:
    return threading.current_thread().name


@pytest.fixture
def let_go():
    event = threading.Event()
    yield event
    event.set()


async def leave(queue: TaskQueue, hangs, user_id: str, count: int) -> None:
    handles = await queue.enqueue_many([hangs()] * count, user_id=user_id)
    for handle in handles:
        with pytest.raises(TaskFailed, match="TimeoutError"):
            await handle.result(20)


async def test_a_user_whose_threads_hang_takes_none_from_others(queue: TaskQueue, let_go: threading.Event, caplog):
    hangs = hangs_until(let_go)
    async with Worker(queue, concurrency=2, max_leftover_threads=80, worker_id="w"):
        flood = await queue.enqueue_many([hangs()] * 40, user_id="attacker")
        handles = [await queue.enqueue(thread_name(), user_id=f"quiet {n}") for n in range(20)]
        for handle in handles:
            assert (await handle.result(20)).startswith("fairque-task")
        await eventually(lambda: "s: 10 threads of this user are left over here" in caplog.text)
        threads = [each for each in threading.enumerate() if each.name == "fairque-task"]
        assert len(threads) <= 12
        assert await (await queue.enqueue(thread_name(), user_id="quiet")).result(20)
        let_go.set()
        await eventually(lambda: not any([each for each in threading.enumerate() if each.name == "fairque-task"][2:]))
        for handle in flood[-5:]:
            await handle.cancel()
    await queue.purge("attacker")


async def test_with_as_many_as_may_be_no_thread_is_begun(queue: TaskQueue, let_go: threading.Event, caplog):
    hangs = hangs_until(let_go)

    @task
    async def on_the_loop() -> int:
        return 1

    async with Worker(queue, concurrency=5, max_leftover_threads=3, worker_id="w"):
        for user in ("anna", "bert", "carl"):
            await leave(queue, hangs, user, 1)
        waiting = await queue.enqueue(thread_name(), user_id="dora")
        await eventually(lambda: "3 threads are left over here, as many as may be" in caplog.text)
        assert await (await queue.enqueue(on_the_loop(), user_id="dora")).result(20) == 1
        assert (await waiting.info()).attempt <= 1
        let_go.set()
        assert await waiting.result(30) == "fairque-task"
        assert (await waiting.info()).attempt == 1


async def test_they_are_told_of_and_counted(queue: TaskQueue, let_go: threading.Event, caplog):
    async with Worker(queue, worker_id="w") as worker:
        await leave(queue, hangs_until(let_go), "anna", 3)

        async def told() -> bool:
            return any(each.leftover_threads == 3 for each in (await queue.stats()).workers)

        # Its entry is renewed every 15 s while it is idle, and sooner while something runs.
        @task
        async def runs() -> None:
            await asyncio.sleep(30)

        running = await queue.enqueue(runs(), user_id="anna")
        await eventually(told, deadline=20)
        await running.cancel()
        text = "is over and goes on in its thread: 3 are left over of this user, 3 in all"
        await eventually(lambda: text in caplog.text)
        let_go.set()
        await eventually(lambda: worker._parts.runner.leftover_threads == 0)
    assert "after the stop" not in caplog.text


async def test_a_thread_of_a_task_that_is_over_changes_no_values(queue: TaskQueue, let_go: threading.Event):
    said: list[str] = []

    @task(name="late", timeout=0.5)
    def late() -> None:
        let_go.wait(20)
        try:
            current_task().xcom.push("key", 1)
        except FairqueError as error:
            said.append(str(error))

    async with Worker(queue):
        await leave(queue, late, "anna", 1)
        let_go.set()
        await eventually(lambda: said)
    assert "this task is over" in said[0]


async def test_a_thread_that_listens_has_a_moment_when_its_worker_stops(queue: TaskQueue, caplog):
    started, ended = threading.Event(), threading.Event()

    @task(name="listens")
    def listens() -> None:
        started.set()
        while not current_task().canceled:
            time.sleep(0.01)
        time.sleep(0.2)
        ended.set()

    handle = await queue.enqueue(listens(), user_id="anna")
    with caplog.at_level(logging.WARNING):
        async with Worker(queue, shutdown_timeout=0):
            await asyncio.to_thread(started.wait, 20)
    assert ended.is_set()
    assert "in its thread" not in caplog.text
    await handle.cancel()


async def test_what_a_function_raises_and_where_it_runs_is_its_own(queue: TaskQueue):
    @task(name="stops")
    def stops() -> None:
        raise StopIteration("done")

    @task(name="exits")
    def exits() -> None:
        raise SystemExit(3)

    async with Worker(queue, concurrency=2):
        for made, text in ((stops, "StopIteration"), (exits, "SystemExit")):
            with pytest.raises(TaskFailed, match=text):
                await (await queue.enqueue(made(), user_id="anna")).result(20)
        assert await (await queue.enqueue(thread_name(), user_id="anna")).result(20) == "fairque-task"


def test_the_end_of_a_program_waits_for_none(server, tmp_path):
    code = f"""
    import asyncio, time
    from fairque import TaskFailed, TaskQueue, Worker, task
    @task(timeout=0.1)
    def hangs():
        time.sleep(600)
    async def main():
        async with TaskQueue({server.url!r}, name="leftover-exit") as queue, Worker(queue):
            try:
                await (await queue.enqueue(hangs(), user_id="anna")).result(20)
            except TaskFailed:
                pass
            await queue.purge("anna")
    asyncio.run(main())
    print("over")
    """
    script = tmp_path / "hanging.py"
    script.write_text(textwrap.dedent(code))
    ran = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=30, check=False)
    assert (ran.returncode, ran.stdout.strip()) == (0, "over"), ran.stderr
    assert "goes on in its thread after the stop of its worker, until its process ends" in ran.stderr
