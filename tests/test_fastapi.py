"""Queues and workers inside a FastAPI app: in this process, and in real ones served by uvicorn."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import signal
import subprocess
import sys
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import httpx
import pytest
from fastapi import Depends, FastAPI, Request

from fairque import (
    BadArguments,
    ConfigError,
    DuplicateTask,
    FairqueError,
    InvalidInput,
    MessageTooLarge,
    NotEncodable,
    QueueFull,
    QueueUnavailable,
    ResultTimeout,
    StoreError,
    TaskExists,
    TaskFailed,
    TaskQueue,
    TaskState,
    UnknownTask,
    Worker,
    WrongType,
    XComMissing,
    task,
)
from fairque.contrib.fastapi import QueueDep, health, install_handlers, lifespan, queue_dep
from fairque.embedded.server import EmbeddedServer
from fairque.tasks.registry import unregister
from tests.support.eventually import eventually
from tests.support.process import WorkerProcess
from tests.support.servers import Server
from tests.support.workers import release
from tests.workers import tasks

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # some versions would have another client instead of httpx
    from fastapi.testclient import TestClient

Start = Callable[..., Awaitable[WorkerProcess]]
SECRET = "hunter2"


@pytest.fixture
def async_queue(server: Server, queue_name: str) -> TaskQueue:
    """Not open: the app opens it."""
    return TaskQueue(server.url, name=queue_name, timeout=2)


def app_of(*queues: TaskQueue, **options: Any) -> FastAPI:
    """An app with an endpoint that has a task done."""
    app = FastAPI(lifespan=lifespan(*queues, **options))
    install_handlers(app)
    app.get("/health")(health)

    @app.get("/sum")
    async def add(queue: QueueDep) -> int:
        return await (await queue.enqueue(tasks.add(1, 2), user_id="anna")).result(20)

    return app


# In this process


@pytest.mark.smoke
def test_an_endpoint_gets_the_queue_and_the_worker_of_the_app_serves_it(async_queue: TaskQueue):
    with TestClient(app_of(async_queue, worker=Worker(async_queue))) as client:
        assert client.get("/sum").json() == 3


@pytest.mark.leaves_keys
def test_an_app_without_a_worker_enqueues_all_the_same(async_queue: TaskQueue):
    app = app_of(async_queue)

    @app.post("/sums")
    async def put_in(queue: QueueDep) -> str:
        return await (await queue.enqueue(tasks.add(1, 2), user_id="anna")).state()

    with TestClient(app) as client:
        assert client.post("/sums").json() == "queued"
        assert client.get("/health").json()["workers"] == {}


def test_an_app_can_be_started_again_each_time_on_a_new_loop(async_queue: TaskQueue):
    app = app_of(async_queue, worker=lambda: Worker(async_queue))

    @app.get("/crowd")
    async def crowd(queue: QueueDep) -> int:
        """They have to wait for each other."""
        return len(await asyncio.gather(*(queue.stats() for _ in range(10))))

    for _ in range(3):
        with TestClient(app) as client:
            assert client.get("/crowd").json() == 10
            assert client.get("/sum").json() == 3


def test_a_worker_that_has_run_is_refused_when_the_app_starts_again(async_queue: TaskQueue):
    app = app_of(async_queue, worker=Worker(async_queue))
    with TestClient(app) as client:
        assert client.get("/sum").json() == 3
    with pytest.raises(InvalidInput, match=r"a worker runs once: lifespan\(…, worker=lambda: Worker"), TestClient(app):
        pass


def test_the_apps_own_lifespan_is_around_the_worker_and_inside_the_queue(async_queue: TaskQueue):
    """Tasks find what it provides, up to the last one, and it can enqueue."""
    told: list[str] = []
    started = asyncio.Event()

    @task(name="own-lifespan")
    async def work() -> None:
        told.append("task starts")
        started.set()
        await asyncio.sleep(0.2)
        told.append("task ends")

    @asynccontextmanager
    async def own(app: FastAPI) -> AsyncIterator[Mapping[str, Any]]:
        told.append(f"begin of {app.title}")
        await async_queue.enqueue(work(), user_id="anna")
        yield {"colour": "red"}
        told.append("end")

    app = app_of(async_queue, worker=Worker(async_queue), inner=own)

    @app.get("/colour")
    async def colour(request: Request) -> str:
        await started.wait()
        return str(request.state.colour)

    try:
        with TestClient(app) as client:
            assert client.get("/colour").json() == "red"
    finally:
        unregister("own-lifespan")
    assert told == ["begin of FastAPI", "task starts", "task ends", "end"]


def test_an_own_lifespan_that_yields_nothing_is_fine(async_queue: TaskQueue):
    @asynccontextmanager
    async def own(_: FastAPI) -> AsyncIterator[None]:
        yield

    with TestClient(app_of(async_queue, worker=Worker(async_queue), inner=own)) as client:
        assert client.get("/sum").json() == 3


@pytest.mark.leaves_keys("*/mails}:settings", "*/mails}:state")
def test_several_queues_are_told_apart_by_name(server: Server, queue_name: str):
    first, mails = TaskQueue(server.url, name=queue_name), TaskQueue(server.url, name=f"{queue_name}/mails")
    app = app_of(first, mails, worker=[Worker(first), lambda: Worker(mails)])

    @app.get("/names")
    async def names(request: Request, queue: QueueDep) -> list[bool]:
        return [await queue_dep(first.name)(request) is queue is first, await queue_dep(mails.name)(request) is mails]

    @app.get("/unknown")
    async def unknown(_: Annotated[TaskQueue, Depends(queue_dep("letters"))]) -> None: ...

    with TestClient(app) as client:
        assert client.get("/names").json() == [True, True]
        found = client.get("/health").json()
        assert list(found["queues"]) == [first.name, mails.name]
        assert len(found["workers"]) == 2
        with pytest.raises(ConfigError, match="no queue 'letters': its lifespan has 'test-several"):
            client.get("/unknown")


def test_a_dependency_on_a_queue_can_be_replaced_in_tests(async_queue: TaskQueue):
    app = app_of(async_queue)

    @app.get("/which")
    async def which(queue: Annotated[Any, Depends(queue_dep("mails"))]) -> str:
        return str(queue)

    app.dependency_overrides[queue_dep("mails")] = lambda: "another one"
    with TestClient(app) as client:
        assert client.get("/which").json() == "another one"


def test_an_app_without_the_lifespan_says_what_is_missing():
    app = FastAPI()

    @app.get("/")
    async def endpoint(_: QueueDep) -> None: ...

    with TestClient(app) as client, pytest.raises(ConfigError, match=r"FastAPI\(lifespan=lifespan\(queue\)\)"):
        client.get("/")


def test_a_lifespan_that_makes_no_sense_is_refused(async_queue: TaskQueue):
    other = TaskQueue("redis://localhost:1", name=async_queue.name)
    with pytest.raises(InvalidInput, match="one or more queues"):
        lifespan()
    with pytest.raises(InvalidInput, match="different names"):
        lifespan(async_queue, other)
    with (
        pytest.raises(InvalidInput, match="serves a queue that its lifespan was not given"),
        TestClient(app_of(async_queue, worker=Worker(other))),
    ):
        pass


# Errors


@pytest.mark.parametrize(
    ("error", "status", "detail"),
    [
        (InvalidInput("priority must be 1 to 6"), 422, "priority must be 1 to 6"),
        (BadArguments("no"), 422, "no"),
        (MessageTooLarge("large"), 422, "large"),
        (UnknownTask(SECRET), 404, "no such task, or it has expired"),
        (XComMissing(SECRET), 404, "no such value, or it has expired"),
        (TaskExists(SECRET, SECRET, SECRET), 409, "such a task exists"),
        (QueueFull(SECRET, 6.2), 429, "too many tasks are waiting"),
        (QueueUnavailable(SECRET), 503, "the task queue is not available"),
        (ResultTimeout(SECRET), 504, "the task has not ended in time"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_errors_are_answered_in_the_manner_of_fastapi(error: FairqueError, status: int, detail: str):
    with TestClient(raising(error)) as client:
        answer = client.get("/")
    assert answer.status_code == status
    assert SECRET not in answer.text
    told = answer.json()["detail"]
    assert told == (detail if status != 422 else [{"type": "invalid_input", "loc": [], "msg": detail}])


def test_a_user_that_is_paused_without_an_end_is_told_no_time():
    with TestClient(raising(QueueFull("full", None))) as client:
        answer = client.get("/")
    assert (answer.status_code, "retry-after" in answer.headers) == (429, False)


@pytest.mark.parametrize("error", [NotEncodable("no"), WrongType("no")])
def test_what_the_server_does_wrong_is_its_own_mistake(error: FairqueError):
    with TestClient(raising(error), raise_server_exceptions=False) as client:
        assert client.get("/").status_code == 500


def raising(error: Exception) -> FastAPI:
    app = FastAPI()
    install_handlers(app)

    @app.get("/")
    async def endpoint() -> None:
        raise error

    return app


@pytest.mark.parametrize(
    ("error", "seconds"), [(QueueFull("", 6.2), "7"), (QueueFull("", 0.0), "1"), (QueueUnavailable(""), "5")]
)
def test_who_should_come_back_is_told_when(error: FairqueError, seconds: str):
    with TestClient(raising(error)) as client:
        assert client.get("/").headers["retry-after"] == seconds


@pytest.mark.parametrize(
    "error", [ConfigError("a"), DuplicateTask("b"), StoreError("c"), TaskFailed("error", "E", "d")]
)
def test_what_the_client_cannot_help_stays_an_error_of_the_server(error: FairqueError):
    with TestClient(raising(error), raise_server_exceptions=False) as client:
        answer = client.get("/")
    assert (answer.status_code, answer.text) == (500, "Internal Server Error")


# When things go wrong


class Dying(Worker):
    async def run(self) -> None:
        self.has_opened.set()
        raise RuntimeError("out of luck")


def test_a_worker_that_dies_is_noticed(async_queue: TaskQueue, caplog: pytest.LogCaptureFixture):
    workers = [Worker(async_queue, worker_id="well"), Dying(async_queue, worker_id="ill")]
    with TestClient(app_of(async_queue, worker=workers)) as client:
        answer = client.get("/health")
        assert client.get("/sum").json() == 3
    assert answer.status_code == 503
    assert answer.json() == {"ok": False, "queues": {async_queue.name: True}, "workers": {"well": True, "ill": False}}
    [record] = [each for each in caplog.records if each.levelno == logging.CRITICAL]
    assert record.getMessage() == "worker ill died"
    assert "out of luck" in caplog.text


def test_the_lifespan_of_a_worker_is_open_when_its_app_has_started(async_queue: TaskQueue):
    @asynccontextmanager
    async def resources() -> AsyncIterator[str]:
        yield "a pool"

    made: list[Worker] = []

    def make() -> Worker:
        made.append(Worker(async_queue, lifespan=resources))
        return made[-1]

    with TestClient(app_of(async_queue, worker=make)) as client:
        assert made[0].state == "a pool"
        assert client.get("/sum").json() == 3


def test_an_app_does_not_start_when_the_lifespan_of_its_worker_fails(async_queue: TaskQueue):
    @asynccontextmanager
    async def resources() -> AsyncIterator[str]:
        raise OSError("no database")
        yield

    with (
        pytest.raises(OSError, match="no database"),
        TestClient(app_of(async_queue, worker=lambda: Worker(async_queue, lifespan=resources))),
    ):
        pass


async def test_a_worker_that_is_stopped_while_the_app_goes_on_is_noticed(
    async_queue: TaskQueue, caplog: pytest.LogCaptureFixture
):
    worker = Worker(async_queue, worker_id="tired")
    app = FastAPI()
    async with lifespan(async_queue, worker=worker)(app):
        await worker.stop()
        await eventually(lambda: "worker tired ended, and the app goes on" in caplog.text)


def test_the_usual_end_is_no_cause_for_alarm(async_queue: TaskQueue, caplog: pytest.LogCaptureFixture):
    with TestClient(app_of(async_queue, worker=Worker(async_queue))) as client:
        assert client.get("/health").json()["ok"] is True
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.leaves_keys
async def test_who_loses_patience_at_the_end_gets_running_tasks_put_back(async_queue: TaskQueue, tmp_path: Path):
    """As a server that is told to leave at once."""
    up = asyncio.Event()

    async def run() -> None:
        worker = Worker(async_queue, shutdown_timeout=60)
        async with lifespan(async_queue, worker=worker)(FastAPI()):
            handle = await async_queue.enqueue(tasks.hold(str(tmp_path)), user_id="anna", task_id="t")
            await eventually(lambda: is_in(handle, TaskState.STARTED))
            up.set()

    app = asyncio.create_task(run())
    await up.wait()
    await asyncio.sleep(0)
    app.cancel()
    with pytest.raises(asyncio.CancelledError):
        await app
    async with TaskQueue(async_queue.connector.url, name=async_queue.name) as queue:
        assert await queue.handle("anna", "t").state() is TaskState.QUEUED
        assert (await queue.stats()).workers == ()


async def is_in(handle: Any, state: TaskState) -> bool:
    return await handle.state() is state


def test_an_app_starts_without_redis_and_serves_when_it_comes(own_server: Callable[..., EmbeddedServer]):
    server = own_server()
    queue = TaskQueue(server.url, timeout=0.5)
    server.kill()
    with TestClient(app_of(queue, worker=Worker(queue, poll_interval=0.5))) as client:
        assert client.get("/sum").status_code == 503
        answer = client.get("/health")
        assert (answer.status_code, answer.json()["queues"]) == (503, {"default": False})
        assert list(answer.json()["workers"].values()) == [True]
        server.start()
        assert client.get("/sum").json() == 3
        assert client.get("/health").status_code == 200


def test_an_app_that_requires_redis_does_not_start_without(own_server: Callable[..., EmbeddedServer]):
    server = own_server()
    queue = TaskQueue(server.url, timeout=0.5)
    server.kill()
    with pytest.raises(QueueUnavailable), TestClient(app_of(queue, require=True)):
        pass


def test_a_server_that_cannot_be_used_fails_the_start():
    queue = TaskQueue("rediss://localhost:1?ssl_ca_certs=/nowhere")
    with pytest.raises(ConfigError, match="nowhere"), TestClient(app_of(queue)):
        pass


def test_without_fastapi_the_import_names_the_extra():
    code = "import sys, fairque, fairque.sync; assert 'fastapi' not in sys.modules; sys.modules['fastapi'] = None\n"
    code += "import fairque.contrib.fastapi"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.stderr.splitlines()[-1].endswith("needs fastapi: pip install 'fairque[fastapi]'"), ran.stderr
    assert "ImportError" in ran.stderr.splitlines()[-1]


# Real processes


class Service:
    """uvicorn, with an app for one test.

    Args:
        process: What was started.
        base_url: Where it listens.
    """

    def __init__(self, process: WorkerProcess, base_url: str) -> None:
        self.process = process
        self._client = httpx.AsyncClient(base_url=base_url, timeout=25)
        self.stream = self._client.stream

    async def get(self, path: str, **query: Any) -> httpx.Response:
        return await self._client.get(path, params=query)

    async def post(self, path: str, **query: Any) -> Any:
        answer = await self._client.post(path, params=query)
        assert answer.is_success, answer.text
        return answer.json()

    async def is_up(self) -> bool:
        try:
            return (await self.get("/health")).is_success
        except httpx.TransportError:
            return False

    async def end(self) -> None:
        """As an operator would."""
        await self._client.aclose()
        if self.process.returncode is None:
            self.process.send(signal.SIGTERM)
            await self.process.wait(40)

    def seen(self, text: str) -> bool:
        return any(text in line for line in self.process.lines)


@pytest.fixture
async def serve(worker_process: Start) -> AsyncIterator[Callable[..., Awaitable[Service]]]:
    """Start a program that serves on a port of its choice: ``await serve("uvicorn", …)``."""
    services: list[Service] = []

    async def start(*command: str, url: str = "", name: str = "default") -> Service:
        env = {"SERVED_URL": url, "SERVED_QUEUE": name, "SERVED_TIMEOUT": "2", "PYTHONUNBUFFERED": "1"}
        process = await worker_process(*command, env=env)
        line = await process.line("Uvicorn running on", 40)
        service = Service(process, re.findall(r"http://127.0.0.1:\d+", line)[0])
        services.append(service)
        await eventually(service.is_up, 40)
        return service

    yield start
    for service in services:
        await service.end()


@pytest.fixture
async def serve_app(
    serve: Callable[..., Awaitable[Service]], server: Server, queue_name: str
) -> Callable[..., Awaitable[Service]]:
    """``await serve_app("--workers", "2")``: `tests.apps.web`, on the queue of the test."""

    async def start(*options: str, app: str = "tests.apps.web:app") -> Service:
        return await serve("uvicorn", app, "--port", "0", *options, url=server.url, name=queue_name)

    return start


Serve = Callable[..., Awaitable[Service]]


async def test_the_example_takes_orders_and_streams_what_happens_in_order(serve: Serve):
    service = await serve("examples/fastapi_app.py", "0")
    order = (await service.post("/users/acme/reports", pages=4))["task_id"]
    events = await events_of(service, f"/users/acme/reports/{order}/events")
    told = [data for _, data in events]
    assert [event for event, _ in events] == [data["state"] for data in told]
    assert told[-1] == {"state": "finished", "progress": None, "message": ""}
    progress = [data["progress"] for data in told if data["progress"]]
    assert progress == sorted(set(progress))
    assert len(progress) >= 2
    shown = (await service.get(f"/users/acme/reports/{order}")).json()
    assert (shown["state"], shown["result"]) == ("finished", "a report of 4 pages")

    assert (await service.get("/users/acme/reports/nothing")).status_code == 404
    assert (await service.get("/users/acme/reports/nothing/events")).status_code == 404
    service.process.send(signal.SIGINT)
    await service.process.wait(30)
    assert service.seen("Application shutdown complete")


async def events_of(service: Service, path: str) -> list[tuple[str, Any]]:
    """Names and data of a stream of events, up to its end."""
    found: list[tuple[str, Any]] = []
    event = ""
    async with service.stream("GET", path) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        async for line in answer.aiter_lines():
            name, _, value = line.partition(": ")
            if name == "event":
                event = value
            elif name == "data":
                found.append((event, json.loads(value)))
    return found


async def test_a_task_can_be_polled_until_its_result_is_there(serve_app: Serve):
    service = await serve_app()
    assert (await service.get("/process")).json()["own"] == "kept"
    task_id = await service.post("/sums", a=2, b=3)

    async def has_finished() -> bool:
        return bool((await service.get(f"/tasks/{task_id}")).json() == "finished")

    await eventually(has_finished)
    assert (await service.get(f"/tasks/{task_id}/result")).json() == 5
    assert (await service.get("/tasks/nothing")).status_code == 404


@pytest.mark.leaves_keys("user:*")
async def test_a_client_that_goes_ends_its_stream(serve_app: Serve, server: Server, queue_name: str, tmp_path: Path):
    service = await serve_app()
    task_id = await service.post("/holds", releases=str(tmp_path))
    channels = f"fairque:{{{queue_name}}}:*{task_id}"
    assert server.execute("PUBSUB", "SHARDCHANNELS", channels) == []
    async with service.stream("GET", f"/tasks/{task_id}/events") as answer:
        await anext(answer.aiter_lines())
        assert len(server.execute("PUBSUB", "SHARDCHANNELS", channels)) == 1
    await eventually(lambda: server.execute("PUBSUB", "SHARDCHANNELS", channels) == [], 20)
    release(tmp_path, service.process)
    assert (await service.get(f"/tasks/{task_id}/result")).json() == service.process.pid


async def test_bad_input_and_a_wait_that_is_too_short_are_told_apart(serve_app: Serve, tmp_path: Path):
    service = await serve_app()
    refused = await service._client.post("/sums", params={"a": 1, "b": 2, "user_id": "a" * 600})
    assert refused.status_code == 422
    assert refused.json()["detail"][0]["msg"].startswith("user_id has 600 bytes")
    task_id = await service.post("/holds", releases=str(tmp_path))
    assert (await service.get(f"/tasks/{task_id}/result", timeout=0)).status_code == 504
    release(tmp_path, service.process)
    assert (await service.get(f"/tasks/{task_id}/result")).is_success


async def test_while_redis_is_down_clients_are_asked_to_come_back(
    serve: Serve, own_server: Callable[..., EmbeddedServer]
):
    server = own_server()
    service = await serve("uvicorn", "tests.apps.web:app", "--port", "0", url=server.url)
    assert (await service.get("/health")).json()["ok"] is True
    server.kill()
    answer = await service._client.post("/sums", params={"a": 1, "b": 2})
    assert (answer.status_code, answer.json()) == (503, {"detail": "the task queue is not available"})
    assert int(answer.headers["retry-after"]) > 0
    assert (await service.get("/health")).status_code == 503
    server.start()
    await eventually(service.is_up, 20)

    async def serves() -> bool:
        """Its connection for what it puts in is another one, with a pause of its own between two tries."""
        return (await service._client.post("/whereabouts")).is_success

    await eventually(serves)
    assert (await service.post("/whereabouts"))[1] == service.process.pid


async def test_sigterm_lets_running_tasks_end(serve_app: Serve, queue: TaskQueue, tmp_path: Path):
    service = await serve_app()
    task_id = await service.post("/holds", releases=str(tmp_path))
    handle = queue.handle("anna", task_id)
    await service.process.line(f"runs {task_id}")
    service.process.send(signal.SIGTERM)
    await service.process.line("Waiting for application shutdown")
    assert await handle.state() is TaskState.STARTED
    release(tmp_path, service.process)
    await service.process.wait(30)
    assert await handle.result(0) == service.process.pid
    assert (await queue.stats()).workers == ()
    assert service.seen("Application shutdown complete")


async def test_each_process_of_an_app_has_a_worker(serve_app: Serve, queue: TaskQueue):
    service = await serve_app("--workers", "2")

    async def both() -> bool:
        return len({worker.pid for worker in (await queue.stats()).workers} - {0}) == 2

    await eventually(both, 30)
    pids = {worker.pid for worker in (await queue.stats()).workers}
    assert service.process.pid not in pids
    assert {(await service.post("/whereabouts"))[1] for _ in range(5)} <= pids
    await service.end()
    assert (await queue.stats()).workers == ()


async def test_a_reload_ends_the_worker_and_starts_another(serve_app: Serve, queue: TaskQueue, tmp_path: Path):
    module = tmp_path / "reloaded_app.py"
    module.write_text("from tests.apps.web import app\n")
    service = await serve_app("--reload", f"--reload-dir={tmp_path}", f"--app-dir={tmp_path}", app="reloaded_app:app")
    before = await service.post("/whereabouts")
    # A file system may keep whole seconds: this one is not the same.
    module.write_text("from tests.apps.web import app\n\nchanged = True\n")
    os.utime(module, (module.stat().st_atime, module.stat().st_mtime + 10))

    async def has_changed() -> bool:
        try:
            return bool((await service.get("/process")).json()["pid"] != before[1])
        except httpx.TransportError:
            return False

    await eventually(has_changed, 40)
    assert await service.post("/whereabouts") != before
    assert [worker.worker_id for worker in (await queue.stats()).workers] != [before[0]]
    await service.end()
    assert (await queue.stats()).workers == ()
