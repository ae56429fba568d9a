"""What an idle worker costs: commands that clients send (not those inside scripts), and its CPU time."""

import asyncio
from time import perf_counter

from contenders import Contender
from other import worker_process
from redis.asyncio import Redis


async def measure(client: Contender, url: str, seconds: float) -> dict[str, float]:
    async with worker_process(client, url, concurrency=100) as worker, _client(url) as redis:
        await asyncio.sleep(3)  # until what a start brings with it has settled
        before, started = await worker.cpu_seconds(), perf_counter()
        commands = await _commands(redis, seconds)
        elapsed = perf_counter() - started
        cpu = await worker.cpu_seconds() - before
    return {"commands": sum(commands.values()) / elapsed, "cpu": 100 * cpu / elapsed, "by_name": commands}


def _client(url: str) -> Redis:
    return Redis.from_url(url, socket_timeout=None)  # MONITOR of an idle server is silent for long


async def _commands(redis: Redis, seconds: float) -> dict[str, int]:
    """Commands by name, as MONITOR tells them; lines from a script are marked `lua` there."""
    seen: dict[str, int] = {}
    async with redis.monitor() as monitor:
        try:
            async with asyncio.timeout(seconds):
                while True:
                    line = await monitor.next_command()
                    if line["client_type"] != "lua":
                        name = line["command"].split()[0].upper()
                        seen[name] = seen.get(name, 0) + 1
        except TimeoutError:
            return seen
