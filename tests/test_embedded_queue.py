"""`TaskQueue("embedded://")`: a queue with nothing installed beside it."""

from __future__ import annotations

import asyncio
import signal
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fairque import ConfigError, Priority, QueueUnavailable, TaskQueue, TaskState, UnknownTask, Worker
from tests.support.eventually import eventually
from tests.support.gate import Gate, new_gate, work
from tests.support.resp import RespClient
from tests.support.workers import release
from tests.workers import tasks

if TYPE_CHECKING:
    from tests.support.process import WorkerProcess

    StartProcess = Callable[..., Awaitable[WorkerProcess]]

SCRIPT = "tests/workers/embedded.py"


@pytest.fixture
def gate() -> Gate:
    return new_gate()


@pytest.fixture
def directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where private servers live during this test, in this process and in those that it starts."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


def servers_in(directory: Path) -> int:
    return len(list(directory.iterdir()))


def lives(pid: int) -> bool:
    try:
        told = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return told.rpartition(")")[2].split()[0] != "Z"  # a dead process that nobody waited for yet


async def server_of(process: WorkerProcess) -> tuple[int, Path]:
    """Process id and directory."""
    _, pid, directory = (await process.line("server ")).split()
    return int(pid), Path(directory)


# Private


async def test_a_private_queue_does_it_all_and_leaves_nothing(directories: Path, gate: Gate) -> None:
    gate.open()
    async with TaskQueue("embedded://") as queue, Worker(queue):
        handle = await queue.enqueue(work(1), user_id="acme")
        assert await handle.result(timeout=20) == 1
        assert servers_in(directories) == 1
    assert servers_in(directories) == 0


async def test_two_private_queues_know_nothing_of_each_other() -> None:
    async with TaskQueue("embedded://") as one, TaskQueue("embedded://") as other:
        handle = await one.enqueue(work(1), user_id="acme")
        with pytest.raises(UnknownTask):
            await other.handle("acme", handle.task_id).state()


async def test_a_private_queue_that_is_opened_again_is_a_new_one() -> None:
    queue = TaskQueue("embedded://")
    async with queue:
        await queue.enqueue(work(1), user_id="acme")
    async with queue:
        assert (await queue.stats()).queued == 0


async def test_calls_that_open_a_queue_at_once_start_one_server(directories: Path) -> None:
    queue = TaskQueue("embedded://")
    try:
        await asyncio.gather(*(queue.enqueue(work(n), user_id="acme") for n in range(5)), queue.stats())
        assert (await queue.stats()).queued == 5
        assert servers_in(directories) == 1
    finally:
        await queue.close()


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
async def test_a_process_that_ends_leaves_no_server(
    worker_process: StartProcess, directories: Path, signum: signal.Signals
) -> None:
    process = await worker_process(SCRIPT, "embedded://")
    pid, directory = await server_of(process)
    assert lives(pid)
    assert directory.parent == directories
    process.send(signum)
    await process.wait()
    await eventually(lambda: not lives(pid) and not directory.exists())


# Shared


async def test_processes_that_name_one_directory_share_a_queue(worker_process: StartProcess, tmp_path: Path) -> None:
    url = f"embedded://{tmp_path}/queue"
    async with TaskQueue(url) as queue:
        workers = [await worker_process(SCRIPT, url) for _ in range(2)]
        assert len({await server_of(worker) for worker in workers}) == 1
        handle = await queue.enqueue(tasks.add(1, 2), user_id="acme")
        assert await handle.result(timeout=20) == 3
        await eventually(lambda: has_workers(queue, 2))


async def has_workers(queue: TaskQueue, number: int) -> bool:
    return len([worker for worker in (await queue.stats()).workers if worker.pid]) == number


async def test_a_shared_queue_is_kept_when_nobody_uses_it(tmp_path: Path, gate: Gate) -> None:
    url = f"embedded://{tmp_path}/with%20a%20blank"
    gate.open()
    async with TaskQueue(url) as queue:
        first = await queue.enqueue(work(1), user_id="acme")
        await Worker(queue).run_until_idle()
        second = await queue.enqueue(work(2), user_id="acme", priority=Priority.CRITICAL)
        third = await queue.enqueue(work(3), user_id="acme", delay=3600)
        await queue.set_policy("acme", weight=3)
    assert (tmp_path / "with a blank").is_dir()
    async with TaskQueue(url) as queue:
        assert await queue.handle("acme", first.task_id).result(timeout=0) == 1
        assert await queue.handle("acme", second.task_id).state() is TaskState.QUEUED
        assert await queue.handle("acme", third.task_id).state() is TaskState.SCHEDULED
        assert (await queue.user("acme")).weight == 3
        await Worker(queue).run_until_idle()
        assert await queue.handle("acme", second.task_id).result(timeout=0) == 2


async def test_a_shared_queue_survives_the_process_that_started_it(
    worker_process: StartProcess, tmp_path: Path
) -> None:
    url = f"embedded://{tmp_path}"
    starter = await worker_process(SCRIPT, url)
    pid, _ = await server_of(starter)
    async with TaskQueue(url) as queue:
        starter.send(signal.SIGKILL)
        await starter.wait()
        handle = await queue.enqueue(tasks.add(1, 2), user_id="acme")
        other = await worker_process(SCRIPT, url)
        assert await server_of(other) == (pid, tmp_path)
        assert await handle.result(timeout=20) == 3
        other.send(signal.SIGKILL)
        await other.wait()
        assert lives(pid)
    await eventually(lambda: not lives(pid))


async def test_tasks_of_a_killed_process_run_in_the_next_one(worker_process: StartProcess, tmp_path: Path) -> None:
    url, lease = f"embedded://{tmp_path}/queue", "1"
    first = await worker_process(SCRIPT, url, lease)
    pid, _ = await server_of(first)
    async with TaskQueue(url) as queue:
        ended = await queue.enqueue(tasks.add(1, 2), user_id="acme")
        assert await ended.result(timeout=20) == 3
        held = await queue.enqueue(tasks.hold(str(tmp_path)), user_id="acme")
        await first.line(f"runs {held.task_id} attempt 1")
    first.send(signal.SIGKILL)
    await first.wait()
    await eventually(lambda: not lives(pid))
    second = await worker_process(SCRIPT, url, lease)
    await second.line(f"runs {held.task_id} attempt 2")
    release(tmp_path, second)
    async with TaskQueue(url) as queue:
        assert await queue.handle("acme", ended.task_id).result(timeout=0) == 3
        assert await queue.handle("acme", held.task_id).result(timeout=20) == second.pid


# URLs


@pytest.mark.parametrize("url", ["embedded://data", "embedded://data/queue", "embedded:///data?x=1", "embedded:///a#b"])
def test_a_url_whose_directory_would_be_misunderstood_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match=r"embedded:///path/to/directory, with three slashes"):
        TaskQueue(url)


async def test_a_shared_server_that_takes_no_more_clients_is_not_waited_for(tmp_path: Path) -> None:
    url = f"embedded://{tmp_path}"
    async with TaskQueue(url, name="first"):
        with RespClient(f"unix://{tmp_path / 'valkey.sock'}") as client:
            client.execute("CONFIG", "SET", "maxclients", 1)
            async with asyncio.timeout(10):
                with pytest.raises(QueueUnavailable, match="is not available"):
                    await TaskQueue(url, name="second", timeout=1).open()
            client.execute("CONFIG", "SET", "maxclients", 100)


async def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"cannot be started.*file"):
        async with TaskQueue(f"embedded://{tmp_path}/file/queue"):
            pass
