"""streaq: on coredis, with a pipelined bulk enqueue, results kept for five minutes (its default)."""
# ruff: noqa: ARG002

from collections.abc import Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
from bodies import BODIES
from streaq import Worker

AT_ONCE = 500


class Client:
    def __init__(self, url: str) -> None:
        self.url = url
        self.producer, self.tasks = self._worker()

    def _worker(self, concurrency: int = 16) -> tuple[Worker, dict[str, Any]]:
        worker = Worker(redis_url=self.url, concurrency=concurrency, handle_signals=False)
        return worker, {name: worker.task(name=name)(body) for name, body in BODIES.items()}

    async def open(self) -> None:
        await self.producer.__aenter__()

    async def enqueue(self, task: str, argument: Any, user: str) -> None:
        await self.tasks[task].enqueue(argument)

    async def enqueue_many(self, task: str, arguments: Sequence[Any], users: Sequence[str]) -> None:
        enqueue = self.tasks[task].enqueue
        for i in range(0, len(arguments), AT_ONCE):
            await self.producer.enqueue_many([enqueue(a) for a in arguments[i : i + AT_ONCE]])

    @asynccontextmanager
    async def work(self, concurrency: int):
        worker, _ = self._worker(concurrency)
        async with anyio.create_task_group() as group:
            await group.start(worker.run_async)
            yield
            group.cancel_scope.cancel()
