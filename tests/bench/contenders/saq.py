"""saq: one blocking connection per slot, no bulk enqueue, results kept for ten minutes (its default)."""
# ruff: noqa: ARG001, ARG002

import asyncio
from collections.abc import Sequence
from contextlib import asynccontextmanager
from typing import Any

from bodies import BODIES
from redis.asyncio import Redis
from saq import Queue, Worker
from saq.queue.redis import RedisQueue

AT_ONCE = 500


def _function(body: Any) -> Any:
    async def run(ctx: dict, argument: Any) -> Any:
        return await body(argument)

    return run


class Client:
    def __init__(self, url: str) -> None:
        # redis-py 8 gives up a blocking read after 5 s and lends no more than 100 connections: saq expects neither
        self.queue: Queue = RedisQueue(Redis.from_url(url, socket_timeout=None, max_connections=1_000))

    async def open(self) -> None:
        await self.queue.connect()

    async def enqueue(self, task: str, argument: Any, user: str) -> None:
        await self.queue.enqueue(task, argument=argument)

    async def call(self, task: str, argument: Any, user: str) -> Any:
        return await self.queue.apply(task, argument=argument)

    async def enqueue_many(self, task: str, arguments: Sequence[Any], users: Sequence[str]) -> None:
        for i in range(0, len(arguments), AT_ONCE):
            await asyncio.gather(*(self.queue.enqueue(task, argument=a) for a in arguments[i : i + AT_ONCE]))

    @asynccontextmanager
    async def work(self, concurrency: int):
        functions = [(name, _function(body)) for name, body in BODIES.items()]
        worker = Worker(self.queue, functions, concurrency=concurrency)
        running = asyncio.create_task(worker.start())
        try:
            yield
        finally:
            worker.event.set()
            await running
