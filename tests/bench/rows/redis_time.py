"""How long Redis is busy with one task, from its enqueue to its result, while so many users have work.

What scripts call is part of their own time, so only the commands that clients send are added up.
"""

import random

from bodies import tally
from contenders import Contender
from redis.asyncio import Redis

SCRIPTS = ("evalsha", "eval", "fcall", "fcall_ro")


async def measure(client: Contender, url: str, users: list[int], tasks: int) -> dict[str, float]:
    figures = {}
    async with Redis.from_url(url) as redis:
        for count in users:
            await redis.flushall()
            one = await _one(client, redis, count, tasks)
            figures |= {f"{name}_{count}": value for name, value in one.items()}
    return figures


async def _one(client: Contender, redis: Redis, users: int, tasks: int) -> dict[str, float]:
    names = [f"user-{i}" for i in range(users)]
    await client.enqueue_many("noop", range(max(2 * users, 1_000)), names)  # so that all have work throughout
    draw = random.Random(users)
    drawn = [user for _ in range(tasks // 500) for user in 50 * draw.sample(names, 10)]  # all batches are alike
    before = await _busy(redis)
    await client.enqueue_many("noop", range(tasks), drawn)
    between = await _busy(redis)
    tally.expect(tasks)
    async with client.work(100):
        await tally.done.wait()
        after = await _busy(redis)
        served = tally.count
    enqueue = [(b - a) / tasks for a, b in zip(before, between, strict=True)]
    serve = [(b - a) / served for a, b in zip(between, after, strict=True)]
    return {"enqueue": enqueue[0], "serve": serve[0], "total": enqueue[0] + serve[0], "cpu": enqueue[1] + serve[1]}


async def _busy(redis: Redis) -> tuple[float, float]:
    """Microseconds in scripts by the clock, and of CPU in all; the first grows when others want the same core."""
    stats, cpu = await redis.info("commandstats"), await redis.info("cpu")
    scripts = sum(v["usec"] for k, v in stats.items() if k.removeprefix("cmdstat_") in SCRIPTS)
    return scripts, 1e6 * (cpu["used_cpu_user_main_thread"] + cpu["used_cpu_sys_main_thread"])
