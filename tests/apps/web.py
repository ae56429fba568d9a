"""The app that ``test_fastapi.py`` has served by uvicorn: the queue of the test, and a worker."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request
from fastapi.sse import EventSourceResponse, ServerSentEvent

from fairque import TaskHandle, Worker
from fairque.contrib.fastapi import QueueDep, health, install_handlers, lifespan
from tests.apps import served
from tests.workers import tasks

queue = served.queue()


@asynccontextmanager
async def own_lifespan(_: FastAPI) -> AsyncIterator[dict[str, Any]]:
    yield {"own": "kept"}


app = FastAPI(
    lifespan=lifespan(queue, worker=lambda: Worker(queue, shutdown_timeout=20, poll_interval=0.5), inner=own_lifespan)
)
install_handlers(app)
app.get("/health")(health)


@app.get("/process")
async def process(request: Request) -> dict[str, Any]:
    return {"pid": os.getpid(), "own": request.state.own}


@app.post("/sums")
async def add(a: int, b: int, queue: QueueDep, user_id: str = "anna") -> str:
    return (await queue.enqueue(tasks.add(a, b), user_id=user_id)).task_id


@app.post("/whereabouts")
async def whereabouts(queue: QueueDep) -> tuple[str, int]:
    return await (await queue.enqueue(served.whereabouts(), user_id="anna")).result(20)


@app.post("/holds")
async def hold(releases: str, queue: QueueDep) -> str:
    return (await queue.enqueue(tasks.hold(releases), user_id="anna")).task_id


def a_task(task_id: str, queue: QueueDep) -> TaskHandle[Any]:
    return queue.handle("anna", task_id)


ATask = Annotated[TaskHandle[Any], Depends(a_task)]


@app.get("/tasks/{task_id}")
async def state(task: ATask) -> str:
    return await task.state()


@app.get("/tasks/{task_id}/result")
async def result(task: ATask, timeout: float = 20) -> Any:
    return await task.result(timeout)


@app.get("/tasks/{task_id}/events", response_class=EventSourceResponse)
async def events(task: ATask) -> AsyncIterator[ServerSentEvent]:
    async for info in task.watch():
        yield ServerSentEvent(event=info.state)
