"""`Worker.serve`: a program of one's own that serves as `fairque worker` does."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from _fairque_command import REPEATED_SECONDS
from fairque import InvalidInput, TaskQueue, TaskState, Worker
from fairque.config.config import WorkerConfig
from fairque.worker import service
from tests.apps.served import greet, nap, whereabouts
from tests.support.command import run_python
from tests.support.eventually import eventually
from tests.support.process import WorkerProcess
from tests.support.processes import is_running
from tests.support.servers import Server

Serve = Callable[..., Awaitable[WorkerProcess]]


@pytest.fixture
async def queue(server: Server, queue_name: str) -> AsyncIterator[TaskQueue]:
    async with TaskQueue(server.url, name=queue_name, lease=1.0) as queue:
        yield queue


@pytest.fixture
async def serve(worker_process: Callable[..., Awaitable[WorkerProcess]], server: Server, queue_name: str) -> Serve:
    """Start the program on the queue of the test; returns when it serves."""

    async def start(how: dict[str, Any] | None = None, *, is_quiet: bool = False, **options: Any) -> WorkerProcess:
        env = {"SERVED_URL": server.url, "SERVED_QUEUE": queue_name}
        told = (json.dumps(how or {}), json.dumps(options))
        process = await worker_process("tests/workers/serving.py", *told, env=env)
        if not is_quiet:
            await process.line("serves queue")
        return process

    return start


async def pids_of(process: WorkerProcess, count: int) -> list[int]:
    def found() -> list[int]:
        lines = [line for line in process.lines if "serves queue" in line]
        pids = [int(re.findall(r"\[(\d+)\]", line)[0]) for line in lines]
        return pids if len(pids) >= count else []

    return list(await eventually(found, deadline=30))


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
async def test_a_signal_drains_a_worker_that_a_program_serves_with(
    serve: Serve, queue: TaskQueue, signum: signal.Signals
) -> None:
    process = await serve(concurrency=1)
    running = await queue.enqueue(nap(1), user_id="acme", task_id="t1")
    await process.line("runs t1")
    waiting = await queue.enqueue(greet("later"), user_id="acme")
    process.send(signum)
    assert await process.wait() == 0, process.output
    assert await running.result(timeout=0) == "rested"
    assert await waiting.state() == TaskState.QUEUED
    assert process.lines[-1] == "after, open False"
    assert f"{signum.name}: stopping, a second signal leaves at once" in process.output
    assert re.search(r"finished user=acme id=t1 name=tests.apps.served.nap attempt=1", process.output)
    assert "hook t1" in process.lines, "its own hooks are told as well"
    await waiting.cancel()


async def test_what_outlasts_the_shutdown_timeout_of_a_program_is_put_back(serve: Serve, queue: TaskQueue) -> None:
    process = await serve(shutdown_timeout=0.2)
    handle = await queue.enqueue(nap(60), user_id="acme", task_id="t1")
    await process.line("runs t1")
    process.send(signal.SIGTERM)
    assert await process.wait() == 0, process.output
    assert await handle.state() == TaskState.QUEUED
    await handle.cancel()


@pytest.mark.leaves_keys
async def test_a_second_signal_ends_a_program_at_once(serve: Serve, queue: TaskQueue) -> None:
    process = await serve()
    await queue.enqueue(nap(60), user_id="acme", task_id="t1")
    await process.line("runs t1")
    process.send(signal.SIGTERM)
    await asyncio.sleep(2 * REPEATED_SECONDS)
    process.send(signal.SIGHUP)
    assert await process.wait(deadline=5) == 128 + signal.SIGHUP
    assert process.lines[-1].startswith("second signal: leaving at once")


async def test_a_quiet_log_level_of_a_program_leaves_out_what_finished(serve: Serve, queue: TaskQueue) -> None:
    process = await serve({"log_level": "warning"}, is_quiet=True)
    await (await queue.enqueue(greet("ann"), user_id="acme")).result(timeout=20)
    process.send(signal.SIGTERM)
    assert await process.wait() == 0
    assert [line for line in process.lines if not line.startswith("hook")] == ["after, open False"]


@pytest.mark.leaves_keys("workers", "waiting")
async def test_a_program_serves_with_several_processes(serve: Serve, queue: TaskQueue) -> None:
    process = await serve({"processes": 2})
    first, second = await pids_of(process, 2)
    assert process.pid not in (first, second)
    os.kill(first, signal.SIGKILL)
    await process.line("ended with code -9, next start in 0.5 s")
    *_, third = await pids_of(process, 3)
    places = [await (await queue.enqueue(whereabouts(), user_id="acme")).result(timeout=20) for _ in range(3)]
    assert {pid for _, pid in places} <= {second, third}
    process.send(signal.SIGTERM)
    assert await process.wait() == 0, process.output
    # Unbuffered, an end of line is a write of its own: those of three processes may stand behind each other.
    assert process.output.count("after, open False") == 3, "the copies, and the program itself"
    assert not any(map(is_running, (second, third)))


async def test_the_processes_of_a_program_end_when_it_is_killed(serve: Serve) -> None:
    process = await serve({"processes": 2})
    pids = await pids_of(process, 2)
    os.kill(process.pid, signal.SIGKILL)
    await eventually(lambda: not any(map(is_running, pids)))


@pytest.mark.parametrize(
    "command",
    [
        ("tests/workers/serving.py", "{}", "{}"),
        ("fairque", "worker", "tests.apps.served:queue"),
        ("fairque", "worker", "tests.apps.served:queue", "--processes=2"),
        ("fairque", "scheduler", "tests.apps.served:queue"),
    ],
)
async def test_who_waits_for_its_server_to_answer_can_be_stopped(
    worker_process: Callable[..., Awaitable[WorkerProcess]], command: tuple[str, ...]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        mute.settimeout(30)
        env = {"SERVED_URL": f"redis://127.0.0.1:{mute.getsockname()[1]}", "SERVED_QUEUE": "q", "SERVED_TIMEOUT": "60"}
        process = await worker_process(*command, env=env)
        connection, _ = await asyncio.to_thread(mute.accept)
        with connection:
            process.send(signal.SIGTERM)
            assert await process.wait(deadline=10) == 0, process.output
    assert "Traceback" not in process.output


async def test_a_program_without_a_server_fails_at_its_start(
    worker_process: Callable[..., Awaitable[WorkerProcess]],
) -> None:
    env = {"SERVED_URL": "redis://localhost:1", "SERVED_QUEUE": "q", "SERVED_TIMEOUT": "0.1"}
    process = await worker_process("tests/workers/serving.py", "{}", "{}", env=env)
    assert await process.wait() == 1
    assert "QueueUnavailable: Redis at redis://localhost:1 is not available" in process.lines[-1]


# Refusals


@pytest.mark.parametrize(
    ("options", "how", "text"),
    [
        ({}, {"processes": 0}, "processes must be a whole number from 1 to 1000"),
        ({}, {"log_level": "loud"}, "log_level must be one of debug, info, warning, error, not 'loud'"),
        ({"worker_id": "w1"}, {"processes": 2}, "several processes would all be worker 'w1'"),
        ({}, {"processes": 2}, "embedded:// is a server for one process alone"),
    ],
)
async def test_what_cannot_be_served_is_refused(options: dict[str, Any], how: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidInput, match=re.escape(text)):
        await Worker(TaskQueue("embedded://"), **options).serve(**{"log_level": None, **how})


def test_several_processes_may_have_the_worker_of_a_configuration() -> None:
    queue = TaskQueue("redis://localhost:1")
    Worker.from_config(queue, WorkerConfig(id="alpha")).check_several()
    with pytest.raises(InvalidInput, match="would all be worker 'w1'"):
        Worker.from_config(queue, WorkerConfig(id="alpha"), worker_id="w1").check_several()


async def test_signals_are_of_the_main_thread(queue: TaskQueue) -> None:
    worker = Worker(queue)
    with pytest.raises(InvalidInput, match="call it in the main thread"):
        await asyncio.to_thread(lambda: asyncio.run(worker.serve(log_level=None)))


async def test_signals_are_of_one_worker_and_an_open_queue_stays_open(queue: TaskQueue) -> None:
    before = signal.getsignal(signal.SIGTERM)
    first, second = Worker(queue), Worker(queue)
    serving = asyncio.create_task(first.serve(log_level=None))
    await eventually(lambda: signal.getsignal(signal.SIGTERM) is not before)
    with pytest.raises(InvalidInput, match="another worker has them"):
        await second.serve(log_level=None)
    os.kill(os.getpid(), signal.SIGTERM)
    await serving
    assert signal.getsignal(signal.SIGTERM) is before
    assert queue.connector.is_open


async def test_who_cancels_a_served_worker_is_told_so(queue: TaskQueue) -> None:
    serving = asyncio.create_task(Worker(queue).serve(log_level=None))
    await eventually(lambda: serving.get_stack() and signal.getsignal(signal.SIGTERM))
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving


async def test_a_program_that_is_no_file_cannot_be_started_anew() -> None:
    code = (
        "import asyncio; from fairque import TaskQueue, Worker;"
        "asyncio.run(Worker(TaskQueue('redis://localhost:1')).serve(processes=2))"
    )
    ended = await run_python("-c", code)
    assert ended.code == 1
    assert "InvalidInput: processes: this program is started anew for each, and it is no file" in ended.err


async def test_a_service_is_stopped_also_where_what_it_waits_for_swallows_that(queue: TaskQueue) -> None:
    swallowed = asyncio.Event()

    async def prepare() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            swallowed.set()
        await asyncio.sleep(30)

    serving = asyncio.create_task(service.serve(Worker(queue), prepare))
    async with asyncio.timeout(10):
        await serving
    assert swallowed.is_set()
