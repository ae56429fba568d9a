"""The guide to production, followed on an empty machine: its own server, its users, its files and its commands."""

from __future__ import annotations

import asyncio
import configparser
import hashlib
import os
import re
import shlex
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from fairque import TaskQueue
from fairque.embedded.binary import server_binary
from fairque.embedded.server import free_port
from tests.support.command import call_command
from tests.support.eventually import eventually
from tests.support.process import ROOT, WorkerProcess
from tests.support.resp import RedisError, RespClient
from tests.support.users import PASSWORD, denials

Start = Callable[..., Awaitable[WorkerProcess]]
PAGE = (ROOT / "docs" / "guides" / "production.md").read_text()
OF_THE_TEST = "user root on nopass ~* &* +@all"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def file(path: str) -> str:
    """A block whose first line is its path."""
    [found] = [text for text in blocks(r"\w+") if text.startswith(f"# {path}\n")]
    return found


def commands(beginning: str) -> list[list[str]]:
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    return [shlex.split(line) for line in lines if line.startswith(beginning)]


class Machine:
    """What the page sets up, under one directory and on one port."""

    def __init__(self, home: Path) -> None:
        self.home, self.port = home, free_port()

    def at_home(self, text: str) -> str:
        """What the page says, for this machine."""
        return text.replace(":6379", f":{self.port}").replace(":…@", f":{PASSWORD}@")

    async def write_users(self) -> None:
        digest = hashlib.sha256(PASSWORD.encode()).hexdigest()
        printed = [await call_command(*words[1:]) for words in commands("fairque acl")]
        lines = [f"{each.out.strip()} #{digest}" for each in printed]
        (self.home / "users.acl").write_text("\n".join([*lines, "user default off", OF_THE_TEST]) + "\n")

    def write_files(self) -> None:
        conf = file("/etc/redis/redis.conf").replace("port 6379", f"port {self.port}")
        conf = conf.replace("/var/lib/redis", str(self.home)).replace("/etc/redis", str(self.home))
        (self.home / "redis.conf").write_text(conf)
        for name in ("shop/tasks.py", "shop/operators.py", "shop/web.py"):
            (self.home / name).parent.mkdir(exist_ok=True)
            (self.home / name).write_text(file(name))

    def execute(self, *words: str | int) -> Any:
        with RespClient(f"redis://root:any@127.0.0.1:{self.port}") as client:
            return client.execute(*words)

    def environment(self, user: str) -> dict[str, str]:
        path = os.pathsep.join([str(self.home), os.environ.get("PYTHONPATH", "")])
        url = file("/etc/shop/worker.env").partition("FAIRQUE_REDIS_URL=")[2].strip()
        url = self.at_home(url).replace("shop-worker", user)
        return {"FAIRQUE_REDIS_URL": url, "SHOP_OPS_PASSWORD": PASSWORD, "PYTHONPATH": path}


@pytest.fixture
async def machine(tmp_path: Path) -> AsyncIterator[Machine]:
    machine = Machine(tmp_path)
    machine.write_files()
    await machine.write_users()
    quiet, configuration = asyncio.subprocess.DEVNULL, tmp_path / "redis.conf"
    process = await asyncio.create_subprocess_exec(server_binary(), configuration, stdout=quiet)
    try:
        await eventually(lambda: answers(machine))
        yield machine
    finally:
        process.kill()
        await process.wait()


def answers(machine: Machine) -> bool:
    try:
        return bool(machine.execute("PING") == b"PONG")
    except (OSError, RedisError):
        return False


async def test_two_workers_and_a_web_service_run_as_the_page_says(machine: Machine, worker_process: Start) -> None:
    unit = shlex.split(service()["Service"]["ExecStart"])
    assert unit[0].endswith("/fairque")

    early = await worker_process("fairque", *unit[1:], env=machine.environment("shop-worker"))
    assert await early.wait() == 1
    assert "`fairque functions load`" in early.output, "it says so as it starts, and ends"
    assert "ACL SETUSER" not in early.output, "nothing asks to permit a worker more than the page does"
    for words in commands("fairque functions"):
        assert (await call_command(*map(machine.at_home, words[1:]))).code == 0

    first, second = [await worker_process("fairque", *unit[1:], env=machine.environment("shop-worker")) for _ in "12"]
    for worker in (first, second):
        await worker.line("serves queue 'shop'")
    web = re.search(r"uvicorn (shop.web:app) --port 8000", PAGE)
    assert web is not None
    server = await worker_process("uvicorn", web[1], "--port", "0", env=machine.environment("shop-web"))
    base = (await server.line("Uvicorn running on ")).split(" on ")[1].split()[0]
    async with httpx.AsyncClient(base_url=base, trust_env=False, timeout=20) as client:
        assert (await client.get("/health")).status_code == 200
        await order(client, "acme")
        first.send(signal.SIGTERM)
        assert await first.wait() == 0
        await order(client, "zoe")
        second.send(signal.SIGKILL)
        third = await worker_process("fairque", *unit[1:], env=machine.environment("shop-worker"))
        await third.line("serves queue 'shop'")
        await order(client, "max")
        assert (await client.get("/queues/")).status_code == 401
        for page in ("/queues/", "/queues/workers", "/queues/user?user=acme"):
            shown = await client.get(page, auth=("ops", PASSWORD))
            assert shown.status_code == 200, shown.text

    await look(machine, worker_process)
    looked = await call_command(*map(machine.at_home, commands("fairque health")[0][1:]))
    assert looked.code in (0, 1), looked.out
    for user in ("ops", "shop-worker", "shop-web", "shop-monitor"):
        assert set(denials(machine.execute, user)) <= {"command function|load"}, user


