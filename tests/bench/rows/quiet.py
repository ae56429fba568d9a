"""How long the single tasks of one user wait while the many of another fill the queue."""

import asyncio
from time import perf_counter

from contenders import Contender
from other import worker_process


async def measure(client: Contender, url: str, tasks: int, arrivals: int) -> dict[str, float]:
    async with worker_process(client, url, concurrency=10) as worker:
        await client.enqueue_many("nap", range(tasks), ["loud"])
        for _ in range(arrivals):
            await client.enqueue("stamp", perf_counter(), "quiet")
            await asyncio.sleep(0.1)
        waits = [1_000 * wait for _, wait in sorted(await worker.waits(arrivals))]
    return {"first": waits[0], "worst": max(waits)}
