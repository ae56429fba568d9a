"""What were signals: around calls, around runs, and around the life of a worker."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any

from fairque import CallNext, EnqueueCall, TaskContext, TaskEvent
from webshop import outside

REQUEST = "request-id"
request_id: ContextVar[str] = ContextVar("request_id", default="none")
logger = logging.getLogger("webshop")


async def add_request_id(call: EnqueueCall, call_next: CallNext) -> None:
    """before_task_publish. Also what a task puts in has the request of that task, as `begin` sets it."""
    call.add_headers({REQUEST: request_id.get()})
    await call_next()


async def begin(run: TaskContext, call_next: CallNext) -> Any:
    """task_prerun; what stands behind `call_next` would be task_postrun."""
    request_id.set(run.headers.get(REQUEST, "none"))
    logger.info("request %s: %s begins for %s", request_id.get(), run.name, run.user_id)
    return await call_next()


def report_error(event: TaskEvent) -> None:
    """task_failure: it failed for good."""
    if event.failure is not None:
        outside.errors.capture(event.failure.type_name, task=event.name, task_id=event.task_id)


@asynccontextmanager
async def database() -> AsyncIterator[outside.Database]:
    """worker_process_init and worker_process_shutdown; tasks have it as `current_task(Database).state`."""
    outside.database.open()
    try:
        yield outside.database
    finally:
        outside.database.close()