async def test_prometheus_is_told_what_the_page_has_it_ask(machine: Machine, worker_process: Start) -> None:
    for words in commands("fairque functions"):
        assert (await call_command(*map(machine.at_home, words[1:]))).code == 0
    [worker] = re.findall(r"^ExecStart=\S+/(fairque worker .* --http .*)$", PAGE, re.MULTILINE)
    [monitor] = re.findall(r"^ExecStart=\S+/(fairque http .*)$", PAGE, re.MULTILINE)
    pages = []
    for command, user in ((worker, "shop-worker"), (monitor, "shop-monitor")):
        words = shlex.split(re.sub(r"127\.0\.0\.1:80\S+", "127.0.0.1:0", command))
        process = await worker_process(*words, env=machine.environment(user))
        pages.append(f"{(await process.line('answers at http://')).rpartition(' ')[2]}/metrics")
    url = machine.environment("shop-web")["FAIRQUE_REDIS_URL"]
    async with TaskQueue(url, name="shop") as queue, httpx.AsyncClient(trust_env=False, timeout=20) as client:
        await queue.enqueue_by_name("shop.tasks.write_report", [5], user_id="acme")

        async def are_told() -> bool:
            ended, is_up = [(await client.get(page)).text for page in pages]
            return 'outcome="finished",queue="shop"} 1.0' in ended and 'fairque_up{queue="shop"} 1.0' in is_up

        await eventually(are_told, 30)
    for user in ("shop-worker", "shop-monitor"):
        assert denials(machine.execute, user) == [], user


def test_prometheus_takes_its_file(tmp_path: Path) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("there is no promtool here")
    told = file("/etc/prometheus/prometheus.yml").replace("/etc/prometheus", str(tmp_path))
    (tmp_path / "prometheus.yml").write_text(told)
    (tmp_path / "shop-rules.yaml").write_text(file("/etc/prometheus/shop-rules.yaml"))
    shutil.copy(ROOT / "docs" / "monitoring" / "alert-rules.yaml", tmp_path)
    subprocess.run(["promtool", "check", "config", tmp_path / "prometheus.yml"], check=True, capture_output=True)


async def look(machine: Machine, worker_process: Start) -> None:
    """Pages that only read are shown to a user that only reads."""
    [words] = commands("fairque dashboard")
    pages = await worker_process("fairque", *map(machine.at_home, words[1:]), "--port", "0")
    address = re.search(r"http://127\.0\.0\.1:\d+\S*", await pages.line("http://127.0.0.1:"))
    assert address is not None
    async with httpx.AsyncClient(trust_env=False, timeout=20, follow_redirects=True) as client:
        overview = await client.get(address[0])
        assert overview.status_code == 200, overview.text
        base = str(overview.url.copy_with(query=None))
        for page in ("users", "user?user=acme", "dead-letters", "schedules", "workers", "limits", "health"):
            shown = await client.get(f"{base}{page}")
            assert shown.status_code == 200, (page, shown.text)
    pages.send(signal.SIGTERM)
    assert await pages.wait() == 0


async def order(client: httpx.AsyncClient, user_id: str) -> None:
    ordered = await client.post(f"/users/{user_id}/reports", params={"pages": 5})
    assert ordered.status_code == 202, ordered.text
    path = f"/users/{user_id}/reports/{ordered.json()['task_id']}"

    async def is_written() -> bool:
        told = await client.get(path)
        return bool(told.json() == {"state": "finished", "report": "a report of 5 pages"})

    await eventually(is_written, 30)


def service() -> configparser.ConfigParser:
    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str  # type: ignore[assignment]
    unit.read_string(file("/etc/systemd/system/shop-worker@.service"))
    return unit


def test_the_unit_stops_a_worker_no_sooner_than_that_has_drained() -> None:
    words = shlex.split(service()["Service"]["ExecStart"])
    shutdown = float(words[words.index("--shutdown-timeout") + 1])
    assert float(service()["Service"]["TimeoutStopSec"]) >= shutdown + 25
    assert service()["Service"]["KillMode"] == "mixed"


def test_supervisor_runs_what_systemd_does() -> None:
    told = configparser.ConfigParser(interpolation=None)
    told.read_string(file("/etc/supervisor/conf.d/shop-worker.conf"))
    program, unit = told["program:shop-worker"], service()["Service"]
    assert program["command"] == unit["ExecStart"]
    assert (program["user"], program["directory"]) == (unit["User"], unit["WorkingDirectory"])
    assert program["stopwaitsecs"] == unit["TimeoutStopSec"]


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("there is no systemd-analyze here")
    program = tmp_path / "fairque"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    text = file("/etc/systemd/system/shop-worker@.service").replace("/srv/shop/.venv/bin/fairque", str(program))
    unit = tmp_path / "shop-worker@1.service"
    unit.write_text(re.sub(r"^User=.*\n", "", text, flags=re.MULTILINE))
    told = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, timeout=30, check=False)
    assert [line for line in told.stderr.splitlines() if "shop-worker" in line] == []
