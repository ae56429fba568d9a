"""Configuration at a terminal: ``fairque config check``, ``--config`` and workers of a configuration."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from fairque import FairQueueConfig, TaskQueue
from fairque.cli.commands.config import service_gaps
from fairque.cli.errors import CommandError
from fairque.cli.options import make_queue
from fairque.cli.worker_process import Settings, make_worker
from fairque.config.config import SchedulerConfig
from fairque.worker.logs import LogLevel, LogSettings
from tests.apps.served import greet, whereabouts
from tests.support.command import Ended, Run, call_command
from tests.support.eventually import eventually
from tests.support.process import WorkerProcess
from tests.support.servers import Server

SECRET = "hunter2"
MODULE = "tests.apps.served"
Start = Callable[..., Awaitable[WorkerProcess]]


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


# Whom nobody serves


@pytest.mark.parametrize(
    ("workers", "sentences"),
    [
        ([{}], []),
        ([{"assigned_users": ["ann"]}, {}], []),
        ([{"assigned_users": ["ann"], "steal_targets": ["*"]}], []),
        ([], ["there are no workers"]),
        ([{"assigned_users": ["ann"], "steal_targets": ["bob"]}, {"assigned_users": ["bob"]}], ["only the 2 users"]),
        (
            [{"assigned_users": ["ann"], "steal_targets": ["bob", "*"]}],
            ["user 'bob' is a steal target but assigned to no"],
        ),
        ([{"assigned_users": ["*", "ann"]}], ["worker '1': '*' in assigned_users is everyone"]),
        ([{"id": "a", "steal_targets": ["ann"]}], ["worker 'a': steal_targets do nothing"]),
    ],
)
def test_gaps_in_the_service_are_told(workers: list[dict[str, object]], sentences: list[str]):
    found = service_gaps(FairQueueConfig.from_dict({"workers": workers}, environ={}))
    assert len(found) == len(sentences)
    for text, sentence in zip(found, sentences, strict=True):
        assert sentence in text


# config check


@pytest.fixture
def check(tmp_path: Path) -> Run:
    """Run it on a file with this text."""

    async def run(text: str, *options: str, **environ: str) -> Ended:
        return await call_command("config", "check", write(tmp_path / "f.yaml", text), *options, env=environ)

    return run


async def test_check_shows_every_value_and_its_origin(check: Run, tmp_path: Path):
    text = f"redis:\n  url: redis://ann:{SECRET}@h\nqueue:\n  lease: 90s\n"
    ended = await check(text, FAIRQUE_QUEUE_NAME="orders")
    rows = {line.split()[0]: line.split()[1:] for line in ended.out.splitlines() if "." in line.split()[0]}
    assert (ended.code, ended.err) == (0, "")
    assert rows["redis.url"] == ["redis://ann:***@h", f"{tmp_path}/f.yaml:2"]
    assert rows["queue.lease"] == ["1m30s", f"{tmp_path}/f.yaml:4"]
    assert rows["queue.name"] == ["orders", "FAIRQUE_QUEUE_NAME"]
    assert rows["queue.result_ttl"] == ["-", "default"]  # as the queue has it
    assert rows["workers[0].assigned_users"] == ["*", "default"]
    assert rows["scheduler.enabled"] == ["true", "default"]
    assert SECRET not in ended.out


async def test_check_prints_json(check: Run, tmp_path: Path):
    ended = await check(f"redis:\n  password: {SECRET}\nworkers: []\n", "--json")
    told = ended.json
    settings = {setting["path"]: setting for setting in told["settings"]}
    assert (ended.code, told["valid"]) == (0, True)
    assert settings["redis.password"] == {"path": "redis.password", "value": "***", "origin": f"{tmp_path}/f.yaml:2"}
    assert settings["queue.lease"] == {"path": "queue.lease", "value": None, "origin": "default"}
    assert told["warnings"] == ["there are no workers: nobody is served by this configuration"]


async def test_warnings_decide_about_the_exit_code_only_under_strict(check: Run):
    lonely = "workers:\n- assigned_users: [ann]\n"
    ended = [await check(lonely), await check(lonely, "--strict"), await check("", "--strict")]
    assert [each.code for each in ended] == [0, 1, 0]
    assert "warning: only the 1 user that is listed is served" in ended[0].err


async def test_check_lists_all_problems(check: Run, tmp_path: Path):
    text = f"redis:\n  pasword: {SECRET}\nqueue:\n  lease: no\n"
    ended = await check(text, FAIRQUE_QUEUE_NAM="x")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.splitlines()[:2] == [
        f"error: {tmp_path}/f.yaml:2: redis.pasword: unknown key; did you mean 'password'?",
        "error: FAIRQUE_QUEUE_NAM: unknown variable; did you mean FAIRQUE_QUEUE_NAME?",
    ]
    assert ended.err.splitlines()[2].startswith(
        f"error: {tmp_path}/f.yaml:4: queue.lease: expected seconds from 0.1 to "
    )
    told = await check(text, "--json")
    assert (told.code, len(told.json["problems"])) == (2, 2)
    assert SECRET not in ended.err + told.out


# --config


def test_a_command_takes_its_queue_from_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = write(tmp_path / "a.toml", 'redis = {url = "redis://h", timeout = 2}\nqueue = {name = "q", lease = 3}')
    queue = make_queue(None, None, [file])
    assert (queue.name, queue.settings.lease_ms, queue.connector.url, queue.connector.timeout) == (
        "q",
        3000,
        "redis://h",
        2,
    )
    queue = make_queue("redis://other", "p", [file])
    assert (queue.name, queue.settings.lease_ms, queue.connector.url, queue.connector.timeout) == (
        "p",
        3000,
        "redis://other",
        2,
    )
    monkeypatch.setenv("FAIRQUE_REDIS_URL", "redis://outside")
    monkeypatch.setenv("FAIRQUE_REDIS_PASSWORD", "x")
    # An option whose variable is set arrives as if it had been given.
    assert make_queue("redis://outside", None, [file]).connector.url == "redis://:x@outside"
    assert make_queue("redis://outside", None, None).connector.url == "redis://:x@outside"
    assert make_queue("redis://other", None, None).connector.url == "redis://other"


def test_a_wrong_file_is_one_problem_with_a_way_to_see_more(tmp_path: Path):
    with pytest.raises(CommandError, match=r"no\.yaml: cannot be read") as caught:
        make_queue(None, None, [str(tmp_path / "no.yaml")])
    assert "fairque config check" in caught.value.hint


# Workers


@pytest.fixture
async def serve(worker_process: Start) -> AsyncIterator[Start]:
    """Start ``fairque worker`` with these arguments; drains it at the end."""
    started: list[WorkerProcess] = []

    async def start(*arguments: str, **environ: str) -> WorkerProcess:
        process = await worker_process("fairque", "worker", *arguments, env=environ)
        started.append(process)
        return process

    yield start
    for process in started:
        if process.returncode is None:
            process.send(signal.SIGTERM)
            assert await process.wait() == 0, process.output


@pytest.fixture
def two_workers(server: Server, queue_name: str, tmp_path: Path) -> str:
    return write(
        tmp_path / "fairque.yaml",
        f"""
