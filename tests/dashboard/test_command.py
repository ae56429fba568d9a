"""``fairque dashboard``: for who sits at this machine, and has the address that it prints."""

from __future__ import annotations

import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

import httpx
import pytest

from fairque import TaskQueue
from tests.support.command import call_command, run_command
from tests.support.process import WorkerProcess
from tests.support.servers import Server

Start = Callable[..., Awaitable[WorkerProcess]]


async def started(worker_process: Start, server: Server, queue: TaskQueue, *options: str) -> tuple[WorkerProcess, str]:
    await queue.change_settings(lease=10)
    where = ("--url", server.url, "--queue", queue.name, "--port=0")
    process = await worker_process("fairque", "dashboard", *where, *options)
    return process, await process.line("/?token=")


def origin(address: str) -> str:
    return "://".join(urlsplit(address)[:2])


async def test_its_cookies_go_to_nothing_else_that_listens_on_this_machine(
    worker_process: Start, server: Server, queue: TaskQueue
):
    """Browsers send the cookies of a host to all of its ports."""
    process, address = await started(worker_process, server, queue)
    async with httpx.AsyncClient() as client:
        assert (await client.get(address, follow_redirects=True)).status_code == 200
        path = urlsplit(address).path.rstrip("/")
        assert len(path) > 10
        assert {(cookie.name, cookie.path) for cookie in client.cookies.jar} == {
            ("fairque_token", path),
            ("fairque_csrf", path),
        }
        assert (await client.get(f"{origin(address)}/")).status_code == 404
        for elsewhere in ("/", "/users", f"{path}more/"):
            assert "cookie" not in client.build_request("GET", f"http://127.0.0.1:1{elsewhere}").headers
    process.send(signal.SIGTERM)
    assert await process.wait() == 0


async def test_it_prints_an_address_that_lets_in_and_nothing_else_does(
    worker_process: Start, server: Server, queue: TaskQueue
):
    process, address = await started(worker_process, server, queue)
    base, _, secret = address.partition("/?token=")
    assert base.startswith("http://127.0.0.1:")
    async with httpx.AsyncClient(base_url=base) as client:
        assert (await client.get("/")).status_code == 403
        answer = await client.get("/", params={"token": secret})
        assert (answer.status_code, answer.headers["location"]) == (303, f"{urlsplit(base).path}/")
        page = await client.get("/")
        assert page.status_code == 200
        assert queue.name[:30] in page.text
        assert (await client.get("/", headers={"host": "evil.example"})).status_code == 400
        form = {"csrf": client.cookies["fairque_csrf"], "user": "anna"}
        assert (await client.post("/act/pause", data=form, headers={"origin": origin(base)})).status_code == 404
    process.send(signal.SIGTERM)
    assert await process.wait() == 0
    assert process.output.count(secret) == 1, "in no log"


async def test_it_acts_where_that_was_asked_for_and_logs_it(worker_process: Start, server: Server, queue: TaskQueue):
    process, address = await started(worker_process, server, queue, "--acts")
    base, _, secret = address.partition("/?token=")
    async with httpx.AsyncClient(base_url=base) as client:
        await client.get("/", params={"token": secret}, follow_redirects=True)
        form = {"csrf": client.cookies["fairque_csrf"], "user": "anna"}
        assert (await client.post("/act/pause", data=form, headers={"origin": origin(base)})).status_code == 303
    assert (await queue.get_policy("anna")).paused is True
    await queue.clear_policy("anna")
    await process.line("'the holder of the token' did pause('anna',)")
    process.send(signal.SIGINT)
    assert await process.wait() == 0


async def test_an_open_page_does_not_keep_it_from_stopping(worker_process: Start, server: Server, queue: TaskQueue):
    process, address = await started(worker_process, server, queue)
    base, _, secret = address.partition("/?token=")
    async with httpx.AsyncClient(base_url=base) as client:
        await client.get("/", params={"token": secret})
        async with client.stream("GET", "/live?page=overview") as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            async for line in answer.aiter_lines():
                if line.startswith("data: "):
                    break
            process.send(signal.SIGTERM)
            assert await process.wait(20) == 0


async def test_a_port_that_is_taken_is_told_in_a_line():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = await run_command("dashboard", f"--port={port}", "--url=redis://localhost:1")
    assert ended.code == 1
    assert f"port {port} of 127.0.0.1 cannot be used" in ended.error[0]
    assert "--port 0 takes a free one" in ended.error[1]


async def test_what_is_missing_is_told_with_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.setattr("fairque.cli.commands.dashboard.set_up_logging", lambda _: None)
    ended = await call_command("dashboard", "--port=0", "--url=redis://localhost:1")
    assert ended.code == 1
    assert "the dashboard needs Starlette, Jinja2 and uvicorn" in ended.error[0]
    assert "pip install 'fairque[dashboard]'" in ended.error[1]
