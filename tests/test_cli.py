"""The command line, as real processes."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import pty
import re
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from _fairque_command import REPEATED_SECONDS
from fairque import Failure, FailureKind, TaskEvent, TaskFunction, TaskQueue, TaskState
from fairque.cli.demo.load import FLOOD, Load
from fairque.cli.demo.results import DemoResults, Sample
from fairque.cli.errors import CommandError
from fairque.cli.imports import load_queue, load_task
from fairque.worker.json_lines import JsonLines
from fairque.worker.logs import logged
from tests.apps.served import block, doze, greet, keep_interpreter, nap, speak, stumble, whereabouts
from tests.support.command import call_command, run_command
from tests.support.eventually import eventually
from tests.support.process import ROOT, WorkerProcess
from tests.support.processes import is_running, marked, new_mark
from tests.support.servers import Server

TARGET = "tests.apps.served:queue"
SLOW = "tests.apps.slow_to_load:queue"
SMALL_DEMO = ("demo", "--flood=300", "--users=2", "--tasks=3", "--workers=1", "--seconds=0.02")
STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
NOWHERE = {"SERVED_URL": "redis://localhost:1", "SERVED_QUEUE": "q", "SERVED_TIMEOUT": "0.1"}
Start = Callable[..., Awaitable[WorkerProcess]]
Serve = Callable[..., Awaitable[WorkerProcess]]


@pytest.fixture
async def queue(server: Server, queue_name: str) -> AsyncIterator[TaskQueue]:
    """With the settings of the queue in `TARGET`: whichever process comes first stores its own."""
    async with TaskQueue(server.url, name=queue_name, lease=1.0) as queue:
        yield queue


@pytest.fixture
async def serve(worker_process: Start, server: Server, queue_name: str) -> AsyncIterator[Serve]:
    """Start ``fairque worker`` on the queue of the test; returns when it serves. Drains it at the end."""
    started: list[WorkerProcess] = []

    async def start(*options: str, sign: str | None = "serves queue") -> WorkerProcess:
        env = {"SERVED_URL": server.url, "SERVED_QUEUE": queue_name}
        process = await worker_process("fairque", "worker", TARGET, *options, env=env)
        started.append(process)
        if sign is not None:
            await process.line(sign)
        return process

    yield start
    for process in started:
        if process.returncode is None:
            process.send(signal.SIGTERM)
            assert await process.wait() == 0, process.output


# The worker


@pytest.mark.parametrize(("options", "loop"), [((), "uvloop"), (("--no-uvloop",), "asyncio")])
async def test_a_worker_serves_the_queue_that_a_function_returns_on_uvloop_unless_told_not_to(
    serve: Serve, queue: TaskQueue, options: tuple[str, ...], loop: str
) -> None:
    pytest.importorskip("uvloop")
    process = await serve(*options)
    assert (await process.line("serves queue")).endswith(f"on {loop}")
    handle = await queue.enqueue(greet("ann"), user_id="acme")
    assert await handle.result(timeout=20) == "hello ann"


async def test_the_log_says_how_tasks_ended_without_arguments_and_results(serve: Serve, queue: TaskQueue) -> None:
    process = await serve()
    await queue.enqueue(greet("Rumpelstiltskin"), user_id="acme", task_id="a b\nc")
    await queue.enqueue(stumble("Rumpelstiltskin"), user_id="acme", task_id="t2")
    finished = await process.line("finished")
    assert re.search(r"user=acme id='a b\\nc' name=tests.apps.served.greet attempt=1 run=0\.\d{3}s$", finished)
    retried, failed = await process.line("retried"), await process.line("failed")
    assert re.search(r"id=t2 name=tests.apps.served.stumble attempt=1 .*kind=error error=Retry at served.py:", retried)
    assert re.search(r"id=t2 name=tests.apps.served.stumble attempt=2 .*error=ValueError at served.py:\d+$", failed)
    assert "Rumpelstiltskin" not in process.output


async def test_lines_of_a_log_are_json_with_fields_where_that_is_asked_for(serve: Serve, queue: TaskQueue) -> None:
    process = await serve("--log-json", "--processes=2")
    await (await queue.enqueue(greet("ann"), user_id="acme", task_id="a\nb")).result(timeout=20)
    line = json.loads(await process.line('"finished '))
    told = {name: line[name] for name in ("level", "logger", "user_id", "task_id", "task_name", "attempt")}
    assert told == {
        "level": "info", "logger": "fairque.tasks",
        "user_id": "acme", "task_id": "a\nb", "task_name": "tests.apps.served.greet", "attempt": 1,
    }  # fmt: skip
    assert line["run_seconds"] < 20
    assert datetime.fromisoformat(line["time"]).utcoffset() == timedelta()
    assert all(json.loads(each)["message"] for each in process.lines)


def test_a_line_of_json_holds_whatever_a_record_has() -> None:
    try:
        raise ValueError("two\nlines")
    except ValueError:
        error = sys.exc_info()
    record = logging.LogRecord("shop", logging.ERROR, "shop.py", 7, "paid %s", ("\ud800\x1b",), error)
    record.card, record.message, record.time = object(), "mine", "mine"  # type: ignore[attr-defined]
    text = JsonLines().format(record)
    assert text.isprintable()
    line = json.loads(text)
    assert (line["message"], line["level"], line["logger"]) == ("paid \ud800\x1b", "error", "shop")
    assert line["card"].startswith("<object object")
    assert line["time"] != "mine"
    assert line["exception"].endswith("ValueError: two\nlines")


async def test_a_quiet_log_level_leaves_out_what_finished(serve: Serve, queue: TaskQueue) -> None:
    process = await serve("--log-level=Warning", sign=None)
    await eventually(lambda: has_a_worker(queue))
    await queue.enqueue(stumble("x"), user_id="acme")
    await (await queue.enqueue(greet("x"), user_id="acme")).result(timeout=20)
    await process.line("retried")
    await process.line("failed")
    assert "finished" not in process.output
    assert "serves" not in process.output


async def has_a_worker(queue: TaskQueue) -> bool:
    return bool((await queue.stats()).workers)


async def test_an_assigned_worker_serves_others_only_as_steal_targets(serve: Serve, queue: TaskQueue) -> None:
    await serve("--assigned-user=ann", "--steal-target=bob")
    served = [await queue.enqueue(greet(user), user_id=user) for user in ("ann", "bob")]
    other = await queue.enqueue(greet("cid"), user_id="cid")
    assert [await handle.result(timeout=20) for handle in served] == ["hello ann", "hello bob"]
    assert await other.state() == TaskState.QUEUED
    await serve()
    assert await other.result(timeout=20) == "hello cid"


@pytest.mark.parametrize("signum", STOPS)
async def test_a_signal_drains_a_worker(serve: Serve, queue: TaskQueue, signum: signal.Signals) -> None:
    process = await serve("--concurrency=1")
    running = await queue.enqueue(nap(1), user_id="acme")
    await process.line(f"runs {running.task_id}")
    waiting = await queue.enqueue(greet("later"), user_id="acme")
    process.send(signum)
    assert await process.wait() == 0, process.output
    assert await running.result(timeout=0) == "rested"
    assert await waiting.state() == TaskState.QUEUED
    await serve()
    assert await waiting.result(timeout=20) == "hello later"


@pytest.mark.parametrize("signum", STOPS)
@pytest.mark.parametrize("moment", ["msgspec._core", "redis.asyncio", "fairque.cli.app"])
async def test_a_service_that_is_told_to_stop_while_it_loads_ends_like_one_that_has_drained(
    worker_process: Start, moment: str, signum: signal.Signals
) -> None:
    env = {**NOWHERE, "PYTHONPROFILEIMPORTTIME": "1"}  # a line for each module that was imported
    process = await worker_process("fairque", "worker", TARGET, "--processes=2", env=env)
    await eventually(lambda: any(line.endswith(f" {moment}") for line in process.lines))
    process.send(signum)
    assert await process.wait(deadline=10) == 0, process.output
    assert not [line for line in process.lines if not line.startswith("import time:")]


@pytest.mark.parametrize("service", [("worker", SLOW), ("scheduler", SLOW)])
async def test_a_service_that_is_told_to_stop_runs_no_more_of_a_module_that_loads(
    worker_process: Start, service: tuple[str, ...]
) -> None:
    """Not with an exception either, which the module may swallow, or an extension module crash of."""
    process = await worker_process("fairque", *service, env=NOWHERE)
    await process.line("loading")
    process.send(signal.SIGTERM)
    assert await process.wait(deadline=10) == 0, process.output
    assert process.lines == ["loading"]


async def test_who_ignores_the_end_of_the_terminal_goes_on_after_it(serve: Serve, queue: TaskQueue) -> None:
    """As with nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # inherited
    try:
        process = await serve(sign=None)
    finally:
        signal.signal(signal.SIGHUP, before)
    await process.line("serves queue")
    process.send(signal.SIGHUP)
    assert await (await queue.enqueue(greet("ann"), user_id="acme")).result(timeout=20) == "hello ann"
    assert "SIGHUP" not in process.output


