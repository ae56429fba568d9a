"""Schedulers as processes, killed in between, and the commands that manage schedules."""

from __future__ import annotations

import json
import signal
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from fairque import TaskQueue, TaskScheduler, UnknownSchedule
from fairque.tasks.task import Task
from tests.support.eventually import eventually

if TYPE_CHECKING:
    from tests.support.process import WorkerProcess
    from tests.support.servers import Server

pytestmark = pytest.mark.leaves_keys()

TARGET = "tests.apps.scheduled:queue"
TICK = "tests.apps.scheduled:tick"
Start = Callable[..., Awaitable["WorkerProcess"]]
Run = Callable[..., Awaitable[tuple[int, str]]]


@pytest.fixture
def start(server: Server, queue_name: str, worker_process: Start) -> Start:
    """Start ``fairque …`` for the queue of the test."""
    env = {"SERVED_URL": server.url, "SERVED_QUEUE": queue_name}
    env |= {"FAIRQUE_REDIS_URL": server.url, "FAIRQUE_QUEUE_NAME": queue_name, "COLUMNS": "200"}

    async def start(*arguments: str) -> WorkerProcess:
        return await worker_process("fairque", *arguments, env=env)

    return start


@pytest.fixture
def run(start: Start) -> Run:
    async def run(*arguments: str) -> tuple[int, str]:
        process = await start(*arguments)
        return await process.wait(), process.output

    return run


async def test_three_schedulers_whose_keeper_is_killed_fire_twenty_slots_once(
    start: Start, queue: TaskQueue, server: Server
):
    processes = [await start("scheduler", TARGET) for _ in range(3)]
    for process in processes:
        await process.line("fires the schedules")
    scheduler = TaskScheduler(queue)
    begin = await server_time(queue) + timedelta(seconds=2)
    begin = begin.replace(microsecond=0)
    tick: Task[int] = Task.create(payload={})
    await scheduler.add_schedule(
        task=tick, cron_expr="* * * * * *", user_id="anna", schedule_id="s", start=begin, max_runs=20
    )
    await eventually(lambda: has_run(scheduler, 5), 30)
    keeper = int(server.execute("GET", f"{queue.keys.prefix}schedule-keepers").partition(b"-")[0])
    [killed] = [process for process in processes if process.pid == keeper]
    killed.send(signal.SIGKILL)
    await killed.wait()
    await eventually(lambda: has_run(scheduler, 20), 45)
    ids = [info.task_id for info in await queue.tasks("anna")]
    assert ids == [f"s@{begin + timedelta(seconds=n):%Y-%m-%dT%H:%M:%S}Z" for n in range(20)]
    found = await scheduler.get_schedule("s")
    assert (found.runs, found.misfired, found.skipped, found.active) == (20, 0, 0, False)
    others = [process for process in processes if process is not killed]
    for process in others:
        process.send(signal.SIGTERM)
    assert [await process.wait() for process in others] == [0, 0]


async def server_time(queue: TaskQueue) -> datetime:
    return datetime.fromtimestamp((await queue.stats()).at).astimezone()


async def has_run(scheduler: TaskScheduler, times: int) -> bool:
    return (await scheduler.get_schedule("s")).runs >= times


async def test_a_scheduler_process_registers_what_its_module_declares(start: Start, queue: TaskQueue):
    process = await start("scheduler", TARGET)
    scheduler = TaskScheduler(queue)

    async def is_there() -> bool:
        try:
            return (await scheduler.get_schedule("tests.apps.scheduled.sweep")).declared
        except UnknownSchedule:
            return False

    await eventually(is_there, 20)
    process.send(signal.SIGINT)
    assert await process.wait() == 0


async def test_a_scheduler_without_a_server_ends_with_a_line_and_a_hint(worker_process: Start):
    env = {"SERVED_URL": "redis://127.0.0.1:1", "SERVED_QUEUE": "q"}
    process = await worker_process("fairque", "scheduler", TARGET, env=env)
    assert await process.wait() == 1
    assert "error: " in process.output
    assert "hint: " in process.output
    assert "Traceback" not in process.output


async def test_the_commands_add_list_change_and_remove(run: Run, queue: TaskQueue):
    given = ("--cron", "0 9 * * MON-FRI", "--timezone", "Europe/Berlin", "--user", "acme", "--args", "[7]", "--id", "s")
    assert await run("schedule", "add", TICK, *given) == (0, "s")
    scheduler = TaskScheduler(queue)
    found = await scheduler.get_schedule("s")
    assert (found.user_id, found.name, found.timezone) == ("acme", "tests.apps.scheduled.tick", "Europe/Berlin")

    code, text = await run("schedule", "list", "acme", "--json")
    [listed] = json.loads(text)
    assert (code, listed["schedule_id"], listed["cron"]) == (0, "s", "0 9 * * MON-FRI")
    code, text = await run("schedule", "list")
    assert "0 9 * * MON-FRI (Europe/Berlin)" in text

    code, text = await run("schedule", "next", "s", "-n", "2", "--json")
    moments = [datetime.fromisoformat(each) for each in json.loads(text)]
    assert moments == await scheduler.next_runs("s", 2)

    assert await run("schedule", "pause", "s") == (0, "paused")
    assert not (await scheduler.get_schedule("s")).active
    code, text = await run("schedule", "resume", "s")
    assert "fires next at" in text
    code, text = await run("schedule", "run", "s")
    assert [info.task_id for info in await queue.tasks("acme")] == [text]
    assert await run("schedule", "remove", "s") == (0, "removed")
    assert await scheduler.list_schedules() == []


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("add", TICK, "--cron", "0 99 * * *", "--user", "acme"), 2, "field 2 (hours)"),
        (("add", TICK, "--every", "60", "--timezone", "Europe/Berln", "--user", "acme"), 2, "'Europe/Berlin'"),
        (("add", TICK, "--user", "acme"), 2, "cron_expr, every and at"),
        (("add", TICK, "--every", "60"), 2, "--user"),
        (("add", TICK, "--at", "tomorrow", "--user", "acme"), 2, "--at"),
        (("pause", "nothing"), 4, "'nothing'"),
        (("remove", "nothing"), 4, "'nothing'"),
        (("next", "nothing"), 4, "'nothing'"),
    ],
)
@pytest.mark.usefixtures("begun")
async def test_what_goes_wrong_is_said_in_a_line_with_a_hint(
    run: Run, arguments: tuple[str, ...], code: int, said: str
):
    found, text = await run("schedule", *arguments)
    assert found == code
    assert said in text
    assert "hint: " in text
    assert "Traceback" not in text
