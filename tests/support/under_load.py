"""A queue in which everything is used, with workers that run and a user whose tasks flow: one key of it is broken."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from fairque import FairqueError, TaskHandle, TaskQueue, Worker, task
from fairque.tasks.registry import unregister
from tests.support.damage import Damage
from tests.support.eventually import eventually
from tests.support.everything import everything
from tests.support.together import keys_of_all

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

MORE = 10
"""Tasks of others that are to end while one user's key is broken."""


class Flow:
    """A user whose next task is put in when the one before has ended."""

    def __init__(self, queue: TaskQueue) -> None:
        self._queue = queue
        self._beat = task(name="beat")(_beat)
        self._accepted: list[TaskHandle[None]] = []
        self.ended = 0

    async def run(self) -> None:
        while True:
            try:
                handle = await self._queue.enqueue(self._beat(), user_id="flow")
                self._accepted.append(handle)
                await handle.result(timeout=1)
                self.ended += 1
            except FairqueError:
                await asyncio.sleep(0.02)  # a key of all is broken: it is said, and nothing goes on

    async def goes_on(self) -> None:
        before = self.ended

        async def is_further() -> bool:
            return self.ended >= before + MORE

        await eventually(is_further)

    async def all_ended(self) -> None:
        for handle in self._accepted:
            await handle.result(timeout=10)

    def close(self) -> None:
        unregister("beat")


async def _beat() -> None: ...


@asynccontextmanager
async def flowing(queue: TaskQueue) -> AsyncIterator[Flow]:
    flow = Flow(queue)
    running = asyncio.create_task(flow.run())
    try:
        yield flow
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        flow.close()


async def break_under_load(
    url: str, break_one: Callable[[Damage], None], *, of_one_user: bool, telling: bool = False
) -> None:
    """Others go on while a key of one user is broken, and all do after a repair."""
    async with everything(url, "storm", telling=telling) as queue, flowing(queue) as flow:
        with Damage(queue.connector.url, keys_of_all(queue).prefix) as damage:
            async with Worker(queue, concurrency=4, scheduler=False):
                break_one(damage)
                if of_one_user:
                    await flow.goes_on()
                else:
                    await asyncio.sleep(0.3)  # however it goes on
                await queue.check(repair=True)
                await flow.goes_on()
                await flow.all_ended()
            assert (await queue.check(repair=True)).sound, "totals are compared when nothing moves"
            assert (await queue.check()).findings == ()