@pytest.mark.parametrize("processes", [1, 2])
async def test_a_task_that_prints_can_end_after_the_terminal_has(
    server: Server, queue: TaskQueue, processes: int
) -> None:
    terminal, end = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "fairque", "worker", TARGET, f"--processes={processes}"),
        cwd=ROOT,
        stdout=end,
        stderr=end,
        env={**os.environ, "SERVED_URL": server.url, "SERVED_QUEUE": queue.name},
        start_new_session=True,
    )
    os.close(end)
    try:
        handle = await queue.enqueue(speak(1), user_id="acme")
        await eventually(lambda: is_in(handle.state(), TaskState.STARTED), deadline=40)
    finally:
        os.close(terminal)
        process.send_signal(signal.SIGHUP)
    assert await asyncio.wait_for(process.wait(), 40) == 0
    assert await handle.result(timeout=0) == "rested"


async def test_what_outlasts_the_shutdown_timeout_is_put_back(serve: Serve, queue: TaskQueue) -> None:
    process = await serve("--shutdown-timeout=0.2")
    handle = await queue.enqueue(nap(3), user_id="acme")
    await process.line(f"runs {handle.task_id}")
    process.send(signal.SIGTERM)
    assert await process.wait() == 0, process.output
    assert await handle.state() == TaskState.QUEUED
    await serve()
    assert await handle.result(timeout=20) == "rested"
    assert (await handle.info()).attempt == 1


