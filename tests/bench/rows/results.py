"""How many tasks callers get done that each put one in and wait for its result, and the drain of the same process."""

import asyncio
import gc
from time import perf_counter

from bodies import tally
from contenders import Contender

USERS = [f"user-{i}" for i in range(100)]


async def measure(client: Contender, _url: str, calls: int, callers: int, tasks: int) -> dict[str, float]:
    await client.enqueue_many("noop", range(tasks), USERS)
    gc.collect()
    tally.expect(tasks)
    async with client.work(100):
        await tally.done.wait()
        drained = tasks / tally.seconds
        await asyncio.sleep(0.2)  # the last results are still being written
        rate = await _call(client, calls, callers)
    return {"rate": rate, "share": rate / drained}


async def _call(client: Contender, calls: int, callers: int) -> float:
    left = iter(range(calls))

    async def caller(user: str) -> None:
        for n in left:
            assert await client.call("noop", n, user) == n

    began = perf_counter()
    await asyncio.gather(*(caller(USERS[n % len(USERS)]) for n in range(callers)))
    return calls / (perf_counter() - began)
