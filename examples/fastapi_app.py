"""A web service that puts work into a queue, and shows how far it is.

Run it with ``python examples/fastapi_app.py``, after ``pip install 'fairque[embedded,fastapi]' uvicorn``; it brings its
own server. (The events need FastAPI 0.135 or newer.) Then, from another terminal::

    curl -X POST 'localhost:8000/users/acme/reports?pages=5'       # {"task_id": "…"}
    curl localhost:8000/users/acme/reports/<task_id>               # its state, and the result when there is one
    curl -N localhost:8000/users/acme/reports/<task_id>/events     # what happens, as it happens
    curl localhost:8000/health

Ctrl-C stops it: reports that are being written get ten seconds to end, others are put back into the queue.
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import Annotated, Any

import uvicorn
from fastapi import Depends, FastAPI, Query
from fastapi.sse import EventSourceResponse, ServerSentEvent

from fairque import TaskHandle, TaskInfo, TaskQueue, TaskState, Worker, current_task, task
from fairque.contrib.fastapi import QueueDep, health, install_handlers, lifespan

queue = TaskQueue("embedded://")  # or "redis://localhost:6379", for more than one process
app = FastAPI(lifespan=lifespan(queue, worker=lambda: Worker(queue, shutdown_timeout=10)))
install_handlers(app)  # a full queue is a 429, an unknown task a 404, a Redis that is down a 503, …
app.get("/health")(health)


@task(timeout=60)
async def write_report(pages: int) -> str:
    for page in range(1, pages + 1):
        await asyncio.sleep(0.2)  # the work
        current_task().progress(page / pages, f"page {page}")
    return f"a report of {pages} pages"


@app.post("/users/{user_id}/reports", status_code=202)
async def order(user_id: str, queue: QueueDep, pages: Annotated[int, Query(ge=1, le=100)] = 3) -> dict[str, str]:
    handle = await queue.enqueue(write_report(pages), user_id=user_id)
    return {"task_id": handle.task_id}


def report(user_id: str, task_id: str, queue: QueueDep) -> TaskHandle[Any]:
    return queue.handle(user_id, task_id)


Report = Annotated[TaskHandle[Any], Depends(report)]


@app.get("/users/{user_id}/reports/{task_id}")
async def show(report: Report) -> dict[str, Any]:
    info = await report.info()
    result = await report.result() if info.state is TaskState.FINISHED else None
    return {**summary(info), "result": result}


async def known(report: Report) -> None:
    """Once events are on their way it is too late for a 404."""
    await report.state()


@app.get("/users/{user_id}/reports/{task_id}/events", response_class=EventSourceResponse, dependencies=[Depends(known)])
async def events(report: Report) -> AsyncIterator[ServerSentEvent]:
    """Ends with the task, or when the client goes."""
    async for info in report.watch():
        yield ServerSentEvent(data=summary(info), event=info.state)


def summary(info: TaskInfo) -> dict[str, Any]:
    return {"state": info.state, "progress": info.progress, "message": info.message}


if __name__ == "__main__":
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 8000
    # Event streams that are still open at the end would hold up the shutdown for as long as their tasks take.
    uvicorn.run(app, host="127.0.0.1", port=port, timeout_graceful_shutdown=3)