@pytest.mark.leaves_keys
async def test_a_thread_that_goes_on_does_not_keep_a_worker_alive(serve: Serve, queue: TaskQueue) -> None:
    process = await serve("--shutdown-timeout=0.2")
    handle = await queue.enqueue(doze(60), user_id="acme")
    await process.line(f"runs {handle.task_id}")
    process.send(signal.SIGTERM)
    assert await process.wait(deadline=15) == 0, process.output
    assert await handle.state() == TaskState.QUEUED


@pytest.mark.leaves_keys
@pytest.mark.parametrize("body", [nap, block])
@pytest.mark.parametrize("loop", ["--uvloop", "--no-uvloop"])
async def test_a_second_signal_leaves_at_once(serve: Serve, queue: TaskQueue, body: Callable, loop: str) -> None:
    process = await serve(loop)
    handle = await queue.enqueue(body(60), user_id="acme")
    await process.line(f"runs {handle.task_id}")
    process.send(signal.SIGTERM)
    await asyncio.sleep(2 * REPEATED_SECONDS)
    process.send(signal.SIGTERM)
    assert await process.wait(deadline=5) == 128 + signal.SIGTERM
    assert process.lines[-1].startswith("second signal: leaving at once")


async def is_in(state: Awaitable[TaskState], wanted: TaskState) -> bool:
    return await state == wanted


# Several processes


async def pids_of(process: WorkerProcess, count: int) -> list[int]:
    """The worker processes that it has started, once there are so many that serve."""

    def found() -> list[int]:
        lines = [line for line in process.lines if "serves queue" in line]
        pids = [int(re.findall(r"\[(\d+)\]", line)[0]) for line in lines]
        return pids if len(pids) >= count else []

    return list(await eventually(found, deadline=30))


@pytest.mark.leaves_keys("workers", "waiting")
async def test_a_killed_worker_process_is_started_anew(serve: Serve, queue: TaskQueue) -> None:
    process = await serve("--processes=2")
    first, second = await pids_of(process, 2)
    os.kill(first, signal.SIGKILL)
    await process.line("ended with code -9, next start in 0.5 s")
    *_, third = await pids_of(process, 3)
    os.kill(second, signal.SIGTERM)
    await eventually(lambda: not is_running(second))
    assert (await (await queue.enqueue(whereabouts(), user_id="acme")).result(timeout=20))[1] == third
    process.send(signal.SIGTERM)
    assert await process.wait() == 0, process.output
    assert not is_running(third)
    assert len([line for line in process.lines if " started, pid" in line]) == 3


