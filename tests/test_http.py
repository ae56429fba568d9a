"""Probes and scaling by HTTP: over real sockets, of workers in this process and in processes of their own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families

from fairque import ConfigError, InvalidInput, TaskQueue, Worker, task
from fairque.config.config import WorkerConfig
from fairque.config.endpoint import Endpoint, parse_endpoint
from fairque.contrib.http import demand, probes
from fairque.contrib.http.asgi import ANSWER_SECONDS, MOST_WAITING, Answer, App, sentence
from fairque.contrib.http.server import MOST_CONNECTIONS, serving
from fairque.contrib.prometheus import WorkerMetrics
from fairque.embedded.server import free_port
from fairque.tasks.registry import unregister
from tests.apps import made, served
from tests.support.command import call_command, run_command
from tests.support.eventually import eventually
from tests.support.process import ROOT, WorkerProcess
from tests.support.processes import is_running
from tests.support.proxy import CuttingProxy
from tests.support.servers import Server, new_queue_name

Start = Callable[..., Awaitable[WorkerProcess]]
ANYWHERE = "127.0.0.1:0"
TARGET = "tests.apps.served:queue"


@pytest.fixture
async def start(worker_process: Start, server: Server, queue_name: str) -> Start:
    """``fairque`` on the queue of the test."""

    async def start(*command: str, directory: Path = ROOT, **env: str) -> WorkerProcess:
        given = {"SERVED_URL": server.url, "SERVED_QUEUE": queue_name, "FAIRQUE_REDIS_URL": server.url, **env}
        return await worker_process("fairque", *command, env=given, directory=directory)

    return start


@pytest.fixture
async def queue(server: Server, queue_name: str) -> AsyncIterator[TaskQueue]:
    """With the settings of `served.queue`."""
    async with TaskQueue(server.url, name=queue_name, lease=1.0) as queue:
        yield queue


@asynccontextmanager
async def client_of(app: Any) -> AsyncIterator[httpx.AsyncClient]:
    """Of a server that has this app."""
    async with serving(app, ANYWHERE) as url, httpx.AsyncClient(base_url=url, timeout=10) as client:
        yield client


async def url_of(process: WorkerProcess) -> str:
    line = await process.line("answers at http://")
    return line.partition("answers at ")[2]


async def status(url: str, path: str, seconds: float = 5.0) -> int | None:
    """None where there is no answer."""
    try:
        async with httpx.AsyncClient(timeout=seconds) as client:
            return (await client.get(url + path)).status_code
    except httpx.HTTPError:
        return None


async def becomes(url: str, path: str, wanted: int | None, seconds: float = 5.0) -> None:
    async def found() -> bool:
        return await status(url, path, seconds) == wanted

    await eventually(found, 30)


async def ended(process: WorkerProcess) -> None:
    process.send(signal.SIGTERM)
    assert await process.wait() == 0, process.output


# Where to listen


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("127.0.0.1:8080", Endpoint("127.0.0.1", 8080)),
        ("0.0.0.0:0", Endpoint("0.0.0.0", 0)),
        ("[::1]:8080", Endpoint("::1", 8080)),
        ("localhost:65535", Endpoint("localhost", 65535)),
    ],
)
def test_an_address_is_a_host_and_a_port(text: str, meant: Endpoint) -> None:
    assert parse_endpoint(text) == meant
    assert str(meant) == text


@pytest.mark.parametrize(
    "text", ["", ":8080", "8080", "localhost", "a:65536", "a:-1", "::1:8080", "http://a:80", "a:80/", "a b:80", "a:8 0"]
)
def test_what_is_no_address_is_refused_by_its_value(text: str) -> None:
    with pytest.raises(InvalidInput, match=re.escape(f"HOST:PORT, like 127.0.0.1:8080 or [::1]:8080, not {text!r}")):
        parse_endpoint(text)
    with pytest.raises(ConfigError):
        WorkerConfig(http=text)


async def test_a_port_in_use_is_told_by_its_address() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(ConfigError, match=f"nothing can listen at {address}: Address already in use"):
            async with serving(App({}), address):
                pass


async def test_a_host_that_is_not_here_is_told_by_its_address() -> None:
    with pytest.raises(ConfigError, match=r"nothing can listen at 192\.0\.2\.1:8080: "):
        async with serving(App({}), "192.0.2.1:8080"):
            pass


# What is asked, and how


async def pong(_: object) -> Answer:
    return sentence(200, "pong")


async def test_only_get_and_head_of_known_paths_are_answered() -> None:
    async with client_of(App({"/ping": pong})) as client:
        found = await client.get("/ping")
        assert (found.status_code, found.text, found.headers["cache-control"]) == (200, "pong\n", "no-store")
        head = await client.head("/ping")
        assert (head.status_code, head.text, head.headers["content-length"]) == (200, "", "5")
        for method in ("POST", "PUT", "DELETE", "OPTIONS"):
            refused = await client.request(method, "/ping")
            assert (refused.status_code, refused.headers["allow"]) == (405, "GET, HEAD")
        for path in ("/", "/ping/", "/pong", "/PING", "/../ping/x", "/%2Fping"):
            assert (await client.get(path)).status_code == 404


async def test_a_body_is_never_read() -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while sent < 1 << 30:
            sent += 1 << 16
            yield b"x" * (1 << 16)

    async with client_of(App({"/ping": pong})) as client:
        try:
            answer = await client.post("/ping", content=endless())
        except httpx.HTTPError:  # it had more to say, and was hung up on
            pass
        else:
            assert answer.status_code == 405
        assert sent < 1 << 27
        assert (await client.get("/ping")).status_code == 200


async def test_a_page_that_hangs_is_answered_in_time_and_holds_up_no_other(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("fairque.contrib.http.asgi.ANSWER_SECONDS", 0.3)

    async def hang(_: object) -> Answer:
        await asyncio.Event().wait()
        return sentence(200, "never")

    async def fail(_: object) -> Answer:
        raise OSError("hunter2")

    async with client_of(App({"/ping": pong, "/hang": hang, "/fail": fail})) as client:
        hanging = asyncio.create_task(client.get("/hang"))
        failed = await client.get("/fail")
        assert (failed.status_code, failed.text) == (500, "this failed: the log says why\n")
        assert (await client.get("/ping")).status_code == 200
        assert not hanging.done()
        assert ((await hanging).status_code, (await hanging).text) == (503, "no answer within 0.3 s\n")
    assert "/fail failed" in caplog.text


async def test_who_asks_too_often_at_once_is_refused_there_and_nowhere_else() -> None:
    go = asyncio.Event()

    async def wait(_: object) -> Answer:
        await go.wait()
        return sentence(200, "went")

    app = App({"/ping": pong, "/wait": wait})
    waiting = [asyncio.create_task(call(app, "/wait")) for _ in range(MOST_WAITING)]
    await asyncio.sleep(0)
    assert await call(app, "/wait") == 503
    assert await call(app, "/ping") == 200
    go.set()
    assert await asyncio.gather(*waiting) == [200] * MOST_WAITING
    assert await call(app, "/wait") == 200


async def call(app: App, path: str, **scope: Any) -> int:
    """The status, without a server between."""
    sent: list[Any] = []

    async def receive() -> Any:
        raise AssertionError("nothing is to be read")

    async def send(message: Any) -> None:
        sent.append(message)

    await app({"type": "http", "method": "GET", "path": path, "query_string": b"", **scope}, receive, send)
    found: int = sent[0]["status"]
    return found


@pytest.mark.parametrize(
    ("path", "root", "wanted"),
    [
        ("/ping", "", 200),
        ("/api/ping", "/api", 200),  # as the ASGI specification has it
        ("/ping", "/api", 200),  # as a proxy leaves it that takes the prefix away
        ("/api/ping", "/api/", 200),
        ("/apiping", "/api", 404),
        ("/api", "/api", 404),
    ],
)
async def test_an_app_is_found_under_any_prefix(path: str, root: str, wanted: int) -> None:
    assert await call(App({"/ping": pong}), path, root_path=root) == wanted


async def test_connections_that_say_nothing_keep_nobody_from_an_answer() -> None:
    async with serving(App({"/ping": pong}), ANYWHERE) as url, AsyncExitStack() as stack:
        port = int(url.rpartition(":")[2])
        for _ in range(MOST_CONNECTIONS + 50):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /ping HT")
            stack.callback(writer.close)
        for _ in range(5):
            assert await status(url, "/ping", 2) == 200


async def test_a_connection_ends_with_its_answer_or_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fairque.contrib.http.server.CONNECTION_SECONDS", 0.3)
    async with serving(App({"/ping": pong}), ANYWHERE) as url:
        port = int(url.rpartition(":")[2])
        silent, silent_writer = await asyncio.open_connection("127.0.0.1", port)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /ping HTTP/1.1\r\nHost: localhost\r\n\r\n")
        async with asyncio.timeout(5):
            assert (await reader.read()).endswith(b"pong\n")
            with contextlib.suppress(ConnectionError):  # which it is, some systems say by an end
                assert not await silent.read()
        for each in (silent_writer, writer):
            each.close()


PONG = App({"/livez": pong})


async def under(name: str, url: str) -> int:
    """The status of what is asked under this name."""
    async with httpx.AsyncClient() as client:
        return (await client.get(f"{url}/livez", headers={"Host": name})).status_code


@pytest.mark.parametrize(
    "name",
    [
        "evil.example",
        "evil.example:8080",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "localhost.",
        "",
        "user@127.0.0.1",
        "2130706433",
        "[::1].evil.example",
    ],
)
async def test_a_page_of_a_stranger_whose_name_leads_here_reads_nothing(name: str) -> None:
    async with serving(PONG, ANYWHERE) as url:
        assert await under(name, url) == 400


@pytest.mark.parametrize(
    "name",
    ["localhost", "LocalHost:8080", "127.0.0.1:8080", "10.2.3.4:8080", "[::1]:8080", "[fd00::1]", socket.gethostname()],
)
async def test_probes_by_an_address_and_by_the_own_names_of_a_machine_are_answered(name: str) -> None:
    async with serving(PONG, "0.0.0.0:0") as url:
        assert await under(name, url) == 200


async def test_names_that_are_permitted_are_answered_and_no_others() -> None:
    async with serving(PONG, ANYWHERE, ["fairque.shop.svc"]) as url:
        assert await under("fairque.shop.svc:8080", url) == 200
        assert await under("shop.svc", url) == 400


async def test_who_names_nobody_is_no_browser_and_is_answered() -> None:
    async with serving(PONG, ANYWHERE) as url:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
        writer.write(b"GET /livez HTTP/1.0\r\n\r\n")
        assert b" 200 " in await reader.readline()
        writer.close()
        await writer.wait_closed()


async def test_a_refusal_is_logged_once_and_shows_no_more_than_a_part_of_a_name(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with serving(PONG, ANYWHERE) as url:
        for _ in range(3):
            assert await under("e" * 4000, url) == 400
    [told] = [record.getMessage() for record in caplog.records if "refused" in record.getMessage()]
    assert len(told) < 250
    assert "--http-host" in told


@pytest.mark.parametrize("name", ["evil.example:80", "*", "a/b", "é.example"])
async def test_a_name_that_no_browser_sends_is_refused(name: str) -> None:
    with pytest.raises(InvalidInput, match="hosts are names"):
        async with serving(PONG, ANYWHERE, [name]):
            pytest.fail("it serves")


async def test_a_web_socket_is_turned_away() -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    await App({"/ping": pong})({"type": "websocket", "path": "/ping"}, receive, send)
    assert sent == [{"type": "websocket.close"}]


# A worker of this process


async def test_a_worker_is_ready_from_its_first_claim_until_it_is_to_stop(queue: TaskQueue) -> None:
    worker = Worker(queue)
    async with client_of(probes(worker)) as client:

        async def codes() -> list[int]:
            return [(await client.get(path)).status_code for path in ("/livez", "/readyz")]

        assert await codes() == [200, 503]
        async with worker:
            assert await codes() == [200, 200]
            worker.retire()
            assert await codes() == [200, 503]
        assert await codes() == [200, 503]


async def test_a_worker_is_not_ready_while_redis_does_not_answer_but_lives(server: Server, queue_name: str) -> None:
    async with CuttingProxy(server.url) as proxy, TaskQueue(proxy.url, name=queue_name, timeout=0.5) as queue:
        worker = Worker(queue, poll_interval=0.05)
        async with worker, client_of(probes(worker)) as client:
            await becomes(str(client.base_url), "/readyz", 200)
            await proxy.refuse()
            await becomes(str(client.base_url), "/readyz", 503)
            assert (await client.get("/livez")).status_code == 200
            await proxy.accept()
            await becomes(str(client.base_url), "/readyz", 200)
            proxy.pause()  # it hangs: nothing is refused
            await becomes(str(client.base_url), "/readyz", 503)
            assert (await client.get("/livez")).status_code == 200
            proxy.resume()
            await becomes(str(client.base_url), "/readyz", 200)


async def test_a_worker_is_not_ready_while_its_limits_are_not_told(server: Server, queue_name: str) -> None:
    async with AsyncExitStack() as stack:
        proxy = await stack.enter_async_context(CuttingProxy(server.url))
        queue = await stack.enter_async_context(TaskQueue(proxy.url, name=queue_name, timeout=20))
        worker = await stack.enter_async_context(Worker(queue, scheduler=False))
        assert worker.can_claim
        hold = proxy.hold("limits")
        stack.callback(hold.released.set)

        @task(name="http.limited", max_running=1)
        async def limited() -> None: ...

        stack.callback(unregister, "http.limited")
        assert not worker.can_claim
        await hold.reached.wait()
        assert not worker.can_claim
        hold.released.set()
        await eventually(lambda: worker.can_claim)
    server.forget(queue_name)


async def test_a_worker_that_has_died_is_not_ready(queue: TaskQueue) -> None:
    @asynccontextmanager
    async def broken() -> AsyncIterator[None]:
        yield
        raise RuntimeError("on purpose")

    worker = Worker(queue, lifespan=broken, max_deliveries=1)
    running = asyncio.create_task(worker.run())
    await worker.serves.wait()
    assert worker.can_claim
    await worker.stop()
    await asyncio.wait([running])
    assert not worker.can_claim
    with pytest.raises(RuntimeError, match="on purpose"):
        running.result()


async def test_probes_are_mounted_in_another_app(queue: TaskQueue) -> None:
    app = FastAPI()
    async with Worker(queue) as worker:
        app.mount("/fairque", probes(worker))
        app.mount("/scaling", demand(queue))
        async with client_of(app) as client:
            for path in ("/fairque/livez", "/fairque/readyz", "/scaling/demand", "/scaling/readyz"):
                assert (await client.get(path)).status_code == 200
            assert (await client.get("/fairque/demand")).status_code == 404


# Demand


async def test_demand_is_what_the_queue_says(queue: TaskQueue) -> None:
    @task(name="http.work")
    async def work() -> None: ...

    try:
        async with client_of(demand(queue)) as client:
            assert (await client.get("/demand")).json()["slots_needed"] == 0
            await queue.enqueue_many([work() for _ in range(7)], user_id="acme")
            await eventually_fresh()
            found = await client.get("/demand", params={"target_wait": "30"})
            assert found.headers["content-type"] == "application/json"
            wanted = await queue.demand(target_wait=30)
            assert found.json()["slots_needed"] == wanted.slots_needed > 0
            assert found.json()["target_wait"] == 30
            assert found.json().keys() == set(wanted.__struct_fields__)
            head = await client.head("/demand")
            assert (head.status_code, head.text) == (200, "")
    finally:
        await queue.purge("acme")
        unregister("http.work")


async def eventually_fresh() -> None:
    """What was found before is forgotten."""
    over = time.monotonic() + 1.05
    await eventually(lambda: time.monotonic() > over)


@pytest.mark.parametrize(
    ("query", "wanted"),
    [
        ("target_wait=soon", "target_wait must be a number of seconds, not 'soon'"),
        ("target_wait=", "target_wait must be a number of seconds, not ''"),
        ("target_wait=0", "target_wait must be a number from 0.001 to 3153600000 seconds, not 0.0"),
        ("target_wait=nan", "target_wait must be a number from 0.001 to 3153600000 seconds, not nan"),
        ("target_wait=1e999", "target_wait must be a number from 0.001 to 3153600000 seconds, not inf"),
        ("cooldown=-1", "cooldown must be a number from 0 to 3153600000 seconds, not -1.0"),
        ("target_wait=1&target_wait=2", "a parameter of the URL is given twice"),
        ("target-wait=1", "there is no parameter 'target-wait'; there are target_wait, cooldown, queue"),
        ("&".join(f"p{n}=1" for n in range(11)), "a URL may have 10 parameters, this one has more"),
        ("queue=other", "queue names the one that is meant, of 'own', not 'other'"),
        ("target_wait=" + 1000 * "x", "target_wait must be a number of seconds, not '" + 40 * "x" + "…'"),
        ("%FF%FE=%0a", "there is no parameter"),
    ],
)
async def test_a_bad_parameter_is_refused_by_its_value(query: str, wanted: str) -> None:
    async with client_of(demand(TaskQueue("redis://127.0.0.1:1", name="own"))) as client:
        found = await client.get(f"/demand?{query}")
        assert (found.status_code, found.headers["content-type"]) == (422, "text/plain; charset=utf-8")
        assert found.text.startswith(wanted)
        assert found.text.count("\n") == 1


async def test_what_is_wrong_with_the_queue_is_not_the_fault_of_who_asks(
    server: Server, queue_name: str, caplog: pytest.LogCaptureFixture
) -> None:
    queue = TaskQueue(server.url, name=queue_name)
    await queue.close()
    async with client_of(demand(queue)) as client:
        found = await client.get("/demand")
        assert (found.status_code, found.text) == (503, "the queue cannot be read: the log says why\n")
        assert f"cannot look at queue {queue_name!r}: the queue is closed" in caplog.text


async def test_of_several_queues_one_is_named(server: Server, queue: TaskQueue) -> None:
    async with TaskQueue(server.url, name=new_queue_name("other")) as other:
        async with client_of(demand(queue, other)) as client:
            for each in (queue, other):
                assert (await client.get("/demand", params={"queue": each.name})).status_code == 200
            unnamed = await client.get("/demand")
            assert unnamed.status_code == 422
            assert unnamed.text == f"queue names the one that is meant, of {queue.name!r}, {other.name!r}\n"
        server.forget(other.name)


def test_demand_takes_queues_with_different_names() -> None:
    one = TaskQueue("redis://127.0.0.1:1", name="one")
    for queues in ((), (one, one)):
        with pytest.raises(InvalidInput, match="one or more queues with different names"):
            demand(*queues)


async def test_many_who_ask_cost_the_server_what_one_does(server: Server, queue_name: str) -> None:
    async with CuttingProxy(server.url) as proxy, TaskQueue(proxy.url, name=queue_name) as queue:
        looks, began = proxy.hold("demand", nth=1_000_000), time.monotonic()
        async with client_of(demand(queue)) as client:

            async def ask(n: int) -> int:
                return (await client.get(f"/demand?target_wait={n + 1}&cooldown={n}")).status_code

            for _ in range(5):
                assert await asyncio.gather(*map(ask, range(60))) == [200] * 60
        assert 1 <= looks.seen <= time.monotonic() - began + 3


async def test_where_redis_hangs_the_answer_comes_in_time_and_says_so(
    server: Server, queue_name: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with AsyncExitStack() as stack:
        proxy = await stack.enter_async_context(CuttingProxy(server.url))
        queue = await stack.enter_async_context(TaskQueue(proxy.url, name=queue_name, timeout=8))
        client = await stack.enter_async_context(client_of(demand(queue)))
        assert (await client.get("/readyz")).status_code == 200
        await eventually_fresh()
        proxy.pause()
        began = time.monotonic()
        answers = await asyncio.gather(*(client.get(path) for path in 20 * ["/demand", "/readyz"]))
        assert time.monotonic() - began < ANSWER_SECONDS + 5
        assert {answer.status_code for answer in answers} == {503}
        began = time.monotonic()
        assert (await client.get("/livez")).status_code == 200
        assert time.monotonic() - began < ANSWER_SECONDS
        proxy.resume()
        await becomes(str(client.base_url), "/demand", 200)
        await eventually_fresh()
        await proxy.refuse()
        answer = await client.get("/demand")
        assert answer.status_code == 503
        assert answer.text == "no answer within 2 s\n", "the call tries again, for as long as the queue has patience"
        await eventually(lambda: "cannot look at queue" in caplog.text, 40)
        assert "127.0.0.1" in caplog.text
        await eventually_fresh()
        await proxy.accept()


async def test_a_queue_is_opened_by_the_first_request_and_closed_by_the_server_that_tells_of_its_end(
    server: Server, queue_name: str
) -> None:
    queue = TaskQueue(server.url, name=queue_name)
    app = demand(queue)
    steps = iter(["startup", "shutdown"])
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": f"lifespan.{next(steps)}"}

    async def send(message: Any) -> None:
        sent.append(message["type"])

    assert not queue.connector.is_open
    assert await call(app, "/demand") == 200
    assert queue.connector.is_open
    await app({"type": "lifespan"}, receive, send)
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert not queue.connector.is_open


# fairque worker --http


@pytest.mark.smoke
async def test_a_worker_answers_from_its_start_to_the_end_of_its_last_task(
    start: Start, queue: TaskQueue, tmp_path: Path
) -> None:
    process = await start("worker", TARGET, f"--http={ANYWHERE}")
    url = await url_of(process)
    await becomes(url, "/readyz", 200)
    held = await queue.enqueue(served.hold(f"{tmp_path}/go"), user_id="acme")
    await process.line("runs ")
    process.send(signal.SIGTERM)
    await process.line("SIGTERM: stopping")
    await becomes(url, "/readyz", 503)
    assert await status(url, "/livez") == 200
    assert await status(url, "/readyz") == 503
    (tmp_path / "go").touch()
    assert await held.result(timeout=20) == "let go"
    assert await process.wait() == 0, process.output
    assert await status(url, "/livez") is None
    assert "Uvicorn" not in process.output
    assert "GET /" not in process.output


async def test_a_loop_that_is_blocked_does_not_answer(start: Start, queue: TaskQueue) -> None:
    process = await start("worker", TARGET, f"--http={ANYWHERE}")
    url = await url_of(process)
    await becomes(url, "/readyz", 200)
    await queue.enqueue(served.block(8), user_id="acme")
    await process.line("runs ")
    assert await status(url, "/livez", 1) is None
    await becomes(url, "/livez", 200)
    await ended(process)


async def test_a_worker_that_code_makes_answers_as_well(start: Start, queue: TaskQueue) -> None:
    process = await start("worker", "tests.apps.made:worker", f"--http={ANYWHERE}", "--processes=2")
    url = await url_of(process)
    await becomes(url, "/readyz", 200)
    await (await queue.enqueue(made.greet("zoe"), user_id="acme")).result(timeout=20)
    await process.line("hook ")
    await tells(url, "fairque_tasks_total{tests.apps.made.greet,finished}", 1)
    await ended(process)


async def test_a_flood_of_requests_holds_up_no_task_for_long(start: Start, queue: TaskQueue) -> None:
    process = await start("worker", TARGET, f"--http={ANYWHERE}")
    url = await url_of(process)
    await becomes(url, "/readyz", 200)
    over = asyncio.Event()

    async def flood() -> int:
        asked = 0
        while not over.is_set():
            asked += await status(url, "/metrics") is not None
        return asked

    floods = [asyncio.create_task(flood()) for _ in range(20)]
    for _ in range(5):
        assert await (await queue.enqueue(served.greet("zoe"), user_id="acme")).result(timeout=10) == "hello zoe"
    over.set()
    assert sum(await asyncio.gather(*floods)) > 20
    await ended(process)


@pytest.mark.parametrize("loop", ["--uvloop", "--no-uvloop"])
async def test_what_a_task_has_forked_does_not_keep_the_port(start: Start, queue: TaskQueue, loop: str) -> None:
    process = await start("worker", TARGET, f"--http={ANYWHERE}", loop)
    url = await url_of(process)
    left = await (await queue.enqueue(served.fork(60), user_id="acme")).result(timeout=20)
    try:
        await ended(process)
        assert is_running(left)
        async with serving(App({"/ping": pong}), url.removeprefix("http://")):
            assert await status(url, "/ping") == 200
    finally:
        os.kill(left, signal.SIGKILL)


@pytest.mark.parametrize("more", [(), ("--processes=2",), ("--reload",)], ids=["one", "several", "reload"])
async def test_who_cannot_listen_serves_nothing(start: Start, more: tuple[str, ...]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        process = await start("worker", TARGET, f"--http={address}", *more)
        assert await process.wait() == 1
    assert process.lines[0] == f"error: nothing can listen at {address}: Address already in use"
    assert process.lines[1] == "hint: name another port, or 0 for a free one"
    assert len(process.lines) == 2


async def test_what_is_no_address_is_wrong_usage() -> None:
    found = await call_command("worker", TARGET, "--http=8080", env={"SERVED_URL": "redis://x", "SERVED_QUEUE": "q"})
    assert found.code == 2
    assert "HOST:PORT, like 127.0.0.1:8080 or [::1]:8080, not '8080'" in found.err


async def test_without_uvicorn_the_option_says_what_to_install(start: Start, tmp_path: Path) -> None:
    (tmp_path / "uvicorn.py").write_text("raise ModuleNotFoundError('gone', name='uvicorn')\n")
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    for command in (["worker", TARGET, f"--http={ANYWHERE}"], ["http"]):
        process = await start(*command, PYTHONPATH=path)
        assert await process.wait() == 2, process.output
        assert "HTTP is answered by uvicorn, which is missing here" in process.lines[0]
        assert "pip install 'fairque[http]'" in process.lines[1]


def pids(process: WorkerProcess) -> list[int]:
    """Of the workers that it has started, in order."""
    return [int(line.rpartition(" ")[2]) for line in process.lines if " started, pid " in line]


@pytest.mark.leaves_keys("workers", "waiting")
async def test_of_several_processes_all_are_to_live_and_one_is_to_be_ready(start: Start) -> None:
    process = await start("worker", TARGET, f"--http={ANYWHERE}", "--processes=2")
    url = await url_of(process)
    await eventually(lambda: process.output.count("serves queue") == 2, 30)
    await becomes(url, "/readyz", 200)

    async def says(path: str, text: str) -> None:
        async def is_said() -> bool:
            async with httpx.AsyncClient(timeout=10) as client:
                return (await client.get(url + path)).text == f"{text}\n"

        await eventually(is_said)

    await says("/readyz", "2 of 2 processes claim")
    assert await status(url, "/livez") == 200
    first, second = pids(process)
    os.kill(first, signal.SIGSTOP)
    await says("/livez", f"the event loop stands still in {first}")
    await says("/livez", f"the event loop stands still in {first}")
    assert await status(url, "/livez") == 503
    await says("/readyz", "1 of 2 processes claim")
    assert await status(url, "/readyz") == 200
    os.kill(first, signal.SIGCONT)
    await becomes(url, "/livez", 200)
    await says("/readyz", "2 of 2 processes claim")
    os.kill(second, signal.SIGKILL)
    assert await status(url, "/livez") == 200, "it is started anew, and what lives turns"
    assert await status(url, "/readyz") == 200
    await eventually(lambda: len(pids(process)) == 3)
    await says("/readyz", "2 of 2 processes claim")
    process.send(signal.SIGTERM)
    assert await process.wait() == 0, process.output
    assert await status(url, "/livez") is None


async def test_processes_that_drain_live_and_are_not_ready(start: Start, queue: TaskQueue, tmp_path: Path) -> None:
    process = await start("worker", TARGET, f"--http={ANYWHERE}", "--processes=2")
    url = await url_of(process)
    await becomes(url, "/readyz", 200)
    held = await queue.enqueue(served.hold(f"{tmp_path}/go"), user_id="acme")
    await process.line("runs ")
    process.send(signal.SIGTERM)
    await becomes(url, "/readyz", 503)
    for _ in range(20):
        assert await status(url, "/livez") == 200
    (tmp_path / "go").touch()
    assert await held.result(timeout=20) == "let go"
    assert await process.wait() == 0, process.output


async def test_a_process_that_is_replaced_is_no_reason_to_be_unready_or_dead(start: Start, queue: TaskQueue) -> None:
    process = await start("worker", TARGET, f"--http={ANYWHERE}", "--max-tasks=1")
    url = await url_of(process)
    await becomes(url, "/readyz", 200)
    seen: set[tuple[int | None, int | None]] = set()
    for replaced in (1, 2):
        await (await queue.enqueue(served.whereabouts(), user_id="acme")).result(timeout=30)
        async with asyncio.timeout(40):
            while process.output.count("has retired with code 0") < replaced:
                seen.add((await status(url, "/livez"), await status(url, "/readyz")))
    assert seen == {(200, 200)}
    await ended(process)


async def test_probes_go_with_a_burst(start: Start, queue: TaskQueue, tmp_path: Path) -> None:
    held = await queue.enqueue(served.hold(f"{tmp_path}/go"), user_id="acme")
    process = await start("worker", TARGET, f"--http={ANYWHERE}", "--burst")
    url = await url_of(process)
    await process.line("runs ")
    assert await status(url, "/readyz") == 200
    (tmp_path / "go").touch()
    assert await process.wait() == 0, process.output
    assert await held.result(timeout=5) == "let go"


async def test_probes_outlive_a_reload(start: Start, tmp_path: Path) -> None:
    module = tmp_path / "shop_with_probes.py"
    module.write_text("from tests.apps.served import *\n")
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    process = await start(
        "worker", "shop_with_probes:queue", f"--http={ANYWHERE}", "--reload", directory=tmp_path, PYTHONPATH=path
    )
    url = await url_of(process)
    await becomes(url, "/readyz", 200)
    module.write_text("from tests.apps.served import *  # anew\n")
    await process.line("starting anew")
    await eventually(lambda: process.output.count("serves queue") == 2, 30)
    await becomes(url, "/readyz", 200)
    assert await status(url, "/livez") == 200
    await ended(process)


@pytest.mark.parametrize("processes", [1, 2])
async def test_a_configuration_says_where_probes_are_answered(
    start: Start, server: Server, queue_name: str, tmp_path: Path, processes: int
) -> None:
    file = tmp_path / "fairque.toml"
    file.write_text(
        f'[redis]\nurl = "{server.url}"\n[queue]\nname = "{queue_name}"\n'
        f'[[workers]]\nhttp = "127.0.0.1:1"\nprocesses = {processes}\n'
    )
    process = await start(*("worker", "tests.apps.served", f"--config={file}"), FAIRQUE_WORKERS_0_HTTP=ANYWHERE)
    await becomes(await url_of(process), "/readyz", 200)
    assert process.output.count("answers at") == 1
    await ended(process)


@pytest.mark.parametrize("processes", [1, 2])
async def test_names_are_given_on_the_command_line_or_by_a_configuration(
    start: Start, server: Server, queue_name: str, tmp_path: Path, processes: int
) -> None:
    file = tmp_path / "fairque.toml"
    file.write_text(
        f'[redis]\nurl = "{server.url}"\n[queue]\nname = "{queue_name}"\n'
        f'[[workers]]\nhttp = "{ANYWHERE}"\nhttp_hosts = ["of-file.svc"]\nprocesses = {processes}\n'
    )
    for more, known, unknown in (
        ((), "of-file.svc", "of-line.svc"),
        (("--http-host=of-line.svc",), "of-line.svc", "of-file.svc"),
    ):
        process = await start("worker", "tests.apps.served", f"--config={file}", *more)
        url = await url_of(process)
        await becomes(url, "/readyz", 200)
        assert [await under(known, url), await under(unknown, url)] == [200, 400]
        await ended(process)


async def test_names_without_an_address_are_wrong_usage() -> None:
    found = await call_command("worker", TARGET, "--http-host=a.svc")
    assert found.code == 2
    assert "add --http" in found.err


@pytest.mark.parametrize("addresses", [(ANYWHERE, None), (ANYWHERE, ANYWHERE)])
async def test_one_address_answers_for_all_workers_of_a_command(
    start: Start, server: Server, queue_name: str, tmp_path: Path, addresses: tuple[str | None, ...]
) -> None:
    file = two_workers(tmp_path, server.url, queue_name, *addresses)
    process = await start("worker", "tests.apps.served", f"--config={file}")
    url = await url_of(process)

    async def are_ready() -> bool:
        async with httpx.AsyncClient(timeout=5) as client:
            return (await client.get(f"{url}/readyz")).text == "2 of 2 processes claim\n"

    await eventually(are_ready)
    assert process.output.count("answers at") == 1
    await ended(process)


def two_workers(directory: Path, url: str, queue_name: str, *addresses: str | None) -> Path:
    said = [f'http = "{address}"\n' if address is not None else "" for address in addresses]
    workers = "".join(f'[[workers]]\nid = "w{number}"\n{each}' for number, each in enumerate(said))
    file = directory / "fairque.toml"
    file.write_text(f'[redis]\nurl = "{url}"\n[queue]\nname = "{queue_name}"\n{workers}')
    return file


async def test_several_addresses_for_one_command_are_refused(tmp_path: Path) -> None:
    file = two_workers(tmp_path, "redis://localhost:1", "q", "127.0.0.1:8080", "127.0.0.1:8081")
    found = await call_command("worker", "tests.apps.served", f"--config={file}")
    assert found.code == 2
    assert "one command answers at one address, and its workers name 127.0.0.1:8080 and 127.0.0.1:8081" in found.err


# Metrics


async def samples(url: str) -> dict[str, float]:
    """What is told, by metric and labels but for the queue."""
    async with httpx.AsyncClient(timeout=10) as client:
        found = await client.get(f"{url}/metrics")
    assert found.status_code == 200, found.text
    assert found.headers["content-type"].startswith("text/plain; version=0.0.4")
    told: dict[str, float] = {}
    for family in text_string_to_metric_families(found.text):
        for sample in family.samples:
            labels = ",".join(value for name, value in sorted(sample.labels.items()) if name != "queue")
            told[f"{sample.name}{{{labels}}}"] = sample.value
    return told


async def tells(url: str, metric: str, value: float) -> None:
    async def is_told() -> bool:
        return (await samples(url)).get(metric) == value

    await eventually(is_told, 30)


async def test_a_worker_tells_what_it_has_run(start: Start, queue: TaskQueue) -> None:
    process = await start("worker", TARGET, f"--http={ANYWHERE}")
    url = await url_of(process)
    for _ in range(3):
        await (await queue.enqueue(served.greet("zoe"), user_id="acme")).result(timeout=20)
    await tells(url, "fairque_tasks_total{tests.apps.served.greet,finished}", 3)
    assert (await samples(url))["fairque_slots{free}"] == 10
    await ended(process)


async def test_processes_tell_what_all_of_them_have_run(start: Start, queue: TaskQueue) -> None:
    process = await start("worker", TARGET, f"--http={ANYWHERE}", "--processes=2", "--max-tasks=3")
    url = await url_of(process)
    for number in range(1, 9):
        await (await queue.enqueue(served.greet("zoe"), user_id="acme")).result(timeout=20)
        if not number % 4:
            await tells(url, "fairque_tasks_total{tests.apps.served.greet,finished}", number)
    await ended(process)


async def test_a_mounted_app_tells_what_is_kept_for_its_worker(queue: TaskQueue) -> None:
    worker = Worker(queue)
    async with client_of(probes(worker)) as client:
        refused = await client.get("/metrics")
        assert refused.status_code == 501
        assert "WorkerMetrics(worker), of fairque.contrib.prometheus" in refused.text
        WorkerMetrics(worker)
        async with worker:
            await (await queue.enqueue(served.greet("zoe"), user_id="acme")).result(timeout=20)
            await tells(str(client.base_url), "fairque_tasks_total{tests.apps.served.greet,finished}", 1)


async def test_queues_are_told_together_and_their_users_where_that_is_asked_for(server: Server) -> None:
    hostile = '"} 1\n# HELP x y\n# TYPE x counter'
    async with AsyncExitStack() as stack:
        queues = [
            await stack.enter_async_context(TaskQueue(server.url, name=new_queue_name(name), lease=1.0))
            for name in ("one", "two")
        ]
        for number, queue in enumerate(queues, 1):
            await queue.enqueue_many([served.greet("zoe") for _ in range(number)], user_id=hostile)
        client = await stack.enter_async_context(client_of(demand(*queues, top_users=1)))
        text = (await client.get("/metrics")).text
        families = {family.name: family for family in text_string_to_metric_families(text)}
        assert len(families) == text.count("# TYPE fairque"), "each is described once"
        assert [sample.value for sample in families["fairque_up"].samples] == [1, 1]
        depth = [sample for sample in families["fairque_queue_depth"].samples if sample.labels["state"] == "queued"]
        assert {sample.labels["queue"]: sample.value for sample in depth} == {
            queue.name: number for number, queue in enumerate(queues, 1)
        }
        assert {sample.labels["user"] for sample in families["fairque_user_queued"].samples} == {hostile}
        for queue in queues:
            await queue.purge(hostile)
            server.forget(queue.name)


async def test_metrics_come_in_time_where_redis_hangs_and_say_so(server: Server, queue_name: str) -> None:
    async with AsyncExitStack() as stack:
        proxy = await stack.enter_async_context(CuttingProxy(server.url))
        queue = await stack.enter_async_context(TaskQueue(proxy.url, name=queue_name))
        client = await stack.enter_async_context(client_of(demand(queue)))
        await tells(str(client.base_url), "fairque_up{}", 1)
        proxy.pause()
        await tells(str(client.base_url), "fairque_up{}", 0)
        proxy.resume()
        await tells(str(client.base_url), "fairque_up{}", 1)


@pytest.mark.parametrize("command", [("worker", TARGET), ("worker", TARGET, "--processes=2"), ("http",)])
async def test_without_prometheus_client_the_page_says_what_to_install(
    start: Start, queue: TaskQueue, queue_name: str, tmp_path: Path, command: tuple[str, ...]
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util as util\nfind = util.find_spec\n"
        "util.find_spec = lambda name, *more: None if name == 'prometheus_client' else find(name, *more)\n"
    )
    option = "--listen" if command == ("http",) else "--http"
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    process = await start(*command, f"{option}={ANYWHERE}", PYTHONPATH=path, FAIRQUE_QUEUE_NAME=queue_name)
    url = await url_of(process)
    await becomes(url, "/readyz", 200)
    async with httpx.AsyncClient() as client:
        found = await client.get(f"{url}/metrics")
    assert (found.status_code, found.text) == (501, "there are no metrics here: pip install 'fairque[prometheus]'\n")
    assert (await queue.stats()).queued == 0
    await ended(process)


# fairque http


async def test_the_command_answers_without_a_worker_until_a_signal(
    start: Start, queue: TaskQueue, queue_name: str
) -> None:
    await queue.enqueue(served.greet("zoe"), user_id="acme")
    process = await start("http", f"--listen={ANYWHERE}", f"--queue={queue_name}")
    url = await url_of(process)
    assert [await status(url, path) for path in ("/livez", "/readyz", "/demand", "/x")] == [200, 200, 200, 404]
    async with httpx.AsyncClient() as client:
        assert (await client.get(f"{url}/demand?target_wait=30")).json()["slots_needed"] == 1
    await ended(process)
    assert await status(url, "/livez") is None
    await queue.purge("acme")


async def test_the_command_is_asked_under_the_names_that_it_is_given(start: Start, queue_name: str) -> None:
    process = await start("http", f"--listen={ANYWHERE}", f"--queue={queue_name}", "--http-host=fairque-demand")
    url = await url_of(process)
    assert [await under(name, url) for name in ("fairque-demand:8080", "evil.example")] == [200, 400]
    await ended(process)


async def test_a_name_with_a_port_is_wrong_usage(server: Server, queue_name: str) -> None:
    where = (f"--listen={ANYWHERE}", f"--url={server.url}", f"--queue={queue_name}")
    found = await run_command("http", *where, "--http-host=a.svc:80")
    assert found.code == 2
    assert "'a.svc:80'" in found.err


async def test_neither_a_redis_that_hangs_nor_a_client_that_says_nothing_holds_up_the_end(
    start: Start, server: Server, queue_name: str
) -> None:
    async with CuttingProxy(server.url) as proxy:
        process = await start("http", f"--listen={ANYWHERE}", f"--url={proxy.url}", f"--queue={queue_name}")
        url = await url_of(process)
        await becomes(url, "/readyz", 200)
        proxy.pause()
        await becomes(url, "/demand", 503)
        _, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
        writer.write(b"GET /demand HT")
        asking = asyncio.create_task(status(url, "/demand"))
        await eventually_fresh()
        began = time.monotonic()
        await ended(process)
        assert time.monotonic() - began < 15
        await asking
        writer.close()


async def test_the_command_answers_for_several_queues(start: Start, server: Server, queue_name: str) -> None:
    process = await start("http", f"--listen={ANYWHERE}", "-q", queue_name, "-q", f"{queue_name}-b")
    url = await url_of(process)
    assert await status(url, f"/demand?queue={queue_name}-b") == 200
    assert await status(url, "/demand") == 422
    await ended(process)
    server.forget(f"{queue_name}-b")


async def test_the_command_refuses_a_server_that_nobody_else_reaches() -> None:
    found = await call_command("http", "--url=embedded://", f"--listen={ANYWHERE}")
    assert found.code == 2
    assert "embedded:// is a server for one process alone" in found.err


async def test_a_port_that_the_command_cannot_have_is_told(start: Start, queue_name: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        process = await start("http", f"--listen={address}", f"--queue={queue_name}")
        assert await process.wait() == 1
    assert process.lines[0] == f"error: nothing can listen at {address}: Address already in use"


# The guide


async def test_the_apps_of_the_guide_answer(worker_process: Start, tmp_path: Path) -> None:
    guide, address = (ROOT / "docs" / "guides" / "kubernetes.md").read_text(), f"127.0.0.1:{free_port()}"
    for block in re.findall(r"^```python\n(.*?)^```$", guide, re.MULTILINE | re.DOTALL):
        name = block.split()[1]
        (tmp_path / name).write_text(block.replace("127.0.0.1:8080", address))
    mounted = await worker_process("uvicorn", "probed:app", "--port=0", directory=tmp_path)
    own = await worker_process(tmp_path / "own_server.py", directory=tmp_path)
    line = await mounted.line("Uvicorn running on ")
    url = re.findall(r"http://\S+", line)[0]
    for path in ("/fairque/livez", "/fairque/readyz", "/scaling/demand"):
        await becomes(url, path, 200)
    for path in ("/livez", "/readyz", "/metrics"):
        await becomes(f"http://{address}", path, 200)
    for process in (mounted, own):
        process.send(signal.SIGTERM)
    assert await own.wait() == 0, own.output
    assert await mounted.wait() in (0, -signal.SIGTERM), mounted.output
