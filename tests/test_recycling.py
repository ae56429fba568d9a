"""Worker processes that are replaced, that end when nothing is left, and that start anew when files change."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from fairque import InvalidInput, TaskQueue, TaskState, Worker
from fairque.cli.imports import project_of
from fairque.config.config import WorkerConfig
from fairque.config.size import parse_size
from fairque.errors import ConfigError
from fairque.scheduler.scheduler import TaskScheduler
from fairque.tasks.registry import registry
from fairque.worker.changes import Changes
from fairque.worker.recycling import Recycling, memory_used
from tests.apps import made, served
from tests.support.command import call_command
from tests.support.eventually import eventually
from tests.support.process import ROOT, WorkerProcess
from tests.support.processes import is_running
from tests.support.servers import Server

Start = Callable[..., Awaitable[WorkerProcess]]
TARGET = "tests.apps.served:queue"


@pytest.fixture
async def queue(server: Server, queue_name: str) -> AsyncIterator[TaskQueue]:
    async with TaskQueue(server.url, name=queue_name, lease=1.0) as queue:
        yield queue


@pytest.fixture
async def start(worker_process: Start, server: Server, queue_name: str) -> Start:
    async def start(*command: str, directory: Path = ROOT, **env: str) -> WorkerProcess:
        given = {"SERVED_URL": server.url, "SERVED_QUEUE": queue_name, **env}
        return await worker_process(*command, env=given, directory=directory)

    return start


def pids(process: WorkerProcess) -> list[int]:
    """Of the workers that it has started, in order."""
    return [int(line.rpartition(" ")[2]) for line in process.lines if " started, pid " in line]


def pids_that_serve(process: WorkerProcess) -> list[int]:
    return [int(re.findall(r"\[(\d+)\]", line)[0]) for line in process.lines if "serves queue" in line]


async def ended(process: WorkerProcess) -> str:
    process.send(signal.SIGTERM)
    assert await process.wait() == 0, process.output
    assert not any(map(is_running, pids(process)))
    return process.output


async def pid_of_a_run(queue: TaskQueue) -> int:
    _, pid = await (await queue.enqueue(served.whereabouts(), user_id="acme")).result(timeout=30)
    return pid


# Replaced


@pytest.mark.smoke
async def test_a_process_that_has_run_enough_is_replaced_and_lets_its_last_task_end(
    start: Start, queue: TaskQueue, tmp_path: Path
) -> None:
    process = await start("fairque", "worker", TARGET, "--max-tasks=3", "--shutdown-timeout=0.1")
    long = await queue.enqueue(served.hold(f"{tmp_path}/go"), user_id="zoe", task_id="long")
    await process.line("runs long")
    [first] = pids(process)
    assert [await pid_of_a_run(queue) for _ in range(3)] == [first] * 3
    await process.line("retires: 1 task runs, at most 3600 s for them")
    second = pids(process)[1]
    assert await pid_of_a_run(queue) == second
    assert is_running(first), "its task outlasts the shutdown timeout, and nobody waits for its slots"
    (tmp_path / "go").touch()
    assert await long.result(timeout=20) == "let go"
    assert (await long.info()).attempt == 1
    await process.line("has retired with code 0")
    assert not is_running(first)
    assert len(pids(process)) == 2
    await ended(process)


async def test_processes_are_replaced_one_after_the_other(start: Start, queue: TaskQueue) -> None:
    process = await start("fairque", "worker", TARGET, "--processes=3", "--max-tasks=1", "--concurrency=1")
    await eventually(lambda: len(pids_that_serve(process)) == 3, 30)
    running = [await queue.enqueue(served.nap(1.5), user_id=f"user-{n}", task_id=f"n{n}") for n in range(3)]
    for handle in running:
        assert await handle.result(timeout=30) == "rested"
    most = 0
    async with asyncio.timeout(60):
        while len(pids(process)) < 6 or process.output.count("has retired") < 3:
            most = max(most, sum(map(is_running, pids(process))))
            await asyncio.sleep(0.01)
    assert most == 4
    told = [line for line in process.lines if " is replaced" in line or " has retired" in line]
    assert [" is replaced" in line for line in told] == [True, False] * 3, "the next one when that has retired"
    await ended(process)


async def test_a_process_that_takes_too_much_memory_is_replaced(start: Start, queue: TaskQueue) -> None:
    process = await start("fairque", "worker", "tests.apps.made:worker", "--max-memory=400M")
    first = await (await queue.enqueue(made.swell(10), user_id="acme")).result(timeout=30)
    assert await (await queue.enqueue(made.swell(500), user_id="acme")).result(timeout=30) == first
    await process.line("has retired with code 0")
    second = await (await queue.enqueue(made.swell(1), user_id="acme")).result(timeout=30)
    assert [first, second] == pids(process)
    assert process.output.count("closed") == 1
    await ended(process)


async def test_who_begins_with_more_memory_than_it_may_have_says_so(start: Start) -> None:
    process = await start("fairque", "worker", TARGET, "--max-memory=1M")
    assert await process.wait() == 2, process.output
    assert "max_memory is 1,048,576 bytes, and this process begins with " in process.output
    assert len(pids(process)) == 1


@pytest.mark.leaves_keys("workers", "waiting")
async def test_a_process_that_cannot_be_replaced_goes_on(start: Start, queue: TaskQueue, tmp_path: Path) -> None:
    module = tmp_path / "shop_that_breaks.py"
    module.write_text("from tests.apps.served import *\n")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", ""), str(Path(__file__).parents[1])])
    process = await start("fairque", "worker", "shop_that_breaks:queue", "--max-tasks=1", PYTHONPATH=path)
    await process.line("serves queue")
    module.write_text("1 / 0\n")
    first = await pid_of_a_run(queue)
    await process.line("cannot be replaced, and goes on: the other one ended with code 2")
    assert await pid_of_a_run(queue) == first
    os.kill(first, signal.SIGKILL)
    assert await process.wait() == 2, process.output


async def test_a_stop_drains_one_that_retires_as_well(start: Start, queue: TaskQueue) -> None:
    process = await start("fairque", "worker", TARGET, "--max-tasks=1", "--shutdown-timeout=0.1")
    long = await queue.enqueue(served.nap(600), user_id="zoe", task_id="long")
    await process.line("runs long")
    await pid_of_a_run(queue)
    await process.line("retires: 1 task runs")
    await ended(process)
    assert await long.state() == TaskState.QUEUED
    await long.cancel()


async def test_those_that_retire_end_with_a_parent_that_is_killed(start: Start, queue: TaskQueue) -> None:
    process = await start("fairque", "worker", TARGET, "--max-tasks=1", "--shutdown-timeout=0.1")
    long = await queue.enqueue(served.nap(600), user_id="zoe", task_id="long")
    await process.line("runs long")
    await pid_of_a_run(queue)
    await process.line("retires: 1 task runs")
    os.kill(process.pid, signal.SIGKILL)
    await eventually(lambda: not any(map(is_running, pids(process))), 30)
    assert await long.state() == TaskState.QUEUED
    await long.cancel()


async def test_a_program_of_its_own_is_replaced_as_well(start: Start, queue: TaskQueue) -> None:
    process = await start("tests/workers/serving.py", '{"max_tasks": 2}', "{}")
    first = [await pid_of_a_run(queue) for _ in range(2)]
    await process.line("has retired with code 0")
    assert await pid_of_a_run(queue) not in first
    await ended(process)


async def test_a_worker_retires_when_its_last_task_has_ended(queue: TaskQueue) -> None:
    worker = Worker(queue)
    async with worker:
        handle = await queue.enqueue(served.nap(0.5), user_id="acme")
        await eventually(lambda: is_started(queue, handle.task_id))
        worker.retire()
        waiting = await queue.enqueue(served.nap(0), user_id="acme")
        assert await handle.result(timeout=20) == "rested"
        assert await waiting.state() == TaskState.QUEUED
    await waiting.cancel()


async def is_started(queue: TaskQueue, task_id: str) -> bool:
    return await queue.handle("acme", task_id).state() == TaskState.STARTED


def test_what_counts_as_a_run_is_told_by_hooks_which_stay() -> None:
    told: list[Any] = []
    hooks = {"success": told.append, "failure": None, "retry": None, "cancel": None, "lost": None}
    recycling = Recycling(3, None)
    counted = recycling.counted(hooks)
    for event in ("success", "failure", "retry"):
        assert not recycling._has_run_enough.is_set()
        counted[event](event)  # type: ignore[misc, arg-type]
    assert recycling._has_run_enough.is_set()
    assert told == ["success"]
    assert counted["lost"] is None
    assert Recycling(None, "1G").counted(hooks) == hooks


# Sizes


@pytest.mark.parametrize(
    ("text", "size"),
    [("1", 1), ("1000", 1000), ("512M", 512 << 20), ("2g", 2 << 30), ("1KiB", 1024), ("1 ", 1), ("3TB", 3 << 40)],
)
def test_sizes_are_read_as_people_write_them(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "M", "-1", "1.5G", "1X", "1 M", "9" * 16])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="a size is bytes, as a number or like '512M' and '2G', not"):
        parse_size(text)
    if text:
        with pytest.raises(ConfigError, match="max_memory: a size is bytes"):
            WorkerConfig(max_memory=text)


def test_the_memory_of_a_process_is_what_it_has_now() -> None:
    before = memory_used()
    held = bytearray(b"x") * (64 << 20)
    assert memory_used() - before > 32 << 20
    del held


# Until nothing is left


@pytest.mark.parametrize("processes", [1, 2])
async def test_a_burst_ends_when_nothing_is_left_that_may_run_now(
    start: Start, queue: TaskQueue, processes: int
) -> None:
    done = [await queue.enqueue(served.greet(f"{n}"), user_id=f"user-{n}") for n in range(20)]
    later = await queue.enqueue(served.greet("later"), user_id="acme", delay=600)
    process = await start("fairque", "worker", TARGET, "--burst", f"--processes={processes}")
    assert await process.wait() == 0, process.output
    assert [await handle.result(timeout=0) for handle in done] == [f"hello {n}" for n in range(20)]
    assert await later.state() == TaskState.SCHEDULED
    assert "Traceback" not in process.output
    await later.cancel()


async def test_a_burst_serves_what_schedules_have_due(start: Start, queue: TaskQueue) -> None:
    scheduler = TaskScheduler(queue)
    soon = datetime.now(UTC) + timedelta(seconds=1)
    schedule_id = await scheduler.add_schedule(task=served.greet("ann"), at=soon, user_id="acme")
    await eventually(lambda: datetime.now(UTC) > soon)
    process = await start("tests/workers/serving.py", '{"burst": true}', "{}")
    assert await process.wait() == 0, process.output
    assert (await queue.stats()).finished == 1
    await scheduler.remove_schedule(schedule_id)


async def test_a_burst_that_is_told_to_stop_drains(start: Start, queue: TaskQueue) -> None:
    running = await queue.enqueue(served.nap(1), user_id="acme", task_id="t1")
    process = await start("fairque", "worker", TARGET, "--burst", "--concurrency=1")
    await process.line("runs t1")
    waiting = await queue.enqueue(served.greet("later"), user_id="acme")
    process.send(signal.SIGTERM)
    assert await process.wait() == 0, process.output
    assert await running.result(timeout=0) == "rested"
    assert await waiting.state() == TaskState.QUEUED
    await waiting.cancel()


# Files that change


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Path]:
    pytest.importorskip("watchfiles")
    before = dict(registry)
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "__init__.py").touch()
    yield tmp_path
    registry.clear()
    registry.update(before)


def write(project: Path, answer: str) -> None:
    (project / "shop" / "work.py").write_text(f"""