redis: {{url: "{server.url}"}}
queue: {{name: {queue_name}}}
workers:
  - {{id: alpha, assigned_users: [ann], processes: 2, max_concurrent_tasks: 1}}
  - {{id: beta, assigned_users: [bob], max_concurrent_tasks: 1}}
""",
    )


async def served_by(queue: TaskQueue, user: str) -> str:
    handle = await queue.enqueue(whereabouts(), user_id=user)
    worker_id, _ = await handle.result(timeout=30)
    return worker_id.partition("-")[0]


async def has_workers(queue: TaskQueue, names: list[str]) -> bool:
    return sorted(worker.worker_id.partition("-")[0] for worker in (await queue.stats()).workers) == names


async def test_all_workers_of_a_configuration_are_started(serve: Start, queue: TaskQueue, two_workers: str):
    process = await serve(MODULE, "--config", two_workers)
    assert await served_by(queue, "ann") == "alpha"
    assert await served_by(queue, "bob") == "beta"
    await eventually(lambda: has_workers(queue, ["alpha", "alpha", "beta"]), 30)
    assert "only the 2 users that are listed are served" in process.output


async def test_one_worker_of_a_configuration_is_started(serve: Start, queue: TaskQueue, two_workers: str):
    process = await serve(MODULE, "--config", two_workers, "--worker=alpha", "--processes=1")
    other = await queue.enqueue(greet("bob"), user_id="bob")
    assert await served_by(queue, "ann") == "alpha"
    assert (await other.info()).state == "queued"
    await other.cancel()
    assert "concurrency 1" in process.output
    assert "worker process" not in process.output


async def test_variables_change_a_worker_of_a_configuration(serve: Start, queue: TaskQueue, two_workers: str):
    await serve(MODULE, "--config", two_workers, "--worker=beta", FAIRQUE_WORKERS_1_ASSIGNED_USERS="cid")
    assert await served_by(queue, "cid") == "beta"


@pytest.mark.parametrize(
    ("arguments", "problem", "hint"),
    [
        (["{file}", "--config={file}"], "is not a module", "name the module alone"),
        ([f"{MODULE}:queue", "--config={file}"], "is not a module", "name the module alone"),
        ([MODULE], "does not name a queue", "module:name"),
        ([MODULE, "--config={file}", "--worker=alpa"], "no worker 'alpa'", "did you mean 'alpha'"),
        ([MODULE, "--config={file}", "--concurrency=3"], "only --processes", "FAIRQUE_WORKERS_0_"),
        ([f"{MODULE}:queue", "--worker=alpha"], "--worker names a worker of a configuration", "--config"),
        ([MODULE, "--config=nowhere.yaml"], "nowhere.yaml: cannot be read", "fairque config check nowhere.yaml"),
        (["tests.apps.nowhere", "--config={file}"], "there is no module 'tests.apps.nowhere'", "looked in"),
    ],
)
async def test_what_cannot_be_served_is_one_line_and_a_hint(
    tmp_path: Path, arguments: list[str], problem: str, hint: str
):
    file = write(tmp_path / "f.yaml", "workers: [{id: alpha}]")
    ended = await call_command("worker", *(argument.format(file=file) for argument in arguments))
    assert (ended.code, ended.out) == (2, "")
    assert problem in ended.error[0]
    assert hint in ended.error[1]


@pytest.mark.parametrize("enabled", [True, False])
async def test_a_worker_fires_schedules_unless_the_configuration_says_no(enabled: bool):
    config = FairQueueConfig(scheduler=SchedulerConfig(enabled=enabled))
    settings = Settings(
        MODULE, config.workers[0], LogSettings(LogLevel.INFO, as_json=True), False, ("f.yaml",), "1", config
    )
    worker = make_worker(TaskQueue.from_config(config), settings)
    assert worker.options.scheduler == enabled
