"""The commands that look, on a real queue."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from fcntl import ioctl

import pytest

from fairque import TaskQueue, TaskState, Worker
from fairque.cli.commands.health import parse_threshold
from fairque.cli.errors import CommandError
from fairque.cli.output import ago, moment, span
from fairque.cli.screens.top import Order, Sampler, draw
from fairque.embedded.server import EmbeddedServer
from fairque.queue.health_checks import Severity, Threshold
from tests.apps.served import greet, nap, stumble
from tests.support.command import Ended, Run, call_command
from tests.support.core import Core
from tests.support.eventually import eventually
from tests.support.process import ROOT
from tests.support.servers import Server

SECRET = "Rumpelstiltskin"
ODD_USER = "[red]a\nb\x1b[31m/[/red]"
NOWHERE = "redis://localhost:1"
IMPATIENCE = ("FAIRQUE_REDIS_TIMEOUT", "0.5")


@pytest.fixture
def run(server: Server, queue_name: str) -> Run:
    """Run a command on the queue of the test."""

    async def on_queue(*arguments: str, env: dict[str, str] | None = None) -> Ended:
        return await call_command(*arguments, f"--url={server.url}", f"--queue={queue_name}", env=env)

    return on_queue


@pytest.fixture
async def mix(queue: TaskQueue) -> AsyncIterator[TaskQueue]:
    """A queue with tasks in every state, a paused user, and one whose name would be a trap for a terminal."""
    await queue.enqueue(stumble(SECRET), user_id="acme", task_id="bad")
    await queue.enqueue(greet(SECRET), user_id="acme", task_id="done")
    await (await queue.enqueue(greet("x"), user_id="acme", task_id="stopped", delay=60)).cancel("no need")
    await Worker(queue).run_until_idle()
    async with Worker(queue, concurrency=1, worker_id="w 1", shutdown_timeout=0):
        runs = await queue.enqueue(nap(600), user_id="acme", task_id="runs")
        await eventually(lambda: is_started(runs.state()))
        await queue.enqueue(greet(SECRET), user_id="acme", task_id="urgent", priority=6)
        await queue.enqueue(greet(SECRET), user_id="acme", task_id="waits")
        later = await queue.enqueue(greet(SECRET), user_id="acme", task_id="later", delay=7200)
        await queue.enqueue(greet(SECRET), user_id="acme", task_id="kept", depends_on=[later])
        await queue.enqueue(greet("x"), user_id=ODD_USER, task_id="[bold]t\x07")
        await queue.set_policy("acme", weight=3)
        await queue.pause("sleepy")
        await queue.enqueue(greet("x"), user_id="sleepy")
        await eventually(lambda: has_reported(queue))
        yield queue


async def has_reported(queue: TaskQueue) -> bool:
    """Whether the worker says of itself that it lives: that comes a moment after its first claim."""
    return any(worker.seen_at for worker in (await queue.stats()).workers)


async def is_started(state: Awaitable[TaskState]) -> bool:
    return await state == TaskState.STARTED


pytestmark = pytest.mark.leaves_keys


# Tables and JSON


async def test_info_shows_sizes_users_and_workers(run: Run, mix: TaskQueue) -> None:
    shown = await run("info")
    assert (shown.code, shown.err) == (0, "")
    lines = shown.out.splitlines()
    assert lines[0] == f"queue {mix.name}: 3 users, 1 worker"
    assert dict(zip(lines[2].split(), lines[3].split(), strict=True)) == {
        "queued": "4", "critical": "1", "started": "1", "scheduled": "1", "deferred": "1",
        "finished": "1", "failed": "1", "canceled": "1", "retried": "1",
    }  # fmt: skip
    acme = next(line for line in lines if line.startswith("acme "))
    assert re.match(r"acme +3 +1 +2 +[\d.]+ m?s +1 +1 +1 ", acme)
    assert any(line.startswith("w 1 ") for line in lines)
    assert max(map(len, (line.rstrip() for line in lines))) <= 110
    found = (await run("info", "--json")).json
    assert found["queue"] == mix.name
    assert found["stats"]["started"] == 1
    assert [worker["worker_id"] for worker in found["stats"]["workers"]] == ["w 1"]
    assert {user["user_id"] for user in found["users"]} == {"acme", "sleepy", ODD_USER}


@pytest.mark.usefixtures("mix")
async def test_info_adds_what_was_counted_for_each_user(run: Run) -> None:
    shown = await run("info", "--stats")
    assert re.search(r"^user +finished +failed +canceled +retried *$", shown.out, re.MULTILINE)
    assert re.search(r"^acme +1 +1 +1 +1 *$", shown.out, re.MULTILINE)


@pytest.mark.usefixtures("mix")
async def test_the_entry_point_of_info_takes_the_same_options(server: Server, queue_name: str) -> None:
    code = "import sys; from _fairque_command import info; sys.argv[0] = 'fairque-info'; info()"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", code, "--stats", f"--url={server.url}", f"--queue={queue_name}"),
        cwd=ROOT, stdout=subprocess.PIPE,
    )  # fmt: skip
    out, _ = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 0
    assert "retried" in out.decode()


async def test_bytes_are_shown_where_they_are_limited(run: Run, queue: TaskQueue) -> None:
    await queue.enqueue(greet(SECRET), user_id="acme")
    await queue.enqueue(greet("y" * 2_000), user_id="acme", delay=60)
    assert "bytes" not in (await run("users")).out
    set_ = await run("policy", "set", "acme", "--max-bytes=1000000")
    assert re.search(r"max bytes +1000000 +its own", set_.out)
    await Worker(queue, scheduler=False).run_until_idle()
    assert re.search(r"^user .* bytes +flags", (await run("users")).out, re.MULTILINE)
    for command in (["users"], ["info"], ["user", "acme"], ["explain", "acme"]):
        assert re.search(r"\d,\d{3} of 1,000,000", (await run(*command)).out), command


async def test_users_are_listed_the_most_recent_first(run: Run, mix: TaskQueue) -> None:
    found = (await run("users", "--json")).json
    assert [user["user_id"] for user in found] == [user.user_id for user in await mix.users()]
    acme = next(user for user in found if user["user_id"] == "acme")
    assert (acme["started"], acme["critical"], acme["normal"], acme["weight"]) == (1, 1, 1, 3.0)
    assert isinstance(acme["wait_seconds"], float)
    active = (await run("users", "--active", "--json")).json
    assert {user["user_id"] for user in active} == {"acme", ODD_USER}
    assert len((await run("users", "--limit=1", "--offset=1", "--json")).json) == 1


@pytest.mark.usefixtures("mix")
async def test_names_are_shown_literally(run: Run) -> None:
    for command in (["users"], ["info"], ["top", "--interval=0.1"], ["user", ODD_USER]):
        shown = await run(*command)
        assert shown.code == 0
        assert "'[red]a\\nb\\x1b[31m/[/red]'" in shown.out, command
        assert "\x1b" not in shown.out
    shown = await run("tasks", ODD_USER)
    assert "'[bold]t\\x07'" in shown.out
    assert "\x07" not in shown.out
    shown = await run("task", ODD_USER, "[bold]t\x07")
    assert "'[bold]t\\x07'" in shown.out


@pytest.mark.usefixtures("mix")
async def test_user_shows_what_is_known_of_one(run: Run) -> None:
    shown = await run("user", "acme")
    for line in (
        r"user +acme",
        r"weight +3",
        r"started +1",
        r"queued +2 \(critical 1, normal 1, held 0\)",
        r"failed +1",
    ):
        assert re.search(f"^{line} *$", shown.out, re.MULTILINE), line
    assert re.search(r"^policy: weight +3", shown.out, re.MULTILINE)
    assert (await run("user", "acme", "--json")).json["dead_letters"] == 1
    assert "policy: paused" in (await run("user", "sleepy")).out


@pytest.mark.usefixtures("mix")
async def test_tasks_of_each_state_are_listed(run: Run) -> None:
    wanted = {
        "started": ["runs"], "queued": ["urgent", "waits"], "scheduled": ["later"], "deferred": ["kept"],
        "failed": ["bad"], "finished": ["done"], "canceled": ["stopped"],
    }  # fmt: skip
    for state, ids in wanted.items():
        found = (await run("tasks", "acme", "--state", state, "--json")).json
        assert [(each["task_id"], each["state"]) for each in found] == [(each, state) for each in ids]
    shown = await run("tasks", "acme")
    rows = [re.split(r" {2,}", line.strip()) for line in shown.out.splitlines()]
    assert [row[0] for row in rows] == ["id", "runs", "urgent", "waits", "later", "kept", "bad"]
    assert rows[4][4] == "in 2 h"
    assert re.match(r"waits [\d.]+ m?s$", rows[2][4])
    assert rows[6][-1] == "error: ValueError"
    assert SECRET not in shown.out + (await run("tasks", "acme", "--json")).out


@pytest.mark.usefixtures("mix")
async def test_tasks_go_on_behind_one(run: Run) -> None:
    first = await run("tasks", "acme", "--limit=2")
    assert "--after 'urgent' shows more" in first.err
    rest = (await run("tasks", "acme", "--after=urgent", "--json")).json
    assert [each["task_id"] for each in rest] == ["waits", "later", "kept", "bad"]


@pytest.mark.usefixtures("mix")
async def test_a_task_is_shown_with_its_attempts_and_errors(run: Run) -> None:
    shown = await run("task", "acme", "bad")
    assert re.search(r"^state +failed *$", shown.out, re.MULTILINE)
    assert len(re.findall(r"^attempt \d, .*: (?:Retry|ValueError): Rumpelstiltskin$", shown.out, re.MULTILINE)) == 2
    assert "Traceback (most recent call last):" in shown.out
    found = (await run("task", "acme", "bad", "--json")).json
    assert [error["type_name"] for error in found["errors"]] == ["Retry", "ValueError"]
    assert "payload" not in found
    assert "due at" in (await run("task", "acme", "later")).out
    assert (await run("task", "acme", "later", "--json")).json["dependents"] == ["kept"]
    assert re.search(r"^message +no need", (await run("task", "acme", "stopped")).out, re.MULTILINE)


@pytest.mark.usefixtures("mix")
async def test_arguments_and_results_are_shown_only_when_asked_for(run: Run) -> None:
    for task_id in ("done", "waits"):
        for as_json in ([], ["--json"]):
            assert SECRET not in (await run("task", "acme", task_id, *as_json)).out
    assert re.search(rf'^args +\["{SECRET}"\]', (await run("task", "acme", "waits", "--payload")).out, re.MULTILINE)
    assert re.search(rf'^result +"hello {SECRET}"', (await run("task", "acme", "done", "--payload")).out, re.MULTILINE)
    assert (await run("task", "acme", "waits", "--payload", "--json")).json["payload"] == {
        "args": [SECRET], "kwargs": {}
    }  # fmt: skip
    assert "not kept" in (await run("task", "acme", "stopped", "--payload")).out


async def test_nothing_is_cut_where_it_is_not_a_terminal(run: Run, queue: TaskQueue) -> None:
    user, task_id = "u" * 300, "t" * 300
    await queue.enqueue(greet("x"), user_id=user, task_id=task_id)
    narrow = {"COLUMNS": "40"}
    for command, wanted in ((["info"], user), (["users"], user), (["user", user], user), (["tasks", user], task_id)):
        shown = await run(*command, env=narrow)
        assert any(wanted in line for line in shown.out.splitlines()), command
        assert "…" not in shown.out


async def test_a_reader_that_stops_early_is_no_error(queue: TaskQueue, server: Server) -> None:
    await queue.enqueue_many([greet("x").options(user_id=f"user-{at}") for at in range(1000)])
    for command in ("users --limit 1000", "info --limit 1000 --interval 0.1", "users --limit 1000 --json"):
        words = f"{sys.executable} -m fairque {command} --url {server.url} --queue {queue.name} | head -n 1"
        process = await asyncio.create_subprocess_shell(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        out, err = await asyncio.wait_for(process.communicate(), 30)
        assert len(out.splitlines()) == 1
        assert err == b"", command


# Intervals


async def test_info_looks_again_and_again_until_it_is_told_to_stop(server: Server, queue: TaskQueue) -> None:
    await queue.enqueue(greet("x"), user_id="acme")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "fairque", "info", "--interval=0.1", "--json"),
        *(f"--url={server.url}", f"--queue={queue.name}"),
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert json.loads(await process.stdout.readline())["stats"]["normal"] == 1
    await queue.enqueue(greet("x"), user_id="acme")
    while json.loads(await process.stdout.readline())["stats"]["normal"] == 1:
        pass
    process.send_signal(signal.SIGINT)
    _, err = await asyncio.wait_for(process.communicate(), 20)
    assert (process.returncode, err) == (130, b"")


# Errors


@pytest.mark.parametrize(
    ("arguments", "code", "error", "hint"),
    [
        (["user", "nobody"], 4, "no user 'nobody' is known", "fairque users"),
        (["tasks", "nobody"], 4, "no user 'nobody' is known", "fairque users"),
        (["task", "nobody", "t"], 4, "no task 't' of user 'nobody'", "--queue"),
        (["tasks", "nobody", "--after=t"], 4, "no task 't' of user 'nobody'", "--queue"),
        (["tasks", "nobody", "--state=waiting"], 2, "--state", "fairque tasks --help"),
        (["user", ""], 2, "user_id must not be empty", "value"),
        (["users", "--limit=0"], 2, "--limit", "fairque users --help"),
        (["users", "--limit=1001"], 2, "--limit", "fairque users --help"),
        (["info", "--interval=0"], 2, "--interval", "fairque info --help"),
        (["top", "--sort=age"], 2, "--sort", "fairque top --help"),
        (["health", "--wait=long"], 2, "--wait 'long' is not WARN:CRIT", "10:100"),
        (["health", "--dead=9:1"], 2, "--dead 9:1: a warning beyond what is critical", "smaller"),
        (["task", "acme"], 2, "Missing argument", "fairque task --help"),
    ],
)
@pytest.mark.usefixtures("begun")
async def test_an_error_is_one_line_and_a_hint(
    run: Run, arguments: list[str], code: int, error: str, hint: str
) -> None:
    ended = await run(*arguments)
    assert (ended.code, ended.out) == (code, "")
    lines = ended.err.splitlines()
    assert len(lines) == 2, ended.err
    assert lines[0].startswith("error: ")
    assert error in lines[0]
    assert lines[1].startswith("hint: ")
    assert hint in lines[1]


# A queue that is not there


LOOKING = (
    *("info", "top --once", "users", "user acme", "tasks acme", "task acme t", "explain acme", "usage", "demand"),
    *(
        "doctor",
        "doctor --repair",
        "dead list",
        "dead groups",
        "dead show acme t",
        "dead requeue --all",
        "dead discard --all --yes",
    ),
    *(
        "change acme t --now",
        "cancel acme t",
        "cancel-all acme --yes",
        "resume acme",
        "purge acme --yes",
        "export-user acme acme.fairque",
        "policy show",
        "policy show acme",
    ),
    *("policy clear acme", "policy group gold", "limits list", "limits clear call", "limits resume a.b"),
    *("schedule list", "schedule next s", "schedule run s", "schedule pause s", "schedule resume s"),
    *("schedule remove s", "settings"),
)
BEGINNING = (
    *("enqueue --name=a.b --user=acme --id=t", "pause acme", "policy set acme --weight=2", "settings lease=20s"),
    *("policy group gold --weight=2", "limits pause a.b", "limits set call --rate=1/s"),
    *("schedule add --name=a.b --user=acme --every=60",),
)


@pytest.mark.parametrize("command", LOOKING)
async def test_a_misspelt_queue_is_no_empty_one(
    command: str, server: Server, queue_name: str, begun: TaskQueue
) -> None:
    ended = await call_command(*command.split(), f"--url={server.url}", f"--queue={queue_name}o")
    assert (ended.code, ended.out) == (1, "")
    assert ended.error[0] == f"error: there is no queue '{queue_name}o' at {server.url}"
    if server.execute("DBSIZE") < 20_000:  # it looks at so many, and other tests leave results
        assert f"did you mean --queue {begun.name!r}" in ended.error[1]
    assert server.keys(f"{queue_name}o") == []


@pytest.mark.parametrize("command", BEGINNING)
async def test_what_may_be_the_first_thing_in_a_queue_is_done(command: str, run: Run) -> None:
    ended = await run(*command.split())
    assert (ended.code, ended.err) == (0, "")
    assert (await run("info")).code == 0


async def test_health_warns_of_a_queue_that_is_not_there(run: Run, server: Server, begun: TaskQueue) -> None:
    ended = await call_command("health", f"--url={server.url}", f"--queue={begun.name}o", "--workers=0")
    assert ended.code == 1
    assert re.search(rf"^queue +warning +there is no queue '{begun.name}o' .*: did you mean", ended.out, re.MULTILINE)
    assert (await run("health", "--workers=0")).code == 0


@pytest.mark.usefixtures("begun")
async def test_queues_are_named_where_none_has_a_name_like_it(server: Server) -> None:
    ended = await call_command("info", f"--url={server.url}", "--queue=emails")
    assert "by --queue: there is " in ended.error[1]


async def test_a_server_without_any_queue_is_told_apart(own_server: Callable[..., EmbeddedServer]) -> None:
    ended = await call_command("info", f"--url={own_server().url}")
    assert "there is no queue 'default'" in ended.error[0]
    assert "a queue begins with its first task or worker" in ended.error[1]


@pytest.mark.damages
async def test_a_queue_without_its_state_and_settings_is_not_taken_for_another(
    run: Run, server: Server, queue: TaskQueue
) -> None:
    await queue.enqueue(greet("x"), user_id="acme")
    server.execute("DEL", queue.keys.state, queue.keys.settings)
    ended = await run("info")
    assert ended.code == 1
    assert "has lost its state and its settings" in ended.error[0]
    assert "fairque doctor" in ended.error[1]


# Health


@pytest.mark.usefixtures("mix")
async def test_a_queue_that_is_well_is_0(run: Run) -> None:
    ended = await run("health")
    assert ended.code == 0, ended.out
    rows = [line.split()[:2] for line in ended.out.splitlines()[1:]]
    assert {status for _, status in rows} == {"ok"}
    names = ["backlog", "wait", "dead", "blocking", "silent", "starved", "late", "memory", "eviction"]
    assert [name for name, _ in rows] == [*names, "reservations", "served", "paused", "damage", "workers"]
    found = (await run("health", "--json")).json
    assert found["status"] == "ok"
    assert {check["name"]: check["value"] for check in found["checks"]}["backlog"] == 4


@pytest.mark.parametrize(
    ("option", "name", "code"),
    [
        ("--backlog=4:9", "backlog", 1),
        ("--backlog=1:4", "backlog", 2),
        ("--backlog=:4", "backlog", 2),
        ("--backlog=4", "backlog", 1),
        ("--backlog=5:9", "backlog", 0),
        ("--wait=0:900", "wait", 1),
        ("--dead=:1", "dead", 2),
        ("--workers=2", "workers", 1),
        ("--late=:0", "late", 2),
    ],
)
@pytest.mark.usefixtures("mix")
async def test_what_is_too_much_decides_the_exit_code(run: Run, option: str, name: str, code: int) -> None:
    ended = await run("health", option, "--json")
    found = json.loads(ended.out)
    checks = {check["name"]: check["status"] for check in found["checks"]}
    assert ended.code == code
    assert found["status"] == checks[name] == ["ok", "warning", "critical"][code]
    assert {status for other, status in checks.items() if other != name} == {"ok"}


async def test_tasks_that_wait_without_any_worker_are_critical(run: Run, queue: TaskQueue) -> None:
    assert (await run("health")).code == 1, "nobody is there, and nothing is missed"
    await queue.enqueue(greet("x"), user_id="acme")
    assert (await run("health")).code == 2
    assert (await run("health", "--workers=0")).code == 0


async def test_scheduled_tasks_that_nobody_promotes_are_late(run: Run, queue: TaskQueue) -> None:
    await queue.enqueue(greet("x"), user_id="acme", delay=0.001)
    await eventually(lambda: is_late(queue))
    assert (await run("health", "--workers=0", "--late=0.1:900")).code == 1
    assert (await run("health", "--workers=0", "--late=off")).code == 0


async def is_late(queue: TaskQueue) -> bool:
    return (await queue.health()).late > 0.1


async def test_a_worker_that_fell_silent_is_a_warning(run: Run, queue: TaskQueue) -> None:
    async with Core(queue.connector.url, queue.name) as core:
        await core.take(1, worker="silent")
        core.renew("silent", [], concurrency=1)
    await eventually(lambda: is_silent(queue, 1.0))
    ended = await run("health", "--silent-after=1")
    assert ended.code == 1
    assert re.search(r"^silent +warning +1 worker fell silent", ended.out, re.MULTILINE)
    assert re.search(r"^workers +warning +0 workers, 1 wanted", ended.out, re.MULTILINE)


async def is_silent(queue: TaskQueue, seconds: float) -> bool:
    stats = await queue.stats()
    return any(stats.at - worker.seen_at >= seconds for worker in stats.workers)


async def test_a_server_that_may_evict_tasks_is_critical(own_server: Callable[..., EmbeddedServer]) -> None:
    server = own_server(**{"maxmemory": "50mb", "maxmemory-policy": "allkeys-lru"})
    async with TaskQueue(server.url) as queue:
        await queue.pause("sleepy")
    ended = await call_command("health", f"--url={server.url}", "--workers=0", "--memory=off")
    assert ended.code == 2
    assert re.search(
        r"^eviction +critical +maxmemory-policy is allkeys-lru, set it to noeviction", ended.out, re.MULTILINE
    )
    ended = await call_command("health", f"--url={server.url}", "--workers=0", "--memory=0:99")
    assert re.search(r"^memory +warning +\d+ % of maxmemory in use", ended.out, re.MULTILINE)


async def test_a_redis_that_is_not_there_is_critical() -> None:
    for as_json, wanted in (([], "not available"), (["--json"], '"status": "critical"')):
        ended = await call_command("health", f"--url={NOWHERE}", *as_json, env=dict([IMPATIENCE]))
        assert ended.code == 2
        assert wanted in ended.out


def test_limits_are_read() -> None:
    assert parse_threshold("--x", "1:2") == Threshold(1, 2)
    assert parse_threshold("--x", "1") == parse_threshold("--x", "1:") == Threshold(1, None)
    assert parse_threshold("--x", ":2") == Threshold(None, 2)
    assert not parse_threshold("--x", "off").looks
    assert [Threshold(1, 2).check("x", value, "").status for value in (0, 1, 2)] == list(Severity)
    for wrong in ("a", "1:b", "-1", "nan", "inf", "1:2:3"):
        with pytest.raises(CommandError, match="is not WARN:CRIT"):
            parse_threshold("--x", wrong)


# Top


async def test_shares_are_those_of_the_queue_and_rates_of_what_was_served_between_two_looks(queue: TaskQueue) -> None:
    await queue.set_policy("heavy", weight=3)
    for user in ("heavy", "light"):
        await queue.enqueue_many([greet("x")] * 40, user_id=user)
    sampler = Sampler(queue)
    first = await sampler.look()
    assert [(row.share, row.rate) for row in first.rows] == [(0, None), (0, None)]
    assert {row.user.user_id: row.fair_share for row in first.rows} == {"heavy": 0.75, "light": 0.25}
    served = 0
    async with Worker(queue, concurrency=1):
        await eventually(lambda: has_finished(queue, 20))
    second = await sampler.look()
    served = second.stats.finished
    assert second.seconds == pytest.approx(second.stats.at - first.stats.at)
    assert second.rate == pytest.approx(served / second.seconds)
    rows = {row.user.user_id: row for row in second.rows}
    assert sum(row.rate for row in rows.values()) == pytest.approx(second.rate)
    assert sum(row.share for row in rows.values()) == pytest.approx(1)
    told = {share.user_id: share for share in (await queue.shares()).users}
    for user_id, row in rows.items():
        assert (row.share, row.fair_share) == pytest.approx((told[user_id].share, told[user_id].entitled), rel=0.05)
    if served < 50:
        assert rows["heavy"].share == pytest.approx(0.75, abs=0.1)
    assert [row.user.user_id for row in second.sorted_by(Order.SHARE)] == ["heavy", "light"]
    assert [row.user.user_id for row in second.sorted_by(Order.BACKLOG)] == ["light", "heavy"]
    assert [row.user.user_id for row in second.sorted_by(Order.USER)] == ["heavy", "light"]


async def has_finished(queue: TaskQueue, tasks: int) -> bool:
    return (await queue.stats()).finished >= tasks


async def test_top_shows_one_interval_where_it_is_not_at_a_terminal(run: Run, mix: TaskQueue) -> None:
    shown = await run("top", "--interval=0.1")
    assert (shown.code, shown.err) == (0, "")
    assert shown.out.startswith(f"queue {mix.name}: 0.0 tasks/s, 4 queued, ")
    assert re.search(r"^acme +100.0% +75.0% +0.0 +1 +2 ", shown.out, re.MULTILINE)
    assert "quit" not in shown.out
    found = (await run("top", "--interval=0.1", "--json")).json
    assert found["seconds"] >= 0.1
    assert {row["user"]["user_id"] for row in found["rows"]} == {"acme", "sleepy", ODD_USER}


CONTROLLED = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
"""A terminal sends the signal of Ctrl-C only to those that it controls."""


class Screen:
    """``fairque top`` on a terminal of its own."""

    def __init__(self, server: Server, queue_name: str, rows: int, columns: int, *options: str) -> None:
        self._terminal, other_end = pty.openpty()
        ioctl(other_end, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.before = termios.tcgetattr(self._terminal)
        env = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES")}
        arguments = ("top", "--interval=0.2", f"--url={server.url}", f"--queue={queue_name}", *options)
        self.process = subprocess.Popen(
            [sys.executable, "-c", CONTROLLED, sys.executable, "-m", "fairque", *arguments],
            cwd=ROOT, stdin=other_end, stdout=other_end, stderr=other_end, start_new_session=True,
            env={**env, "TERM": "xterm-256color"},
        )  # fmt: skip
        os.close(other_end)
        self.output = ""

    def press(self, keys: str) -> None:
        os.write(self._terminal, keys.encode())

    def resize(self, rows: int, columns: int) -> None:
        ioctl(self._terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.process.send_signal(signal.SIGWINCH)

    def see(self, wanted: str, deadline: float = 30.0) -> str:
        """Everything that was written from now on, until `wanted` is among it."""
        return self._read(lambda text: wanted in text, deadline, wanted)

    def quiet(self, seconds: float) -> str:
        """What is written in so many seconds."""
        found, ends = b"", time.monotonic() + seconds
        while (left := ends - time.monotonic()) > 0:
            if select.select([self._terminal], [], [], left)[0]:
                found += os.read(self._terminal, 65536)
        return found.decode(errors="replace")

    def end(self) -> tuple[int, str, bool]:
        """Exit code, what was written last, and whether the terminal is as before."""
        rest = self._read(lambda _: self.process.poll() is not None, 20.0, "its end")
        return self.process.wait(), rest, termios.tcgetattr(self._terminal) == self.before

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._terminal)

    def _read(self, enough: Callable[[str], bool], deadline: float, what: str) -> str:
        found, ends = b"", time.monotonic() + deadline
        while not enough(found.decode(errors="replace")):
            assert time.monotonic() < ends, f"no {what!r} in {found[-2000:]!r}"
            if select.select([self._terminal], [], [], 0.05)[0]:
                try:
                    found += os.read(self._terminal, 65536)
                except OSError:  # the other end is closed
                    self.process.wait()
        return found.decode(errors="replace")


@pytest.fixture
def screen(server: Server, queue_name: str) -> Iterator[Callable[..., Screen]]:
    opened: list[Screen] = []

    def open_screen(rows: int = 24, columns: int = 80, *options: str) -> Screen:
        opened.append(Screen(server, queue_name, rows, columns, *options))
        return opened[-1]

    yield open_screen
    for each in opened:
        each.close()


async def test_top_sorts_holds_and_quits_by_keys(screen: Callable[..., Screen], mix: TaskQueue) -> None:
    top = screen()
    seen = await asyncio.to_thread(top.see, "q quit")
    for part in ("\x1b[?1049h", "by share", "acme", "w 1", "'[red]"):
        assert part in seen
    for key, order in (("w", "wait"), ("t", "started"), ("b", "backlog"), ("u", "user"), ("s", "share")):
        top.press(key)
        await asyncio.to_thread(top.see, f"by {order}")
    top.press("p")
    await asyncio.to_thread(top.see, "[held]")
    await mix.enqueue(greet("x"), user_id="newcomer")
    assert "newcomer" not in await asyncio.to_thread(top.quiet, 1.0)
    top.press(" ")
    await asyncio.to_thread(top.see, "newcomer")
    top.press("q")
    code, rest, restored = await asyncio.to_thread(top.end)
    assert code == 0
    assert "\x1b[?1049l" in rest
    assert "\x1b[?25h" in rest
    assert restored


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.usefixtures("mix")
async def test_a_signal_restores_the_terminal(screen: Callable[..., Screen], signum: signal.Signals) -> None:
    top = screen()
    await asyncio.to_thread(top.see, "q quit")
    if signum is signal.SIGINT:
        top.press("\x03")
    else:
        top.process.send_signal(signum)
    code, rest, restored = await asyncio.to_thread(top.end)
    assert code == 128 + signum
    assert "\x1b[?1049l" in rest
    assert "\x1b[?25h" in rest
    assert "Traceback" not in rest
    assert restored


@pytest.mark.usefixtures("mix")
async def test_top_works_in_a_terminal_of_any_size(screen: Callable[..., Screen]) -> None:
    top = screen(3, 10)
    await asyncio.to_thread(top.see, "queue")
    for rows, columns in ((4, 13), (8, 30), (24, 80), (60, 240), (1, 1), (24, 80)):
        top.resize(rows, columns)
        await asyncio.to_thread(top.see, "queue" if columns > 5 else "q")
    top.press("q")
    code, rest, restored = await asyncio.to_thread(top.end)
    assert (code, restored) == (0, True)
    assert "Traceback" not in rest


async def test_top_waits_for_a_server_that_is_away(
    own_server: Callable[..., EmbeddedServer],
    screen: Callable[..., Screen],
    queue_name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(*IMPATIENCE)
    server = own_server()
    async with TaskQueue(server.url, name=queue_name) as queue:
        await queue.pause("sleepy")
    top = screen(24, 120, f"--url={server.url}")
    await asyncio.to_thread(top.see, "q quit")
    server.kill()
    await asyncio.to_thread(top.see, "not available")
    top.press("q")
    code, _, restored = await asyncio.to_thread(top.end)
    assert (code, restored) == (0, True)


async def test_an_error_at_the_start_leaves_the_terminal_alone(
    screen: Callable[..., Screen], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(*IMPATIENCE)
    top = screen(24, 120, f"--url={NOWHERE}")
    code, rest, restored = await asyncio.to_thread(top.end)
    assert (code, restored) == (1, True)
    assert "error: Redis at redis://localhost:1 is not available" in rest


async def test_a_frame_fits_its_terminal(queue: TaskQueue) -> None:
    from rich.console import Console

    await queue.enqueue_many([greet("x").options(user_id=f"user-{at:03}") for at in range(100)])
    frame = await Sampler(queue).look()
    for height in (4, 10, 24, 90):
        console = Console(width=80, height=height)
        lines = console.render_lines(draw(frame, Order.USER, console.size, ""))
        assert len(lines) <= max(height, 6)


# Times


def test_times_are_for_people() -> None:
    wanted = {
        None: "-", 0: "0 ms", 0.0004: "0 ms", 0.085: "85 ms", 1: "1 s", 1.23: "1.2 s", 9.96: "10 s", 59: "59 s",
        60: "1 min", 200: "3.3 min", 3600: "1 h", 9000: "2.5 h", 86400: "1 d", 2_000_000: "23 d", -5: "0 ms",
    }  # fmt: skip
    assert {seconds: span(seconds) for seconds in wanted} == wanted
    assert ago(10.0, 12.5) == "2.5 s ago"
    assert ago(None, 12.5) == moment(None) == "-"
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d\d:\d\d", moment(1.5e9))
