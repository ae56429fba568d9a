"""taskiq with its stream broker, acks and a result backend; it has no bulk enqueue."""
# ruff: noqa: ARG002

import asyncio
from collections.abc import Sequence
from contextlib import asynccontextmanager
from typing import Any

from bodies import BODIES
from taskiq.api import run_receiver_task
from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker

AT_ONCE = 500


class Client:
    def __init__(self, url: str) -> None:
        results = RedisAsyncResultBackend(url, result_ex_time=86_400)
        self.broker = RedisStreamBroker(url).with_result_backend(results)
        self.tasks = {name: self.broker.task(task_name=name)(body) for name, body in BODIES.items()}

    async def open(self) -> None:
        await self.broker.startup()

    async def enqueue(self, task: str, argument: Any, user: str) -> None:
        await self.tasks[task].kiq(argument)

    async def call(self, task: str, argument: Any, user: str) -> Any:
        sent = await self.tasks[task].kiq(argument)
        return (await sent.wait_result()).return_value

    async def enqueue_many(self, task: str, arguments: Sequence[Any], users: Sequence[str]) -> None:
        kiq = self.tasks[task].kiq
        for i in range(0, len(arguments), AT_ONCE):
            await asyncio.gather(*(kiq(a) for a in arguments[i : i + AT_ONCE]))

    @asynccontextmanager
    async def work(self, concurrency: int):
        running = asyncio.create_task(run_receiver_task(self.broker, max_async_tasks=concurrency))
        try:
            yield
        finally:
            running.cancel()
            await asyncio.wait([running], timeout=2)  # it may hang when canceled between two tasks
