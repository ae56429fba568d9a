"""What a type checker knows of queues in a FastAPI app. mypy checks this file; nothing runs it.

A line with ``type: ignore`` must be an error: mypy complains of an ignore that ignores nothing.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any, TypedDict, assert_type

from fastapi import Depends, FastAPI

from fairque import TaskHandle, TaskQueue, Worker, task
from fairque.contrib.fastapi import QueueDep, health, install_handlers, lifespan, queue_dep


@task
async def width(image: str) -> int:
    return len(image)


class State(TypedDict):
    colour: str


@asynccontextmanager
async def with_state(_: FastAPI) -> AsyncIterator[State]:
    yield {"colour": "red"}


@asynccontextmanager
async def without_state(_: FastAPI) -> AsyncIterator[None]:
    yield


@asynccontextmanager
async def of_nothing() -> AsyncIterator[None]:
    yield


def an_app_has_queues_and_workers(queue: TaskQueue, mails: TaskQueue) -> None:
    app = FastAPI(lifespan=lifespan(queue, worker=Worker(queue)))
    FastAPI(lifespan=lifespan(queue, worker=lambda: Worker(queue), inner=with_state, require=True))
    FastAPI(lifespan=lifespan(queue, mails, worker=[Worker(queue), lambda: Worker(mails)], inner=without_state))
    install_handlers(app)
    app.get("/health")(health)
    lifespan("redis://localhost")  # type: ignore[arg-type]
    lifespan(queue, worker=queue)  # type: ignore[arg-type]
    lifespan(queue, worker=lambda: queue)  # type: ignore[arg-type]
    lifespan(queue, inner=of_nothing)  # type: ignore[arg-type]


async def an_endpoint_knows_its_queue(
    queue: QueueDep, mails: Annotated[TaskQueue, Depends(queue_dep("mails"))]
) -> None:
    assert_type(queue, TaskQueue)
    assert_type(await queue.enqueue(width("a")), TaskHandle[int])
    assert_type(await mails.handle("acme", "t").result(), Any)
    assert_type((await queue.enqueue(width("a"))).created, bool)
