"""The README tells the truth: what it shows is run here."""

from __future__ import annotations

import ast
import inspect
import os
import re
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fairque import TaskQueue, Worker
from fairque.task import registry, unregister
from tests.support.process import ROOT, WorkerProcess
from tests.support.servers import Server

README = (ROOT / "README.md").read_text()
QUICKSTART = ROOT / "examples" / "quickstart.py"
Start = Callable[..., Awaitable[WorkerProcess]]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def is_file(block: str) -> bool:
    """Whether its first line says where it belongs."""
    return re.match(r"# \S+\.py\n", block) is not None


SNIPPETS = [block for block in blocks("python") if block != QUICKSTART.read_text() and not is_file(block)]


@pytest.fixture
def namespace(queue: TaskQueue) -> Iterator[dict[str, Any]]:
    """Where the snippets run, one after the other; their tasks are forgotten afterwards."""
    known = set(registry)
    yield {"__name__": "readme", "queue": queue}
    for name in registry.keys() - known:
        unregister(name)


@pytest.fixture
async def worker(queue: TaskQueue) -> AsyncIterator[None]:
    async with Worker(queue):
        yield


async def run(snippet: str, namespace: dict[str, Any]) -> None:
    """Execute it, ``await`` outside of functions included."""
    code = compile(snippet, "README.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    running = eval(code, namespace)
    if inspect.isawaitable(running):
        await running


@pytest.mark.leaves_keys("policy:acme")
@pytest.mark.usefixtures("worker")
async def test_every_snippet_does_what_it_says(
    namespace: dict[str, Any], server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(SNIPPETS) >= 5
    for snippet in SNIPPETS:
        await run(snippet, namespace)
    assert await namespace["later"].result(timeout=20) == "fetched example.org"
    assert [await handle.result(timeout=20) for handle in namespace["handles"][-2:]]
    assert "error ZeroDivisionError division by zero" in capsys.readouterr().out
    monkeypatch.setenv("FAIRQUE_REDIS_URL", server.url)
    app = SimpleNamespace(state=SimpleNamespace())
    async with namespace["lifespan"](app):
        assert isinstance(app.state.queue, TaskQueue)


async def test_the_worker_command_serves_the_file_that_is_shown(
    worker_process: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [block] = filter(is_file, blocks("python"))
    file = tmp_path / block.splitlines()[0].removeprefix("# ")
    file.parent.mkdir(parents=True)
    file.write_text(block)
    [command] = [line for block in blocks("sh") for line in block.splitlines() if line.startswith("fairque worker")]
    monkeypatch.setenv("FAIRQUE_REDIS_URL", f"embedded://{tmp_path}/server")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    process = await worker_process(*command.split(), env={"PYTHONPATH": path})
    await process.line("serves queue 'default'")
    async with TaskQueue() as queue:
        assert await queue.push_function_task("acme", greet_of(file), ("ann",))
        await process.line("finished user=acme")
    process.send(signal.SIGTERM)
    assert await process.wait() == 0, process.output


def greet_of(file: Path) -> Any:
    """The function ``greet`` of that file, known by the name under which the worker knows it."""
    namespace: dict[str, Any] = {"__name__": "myapp.tasks"}
    exec(compile(file.read_text(), file, "exec"), namespace)
    unregister("myapp.tasks.greet")
    return namespace["greet"]


async def test_the_quickstart_runs_as_it_is_shown(worker_process: Start) -> None:
    assert QUICKSTART.read_text() in blocks("python")
    process = await worker_process("examples/quickstart.py")
    assert await process.wait() == 0, process.output
    first, second, last = process.lines
    assert first == "zoe has her logo, 200 px wide"
    served = int(re.fullmatch(r"acme had (\d+) of 1000 by then", second)[1])  # type: ignore[index]
    assert served < 200
    assert last == "in the end: 1001"


def test_the_test_command_is_that_of_the_continuous_integration() -> None:
    command = (ROOT / ".ci" / "run").read_text().strip().splitlines()[-1]
    assert f"```sh\n{command}\n```" in README