@pytest.mark.leaves_keys
@pytest.mark.parametrize("stuck", [block, keep_interpreter])
async def test_a_worker_process_in_which_a_task_lets_nothing_else_run_ends_and_is_started_anew(
    worker_process: Start, server: Server, queue: TaskQueue, tmp_path: Path, stuck: TaskFunction[[float], Any]
) -> None:
    (tmp_path / "fairque.toml").write_text(f"""
        [redis]
        url = "{server.url}"
        [queue]
        name = "{queue.name}"
        lease = 1
        [[workers]]
        stall_timeout = 1
        processes = 2
        """)
    process = await worker_process(
        "fairque", "worker", "tests.apps.served", f"--config={tmp_path}/fairque.toml", "--no-uvloop"
    )
    await pids_of(process, 2)
    handle = await queue.enqueue(stuck(600), user_id="acme")
    await process.line(f"runs {handle.task_id}")
    await process.line("ended with code 1, next start in 0.5 s")
    assert f" in {stuck.name.rpartition('.')[2]}" in process.output, "where it stood"
    await pids_of(process, 3)


async def test_a_signal_drains_every_process(serve: Serve, queue: TaskQueue) -> None:
    process = await serve("--processes=2", "--concurrency=1")
    pids = await pids_of(process, 2)
    handles = [await queue.enqueue(nap(1), user_id="acme") for _ in pids]
    for handle in handles:
        await process.line(f"runs {handle.task_id}")
    process.send(signal.SIGINT)
    assert await process.wait() == 0, process.output
    assert [await handle.result(timeout=0) for handle in handles] == ["rested", "rested"]
    assert not any(map(is_running, pids))


async def test_a_signal_to_every_process_at_once_is_one_request(serve: Serve, queue: TaskQueue) -> None:
    process = await serve("--processes=2", "--concurrency=1")
    handles = [await queue.enqueue(nap(1), user_id="acme") for _ in range(2)]
    for pid in [process.pid, *await pids_of(process, 2), process.pid]:
        os.kill(pid, signal.SIGTERM)
    assert await process.wait() == 0, process.output
    assert "second signal:" not in process.output
    await serve()
    assert [await handle.result(timeout=20) for handle in handles] == ["rested", "rested"]


@pytest.mark.leaves_keys
async def test_a_second_signal_ends_every_process_at_once(serve: Serve, queue: TaskQueue) -> None:
    process = await serve("--processes=2", "--concurrency=1")
    pids = await pids_of(process, 2)
    handle = await queue.enqueue(nap(60), user_id="acme")
    await process.line(f"runs {handle.task_id}")
    process.send(signal.SIGTERM)
    await process.line("SIGTERM: stopping, a second")
    await asyncio.sleep(2 * REPEATED_SECONDS)
    process.send(signal.SIGTERM)
    assert await process.wait(deadline=5) == 128 + signal.SIGTERM
    assert not any(map(is_running, pids))


async def test_worker_processes_end_when_their_parent_is_killed(serve: Serve, queue: TaskQueue) -> None:
    process = await serve("--processes=2")
    pids = await pids_of(process, 2)
    handle = await queue.enqueue(nap(1), user_id="acme")
    await process.line(f"runs {handle.task_id}")
    os.kill(process.pid, signal.SIGKILL)
    assert await handle.result(timeout=20) == "rested"
    await eventually(lambda: not any(map(is_running, pids)))


# Errors


@pytest.mark.parametrize(
    ("arguments", "code", "error", "hint"),
    [
        (["worker", "nowhere:queue"], 2, "there is no module 'nowhere'", "looked in"),
        (["worker", "tests.apps.nowhere:queue"], 2, "there is no module 'tests.apps.nowhere'", "looked in"),
        (["worker", "tests.apps.served"], 2, "does not name a queue", "such as tests.apps.served:queue"),
        (["worker", "tests/apps/served.py:queue"], 2, "is a file", "module:name"),
        (["worker", "tests.apps.served:qeue"], 2, "there is no 'qeue' in tests.apps.served", "did you mean 'queue'?"),
        (["worker", "tests.apps.served:nothing"], 2, "is None, not a queue", "served:private_queue?"),
        (["worker", "tests.apps.served:greet"], 2, "is a task, not a queue", "mean tests.apps.served:private_queue?"),
        (
            ["worker", "tests.apps.served:broken_queue"],
            2,
            "failed: RuntimeError: no settings (served.py, line",
            "called",
        ),
        (["worker", "tests.apps.served:private_queue"], 2, "embedded:// is a server for one process", "embedded:///"),
        (["worker", TARGET, "--concurrency=0"], 2, "--concurrency", "fairque worker --help"),
        (["worker", TARGET, "--concurrency=10001"], 2, "--concurrency", "fairque worker --help"),
        (["worker", TARGET, "--assigned-user="], 2, "must not be empty", "value"),
        (["worker", TARGET, "--steal-target=ann"], 2, "none is assigned", "--assigned-user"),
        (["worker", TARGET, "--processes=2", "--assigned-user="], 2, "must not be empty", "value"),
        (["worker"], 2, "Missing argument", "fairque worker --help"),
        (["wrker"], 2, "No such command 'wrker'", "--help"),
        (["demo", "--users=0"], 2, "--users", "fairque demo --help"),
    ],
)
async def test_an_error_is_one_line_and_a_hint(arguments: list[str], code: int, error: str, hint: str) -> None:
    ended = await call_command(*arguments, env=NOWHERE)
    assert (ended.code, ended.out) == (code, "")
    assert error in ended.error[0]
    assert hint in ended.error[1]


