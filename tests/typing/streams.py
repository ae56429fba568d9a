"""What a type checker knows of generators as tasks. mypy checks this file; nothing runs it.

A line with ``type: ignore`` must be an error: mypy complains of an ignore that ignores nothing.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator
from typing import Any, assert_type

from fastapi import FastAPI, Response

from fairque import Restarted, Streamed, Task, TaskFunction, TaskHandle, TaskQueue, TaskStream, sync, task
from fairque.contrib.fastapi import LastEventId, QueueDep, stream_events


@task
async def tokens(prompt: str) -> AsyncIterator[str]:
    yield prompt


@task(max_retries=3)
async def generated(prompt: str) -> AsyncGenerator[bytes, None]:
    yield prompt.encode()


@task
def rows(most: int) -> Iterator[dict[str, int]]:
    yield {"row": most}


@task(name="pages")
def pages(most: int) -> Generator[int, None, str]:
    yield most
    return "its value is nobody's"


@task
async def whole(prompt: str) -> str:
    return prompt


@task
def untold(prompt: str) -> Any:
    return prompt


async def a_stream_yields_what_the_annotation_says(queue: TaskQueue) -> None:
    assert_type(tokens("a"), Task[Streamed[str]])
    handle = await queue.enqueue(tokens("a"), user_id="acme")
    assert_type(handle, TaskHandle[Streamed[str]])
    assert_type(handle.stream(), TaskStream[str])
    stream = handle.stream(after="1-20")
    try:
        async for chunk in stream:
            assert_type(chunk, str)
    except Restarted as restarted:
        assert_type(restarted.attempt, int)
    assert_type(stream.position, str | None)
    assert_type((await handle.result()).chunks, int)
    assert_type((await queue.enqueue(generated("a"))).stream(), TaskStream[bytes])
    assert_type((await queue.enqueue(rows(1))).stream(), TaskStream[dict[str, int]])
    assert_type((await queue.enqueue(pages(1))).stream(), TaskStream[int])
    assert_type(queue.handle("acme", "t", task=tokens).stream(), TaskStream[str])
    assert_type(queue.handle("acme", "t").stream(), TaskStream[Any])


async def what_is_no_generator_has_no_stream(queue: TaskQueue) -> None:
    (await queue.enqueue(whole("a"))).stream()  # type: ignore[misc]
    tokens(1)  # type: ignore[arg-type]
    untold("a")


def blocking_code_knows_the_same(queue: sync.TaskQueue, function: TaskFunction[[str], Streamed[str]]) -> None:
    handle = queue.enqueue(function("a"), user_id="acme")
    assert_type(handle.stream(), sync.TaskStream[str])
    for chunk in handle.stream():
        assert_type(chunk, str)


app = FastAPI()


@app.get("/answers/{task_id}")
async def answer(task_id: str, queue: QueueDep, position: LastEventId = None) -> Response:
    return await stream_events(queue.handle("acme", task_id, task=tokens), position)