from fairque import task
from tests.apps.served import nap, queue

@task(name="ask")
async def ask() -> str:
    return {answer}
""")


async def answer_of(queue: TaskQueue, deadline: float = 30) -> Any:
    from fairque import Task

    return await (await queue.enqueue(Task.create(name="ask"), user_id="acme")).result(timeout=deadline)


async def test_a_worker_starts_anew_when_a_file_of_its_project_changes(
    start: Start, queue: TaskQueue, project: Path
) -> None:
    write(project, "'first'")
    path = os.pathsep.join([str(project), os.environ.get("PYTHONPATH", ""), str(Path(__file__).parents[1])])
    process = await start(
        "fairque", "worker", "shop.work:queue", "--reload", "--processes=2", directory=project, PYTHONPATH=path
    )
    await eventually(lambda: len(pids_that_serve(process)) == 2, 30)
    long = await queue.enqueue(served.nap(600), user_id="zoe", task_id="long")
    await process.line("runs long")
    first = pids(process)
    (project / "shop" / "notes.txt").write_text("no Python")
    write(project, "'second'")
    await process.line("work.py changed: starting anew")
    await eventually(lambda: len(pids_that_serve(process)) == 4, 30)
    assert not any(map(is_running, first))
    assert Counter(map(is_running, pids(process))) == {True: 2, False: 2}
    await eventually(lambda: process.output.count("runs long") == 2, 30)
    assert (await long.info()).attempt == 1, "it was put back"
    write(project, "1 /")
    await process.line("ended with code 2, next start when files change")
    write(project, "'third'")
    await eventually(lambda: len(pids_that_serve(process)) == 6, 30)
    await long.cancel()
    await ended(process)


async def test_a_program_starts_anew_when_a_file_beside_it_changes(
    start: Start, queue: TaskQueue, project: Path
) -> None:
    program = project / "serve.py"
    text = (
        "import asyncio\nfrom fairque import Worker\nfrom tests.apps.served import queue\n"
        "if __name__ == '__main__':\n    print('VERSION', flush=True)\n"
        "    asyncio.run(Worker(queue()).serve(reload=True))\n"
    )
    program.write_text(text.replace("VERSION", "one"))
    process = await start(str(program), directory=project)
    await process.line("serves queue")
    program.write_text(text.replace("VERSION", "two"))
    await process.line("two")
    await eventually(lambda: len(pids_that_serve(process)) == 2, 30)
    assert (await queue.stats()).queued == 0
    await ended(process)


async def test_changes_are_seen_in_every_directory_once_and_not_in_those_of_tools(project: Path) -> None:
    stop, seen = asyncio.Event(), list[str]()
    for name in (".venv", "site-packages", "own"):
        (project / name).mkdir()

    async def watch() -> None:
        async for files in Changes([project, project / "own"]).seen(stop):
            seen.append(files)

    async def until_seen() -> bool:
        for name in (".venv/a.py", "site-packages/b.py", "own/c.py", "own/d.txt"):
            (project / name).write_text("")
        return bool(seen)

    watching = asyncio.create_task(watch())
    await eventually(until_seen, 20)
    stop.set()
    await asyncio.wait_for(watching, 20)
    assert set(seen) == {"c.py changed"}


async def first_seen(changes: Changes) -> str:
    stop = asyncio.Event()
    async with asyncio.timeout(20), contextlib.aclosing(changes.seen(stop)) as seen:
        async for files in seen:
            return files
    return ""


async def test_what_changed_before_the_directories_are_watched_is_seen(project: Path) -> None:
    write(project, "'first'")
    changes = Changes([project])
    write(project, "'a second one'")
    assert await first_seen(changes) == "work.py changed"


async def test_directories_that_come_later_are_watched_as_well(project: Path) -> None:
    stop, seen = asyncio.Event(), list[str]()
    changes = Changes([project])

    async def watch() -> None:
        async for files in changes.seen(stop):
            seen.append(files)

    watching = asyncio.create_task(watch())
    for name in ("later", "later/still"):
        (project / name).mkdir()
        await eventually(lambda name=name: str(project / name) in changes.tree.directories, 20)
    (project / "later" / "still" / "new.py").write_text("")
    await eventually(lambda: bool(seen), 20)
    shutil.rmtree(project / "later")
    await eventually(lambda: len(seen) == 2, 20)
    (project / "shop" / "more.py").write_text("")
    await eventually(lambda: len(seen) == 3, 20)
    stop.set()
    await asyncio.wait_for(watching, 20)
    assert seen == ["new.py changed", "new.py changed", "more.py changed"]


def test_a_large_tree_of_tools_is_not_looked_at(project: Path) -> None:
    for number in range(300):
        for tool in (".nox/tests/lib", "env/lib", "web/node_modules"):
            (project / tool / f"package{number}").mkdir(parents=True)
            (project / tool / f"package{number}" / "module.py").touch()
    (project / "env" / "pyvenv.cfg").touch()
    (project / "loop").symlink_to(project)
    tree = Changes([project]).tree
    assert tree.directories == (str(project), str(project / "shop"), str(project / "web"))
    assert {Path(path).name for path in tree.stamps} <= {"__init__.py", "work.py"}


def test_a_project_is_the_current_directory_and_that_of_the_package(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(project))
    (project / "single.py").touch()
    here = Path.cwd()
    assert project_of("shop.work:queue")[0] == here
    assert project / "shop" in project_of("shop.work:queue")
    assert project_of("single:queue") == [here, project]
    assert project_of("nowhere:queue") == [here]


# Refusals


@pytest.mark.parametrize(
    ("how", "text"),
    [
        ({"max_tasks": 0}, "max_tasks must be a whole number from 1"),
        ({"max_memory": "much"}, "a size is bytes"),
        ({"burst": True, "reload": True}, "burst ends when nothing is left to do, and reload waits for changes"),
    ],
)
async def test_what_cannot_be_served_is_refused(how: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidInput, match=text):
        await Worker(TaskQueue("redis://localhost:1")).serve(**how, log_level=None)


async def test_one_that_is_replaced_cannot_have_a_name_of_its_own() -> None:
    with pytest.raises(InvalidInput, match="several processes would all be worker 'w1'"):
        await Worker(TaskQueue("redis://localhost:1"), worker_id="w1").serve(max_tasks=1, log_level=None)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["--max-memory=much"], "max_memory: a size is bytes"),
        (["--max-tasks=0"], "--max-tasks"),
        (["--burst", "--reload"], "--burst ends when nothing is left to do, and --reload waits for changes"),
        (["--config=config/fairque.yaml", "--max-tasks=1"], "only --processes and --http"),
    ],
)
async def test_options_that_contradict_are_refused(options: list[str], error: str) -> None:
    env = {"SERVED_URL": "redis://localhost:1", "SERVED_QUEUE": "q"}
    stopped = await call_command("worker", TARGET, *options, env=env)
    assert stopped.code == 2
    assert error in stopped.error[0]
