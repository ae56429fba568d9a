"""What the order of a pipeline costs: diamonds of four no-op tasks beside four tasks that wait for nobody."""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable
from time import perf_counter
from typing import Any

from bodies import tally
from redis.asyncio import Redis

from fairque import TaskQueue, sequential

USERS = [f"user-{i}" for i in range(100)]
SCRIPTS = ("evalsha", "eval", "fcall", "fcall_ro")
PRODUCERS = 100
ROUNDS = 6


async def measure(client: Any, url: str, fours: int) -> dict[str, float]:
    """`client` is that of fairque: the others have no pipelines that they take at once."""
    noop, queue = client.tasks["noop"], client.queue

    async def four(n: int) -> None:
        await asyncio.gather(*(queue.enqueue(noop(n), user_id=USERS[n % 100]) for _ in range(4)))

    async def diamond(n: int) -> None:
        await queue.enqueue(noop(n) >> (noop(n) | noop(n)) >> noop(n), user_id=USERS[n % 100])

    await _each(four, range(100))  # connections open, scripts loaded
    await _drain(client, 400)
    figures: dict[str, float] = defaultdict(float)
    for _ in range(ROUNDS):  # in turns: whatever else runs here hits both
        for name, put_in in (("four", four), ("diamond", diamond)):
            began = perf_counter()
            await _each(put_in, range(fours // ROUNDS))
            figures[f"{name}_enqueue_us"] += 1e6 * (perf_counter() - began) / fours
            await _drain(client, 4 * (fours // ROUNDS))
            figures[f"{name}_serve_us"] += 1e6 * tally.seconds / fours
    for name in ("four", "diamond"):
        figures[f"{name}_us"] = figures[f"{name}_enqueue_us"] + figures[f"{name}_serve_us"]
    hundred = sequential(*(noop(n) for n in range(100)))
    return figures | {"round_trips": await _round_trips(queue, url, hundred)}


async def _each(put_in: Callable[[int], Awaitable[None]], numbers: Iterable[int]) -> None:
    """Many producers at once, as in a service."""
    left = iter(numbers)

    async def producer() -> None:
        for n in left:
            await put_in(n)

    await asyncio.gather(*(producer() for _ in range(PRODUCERS)))


async def _drain(client: Any, tasks: int) -> None:
    tally.expect(tasks)
    async with client.work(100):
        await tally.done.wait()
        await asyncio.sleep(0.2)  # the last results are still being written


async def _round_trips(queue: TaskQueue, url: str, pipeline: Any) -> int:
    async with Redis.from_url(url) as redis:
        before = await _calls(redis)
        await queue.enqueue(pipeline, user_id="user-1")
        return await _calls(redis) - before


async def _calls(redis: Redis) -> int:
    stats = await redis.info("commandstats")
    return sum(value["calls"] for key, value in stats.items() if key.removeprefix("cmdstat_") in SCRIPTS)
