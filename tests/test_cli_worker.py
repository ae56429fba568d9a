"""`fairque worker` with a worker that code has made."""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable

import pytest

from fairque import TaskQueue
from tests.apps import made, served
from tests.support.command import call_command
from tests.support.eventually import eventually
from tests.support.process import WorkerProcess
from tests.support.servers import Server

Serve = Callable[..., Awaitable[WorkerProcess]]


@pytest.fixture
async def serve(worker_process: Callable[..., Awaitable[WorkerProcess]], server: Server, queue_name: str) -> Serve:
    async def start(target: str, *options: str, **env: str) -> WorkerProcess:
        of_test = {"SERVED_URL": server.url, "SERVED_QUEUE": queue_name, **env}
        return await worker_process("fairque", "worker", f"tests.apps.{target}", *options, env=of_test)

    return start


@pytest.fixture
async def queue(server: Server, queue_name: str, monkeypatch: pytest.MonkeyPatch) -> TaskQueue:
    """Under the settings of `tests.apps.served`; not open, and opened by the first call."""
    monkeypatch.setenv("SERVED_URL", server.url)
    monkeypatch.setenv("SERVED_QUEUE", queue_name)
    return served.queue()


@pytest.mark.smoke
async def test_a_worker_that_a_function_makes_is_served_with_its_hooks_and_its_lifespan(
    serve: Serve, queue: TaskQueue
) -> None:
    process = await serve("made:worker")
    async with queue:
        handle = await queue.enqueue(made.greet("ann"), user_id="acme", task_id="t1")
        assert await handle.result(timeout=20) == "hello ann"
        await process.line("hook t1")
        process.send(signal.SIGTERM)
        assert await process.wait() == 0, process.output
    assert "concurrency 3" in process.output
    assert "finished user=acme id=t1" in process.output
    assert "SIGTERM: stopping, a second signal leaves at once" in process.output
    assert process.lines.index("closed") > process.lines.index("hook t1")


async def test_each_process_of_a_worker_opens_what_its_tasks_share(serve: Serve, queue: TaskQueue) -> None:
    process = await serve("made:worker", "--processes=2", "--no-uvloop")
    async with queue:
        await eventually(lambda: process.output.count("concurrency 3") == 2, deadline=30)
        assert await (await queue.enqueue(made.greet("ann"), user_id="acme")).result(timeout=20) == "hello ann"
        process.send(signal.SIGTERM)
        assert await process.wait() == 0, process.output
    assert (process.output.count("opened"), process.output.count("closed")) == (2, 2)


async def test_a_worker_may_be_an_instance(serve: Serve, server: Server, queue_name: str) -> None:
    process = await serve("made:instance")
    async with TaskQueue(server.url, name=queue_name) as queue:
        assert await (await queue.enqueue(served.greet("ann"), user_id="acme")).result(timeout=20) == "hello ann"
        process.send(signal.SIGTERM)
        assert await process.wait() == 0, process.output


@pytest.mark.parametrize("at", ["start", "end"])
async def test_a_lifespan_that_fails_is_told_by_the_exit_code_and_the_log(serve: Serve, at: str) -> None:
    process = await serve("made:worker", FAILS_AT=at)
    if at == "end":
        await process.line("concurrency 3")
        process.send(signal.SIGTERM)
    assert await process.wait() == 1, process.output
    assert "the lifespan failed" in process.output
    assert process.lines[-2].startswith("error: unexpected OSError: no")


@pytest.mark.parametrize(
    ("target", "options", "error", "hint"),
    [
        ("worker", ["--concurrency=5"], "--concurrency says what 'tests.apps.made:worker', which is a Worker,", "y=…)"),
        ("worker", ["--shutdown-timeout=5"], "--shutdown-timeout says what 'tests.apps.made:worker'", "its queue"),
        ("worker", ["--assigned-user=a"], "--assigned-user says what", "Worker(queue, assigned_users=…)"),
        ("named", ["--processes=2"], "several processes would all be worker 'w1': leave worker_id out", ""),
        ("private", [], "embedded:// is a server for one process alone", "redis://"),
        ("tell", [], "'tests.apps.made:tell' failed: TypeError", "without arguments"),
        ("FAILS_AT", [], "is a str, not a queue or a worker", "mean tests.apps.made:instance or tests.apps.made:priva"),
        (
            "worker",
            ["--config=config/fairque.yaml"],
            "'tests.apps.made:worker' is not a module: it names what is ser",
            "load",
        ),
    ],
)
async def test_what_a_worker_cannot_be_served_with_is_refused(
    target: str, options: list[str], error: str, hint: str
) -> None:
    env = {"SERVED_URL": "redis://localhost:1", "SERVED_QUEUE": "q"}
    ended = await call_command("worker", f"tests.apps.made:{target}", *options, env=env)
    assert ended.code == 2
    assert error in ended.err
    assert hint in ended.err


async def test_a_worker_is_told_to_stop_while_its_lifespan_opens(serve: Serve) -> None:
    process = await serve("made:slow")
    await process.line("opening")
    process.send(signal.SIGTERM)
    assert await process.wait(deadline=10) == 0, process.output
