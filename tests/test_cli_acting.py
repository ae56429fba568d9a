"""The commands that act, on a real queue."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from fairque import Task, TaskCanceled, TaskQueue, TaskState, UnknownTask, Worker, current_task, task
from fairque.cli.errors import CommandError
from fairque.cli.imports import load_task
from fairque.embedded.server import free_port
from fairque.models import Priority
from tests.apps.served import greet, nap, stumble
from tests.support.command import Ended, Run, call_command, run_command
from tests.support.eventually import eventually
from tests.support.process import ROOT, WorkerProcess
from tests.support.processes import is_running, marked, new_mark
from tests.support.resp import RespClient
from tests.support.servers import Server

GREET = "tests.apps.served:greet"
SECRET = "Rumpelstiltskin"
ODD_ID = "[red]a\nb\x1b[31m/[/red]"
ODD_SHOWN = repr(ODD_ID)
Start = Callable[..., Awaitable[WorkerProcess]]


@pytest.fixture
def run(server: Server, queue_name: str) -> Run:
    """Run a command on the queue of the test, as a process: one that waits takes signals."""

    async def on_queue(*arguments: str, **options: Any) -> Ended:
        return await run_command(*arguments, f"--url={server.url}", f"--queue={queue_name}", **options)

    return on_queue


@pytest.fixture
def call(server: Server, queue_name: str) -> Run:
    """The same within this process."""

    async def on_queue(*arguments: str, **options: Any) -> Ended:
        return await call_command(*arguments, f"--url={server.url}", f"--queue={queue_name}", **options)

    return on_queue


@pytest.fixture
async def worker(queue: TaskQueue) -> AsyncIterator[Worker]:
    async with Worker(queue, concurrency=5) as worker:
        yield worker


_released = threading.Event()


@task
def hold() -> None:
    """In a thread, which nobody can cancel."""
    _released.wait(50)


@pytest.fixture
async def release(worker: Worker) -> AsyncIterator[Callable[[], None]]:  # noqa: ARG001 (it drains after this)
    """Lets `hold` end, at the latest with the test."""
    _released.clear()
    yield _released.set
    _released.set()


async def state_of(queue: TaskQueue, user_id: str, task_id: str) -> TaskState:
    return await queue.handle(user_id, task_id).state()


async def start(queue: TaskQueue, call: Task[Any]) -> None:
    handle = await queue.enqueue(call, user_id="acme", task_id="t")
    await eventually(lambda: is_in(handle.state(), TaskState.STARTED))


async def is_in(state: Awaitable[TaskState], wanted: TaskState) -> bool:
    return await state == wanted


async def add_letters(queue: TaskQueue, *ids: str, user_id: str = "acme", task: Task[Any] | None = None) -> None:
    """Failed tasks with these ids, in this order. Needs a worker."""
    for task_id in ids:
        handle = await queue.enqueue(task or stumble(SECRET), user_id=user_id, task_id=task_id)
        await eventually(lambda handle=handle: is_in(handle.state(), TaskState.FAILED))


async def letters(queue: TaskQueue) -> set[str]:
    return {letter.task_id for letter in await queue.dead_letters()}


# Enqueue


@pytest.mark.leaves_keys
async def test_enqueue_prints_the_id_of_the_new_task_alone(call: Run, queue: TaskQueue) -> None:
    ended = await call("enqueue", GREET, "--user=acme", '--args=["ann"]')
    assert (ended.code, ended.err) == (0, "")
    [task_id] = ended.out.splitlines()
    info = await queue.handle("acme", task_id).info()
    assert (info.name, info.state, info.priority) == ("tests.apps.served.greet", TaskState.QUEUED, Priority.NORMAL)


@task(name="headers_of_it")
async def headers_of_it() -> dict[str, str]:
    return dict(current_task().headers)


async def test_enqueue_gives_headers_and_a_moment_by_which_it_must_begin(call: Run, queue: TaskQueue) -> None:
    told = ("enqueue", "--name=headers_of_it", "--user=acme")
    assert (await call(*told, "--id=a", "--header=request-id=7=f", "--header=b=", "--expires=3600")).code == 0
    assert (await call(*told, "--id=b", "--expires=0.001")).code == 0
    await Worker(queue).run_until_idle()
    assert await queue.handle("acme", "a").result(timeout=20) == {"request-id": "7=f", "b": ""}
    with pytest.raises(TaskCanceled, match="expired"):
        await queue.handle("acme", "b").result(timeout=20)
    ended = await call(*told, "--header=nothing")
    assert (ended.code, ended.error[0]) == (2, "error: --header 'nothing' has no value")


@pytest.mark.usefixtures("worker")
async def test_enqueue_waits_for_the_result_and_prints_it_as_json(run: Run) -> None:
    ended = await run("enqueue", GREET, "--user=acme", '--kwargs={"name": "ann"}', "--wait", "--timeout=20")
    assert (ended.code, json.loads(ended.out)) == (0, "hello ann")
    assert ended.err.startswith("waiting for task '")


@pytest.mark.usefixtures("worker")
async def test_enqueue_tells_programs_everything_in_one_object(run: Run) -> None:
    ended = await run("enqueue", GREET, "--user=acme", '--args=["ann"]', "--id=t1", "--wait", "--json")
    assert (ended.code, ended.err) == (0, "")
    assert ended.json == {
        "user_id": "acme",
        "task_id": "t1",
        "created": True,
        "state": "finished",
        "result": "hello ann",
    }


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize("option", ["--args", "--kwargs"])
async def test_enqueue_reads_arguments_from_stdin(call: Run, queue: TaskQueue, option: str) -> None:
    given = {"--args": '["ann"]', "--kwargs": '{"name": "ann"}'}[option]
    ended = await call("enqueue", GREET, "--user=acme", option, "-", stdin=given)
    assert await result_of(queue, ended) == "hello ann"


async def result_of(queue: TaskQueue, added: Ended) -> Any:
    """Of the task whose id it printed. Needs a worker."""
    assert added.code == 0, added.err
    return await queue.handle("acme", added.out.strip()).result(timeout=20)


@pytest.mark.usefixtures("worker")
async def test_enqueue_by_name_needs_no_code(call: Run, queue: TaskQueue) -> None:
    for option, greeting in (('--args=["ann"]', "hello ann"), ('--kwargs={"name": "bob"}', "hello bob")):
        ended = await call("enqueue", "--name=tests.apps.served.greet", "--user=acme", option)
        assert await result_of(queue, ended) == greeting


async def test_enqueue_hands_a_payload_to_a_handler(call: Run, queue: TaskQueue) -> None:
    class Doubler:
        async def process_task(self, payload: dict[str, Any]) -> int:
            return int(payload["n"]) * 2

    async with Worker(queue, handler=Doubler()):  # type: ignore[arg-type]
        assert await result_of(queue, await call("enqueue", '--payload={"n": 21}', "--user=acme")) == 42


@pytest.mark.leaves_keys
@pytest.mark.parametrize(
    ("given", "priority"),
    [("critical", Priority.CRITICAL), ("Very-Low", Priority.VERY_LOW), ("very_high", Priority.VERY_HIGH), ("4", 4)],
)
async def test_enqueue_takes_a_priority_by_name_or_number(
    call: Run, queue: TaskQueue, given: str, priority: int
) -> None:
    ended = await call("enqueue", GREET, "--user=acme", '--args=["x"]', "--id=t", f"--priority={given}")
    assert ended.code == 0, ended.err
    assert (await queue.handle("acme", "t").info()).priority == priority


@pytest.mark.leaves_keys
async def test_enqueue_delays_a_task(call: Run, queue: TaskQueue) -> None:
    soon = datetime.now(UTC) + timedelta(days=2)
    assert (await call("enqueue", GREET, "--user=acme", '--args=["x"]', "--id=a", "--delay=3600")).code == 0
    assert (await call("enqueue", GREET, "--user=acme", '--args=["x"]', "--id=b", f"--at={soon.isoformat()}")).code == 0
    local = soon.astimezone().replace(tzinfo=None, microsecond=0)
    assert (await call("enqueue", GREET, "--user=acme", '--args=["x"]', "--id=c", f"--at={local}")).code == 0
    due = [(await queue.handle("acme", task_id).info()).due_at for task_id in "abc"]
    now = datetime.now(UTC).timestamp()
    assert due[0] == pytest.approx(now + 3600, abs=60)
    assert due[1] == pytest.approx(soon.timestamp(), abs=0.002)
    assert due[2] == pytest.approx(soon.timestamp(), abs=1)


@pytest.mark.leaves_keys
async def test_enqueue_adds_no_second_task_under_a_living_id(call: Run, queue: TaskQueue) -> None:
    first = await call("enqueue", GREET, "--user=acme", '--args=["x"]', "--id", ODD_ID)
    second = await call("enqueue", GREET, "--user=acme", '--args=["x"]', "--id", ODD_ID)
    assert (first.code, first.out, first.err) == (0, f"{ODD_SHOWN}\n", "")
    assert (second.code, second.out) == (0, f"{ODD_SHOWN}\n")
    assert second.err == f"user 'acme' has a living task {ODD_SHOWN}: none was added\n"
    again = await call("enqueue", GREET, "--user=acme", '--args=["x"]', "--id", ODD_ID, "--json")
    assert again.json == {"user_id": "acme", "task_id": ODD_ID, "created": False}
    assert (await queue.stats()).queued == 1


@pytest.mark.usefixtures("worker")
async def test_enqueue_fails_when_the_task_does(run: Run) -> None:
    arguments = ("enqueue", "tests.apps.served:stumble", "--user=acme", '--args=["x"]', "--wait", "--id=t")
    ended = await run(*arguments)
    assert (ended.code, ended.out) == (1, "")
    assert ended.err.splitlines()[1:] == [
        "error: task 't' of user 'acme' failed: ValueError: x",
        "hint: fairque task acme t says more",
    ]
    told = await run(*arguments, "--json")
    assert (told.code, told.json["state"], told.json["error"]) == (1, "failed", "ValueError: x")


async def test_enqueue_fails_when_the_task_is_canceled(queue: TaskQueue, worker_process: Start) -> None:
    process = await worker_process(
        *("fairque", "enqueue", GREET, "--user=acme", '--args=["x"]', "--delay=900", "--id=t", "--wait"),
        *(f"--url={queue.connector.url}", f"--queue={queue.name}"),
    )
    await process.line("waiting for task")
    await queue.handle("acme", "t").cancel("wrong file")
    assert await process.wait() == 1, process.output
    assert process.lines[1] == "error: task 't' of user 'acme' was canceled: wrong file"


@pytest.mark.leaves_keys
@pytest.mark.parametrize("timeout", ["0", "0.2"])
async def test_enqueue_has_a_code_for_a_task_that_has_not_ended_in_time(
    run: Run, queue: TaskQueue, timeout: str
) -> None:
    ended = await run("enqueue", GREET, "--user=acme", '--args=["x"]', "--id=t", "--wait", f"--timeout={timeout}")
    assert (ended.code, ended.out) == (5, "")
    assert ended.err.splitlines()[1] == f"error: task 't' of user 'acme' has not ended within {float(timeout)} s"
    assert await state_of(queue, "acme", "t") == TaskState.QUEUED


@pytest.mark.leaves_keys
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
async def test_an_interrupted_wait_leaves_the_task_alone(
    queue: TaskQueue, worker_process: Start, signum: signal.Signals, code: int
) -> None:
    process = await worker_process(
        *("fairque", "enqueue", GREET, "--user=acme", '--args=["x"]', "--id=t", "--wait"),
        *(f"--url={queue.connector.url}", f"--queue={queue.name}"),
    )
    await process.line("waiting for task")
    process.send(signum)
    assert await process.wait() == code, process.output
    assert process.lines[1:] == ["interrupted: task 't' of user 'acme' goes on"]
    assert await state_of(queue, "acme", "t") == TaskState.QUEUED


USER = "--user=acme"
HELLO = '--args=["x"]'


@pytest.mark.parametrize(
    ("arguments", "error", "hint"),
    [
        ([GREET, USER, "--args=[1]"], "do not fit: Expected `str`, got `int` - at `name`", "value"),
        ([GREET, USER], "do not fit: missing a required argument: 'name'", "value"),
        ([GREET, USER, '--args=["x", "y"]'], "do not fit: too many positional", "value"),
        ([GREET, USER, "--args=[1"], "--args is not JSON", "--args '[42"),
        ([GREET, USER, "--args=x"], "--args is not JSON", "--args '[42"),
        ([GREET, USER, "--args={}"], "--args takes an array, not an object", "--args '[42"),
        ([GREET, USER, "--args=true"], "--args takes an array, not a boolean", "--args '[42"),
        ([GREET, USER, "--args=null"], "--args takes an array, not null", "--args '[42"),
        ([GREET, USER, "--kwargs=[]"], "--kwargs takes an object, not an array", "--kwargs '{"),
        ([GREET, USER, "--kwargs=1"], "--kwargs takes an object, not a number", "--kwargs '{"),
        ([USER, '--payload="x"'], "--payload takes an object, not a string", "--payload '{"),
        ([GREET, USER, "--args=-", "--kwargs=-"], "cannot both come from stdin", "command line"),
        ([GREET, HELLO], "it is not said whose task it is", "--user USER"),
        ([GREET, "--user=", HELLO], "user_id must not be empty", "value"),
        ([USER], "it is not said which task", "MODULE:NAME"),
        ([GREET, USER, "--name=x"], "and so does --name or --payload", "one of them"),
        ([USER, "--payload={}", HELLO], "--payload is all", "leave out --args"),
        ([USER, "--name="], "task name must not be empty", "value"),
        ([USER, "--name=x", "--args=[36893488147419103232]"], "cannot be encoded", "value"),
        ([GREET, USER, HELLO, "--priority=hihg"], "there is no priority 'hihg'", "did you mean 'high'?"),
        ([GREET, USER, HELLO, "--priority=7"], "there is no priority '7'", "1 to 6, or very-low, low"),
        ([GREET, USER, HELLO, "--delay=-1"], "delay must be a number from 0", "value"),
        ([GREET, USER, HELLO, "--delay=soon"], "--delay", "fairque enqueue --help"),
        ([GREET, USER, HELLO, "--delay=1", "--at=2030-01-01"], "--delay and --at both", "one of them"),
        ([GREET, USER, HELLO, "--at=tomorrow"], "--at 'tomorrow' is not a date and time", "2030-01-31T09:00"),
        ([GREET, USER, HELLO, "--timeout=3"], "--timeout says how long to wait", "--wait"),
        ([GREET, USER, HELLO, "--wait", "--timeout=-3"], "--timeout must be a number from 0", "value"),
        (["nowhere:greet", USER], "there is no module 'nowhere'", "looked in"),
        (["tests.apps.served:gret", USER], "there is no 'gret' in tests.apps.served", "did you mean 'greet'?"),
        (["tests.apps.served:queue", USER], "is a function, not a task", "did you mean tests.apps.served:"),
        (["tests.apps.served", USER], "does not name a task", "tests.apps.served:resize"),
        (["tests/apps/served.py:greet", USER], "is a file", "myapp.tasks:resize"),
    ],
)
async def test_a_call_that_breaks_a_rule_is_told_so_and_adds_nothing(
    call: Run, queue: TaskQueue, arguments: list[str], error: str, hint: str
) -> None:
    ended = await call("enqueue", *arguments)
    assert (ended.code, ended.out) == (2, ""), ended.err
    assert error in ended.error[0]
    assert hint in ended.error[1]
    assert (await queue.stats()).users_known == 0


async def test_stdin_that_is_not_json_is_told_so(call: Run) -> None:
    ended = await call("enqueue", GREET, USER, "--args=-", stdin=b"\xff\xfe")
    assert (ended.code, ended.out) == (2, "")
    assert ended.error[0].startswith("error: stdin is not JSON")


def test_a_task_is_found_by_module_and_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_task(GREET) is greet
    (tmp_path / "torn_tasks.py").write_text("\n1 / 0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(
        CommandError, match=r"importing 'torn_tasks' failed: ZeroDivisionError: .* \(torn_tasks.py, line 2\)"
    ):
        load_task("torn_tasks:resize")


# Cancel


async def test_cancel_ends_a_task_that_waits(call: Run, queue: TaskQueue) -> None:
    handle = await queue.enqueue(greet("x"), user_id=ODD_ID, task_id=ODD_ID)
    ended = await call("cancel", ODD_ID, ODD_ID, "--reason=wrong file")
    assert (ended.code, ended.out, ended.err) == (0, "canceled\n", "")
    assert await handle.state() == TaskState.CANCELED
    again = await call("cancel", ODD_ID, ODD_ID)
    assert (again.code, again.out) == (3, "")
    assert again.error[0] == f"error: task {ODD_SHOWN} of user {ODD_SHOWN} had ended before: canceled"


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize("wait", [True, False])
async def test_cancel_stops_a_task_that_runs(call: Run, queue: TaskQueue, wait: bool) -> None:
    await start(queue, nap(60))
    ended = await call("cancel", "acme", "t", *(["--wait", "--timeout=20"] if wait else []))
    assert ended.code == 0, ended.err
    said = ended.out.removeprefix("runs t\n")  # the task, in this very process
    assert said == "canceled\n" or (not wait and said == "its worker was told to stop it\n")
    await eventually(lambda: is_in(state_of(queue, "acme", "t"), TaskState.CANCELED))


@pytest.mark.usefixtures("release")
async def test_cancel_has_a_code_for_a_task_that_does_not_stop_in_time(call: Run, queue: TaskQueue) -> None:
    await start(queue, hold())
    ended = await call("cancel", "acme", "t", "--wait", "--timeout=0.2")
    assert (ended.code, ended.out) == (5, "")
    assert ended.error[0] == "error: task 't' of user 'acme' has not stopped yet"


@pytest.mark.usefixtures("worker")
async def test_cancel_has_codes_for_what_it_cannot_cancel(call: Run, queue: TaskQueue) -> None:
    await (await queue.enqueue(greet("x"), user_id="acme", task_id="t")).result(timeout=20)
    ended = await call("cancel", "acme", "t")
    assert (ended.code, ended.error[0]) == (3, "error: task 't' of user 'acme' had ended before: finished")
    told = await call("cancel", "acme", "t", "--json")
    assert (told.code, told.json) == (
        3, {"user_id": "acme", "task_id": "t", "outcome": "ended", "state": "finished"}
    )  # fmt: skip
    unknown = await call("cancel", "acme", "nothing")
    assert (unknown.code, unknown.out) == (4, "")
    assert unknown.error[0].startswith("error: no task 'nothing' of user 'acme'")


@pytest.mark.leaves_keys
@pytest.mark.parametrize(
    ("options", "error"),
    [(["--timeout=3"], "--timeout says how long to wait"), (["--wait", "--timeout=-3"], "--timeout must be a number")],
)
async def test_a_cancel_with_a_wrong_timeout_cancels_nothing(
    call: Run, queue: TaskQueue, options: list[str], error: str
) -> None:
    handle = await queue.enqueue(greet("x"), user_id="acme", task_id="t")
    ended = await call("cancel", "acme", "t", *options)
    assert (ended.code, ended.out) == (2, "")
    assert error in ended.error[0]
    assert await handle.state() == TaskState.QUEUED


# Dead letters


@pytest.mark.usefixtures("worker")
@pytest.mark.leaves_keys
async def test_dead_list_shows_what_the_filters_leave(call: Run, queue: TaskQueue) -> None:
    await add_letters(queue, "a", "b", ODD_ID)
    await add_letters(queue, "c", user_id=ODD_ID, task=nap(30).options(timeout=0.05))
    everything = await call("dead", "list")
    assert everything.code == 0, everything.err
    header, *rows = everything.out.splitlines()
    assert header.split() == ["user", "id", "task", "failed", "attempts", "kind", "error"]
    assert [row.split()[0] for row in rows] == ["acme", "acme", "acme", ODD_SHOWN.split()[0]]
    assert ODD_SHOWN in rows[2]
    assert SECRET not in everything.out
    for filters, wanted in (
        (["acme"], ["a", "b", ODD_ID]),
        ([ODD_ID], ["c"]),
        (["--kind=timeout"], ["c"]),
        (["--name=tests.apps.served.stumble", "--limit=2"], ["a", "b"]),
        (["acme", "--kind=timeout"], []),
    ):
        found = await call("dead", "list", *filters, "--json")
        assert [row["task_id"] for row in found.json] == wanted
        assert SECRET not in found.out
    assert (await call("dead", "list", "--limit=2")).err == "these are the oldest 2, --limit shows more\n"


@pytest.mark.usefixtures("worker")
@pytest.mark.leaves_keys
async def test_dead_list_looks_beyond_its_first_page(call: Run, queue: TaskQueue) -> None:
    async with Worker(queue, concurrency=50):
        handles = await queue.enqueue_many([stumble("x").options(max_retries=0)] * 1050, user_id="acme")
        await eventually(lambda: has_failed(queue, len(handles)), deadline=40)
    await add_letters(queue, "last", user_id="zoe")
    found = await call("dead", "list", "--limit=5000", "--json")
    assert len(found.json) == 1051
    assert (await call("dead", "requeue", "zoe", "--all")).out == "1 requeued\n"
    await eventually(lambda: is_in(state_of(queue, "zoe", "last"), TaskState.FAILED))


async def has_failed(queue: TaskQueue, count: int) -> bool:
    return (await queue.user("acme")).failed == count


@pytest.mark.leaves_keys
async def test_dead_show_prints_every_attempt_with_its_traceback(call: Run, queue: TaskQueue, worker: Worker) -> None:
    await add_letters(queue, ODD_ID)
    ended = await call("dead", "show", "acme", ODD_ID)
    assert ended.code == 0, ended.err
    assert ended.out.startswith(f"task {ODD_SHOWN} of user acme, tests.apps.served.stumble, failed ")
    assert f"error on {worker.worker_id}: Retry: {SECRET}" in ended.out
    assert f"error on {worker.worker_id}: ValueError: {SECRET}" in ended.out
    assert 'served.py", line' in ended.out
    assert "\x1b" not in ended.out
    told = (await call("dead", "show", "acme", ODD_ID, "--json")).json
    assert [attempt["type_name"] for attempt in told["errors"]] == ["Retry", "ValueError"]


@pytest.mark.leaves_keys
async def test_dead_commands_have_a_code_for_what_is_no_dead_letter(call: Run, queue: TaskQueue) -> None:
    await queue.enqueue(greet("x"), user_id="acme", task_id="waits")
    for command in ("show", "requeue", "discard"):
        for task_id in ("waits", "nothing"):
            ended = await call("dead", command, "acme", task_id)
            assert (ended.code, ended.out) == (4, ""), (command, task_id, ended)
            assert "acme" in ended.error[0]


@pytest.mark.leaves_keys
async def test_dead_requeue_runs_tasks_again(call: Run, queue: TaskQueue) -> None:
    async with Worker(queue):
        await add_letters(queue, "a", "b", "c")
        await add_letters(queue, "d", user_id="zoe")
    assert (await call("dead", "requeue", "acme", "b")).out == "1 requeued\n"
    assert await letters(queue) == {"a", "c", "d"}
    assert await state_of(queue, "acme", "b") == TaskState.QUEUED
    assert (await call("dead", "requeue", "--all", "--kind=timeout")).out == "0 requeued\n"
    assert (await call("dead", "requeue", "acme", "--all", "--limit=1")).out == "1 requeued\n"
    assert await letters(queue) == {"c", "d"}
    assert (await call("dead", "requeue", "--all", "--kind=error", "--name=tests.apps.served.stumble")).code == 0
    assert await letters(queue) == set()


@pytest.mark.leaves_keys
async def test_dead_discard_leaves_nothing_of_tasks(call: Run, queue: TaskQueue) -> None:
    async with Worker(queue):
        await add_letters(queue, "a", "b", "c")
        await add_letters(queue, "d", user_id="zoe")
    assert (await call("dead", "discard", "acme", "b")).out == "1 discarded\n"
    with pytest.raises(UnknownTask):
        await state_of(queue, "acme", "b")
    refused = await call("dead", "discard", "--all")
    assert (refused.code, refused.error[1]) == (2, "hint: add --yes")
    assert await letters(queue) == {"a", "c", "d"}
    assert (await call("dead", "discard", "acme", "--all", "--yes")).out == "2 discarded\n"
    assert await letters(queue) == {"d"}


@pytest.mark.parametrize("command", ["requeue", "discard"])
@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ([], "it is not said which task"),
        (["acme"], "it is not said which task"),
        (["acme", "t", "--all"], "an ID names one task, and --all is about all"),
        (["acme", "t", "--kind=error"], "--kind, --name and --limit choose among all"),
        (["--all", "--kind=eror"], "--kind"),
        (["--all", "--limit=0"], "--limit"),
        (["", "t"], "user_id must not be empty"),
    ],
)
@pytest.mark.usefixtures("begun")
async def test_a_dead_command_is_about_one_or_about_all(
    call: Run, command: str, arguments: list[str], error: str
) -> None:
    ended = await call("dead", command, *arguments)
    assert (ended.code, ended.out) == (2, "")
    assert error in ended.error[0]


# Pause and resume


@pytest.mark.usefixtures("worker")
@pytest.mark.leaves_keys
async def test_pause_holds_a_user_back_until_resume(call: Run, queue: TaskQueue) -> None:
    paused = await call("pause", ODD_ID)
    assert (paused.code, paused.out) == (0, f"user {ODD_SHOWN} is paused until resumed\n")
    held = await queue.enqueue(greet("x"), user_id=ODD_ID)
    await (await queue.enqueue(greet("y"), user_id="zoe")).result(timeout=20)
    assert await held.state() == TaskState.QUEUED
    resumed = await call("resume", ODD_ID)
    assert (resumed.code, resumed.out) == (0, f"user {ODD_SHOWN} goes on\n")
    assert (await call("resume", ODD_ID)).out == f"user {ODD_SHOWN} was not paused\n"
    assert await held.result(timeout=20) == "hello x"


@pytest.mark.usefixtures("worker")
@pytest.mark.leaves_keys
@pytest.mark.parametrize("option", ["--for=1", "--until"])
async def test_a_pause_can_have_an_end(call: Run, queue: TaskQueue, option: str) -> None:
    end = (datetime.now(UTC) + timedelta(seconds=2)).isoformat()
    paused = await call("pause", "acme", option if "=" in option else f"{option}={end}")
    assert paused.code == 0, paused.err
    assert paused.out.startswith("user acme is paused until 2")
    assert await (await queue.enqueue(greet("x"), user_id="acme")).result(timeout=30) == "hello x"


@pytest.mark.leaves_keys
async def test_a_pause_of_everybody_outlives_the_resume_of_one(call: Run) -> None:
    assert (await call("pause", "*")).out == "everybody is paused until resumed\n"
    resumed = await call("resume", "acme")
    assert (resumed.code, resumed.out) == (0, "user acme is still paused, as everybody is\n")
    assert (await call("resume", "*")).out == "everybody goes on\n"
    assert (await call("resume", "*")).out == "nobody was paused\n"


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["acme", "--for=1", "--until=2030-01-01"], "--until and --for both"),
        (["acme", "--until=never"], "--until 'never' is not a date and time"),
        (["acme", "--for=-1"], "--for must be a number from 0"),
        (["acme", "--for=nan"], "--for must be a number from 0"),
        ([""], "user_id must not be empty"),
    ],
)
async def test_a_pause_that_breaks_a_rule_is_refused(call: Run, arguments: list[str], error: str) -> None:
    ended = await call("pause", *arguments)
    assert (ended.code, ended.out) == (2, "")
    assert error in ended.error[0]


# Change


@pytest.mark.leaves_keys
async def test_change_says_when_a_task_starts_and_with_which_priority(call: Run, queue: TaskQueue) -> None:
    handle = await queue.enqueue(greet("ann"), user_id=ODD_ID, task_id="t", delay=3600)
    ended = await call("change", ODD_ID, "t", "--delay=7200", "--priority=high")
    assert (ended.code, ended.out) == (0, f"changed: priority and start of task 't' of user {ODD_ID!r}\n")
    info = await handle.info()
    assert (info.state, info.priority) == (TaskState.SCHEDULED, Priority.HIGH)
    assert (await call("change", ODD_ID, "t", "--now", "--json")).json["changed"] == ["start"]
    assert await handle.state() is TaskState.QUEUED
    ended = await call("change", ODD_ID, "t", "--now")
    assert ended.code == 3
    assert "it waits for no moment" in ended.error[0]
    await handle.cancel()
    ended = await call("change", ODD_ID, "t", "--priority=low")
    assert ended.code == 3
    assert "it is canceled" in ended.error[0]


@pytest.mark.parametrize("wrong", [(), ("--now", "--delay=1"), ("--at=soon",), ("--priority=no",), ("--delay=-1",)])
async def test_change_refuses_what_says_nothing_or_too_much(
    call: Run, queue: TaskQueue, wrong: tuple[str, ...]
) -> None:
    handle = await queue.enqueue(greet("ann"), user_id="acme", task_id="t", delay=3600)
    assert (await call("change", "acme", "t", *wrong)).code == 2
    assert (await call("change", "acme", "nobody", "--now")).code == 4
    await handle.cancel()


# Purge


async def fill(queue: TaskQueue, user_id: str) -> None:
    await queue.enqueue_many([greet(SECRET)] * 3, user_id=user_id)
    await queue.enqueue(greet(SECRET), user_id=user_id, delay=900)


async def test_cancel_all_ends_what_matches(call: Run, queue: TaskQueue) -> None:
    await fill(queue, ODD_ID)
    ended = await call("cancel-all", ODD_ID, "--state", "queued", "--reason", "enough", "--yes")
    assert (ended.code, ended.out) == (0, "canceled, or told to stop: 3 tasks\n")
    assert (await queue.user(ODD_ID)).scheduled == 1
    told = (await call("cancel-all", ODD_ID, "-y", "--json")).json
    assert told == {"user_id": ODD_ID, "canceled": 1}


async def test_cancel_all_checks_before_it_asks(call: Run) -> None:
    for wrong in (["--state=finished"], ["--older-than=-1"], ["--name="]):
        assert (await call("cancel-all", "acme", *wrong)).code == 2
    assert (await call("cancel-all", "acme")).error[1] == "hint: add --yes"


async def test_purge_erases_what_a_user_has(call: Run, queue: TaskQueue) -> None:
    await fill(queue, ODD_ID)
    await fill(queue, "zoe")
    ended = await call("purge", ODD_ID, "--yes")
    assert ended.code == 0, ended.err
    assert dict(line.rsplit(maxsplit=1) for line in ended.out.splitlines())["queued"] == "3"
    assert (await queue.user(ODD_ID)).queued == 0
    told = (await call("purge", "zoe", "-y", "--json")).json
    assert (told["queued"], told["scheduled"], told["complete"]) == (3, 1, True)


@pytest.mark.leaves_keys
async def test_purge_refuses_where_it_cannot_ask(call: Run, queue: TaskQueue) -> None:
    await fill(queue, "acme")
    for options in ({}, {"stdin": "y\n"}):
        ended = await call("purge", "acme", **options)
        assert (ended.code, ended.out, ended.error[1]) == (2, "", "hint: add --yes")
    assert (await queue.user("acme")).queued == 3


@pytest.mark.leaves_keys
@pytest.mark.parametrize(("answer", "code", "left"), [("Yes", 0, 0), ("", 1, 3), (None, 130, 3)])
async def test_purge_asks_on_a_terminal(queue: TaskQueue, answer: str | None, code: int, left: int) -> None:
    await fill(queue, "acme")
    terminal, other_end = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "fairque", "purge", "acme"),
        *(f"--url={queue.connector.url}", f"--queue={queue.name}"),
        cwd=ROOT, stdin=other_end, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    os.close(other_end)
    try:
        assert process.stderr is not None
        question = await asyncio.wait_for(process.stderr.readuntil(b"[y/N]"), 40)
        assert question == f"Erase everything of user 'acme' in queue {queue.name!r}? [y/N]".encode()
        if answer is None:
            process.send_signal(signal.SIGINT)
        else:
            os.write(terminal, f"{answer}\n".encode())
        out, err = await asyncio.wait_for(process.communicate(), 40)
    finally:
        os.close(terminal)
    assert process.returncode == code, err
    assert out.startswith(b"queued") if code == 0 else out == b""
    assert (b"error: not confirmed\nhint: nothing was changed\n" in err) == (code == 1)
    assert b"Traceback" not in err
    assert (await queue.user("acme")).queued == left


@pytest.mark.leaves_keys
@pytest.mark.parametrize(("answer", "left"), [("y", 0), ("n", 3), ("yes or no", 3)])
async def test_purge_erases_after_a_yes_alone(call: Run, queue: TaskQueue, answer: str, left: int) -> None:
    await fill(queue, "acme")
    terminal, other_end = pty.openpty()
    try:
        with os.fdopen(other_end) as stdin:
            os.write(terminal, f"{answer}\n".encode())
            ended = await call("purge", "acme", stdin=stdin)
    finally:
        os.close(terminal)
    assert ended.code == (1 if left else 0), ended.err
    assert (await queue.user("acme")).queued == left


async def test_purge_has_a_code_for_tasks_that_do_not_stop(
    call: Run, queue: TaskQueue, release: Callable[[], None]
) -> None:
    await start(queue, hold())
    ended = await call("purge", "acme", "--yes", "--timeout=0.2")
    assert ended.code == 5
    assert ended.error[0] == "error: tasks of user 'acme' have not stopped within 0.2 s"
    release()
    await eventually(lambda: is_gone(queue), deadline=20)
    assert (await call("purge", "acme", "--yes")).code == 0


async def is_gone(queue: TaskQueue) -> bool:
    return (await queue.user("acme")).started == 0


@pytest.mark.parametrize("arguments", [["", "--yes"], ["acme", "--yes", "--timeout=-1"]])
async def test_purge_checks_before_it_asks(call: Run, arguments: list[str]) -> None:
    ended = await call("purge", *arguments)
    assert (ended.code, ended.error[1]) == (2, "hint: change that value and start the command again")


# The server


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
async def test_a_server_runs_until_a_signal(worker_process: Start, signum: signal.Signals) -> None:
    mark = new_mark()
    process = await worker_process("fairque", "server", "--port=0", "--json", env=mark)
    facts = json.loads(await process.line("url"))
    assert facts["url"].startswith("redis://127.0.0.1:")
    assert not facts["persistent"]
    async with TaskQueue(facts["url"]) as queue, Worker(queue):
        handle = await queue.enqueue(greet("ann"), user_id="acme")
        assert await handle.result(timeout=20) == "hello ann"
    process.send(signum)
    assert await process.wait() == 0, process.output
    await eventually(lambda: not Path(facts["directory"]).exists())
    await eventually(lambda: not marked(mark))


async def test_a_server_prints_its_url_alone_on_stdout() -> None:
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "fairque", "server", f"--port={port}"),
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert await asyncio.wait_for(process.stdout.readline(), 20) == f"redis://127.0.0.1:{port}\n".encode()
    process.send_signal(signal.SIGTERM)
    out, err = await asyncio.wait_for(process.communicate(), 20)
    assert out == b""
    assert err == b"Everything is in memory, and gone when the server stops. Ctrl-C stops it.\n"
    assert process.returncode == 0


async def test_a_server_keeps_its_data_in_a_directory(worker_process: Start, tmp_path: Path) -> None:
    directory = tmp_path / "my data"
    for count in range(2):
        process = await worker_process("fairque", "server", f"--dir={directory}", "--json")
        facts = json.loads(await process.line("url"))
        assert facts["url"] == f"embedded://{str(directory).replace(' ', '%20')}"
        with RespClient(facts["socket"]) as client:
            assert client.execute("INCR", "runs") == count + 1
        process.send(signal.SIGTERM)
        assert await process.wait() == 0, process.output


async def test_a_server_command_ends_with_its_server(worker_process: Start) -> None:
    process = await worker_process("fairque", "server", "--port=0", "--json")
    facts = json.loads(await process.line("url"))
    os.kill(facts["pid"], signal.SIGKILL)
    assert await process.wait() == 1
    assert process.lines[1] == "error: the server has ended"


async def test_a_killed_server_command_leaves_no_server_behind(worker_process: Start) -> None:
    mark = new_mark()
    process = await worker_process("fairque", "server", "--port=0", "--json", env=mark)
    facts = json.loads(await process.line("url"))
    assert is_running(facts["pid"])
    process.send(signal.SIGKILL)
    await eventually(lambda: not is_running(facts["pid"]))
    await eventually(lambda: not marked(mark))
    await eventually(lambda: not Path(facts["directory"]).exists())


async def test_a_port_that_is_taken_is_told() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ended = await call_command("server", f"--port={taken.getsockname()[1]}")
    assert (ended.code, ended.out) == (1, "")
    assert "cannot be used: Address already in use" in ended.error[0]
    assert ended.error[1] == "hint: --port 0 takes a free one"


async def test_a_server_listens_on_a_port_or_keeps_a_directory(tmp_path: Path) -> None:
    ended = await call_command("server", f"--dir={tmp_path}", "--port=0")
    assert (ended.code, ended.out) == (2, "")
    assert ended.error[0] == "error: a server with --dir listens on a socket only"
    file = tmp_path / "file"
    file.touch()
    ended = await call_command("server", f"--dir={file}")
    assert (ended.code, ended.out) == (2, "")
    assert "the embedded server cannot be started" in ended.error[0]


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.leaves_keys
async def test_a_user_goes_through_a_file_to_another_queue(
    call: Run, server: Server, queue: TaskQueue, tmp_path: Path
) -> None:
    await fill(queue, ODD_ID)
    file, there = tmp_path / "user.fairque", f"{queue.name}/2"
    ended = await call("export-user", ODD_ID, str(file))
    assert (ended.code, ended.err) == (0, "")
    assert file.stat().st_mode & 0o777 == 0o600
    assert names_in(tmp_path) == [file.name]
    ended = await call_command("import-user", str(file), f"--url={server.url}", f"--queue={there}", "--json")
    assert ended.code == 0, ended.err
    assert ended.json["user_id"] == ODD_ID
    async with TaskQueue(queue.connector.url, name=there) as other:
        assert (await other.user(ODD_ID)).queued == 3
        await other.purge(ODD_ID)
    await queue.purge(ODD_ID)


@pytest.mark.leaves_keys
async def test_a_file_that_is_no_export_is_refused_in_a_line(
    call: Run, server: Server, queue: TaskQueue, tmp_path: Path
) -> None:
    await fill(queue, "acme")
    file, broken = tmp_path / "user.fairque", tmp_path / "broken.fairque"
    assert (await call("export-user", "acme", str(file))).code == 0
    content = file.read_bytes()
    for wrong in (b"", b"{}", content[:-1], content[: len(content) // 2], content[:40] + b"x" + content[41:]):
        broken.write_bytes(wrong)
        ended = await call_command("import-user", str(broken), f"--url={server.url}", f"--queue={queue.name}/2")
        assert (ended.code, ended.out) == (2, ""), wrong
    ended = await call("import-user", str(file))
    assert (ended.code, "is known here" in ended.error[0]) == (2, True)
    ended = await call("export-user", "acme", str(tmp_path / "nowhere" / "user.fairque"))
    assert (ended.code, "No such file or directory" in ended.error[0]) == (1, True)
    ended = await call("export-user", "nobody", str(tmp_path / "nobody.fairque"))
    assert (ended.code, "nothing is known" in ended.error[0]) == (2, True)
    assert names_in(tmp_path) == [broken.name, file.name]
    await queue.purge("acme")
