"""The manifests and the unit in ``config/``: what they say of commands, ports, paths and times is so."""

from __future__ import annotations

import configparser
import json
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import typer
import yaml

from fairque import TaskQueue, Worker
from fairque.cli.app import app
from fairque.config.endpoint import parse_endpoint
from fairque.contrib.http.asgi import ANSWER_SECONDS
from fairque.queue.demand import COOLDOWN
from fairque.worker.service import _GRACE_SECONDS
from tests.apps import served
from tests.support.eventually import eventually
from tests.support.process import ROOT, WorkerProcess
from tests.support.servers import Server

Start = Callable[..., Awaitable[WorkerProcess]]

KUBERNETES = ROOT / "config" / "kubernetes"
UNIT = ROOT / "config" / "systemd" / "fairque-worker.service"
COMMAND: Any = typer.main.get_command(app)
KEDA_SECONDS = 3.0
"""What KEDA's HTTP client waits for an answer, unless its operator is told otherwise."""


def objects() -> dict[tuple[str, str], Any]:
    """By kind and name."""
    found = [each for file in sorted(KUBERNETES.iterdir()) for each in yaml.safe_load_all(file.read_text())]
    named = {(each["kind"], each["metadata"]["name"]): each for each in found}
    assert len(named) == len(found)
    return named


OBJECTS = objects()
DEPLOYMENTS = [name for kind, name in OBJECTS if kind == "Deployment"]
SCALED = OBJECTS["ScaledObject", "fairque-worker"]["spec"]
TRIGGER = SCALED["triggers"][0]
URL = urlsplit(TRIGGER["metadata"]["url"])


def pod(deployment: str) -> Any:
    return OBJECTS["Deployment", deployment]["spec"]["template"]["spec"]


def container(deployment: str) -> Any:
    [found] = pod(deployment)["containers"]
    return found


def words(deployment: str) -> list[str]:
    return [*container(deployment)["command"], *container(deployment)["args"]]


def options(command: list[str]) -> dict[str, Any]:
    """What the command line makes of it. Raises for what it does not know."""
    assert command[0] == "fairque"
    found: dict[str, Any] = COMMAND.commands[command[1]].make_context("fairque", command[2:]).params
    return found


def unit() -> configparser.ConfigParser:
    found = configparser.ConfigParser(interpolation=None, strict=False)
    found.optionxform = str  # type: ignore[assignment, method-assign]
    found.read(UNIT)
    return found


def unit_words() -> list[str]:
    program, *rest = shlex.split(unit()["Service"]["ExecStart"])
    return [Path(program).name, *rest]


def probes(deployment: str) -> Iterator[Any]:
    return (probe for name, probe in container(deployment).items() if name.endswith("Probe"))


# Kubernetes


@pytest.mark.parametrize("deployment", DEPLOYMENTS)
def test_a_pod_listens_where_it_says_and_is_found_by_its_labels(deployment: str) -> None:
    said = options(words(deployment))
    endpoint = parse_endpoint(said.get("http") or said["listen"])
    [port] = container(deployment)["ports"]
    assert endpoint == ("0.0.0.0", port["containerPort"])
    assert {probe["httpGet"]["port"] for probe in probes(deployment)} == {port["name"]}
    spec = OBJECTS["Deployment", deployment]["spec"]
    assert spec["selector"]["matchLabels"] == spec["template"]["metadata"]["labels"]


@pytest.mark.parametrize("deployment", DEPLOYMENTS)
def test_a_probe_has_the_patience_of_an_answer(deployment: str) -> None:
    for probe in probes(deployment):
        assert probe["timeoutSeconds"] > ANSWER_SECONDS


def test_a_worker_is_given_the_time_that_it_takes_to_stop() -> None:
    said = options(words("fairque-worker"))
    assert pod("fairque-worker")["terminationGracePeriodSeconds"] > said["shutdown_timeout"] + _GRACE_SECONDS


def test_a_blocked_worker_ends_by_itself_before_it_is_killed() -> None:
    liveness = container("fairque-worker")["livenessProbe"]
    stall_timeout = Worker(TaskQueue("redis://localhost:1")).options.stall_timeout
    assert stall_timeout is not None
    assert liveness["periodSeconds"] * (liveness["failureThreshold"] - 1) > stall_timeout