@pytest.mark.parametrize("processes", [1, 2])
async def test_a_worker_that_cannot_reach_redis_says_so_in_one_line_and_a_hint(processes: int) -> None:
    ended = await run_command("worker", TARGET, f"--processes={processes}", env=NOWHERE)
    assert (ended.code, ended.out) == (1, "")
    assert "Redis at redis://localhost:1 is not available" in ended.error[0]
    assert "start that server" in ended.error[1]


def test_a_target_is_found_in_the_current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shop_tasks.py").write_text(
        "from fairque import TaskQueue\nclass settings:\n    q = TaskQueue(name='s')"
    )
    (tmp_path / "torn.py").write_text("\n\nimport shop_tasks\n1 / 0")
    (tmp_path / "needy.py").write_text("import nowhere_to_be_found")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert load_queue("shop_tasks:settings.q").name == "s"
    with pytest.raises(CommandError, match=r"importing 'torn' failed: ZeroDivisionError: .* \(torn.py, line 4\)"):
        load_queue("torn:queue")
    with pytest.raises(CommandError, match=r"importing 'needy' failed: .*nowhere_to_be_found"):
        load_queue("needy:queue")
    for load, example in ((load_queue, "myapp.tasks:queue"), (load_task, "myapp.tasks:resize")):
        with pytest.raises(CommandError, match="'shop_tasks:settings' is a ") as wrong:
            load("shop_tasks:settings")
        assert example in wrong.value.hint


FAILED = TaskEvent(
    *("zoë", "", "a.work", 2, 0.25),
    Failure(
        FailureKind.ERROR,
        "KeyError",
        "card 42",
        'Traceback (most recent call last):\n  File "/srv/app/a.py", line 7, in work\n'
        '    pay(card)\nKeyError: "card 42"\n'
        "\nDuring handling of the above exception, another exception occurred:\n\n"
        '  + Exception Group Traceback (most recent call last):\n  |   File "/srv/app/b.py", line 8, in pay\x1b\n'
        "  | ExceptionGroup: card 42 (1 sub-exception)\n2030-01-01 INFO finished card 42",
    ),
)
TOLD = "user=zoë id='' name=a.work attempt=2 run=0.250s"


def log(*events: str) -> None:
    """As a worker does that is served by the command."""
    hooks = logged({"success": None, "retry": None, "failure": None})
    for event in events:
        hook = hooks[event]
        assert hook is not None
        hook(FAILED)


def test_a_failure_is_logged_with_its_frames_but_not_its_text(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="fairque.tasks")
    log("failure")
    [message] = caplog.messages
    assert message.splitlines() == [
        f"failed {TOLD} kind=error error=KeyError at b.py:8",
        '    File "/srv/app/a.py", line 7, in work',
        """    'File "/srv/app/b.py", line 8, in pay\\x1b'""",
    ]


def test_texts_of_errors_are_for_those_who_ask_for_everything(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="fairque.tasks")
    for event, level in (("failure", logging.ERROR), ("retry", logging.WARNING)):
        caplog.clear()
        log(event)
        first, second = caplog.records
        assert (first.levelno, second.levelno) == (level, logging.DEBUG)
        assert "card" not in first.getMessage()
        lines = second.getMessage().splitlines()
        assert lines[:2] == [f"the error of {TOLD}", "    KeyError: card 42"]
        assert all(line.startswith("    ") for line in lines[1:]), "no line can be taken for one of the log"
        assert "\x1b" not in second.getMessage()


def test_lines_about_tasks_have_fields(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="fairque.tasks")
    log("success", "retry", "failure")
    for record in caplog.records:
        found = {name: vars(record)[name] for name in ("user_id", "task_id", "task_name", "attempt", "run_seconds")}
        assert found == {"user_id": "zoë", "task_id": "", "task_name": "a.work", "attempt": 2, "run_seconds": 0.25}


