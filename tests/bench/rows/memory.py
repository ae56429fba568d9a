"""What a waiting task takes in the memory of the server."""

import asyncio
from typing import Any

from contenders import Contender
from redis.asyncio import Redis

USERS = [f"user-{i}" for i in range(100)]


async def measure(client: Contender, url: str, task: str, argument: Any, tasks: int) -> dict[str, float]:
    async with Redis.from_url(url) as redis:
        before = await _used(redis)
        await client.enqueue_many(task, [argument] * tasks, USERS)
        await redis.execute_command("CLIENT KILL TYPE normal SKIPME yes")  # their buffers count as well
        await asyncio.sleep(0.5)
        return {"bytes": (await _used(redis) - before) / tasks}


async def _used(redis: Redis) -> int:
    """Without the scripts, which are there only once."""
    info = await redis.info("memory")
    return info["used_memory"] - info.get("used_memory_scripts", 0)
