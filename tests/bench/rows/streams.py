"""How fast another process reads what a task yields, and how old its chunks are then."""

import asyncio
import statistics
from time import perf_counter
from typing import Any

from other import worker_process


async def measure(client: Any, url: str, chunks: int, slow: int, streams: int) -> dict[str, float]:
    async with worker_process(client, url, concurrency=streams):
        began = perf_counter()
        await _ages(client, 0, chunks, "user-1")
        rate = chunks / (perf_counter() - began)
        alone = await _ages(client, 0.05, slow, "user-1")
        many = await asyncio.gather(*(_ages(client, 0.05, slow, f"user-{n % 10}") for n in range(streams)))
    p50, p99 = _cuts(alone)
    return {"rate": rate, "p50": p50, "p99": p99, "many_p50": _cuts([age for ages in many for age in ages])[0]}


async def _ages(client: Any, pause: float, chunks: int, user: str) -> list[float]:
    return [1_000 * (perf_counter() - sent) async for sent in client.stream(pause, chunks, user)]


def _cuts(ages: list[float]) -> tuple[float, float]:
    cuts = statistics.quantiles(ages, n=100, method="inclusive")
    return cuts[49], cuts[98]
