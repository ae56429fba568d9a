"""Every line that is logged says for which request, user and task it is: in the web request, in its tasks, in what
these put in, in threads and in subprocesses. Run it as it is: python examples/log_context.py
"""

import asyncio
import json
import logging
from contextvars import ContextVar
from typing import Any

from fairque import CallNext, EnqueueCall, TaskContext, TaskQueue, Worker, current_task, task

REQUEST = "request-id"
context: ContextVar[dict[str, Any]] = ContextVar("log context")


async def carry_request(call: EnqueueCall, call_next: CallNext) -> None:
    """What is put in belongs to the request in which that happens, in a task as well as outside."""
    if request := context.get({}).get(REQUEST):
        call.add_headers({REQUEST: request})
    await call_next()


async def log_context(run: TaskContext, call_next: CallNext) -> Any:
    """Each run has a context of its own, so nothing has to be put back at its end."""
    context.set({REQUEST: run.headers.get(REQUEST), "user": run.user_id, "task": run.name, "attempt": run.attempt})
    return await call_next()


class JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return json.dumps({"message": record.getMessage(), **context.get({})})


logger = logging.getLogger("shop")


@task(name="order")
async def order(item: str) -> str:
    logger.info("orders %s", item)
    me = current_task()
    label = print_label(write_bill(item).output)
    return (await queue.enqueue(label, user_id=me.user_id)).task_id


@task(name="bill")
def write_bill(item: str) -> str:  # in a thread
    logger.info("writes the bill for %s", item)
    return item


@task(name="label", run_in="process")
def print_label(item: str) -> None:  # what a subprocess logs, the handlers of the worker write
    logger.info("prints the label for %s", item)


queue = TaskQueue("embedded://", enqueue_middleware=[carry_request], run_middleware=[log_context])


async def web_request(request: str, user: str, item: str) -> None:
    context.set({REQUEST: request, "user": user})
    logger.info("asks for %s", item)
    label_id = await (await queue.enqueue(order(item), user_id=user)).result(timeout=10)
    await queue.handle(user, label_id).result(timeout=10)


async def main() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    async with queue, Worker(queue):
        await asyncio.create_task(web_request("r-1", "acme", "a lamp"))
        await asyncio.create_task(web_request("r-2", "zoe", "a chair"))


if __name__ == "__main__":
    asyncio.run(main())
