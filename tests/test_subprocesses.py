"""Tasks with `run_in="process"`: what becomes of their processes, and of what these write."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from fairque import InvalidInput, Task, TaskCanceled, TaskFailed, TaskHandle, TaskQueue, TaskState, Worker
from fairque.tasks.message import encode_value
from fairque.worker.subprocesses import fork_server
from fairque.worker.subprocesses.frames import Start
from fairque.worker.subprocesses.functions import Functions
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


def fork_servers() -> set[int]:
    """Of the worker in this process."""
    return {pid for pid in children_of(os.getpid()) if b"fork_server_main" in command(pid)}


def subprocesses() -> set[int]:
    return set().union(*map(children_of, fork_servers()))


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
    for line in ("blue {'width': 2} /here", "ValueError: on purpose", "a record of its own"):
        await worker.line(line)
    await worker.line("WARNING app.own: a record of its own")
    assert worker.lines.count("a record of its own") == 1, "the handler of the module wrote it, and not once more"
    assert max(map(len, worker.lines)) < 20_000
    assert await (await queue.enqueue(process_tasks.writes_much(), user_id=USER)).result(30) == first, "it is kept"
    worker.send(signal.SIGTERM)
    assert await worker.wait() == 0


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
async def test_a_signal_for_all_processes_of_a_service_releases_its_tasks(
    queue: TaskQueue, fleet: Fleet, tmp_path: Path, signum: signal.Signals
):
    """To its process group, and then, as systemd does, to each of them that there is."""
    worker = await fleet.start(shutdown_timeout=0.2)
    handle = await queue.enqueue(process_tasks.pids(str(tmp_path / "pids")), user_id=USER)
    pids = await pids_in(tmp_path / "pids")
    (server,) = children_of(worker.pid)
    os.killpg(worker.pid, signum)
    os.kill(server, signum)
    os.kill(pids[0], signum)
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
    pids = await pids_in(tmp_path / "pids")
    worker.send(signal.SIGKILL)
    await worker.wait()
    await eventually(lambda: not any(is_running(pid) for pid in pids))
    await cancel_all(queue, [handle])


async def cancel_all(queue: TaskQueue, handles: list[TaskHandle[Any]]) -> None:
    """They are in a worker that is dead."""
    for handle in handles:
        await handle.cancel()
    async with Worker(queue):
        for handle in handles:
            with pytest.raises(TaskCanceled):
                await handle.result(20)


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


@pytest.mark.leaves_keys("workers", "waiting")
async def test_a_fork_of_the_worker_does_not_keep_its_subprocesses(queue: TaskQueue, fleet: Fleet, tmp_path: Path):
    """Its channels are open in the fork as well, unless they are closed there."""
    worker = await fleet.start()
    files = [tmp_path / "pids", tmp_path / "spins", tmp_path / "fork"]
    made = [process_tasks.pids(str(files[0])), process_tasks.spins(str(files[1]))]
    handles = await queue.enqueue_many(made, user_id=USER)
    subprocess_pids = [(await pids_in(file))[0] for file in files[:2]]
    await (await queue.enqueue(process_tasks.forks_the_worker(str(files[2])), user_id=USER)).result(20)
    (fork,) = await pids_in(files[2])
    os.kill(worker.pid, signal.SIGKILL)
    await eventually(lambda: not any(is_running(pid) for pid in subprocess_pids))
    assert is_running(fork)
    os.kill(fork, signal.SIGKILL)
    await worker.wait()
    await cancel_all(queue, handles)


async def test_a_killed_fork_server_takes_its_subprocesses_with_it_and_is_replaced(queue: TaskQueue, tmp_path: Path):
    async with Worker(queue, concurrency=2):
        await (await queue.enqueue(process_tasks.forks(), user_id=USER)).result(20)
        made = [process_tasks.pids(str(tmp_path / "pids")), process_tasks.spins(str(tmp_path / "spins"))]
        handles = await queue.enqueue_many(made, user_id=USER)
        pids = [*await pids_in(tmp_path / "pids"), *await pids_in(tmp_path / "spins")]
        (server,) = fork_servers()
        os.kill(server, signal.SIGKILL)
        for handle in handles:
            with pytest.raises(TaskFailed, match="died: so did the process that had started it"):
                await handle.result(20)
        await eventually(lambda: not any(is_running(pid) for pid in pids))
        assert await (await queue.enqueue(process_tasks.forks(), user_id=USER)).result(20) == "one of two"


async def test_arguments_are_decoded_in_the_subprocess(queue: TaskQueue):
    function = process_tasks.takes_deadly
    made = function(process_tasks.Deadly(0))
    async with Worker(queue, concurrency=1):
        assert await (await queue.enqueue(made, user_id=USER)).result(20) == 0
        with pytest.raises(TaskFailed, match="it exited with code 9"):
            await (await queue.enqueue(with_arguments(made, {"number": 9}), user_id=USER)).result(20)
        for arguments in ([{"number": "nine"}], [], [{"number": 0}, 1]):
            with pytest.raises(TaskFailed, match=f"the arguments of task '{function.name}' do not fit") as failed:
                await (await queue.enqueue(with_arguments(made, *arguments), user_id=USER)).result(20)
            assert failed.value.kind == "bad-arguments"


def with_arguments(made: Task[int], *arguments: object) -> Task[int]:
    """As an older version of its function may have sent them."""
    return Task(made.name, encode_value(arguments), None, made.signature, made.task_options)


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


@pytest.mark.parametrize("file", [None, "<stdin>"])
def test_a_task_that_was_typed_in_cannot_be_found(monkeypatch: pytest.MonkeyPatch, file: str | None):
    monkeypatch.delitem(sys.modules, "__mp_main__", raising=False)  # another test's script
    functions = Functions(Start(sys.argv, sys.path, file, None, {}))
    with pytest.raises(InvalidInput, match="a subprocess cannot read what was typed in: put its tasks into a module"):
        functions.find("__main__", "double", "__main__.double")


async def test_a_subprocess_reports_progress_and_knows_its_task(queue: TaskQueue, tmp_path: Path):
    async with Worker(queue):
        handle = await queue.enqueue(process_tasks.climbs(str(tmp_path / "gate")), user_id=USER)
        await eventually(lambda: tells(queue, handle.task_id, 0.5, "half of it"))
        (tmp_path / "gate").touch()
        assert await handle.result(20) == f"{USER} {handle.task_id} 1"


async def tells(queue: TaskQueue, task_id: str, progress: float | None, message: str) -> bool:
    info = await queue.handle(USER, task_id).info()
    return (info.progress, info.message) == (progress, message)


async def test_a_body_that_a_dying_subprocess_never_began_runs_in_another_one(queue: TaskQueue, tmp_path: Path):
    async with Worker(queue, concurrency=1):
        await (await queue.enqueue(process_tasks.pids(str(tmp_path / "pids"), 0), user_id="before")).result(20)
        pid = (await pids_in(tmp_path / "pids"))[0]
        os.kill(pid, signal.SIGSTOP)  # it dies when its next body has come
        handle = await queue.enqueue(process_tasks.pids(str(tmp_path / "others"), 0), user_id=USER)
        await eventually(lambda: has_state(handle, "started"))
        os.kill(pid, signal.SIGKILL)
        await handle.result(20)
        assert (await handle.info()).attempt == 1


async def has_state(handle: TaskHandle[Any], state: str) -> bool:
    return await handle.state() == state


async def test_an_idle_subprocess_that_was_killed_is_replaced(queue: TaskQueue, tmp_path: Path):
    async with Worker(queue, concurrency=1):
        for _ in range(2):
            await (await queue.enqueue(process_tasks.pids(str(tmp_path / "pids"), 0), user_id=USER)).result(20)
            pid = (await pids_in(tmp_path / "pids"))[0]
            os.kill(pid, signal.SIGKILL)
            await eventually(lambda: not subprocesses())


async def test_a_signal_that_comes_while_the_fork_server_starts_does_not_end_it(
    queue: TaskQueue, monkeypatch: pytest.MonkeyPatch
):
    started: list[int] = []
    spawn = fork_server._spawn

    def spawn_and_signal(descriptor: int):
        popen = spawn(descriptor)
        for signum in fork_server.HELD_SIGNALS:
            popen.send_signal(signum)
        started.append(popen.pid)
        return popen

    monkeypatch.setattr(fork_server, "_spawn", spawn_and_signal)
    async with Worker(queue):
        assert await (await queue.enqueue(process_tasks.forks(), user_id=USER)).result(20) == "one of two"
    assert len(started) == 1


async def test_a_subprocess_is_kept_for_the_next_task_of_any_user(queue: TaskQueue, tmp_path: Path):
    async with Worker(queue, concurrency=1):
        left = process_tasks.leaves(str(tmp_path / "ended"))
        pid, found = await (await queue.enqueue(left, user_id=USER)).result(20)
        assert found == ""
        assert await (await queue.enqueue(left, user_id="bob")).result(20) == [pid, USER]
        assert not (tmp_path / "ended").exists()
    assert (tmp_path / "ended").exists()


async def test_a_subprocess_ends_after_as_many_tasks_as_the_worker_says(queue: TaskQueue, tmp_path: Path):
    async with Worker(queue, concurrency=1, max_tasks_per_child=2):
        left = process_tasks.leaves(str(tmp_path / "ended"))
        found = [await (await queue.enqueue(left, user_id=USER)).result(20) for _ in range(4)]
        assert [text for _, text in found] == ["", USER, "", USER]
        assert len({pid for pid, _ in found}) == 2
        await eventually((tmp_path / "ended").exists)
        await eventually(lambda: not subprocesses())


@pytest.mark.parametrize("seconds", [0, 0.05])
async def test_a_user_whose_tasks_kill_their_subprocesses_takes_one_warm_one_from_the_others(
    queue: TaskQueue, tmp_path: Path, seconds: float
):
    async with Worker(queue, concurrency=1):

        async def victim() -> object:
            left = process_tasks.leaves(str(tmp_path / "ended"))
            return (await (await queue.enqueue(left, user_id="victim")).result(20))[0]

        async def attacker() -> None:
            handle = await queue.enqueue(process_tasks.dies(seconds), user_id="attacker")
            if seconds:
                pid = await handle.result(20)
                await eventually(lambda: pid not in subprocesses())
            else:
                with pytest.raises(TaskFailed, match="it exited with code 7"):
                    await handle.result(20)

        first = await victim()
        await attacker()
        second = await victim()
        assert second != first
        kept = []
        for _ in range(5):
            await attacker()
            kept.append(await victim() == second)
        assert all(kept)


async def test_no_more_subprocesses_are_kept_than_tasks_run_at_once(queue: TaskQueue, tmp_path: Path):
    async with Worker(queue, concurrency=1):
        left = process_tasks.leaves(str(tmp_path / "ended"))
        for user_id in ("bob", "carl", "dora"):
            await (await queue.enqueue(left, user_id=USER)).result(20)
            with pytest.raises(TaskFailed):
                await (await queue.enqueue(process_tasks.dies(0), user_id=user_id)).result(20)
        await (await queue.enqueue(left, user_id=USER)).result(20)
        for user_id in ("bob", "carl", "dora"):  # each of them owes one
            await (await queue.enqueue(left, user_id=user_id)).result(20)
        await eventually(lambda: len(subprocesses()) == 1)


async def test_what_a_thread_reports_after_its_task_is_not_shown_for_the_next(queue: TaskQueue, tmp_path: Path):
    gate = tmp_path / "gate"
    async with Worker(queue, concurrency=1):
        await (await queue.enqueue(process_tasks.leaves_a_reporter(str(gate)), user_id=USER)).result(20)
        handle = await queue.enqueue(process_tasks.climbs(str(gate)), user_id=USER)
        await eventually(lambda: tells(queue, handle.task_id, 0.5, "half of it"))
        for _ in range(10):
            assert await tells(queue, handle.task_id, 0.5, "half of it")
            await asyncio.sleep(0.05)
        gate.touch()
        await handle.result(20)
