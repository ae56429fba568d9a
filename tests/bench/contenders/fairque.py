"""fairque, through its public face."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import cycle
from typing import Any

from bodies import BODIES, ticks

from fairque import TaskQueue, Worker, task


class Client:
    def __init__(self, url: str) -> None:
        self.queue = TaskQueue(url, name="bench")
        self.tasks = {name: task(name=name)(body) for name, body in BODIES.items()}
        self.ticks = task(name="ticks")(ticks)

    async def open(self) -> None:
        await self.queue.__aenter__()

    async def enqueue(self, task: str, argument: Any, user: str) -> None:
        await self.queue.enqueue(self.tasks[task](argument), user_id=user)

    async def call(self, task: str, argument: Any, user: str) -> Any:
        handle = await self.queue.enqueue(self.tasks[task](argument), user_id=user)
        return await handle.result()

    async def enqueue_many(self, task: str, arguments: Sequence[Any], users: Sequence[str]) -> None:
        build = self.tasks[task]
        dealt = zip(arguments, cycle(users), strict=False)
        await self.queue.enqueue_many([build(a).options(user_id=u) for a, u in dealt])

    async def stream(self, pause: float, chunks: int, user: str) -> AsyncIterator[float]:
        handle = await self.queue.enqueue(self.ticks(pause, chunks), user_id=user)
        async for chunk in handle.stream():
            yield chunk

    @asynccontextmanager
    async def work(self, concurrency: int):
        async with Worker(self.queue, concurrency=concurrency):
            yield
