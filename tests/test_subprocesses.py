"""Tasks with `run_in="process"`: what becomes of their processes, and of what these write."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from fairque import TaskFailed, TaskQueue, TaskState, Worker
from tests.support.eventually import eventually
from tests.support.process import WorkerProcess
from tests.support.processes import children_of, is_running, marked, new_mark
from tests.support.servers import Server
from tests.support.workers import Fleet
from tests.workers import process_tasks

USER = "anna"


@pytest.fixture
def fleet(worker_process: Callable[..., Awaitable[WorkerProcess]], server: Server, queue_name: str) -> Fleet:
    return Fleet(worker_process, server.url, queue_name, lease=2.0)


@pytest.fixture
async def queue(server: Server, queue_name: str):
    async with TaskQueue(server.url, name=queue_name, lease=2.0) as opened:
        yield opened


async def pids_in(file: Path) -> list[int]:
    """Of the subprocess, and of what it started."""
    text = await eventually(lambda: file.exists() and file.read_text())
    return [int(pid) for pid in text.split()]


def subprocesses() -> set[int]:
    """Of the worker in this process."""
    servers = {pid for pid in children_of(os.getpid()) if b"fork_server_main" in command(pid)}
    return set().union(*map(children_of, servers))


def command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


async def test_tasks_that_time_out_leave_no_process(queue: TaskQueue, tmp_path: Path):
    async with Worker(queue, concurrency=6):
        files = [tmp_path / str(n) for n in range(6)]
        at_once = [process_tasks.pids(str(tmp_path / "early")).options(timeout=0.01) for _ in range(6)]
        later = [process_tasks.pids(str(file)).options(timeout=3) for file in files]
        for handle in await queue.enqueue_many([*at_once, *later], user_id=USER):
            with pytest.raises(TaskFailed, match="ran longer than"):
                await handle.result(30)
        await eventually(lambda: not subprocesses())
        for file in files:
            if file.exists():
                assert not any(is_running(pid) for pid in await pids_in(file))


async def test_a_worker_that_stops_leaves_no_process(queue: TaskQueue, tmp_path: Path):
    async with Worker(queue):
        await (await queue.enqueue(process_tasks.pids(str(tmp_path / "pids"), 0), user_id=USER)).result(20)
        subprocess_pid, sleeper = await pids_in(tmp_path / "pids")
        assert is_running(subprocess_pid)
    assert not is_running(subprocess_pid)
    await eventually(lambda: not is_running(sleeper))


async def test_what_is_written_goes_where_the_output_of_the_worker_goes(queue: TaskQueue, fleet: Fleet):
    worker = await fleet.start()
    first = await (await queue.enqueue(process_tasks.writes_much(), user_id=USER)).result(30)
    for line in ("raw line", "printed line", "printed error", "line of a child", "WARNING app: a record", "xxxx"):
        await worker.line(line)
    assert await (await queue.enqueue(process_tasks.writes_much(), user_id=USER)).result(30) == first, "it is kept"
    worker.send(signal.SIGTERM)
    assert await worker.wait() == 0


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_for_all_processes_of_a_service_releases_its_tasks(
    queue: TaskQueue, fleet: Fleet, tmp_path: Path, signum: signal.Signals
):
    worker = await fleet.start(shutdown_timeout=0.2)
    handle = await queue.enqueue(process_tasks.pids(str(tmp_path / "pids")), user_id=USER)
    pids = await pids_in(tmp_path / "pids")
    os.kill(pids[0], signum)
    worker.send(signal.SIGTERM)
    assert await worker.wait() == 0
    info = await handle.info()
    assert (info.state, info.errors) == (TaskState.QUEUED, ())
    await eventually(lambda: not any(is_running(pid) for pid in pids))
    await handle.cancel()


@pytest.mark.leaves_keys("workers", "waiting")  # a killed worker says no goodbye
@pytest.mark.parametrize("stubborn", [False, True])
async def test_a_subprocess_does_not_outlive_its_worker(queue: TaskQueue, fleet: Fleet, tmp_path: Path, stubborn: bool):
    worker = await fleet.start()
    made = process_tasks.spins if stubborn else process_tasks.pids
    handle = await queue.enqueue(made(str(tmp_path / "pids")), user_id=USER)
    pid = (await pids_in(tmp_path / "pids"))[0]
    worker.send(signal.SIGKILL)
    await worker.wait()
    await eventually(lambda: not is_running(pid))
    await handle.cancel()
    async with Worker(queue):
        await eventually(lambda: ended(queue, handle.task_id))


async def ended(queue: TaskQueue, task_id: str) -> bool:
    return (await queue.handle(USER, task_id).info()).state is TaskState.CANCELED


async def test_a_subprocess_that_cannot_start_says_why(queue: TaskQueue, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "path", [path for path in sys.path if "site-packages" not in path])
    async with Worker(queue):
        handle = await queue.enqueue(process_tasks.forks(), user_id=USER)
        with pytest.raises(TaskFailed, match=r"could not start: ModuleNotFoundError: No module named") as failed:
            await handle.result(20)
        assert "Traceback" in failed.value.traceback


async def test_a_subprocess_that_dies_says_how(queue: TaskQueue, tmp_path: Path):
    async with Worker(queue, concurrency=1):
        with pytest.raises(TaskFailed, match="the subprocess of the task died: it exited with code 3"):
            await (await queue.enqueue(process_tasks.leaves_a_fork(), user_id=USER)).result(20)
        handle = await queue.enqueue(process_tasks.pids(str(tmp_path / "pids")), user_id=USER)
        os.kill((await pids_in(tmp_path / "pids"))[0], signal.SIGKILL)
        with pytest.raises(TaskFailed, match="SIGKILL ended it"):
            await handle.result(20)


async def test_a_body_that_forks_ends_once(queue: TaskQueue):
    async with Worker(queue, concurrency=1):
        for _ in range(2):
            assert await (await queue.enqueue(process_tasks.forks(), user_id=USER)).result(20) == "one of two"


async def test_a_script_without_a_main_guard_does_not_run_again(
    worker_process: Callable[..., Awaitable[WorkerProcess]], server: Server, queue_name: str
):
    mark = new_mark()
    script = await worker_process("tests/workers/unguarded.py", server.url, queue_name, env=mark)
    assert await script.wait() == 0
    assert script.lines == ["result 42", "ran to its end"]
    await eventually(lambda: not marked(mark))


async def test_a_subprocess_reports_progress_and_knows_its_task(queue: TaskQueue, tmp_path: Path):
    async with Worker(queue):
        handle = await queue.enqueue(process_tasks.climbs(str(tmp_path / "gate")), user_id=USER)
        await eventually(lambda: tells(queue, handle.task_id, 0.5, "half of it"))
        (tmp_path / "gate").touch()
        assert await handle.result(20) == f"{USER} {handle.task_id} 1"


async def tells(queue: TaskQueue, task_id: str, progress: float | None, message: str) -> bool:
    info = await queue.handle(USER, task_id).info()
    return (info.progress, info.message) == (progress, message)


async def test_an_idle_subprocess_that_was_killed_is_replaced(queue: TaskQueue, tmp_path: Path):
    async with Worker(queue, concurrency=1):
        for _ in range(2):
            await (await queue.enqueue(process_tasks.pids(str(tmp_path / "pids"), 0), user_id=USER)).result(20)
            pid = (await pids_in(tmp_path / "pids"))[0]
            os.kill(pid, signal.SIGKILL)
            await eventually(lambda: not subprocesses())