def test_the_budget_is_about_the_workers() -> None:
    budget = OBJECTS["PodDisruptionBudget", "fairque-worker"]["spec"]
    assert budget["selector"] == OBJECTS["Deployment", "fairque-worker"]["spec"]["selector"]
    assert "replicas" not in OBJECTS["Deployment", "fairque-worker"]["spec"], "each apply would set them back"


def test_the_autoscaler_asks_the_service_and_scales_the_workers() -> None:
    service = OBJECTS["Service", URL.hostname.partition(".")[0] if URL.hostname else ""]["spec"]
    [port] = service["ports"]
    assert URL.port == port["port"]
    assert service["selector"] == OBJECTS["Deployment", "fairque-demand"]["spec"]["template"]["metadata"]["labels"]
    assert port["targetPort"] == container("fairque-demand")["ports"][0]["name"]
    assert SCALED["scaleTargetRef"] == {"name": "fairque-worker"}
    assert SCALED["minReplicaCount"] < SCALED["fallback"]["replicas"] <= SCALED["maxReplicaCount"]


def test_a_pod_has_the_slots_that_the_autoscaler_reckons_with() -> None:
    said = options(words("fairque-worker"))
    assert TRIGGER["metadata"]["targetValue"] == str(said["concurrency"] * (said["processes"] or 1))
    assert TRIGGER["metricType"] == "AverageValue"
    assert ANSWER_SECONDS < KEDA_SECONDS


def test_the_autoscaler_forgets_nothing_that_is_due_before_it_scales_to_zero() -> None:
    asked = dict(part.split("=") for part in URL.query.split("&"))
    assert float(asked["cooldown"]) >= SCALED["cooldownPeriod"]
    assert SCALED["cooldownPeriod"] <= COOLDOWN


@pytest.mark.parametrize("deployment", DEPLOYMENTS)
async def test_each_command_answers_what_is_asked_of_it(
    deployment: str, worker_process: Start, server: Server, queue_name: str
) -> None:
    async with TaskQueue(server.url, name=queue_name, lease=1.0) as queue:
        await queue.enqueue(served.greet("zoe"), user_id="acme", delay=60)
        process = await worker_process(*here(words(deployment), queue_name), env=environment(server, queue_name))
        url = url_in(await process.line("answers at http://"))
        await process.line("queue ")
        async with httpx.AsyncClient(base_url=url, timeout=10) as client:
            for probe in probes(deployment):
                await becomes_well(client, probe["httpGet"]["path"])
            if deployment == "fairque-demand":
                found = (await client.get(f"{URL.path}?{URL.query}", headers={"Host": URL.netloc})).json()
                assert found[TRIGGER["metadata"]["valueLocation"]] == 1
        process.send(signal.SIGTERM)
        assert await process.wait() == 0, process.output
        await queue.purge("acme")


def here(command: list[str], queue_name: str) -> list[str]:
    """The same on any port, for the queue of the test."""
    instead = {"--http": "--http=127.0.0.1:0", "--listen": "--listen=127.0.0.1:0", "--queue": f"--queue={queue_name}"}
    target = [word if word != "myapp.tasks:queue" else "tests.apps.served:queue" for word in command]
    return [instead.get(word.partition("=")[0], word) for word in target]


def environment(server: Server, queue_name: str) -> dict[str, str]:
    return {"SERVED_URL": server.url, "SERVED_QUEUE": queue_name, "FAIRQUE_REDIS_URL": server.url}


def url_in(line: str) -> str:
    """Of a line of log in JSON."""
    message: str = json.loads(line)["message"]
    return message.partition("answers at ")[2]


async def becomes_well(client: httpx.AsyncClient, path: str) -> None:
    async def is_well() -> bool:
        return (await client.get(path)).status_code == 200

    await eventually(is_well)


# systemd


def test_the_unit_calls_a_command_that_exists_and_gives_it_its_time() -> None:
    said = options(unit_words())
    service = unit()["Service"]
    assert parse_endpoint(said["http"]).host == "127.0.0.1"
    assert float(service["TimeoutStopSec"]) > said["shutdown_timeout"] + _GRACE_SECONDS
    assert service["KillMode"] == "mixed", "or programs that tasks have started would end before their worker drains"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not here")
def test_systemd_has_nothing_against_the_unit(tmp_path: Path) -> None:
    program = unit()["Service"]["ExecStart"].split()[0]
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text().replace(program, sys.executable))
    found = subprocess.run(["systemd-analyze", "verify", str(copy)], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stderr) == (0, "")
