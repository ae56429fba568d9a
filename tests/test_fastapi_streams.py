"""What tasks yield, as server-sent events of a FastAPI app."""

from __future__ import annotations

import asyncio
import json
import warnings
from collections.abc import AsyncIterator, Iterator
from typing import Any

import msgspec
import pytest
from fastapi import FastAPI, Response

from fairque import Retry, TaskQueue, Worker, current_task, task
from fairque.contrib import fastapi
from fairque.contrib.fastapi import LastEventId, QueueDep, install_handlers, lifespan, stream_events
from fairque.tasks.registry import registry
from tests.support.eventually import eventually
from tests.support.servers import Server

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # some versions would have another client instead of httpx
    from fastapi.testclient import TestClient


class Word(msgspec.Struct):
    text: str


@task(name="sse-words")
async def words(text: str) -> AsyncIterator[Word]:
    for each in text.split():
        yield Word(each)


@task(name="sse-flaky", max_retries=1)
async def flaky() -> AsyncIterator[int]:
    yield current_task().attempt
    if current_task().attempt == 1:
        raise Retry(delay=0)


@task(name="sse-broken")
async def broken() -> AsyncIterator[int]:
    yield 1
    raise ValueError("hunter2")


@task(name="sse-endless")
async def endless() -> AsyncIterator[str]:
    yield "one\ntwo"
    await asyncio.Event().wait()


@pytest.fixture(autouse=True)
def _registered() -> None:
    registry.update({made.name: made for made in (words, flaky, broken, endless)})


@pytest.fixture
def client(server: Server, queue_name: str) -> Iterator[TestClient]:
    queue = TaskQueue(server.url, name=queue_name, timeout=2)
    app = FastAPI(lifespan=lifespan(queue, worker=lambda: Worker(queue, cancel_grace=1)))
    install_handlers(app)
    kinds = {"words": lambda: words("a b c"), "flaky": flaky, "broken": broken, "endless": endless}

    @app.post("/answers/{kind}")
    async def ask(kind: str, queue: QueueDep) -> str:
        handle = await queue.enqueue(kinds[kind](), user_id="acme")
        if kind == "endless":
            await anext(aiter(handle.stream()))
            await handle.cancel("a secret")
        return handle.task_id

    @app.get("/answers/{task_id}")
    async def answer(task_id: str, queue: QueueDep, position: LastEventId = None) -> Response:
        return await stream_events(queue.handle("acme", task_id), position)

    with TestClient(app) as client:
        yield client


def events_in(text: str) -> list[tuple[str, Any, str]]:
    """As a browser takes them apart: kind, data, id."""
    found = []
    for block in text.split("\n\n")[:-1]:
        fields = dict(line.split(": ", 1) for line in block.split("\n") if not line.startswith(":"))
        if fields:
            found.append((fields.get("event", "message"), json.loads(fields["data"]), fields["id"]))
    return found


def test_chunks_come_as_events_with_their_positions_and_the_end(client: TestClient) -> None:
    task_id = client.post("/answers/words").json()
    response = client.get(f"/answers/{task_id}")
    assert response.headers["content-type"].startswith("text/event-stream")
    chunks = [("message", {"text": letter}, f"1-{n}") for n, letter in enumerate("abc", 1)]
    assert events_in(response.text) == [*chunks, ("finished", None, "end")]


def test_a_browser_that_connects_again_goes_on_where_it_was_or_is_told_to_stop(client: TestClient) -> None:
    path = f"/answers/{client.post('/answers/words').json()}"
    again = client.get(path, headers={"Last-Event-ID": "1-2"})
    assert events_in(again.text) == [("message", {"text": "c"}, "1-3"), ("finished", None, "end")]
    assert client.get(path, headers={"Last-Event-ID": "end"}).status_code == 204
    assert client.get(path, headers={"Last-Event-ID": "junk"}).status_code == 422
    assert client.get("/answers/none").status_code == 404


def test_a_restart_and_the_kind_of_an_end_are_told_and_no_text_of_an_error(client: TestClient) -> None:
    path = f"/answers/{client.post('/answers/flaky').json()}"
    assert events_in(client.get(path, headers={"Last-Event-ID": "1-0"}).text) == [
        ("message", 1, "1-1"),
        ("restarted", 2, "2-0"),
        ("message", 2, "2-1"),
        ("finished", None, "end"),
    ]
    failed = client.get(f"/answers/{client.post('/answers/broken').json()}").text
    assert events_in(failed) == [("message", 1, "1-1"), ("failed", "error", "end")]
    canceled = client.get(f"/answers/{client.post('/answers/endless').json()}").text
    assert events_in(canceled) == [("message", "one\ntwo", "1-1"), ("canceled", None, "end")]
    assert not any(word in failed + canceled for word in ("hunter2", "secret"))


async def test_events_come_as_they_are_made_and_a_client_that_is_gone_is_read_for_no_longer(
    queue: TaskQueue, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fastapi, "SILENT_SECONDS", 0.05)
    handle = await queue.enqueue(endless(), user_id="acme")

    def listens() -> bool:
        return bool(server.execute("PUBSUB", "SHARDCHANNELS", f"*{queue.name}*chunks:*"))

    response = await stream_events(handle)
    sent: list[bytes] = []
    is_gone = asyncio.Event()

    async def receive() -> dict[str, str]:
        await is_gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message.get("body", b""))

    async with Worker(queue, cancel_grace=0.1):
        serving = asyncio.create_task(response({"type": "http"}, receive, send))
        await eventually(lambda: b"one" in b"".join(sent) and b": ping" in b"".join(sent))
        assert listens()
        is_gone.set()
        await asyncio.wait_for(serving, 10)
        await eventually(lambda: not listens())
        await handle.cancel()
