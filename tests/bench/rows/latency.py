"""How long an idle worker in another process takes to start a task, from before its enqueue."""

import asyncio
import random
import statistics
from time import perf_counter

from contenders import Contender
from other import worker_process


async def measure(client: Contender, url: str, tasks: int) -> dict[str, float]:
    draw = random.Random(tasks)
    async with worker_process(client, url, concurrency=100) as worker:
        for _ in range(tasks):
            await asyncio.sleep(draw.uniform(0.01, 0.03))  # no rhythm that a timer could share
            await client.enqueue("stamp", perf_counter(), "user-1")
        waits = await worker.waits(tasks)
    cuts = statistics.quantiles((1_000 * wait for _, wait in waits), n=100, method="inclusive")
    return {"p50": cuts[49], "p99": cuts[98]}