# The demo


async def test_the_demo_ends_with_a_table_and_a_sentence_in_numbers(worker_process: Start) -> None:
    mark = new_mark()
    process = await worker_process("fairque", *SMALL_DEMO, env={**mark, "COLUMNS": "80"})
    assert await process.wait(deadline=50) == 0, process.output
    for row in ("flood", "quiet-1", "quiet-2", "all quiet"):
        assert any(line.startswith(row) for line in process.lines), process.output
    assert re.search(r"Behind 300 tasks of another user, .* \d+ times as long", " ".join(process.lines))
    assert max(map(len, process.lines)) <= 80
    assert "…" not in "".join(process.lines[4:])
    await eventually(lambda: not marked(mark))


async def test_a_killed_demo_leaves_no_process_behind(worker_process: Start) -> None:
    mark = new_mark()
    process = await worker_process("fairque", *SMALL_DEMO[:-1], "--seconds=2", env=mark)
    await process.line("served of", deadline=40)
    process.send(signal.SIGKILL)
    await eventually(lambda: not marked(mark), deadline=30)


async def test_the_demo_ends_when_one_of_its_workers_does(worker_process: Start) -> None:
    mark = new_mark()
    process = await worker_process("fairque", *SMALL_DEMO[:-1], "--seconds=2", env=mark)
    await process.line("served of", deadline=40)
    worker = next(pid for pid, command in marked(mark).items() if " worker " in command)
    os.kill(worker, signal.SIGKILL)
    assert await process.wait() == 1
    assert process.lines[-2:] == ["error: a worker of the demo ended with code -9", "hint: start the demo again"]
    await eventually(lambda: not marked(mark))


async def test_an_interrupted_demo_restores_the_terminal_and_leaves_no_process_behind() -> None:
    mark = new_mark()
    terminal, other_end = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "fairque", *SMALL_DEMO[:-1], "--seconds=2"),
        cwd=ROOT, stdin=other_end, stdout=other_end, stderr=other_end, start_new_session=True,
        env={**os.environ, **mark, "TERM": "xterm-256color"},
    )  # fmt: skip
    os.close(other_end)
    try:
        await asyncio.to_thread(read_until, terminal, b"of 300")
        assert len(marked(mark)) >= 4  # itself, two workers, the server, its guard
        process.send_signal(signal.SIGINT)
        rest = await asyncio.to_thread(read_until, terminal, b"interrupted")
        assert b"\x1b[?25h" in rest  # the cursor is back
        assert b"Traceback" not in rest
        assert await process.wait() == 130
        await eventually(lambda: not marked(mark))
    finally:
        os.close(terminal)


def read_until(terminal: int, wanted: bytes) -> bytes:
    found = b""
    while wanted not in found:
        found += os.read(terminal, 65536)
    return found


# What the demo counts


def make_load(**changes: int | float) -> Load:
    values = {"flood": 4, "users": 2, "tasks": 2, "workers": 1, "concurrency": 2, "seconds": 1.0, "seed": 1}
    return Load(**{**values, **changes})  # type: ignore[arg-type]


def test_the_load_is_the_same_for_the_same_seed() -> None:
    load = make_load()
    assert load.quiet_tasks() == load.quiet_tasks()
    assert load.quiet_tasks() != make_load(seed=2).quiet_tasks()
    assert [arrival.owner for arrival in load.flood_tasks()] == [FLOOD] * 4
    assert load.ideal_seconds == 4.0
    for arrival in load.quiet_tasks():
        assert 0 < arrival.at < load.ideal_seconds
        assert 0.5 <= arrival.seconds <= 1.5


def test_the_results_count_over_the_span_of_the_flood() -> None:
    results = DemoResults("fair", make_load())
    for began in (10, 11, 12, 13):
        results.serve(Sample(FLOOD, 9.0, began))
    for owner, began in (("quiet-1", 10.5), ("quiet-1", 12.5), ("quiet-2", 12.0), ("quiet-2", 20.0)):
        assert not results.complete.is_set()
        results.serve(Sample(owner, 10.0, began))
    assert results.complete.is_set()
    assert results.during_flood(["quiet-1"]) == 2
    assert results.during_flood(["quiet-1", "quiet-2"]) == 3
    assert results.share([FLOOD]) == pytest.approx(4 / 7)
    assert results.waits(["quiet-2"]) == [2.0, 10.0]
    assert results.flood_seconds() == 4.0
