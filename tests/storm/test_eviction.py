"""A server that evicts keys, which it must not: what is left is served, and mended. Run by ``nox -s storm``."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from fairque import FairqueError, TaskQueue, Worker, task
from fairque.embedded.server import EmbeddedServer
from tests.support.eventually import eventually
from tests.support.resp import RespClient

ROOM = 20_000_000
"""Bytes above what the server has at the beginning."""
LARGE = 20_000


@task(result_ttl=5)
async def size(data: bytes) -> int:
    return len(data)


@pytest.mark.parametrize("policy", ["allkeys-lru", "allkeys-random"])
async def test_after_an_eviction_every_user_is_served_and_a_repair_makes_the_queue_whole(
    own_server: Callable[..., EmbeddedServer], policy: str
) -> None:
    server = own_server()
    with RespClient(server.url) as client:
        async with TaskQueue(server.url, lease=1.0) as queue:
            client.execute("CONFIG", "SET", "maxmemory-policy", policy)
            client.execute("CONFIG", "SET", "maxmemory", info(client, "memory", "used_memory") + ROOM)
            for n in range(10):
                await queue.enqueue(size(b""), user_id=f"quiet {n}", delay=3600)
            async with Worker(queue, poll_interval=0.2):
                await flood(queue, client)
                client.execute("CONFIG", "SET", "maxmemory", 0)
                client.execute("CONFIG", "SET", "maxmemory-policy", "noeviction")
                repaired = await queue.check(repair=True)
                assert repaired.sound, repaired.unmended
                handles = [await queue.enqueue(size(b"xy"), user_id=f"quiet {n}") for n in range(10)]
                assert [await handle.result(timeout=30) for handle in handles] == [2] * 10
                await eventually(lambda: is_empty(queue), 60)
            assert (await queue.check()).findings == ()


async def flood(queue: TaskQueue, client: RespClient) -> None:
    """Until a thousand keys were evicted."""
    async with asyncio.timeout(40):
        while info(client, "stats", "evicted_keys") < 1000:
            try:
                await queue.enqueue_many([size(bytes(LARGE)) for _ in range(100)], user_id="flood")
                for n in range(5):
                    await queue.enqueue_many([size(b"") for _ in range(50)], user_id=f"other {n}")
            except FairqueError:  # the state of the queue is gone: a repair brings it back
                await queue.check(repair=True)


async def is_empty(queue: TaskQueue) -> bool:
    stats = await queue.stats()
    return stats.queued + stats.started == 0


def info(client: RespClient, section: str, name: str) -> int:
    lines = client.execute("INFO", section).decode().splitlines()
    return next(int(line.partition(":")[2]) for line in lines if line.startswith(f"{name}:"))
