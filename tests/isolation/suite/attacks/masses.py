"""Calls in masses that are no tasks: cancelling, purging, the same ids, waiting, reading."""

from __future__ import annotations

import asyncio
from itertools import count

from fairque import FairqueError, ResultTimeout, TaskHandle
from tests.isolation.suite.attack import ATTACKER, Attacker, attack
from tests.isolation.suite.tasks import nap


@attack("cancelling masses", "500 enqueued and canceled at once, in a loop")
async def cancelling(a: Attacker) -> None:
    async for _ in a.again():
        handles = await a.put(nap() for _ in range(a.many(500)))
        await asyncio.gather(*(handle.cancel() for handle in handles))


@attack("cancelling what runs", "tasks of a minute in all slots but one, canceled as soon as they run")
async def cancelling_running(a: Attacker) -> None:
    await a.queue.set_policy(ATTACKER, max_running=a.slots - 1)
    async for _ in a.again():
        handles = await a.put(nap(60.0) for _ in range(a.slots - 1))
        await asyncio.sleep(0.01)
        await asyncio.gather(*(handle.cancel() for handle in handles))


@attack("purging", "1,000 enqueued and `purge`, in a loop", counts_all=False)
async def purging(a: Attacker) -> None:
    async for _ in a.again():
        await a.put(nap() for _ in range(a.many(1_000)))
        await a.queue.purge(ATTACKER)


@attack("the same id again and again", "20 callers enqueue ten ids, and cancel them")
async def same_ids(a: Attacker) -> None:
    async def call() -> None:
        async for n in a.again():
            handle = await a.put_one(nap(), task_id=f"id {n % 10}")
            if n % 3 == 0:
                await handle.cancel()

    await asyncio.gather(*(call() for _ in range(20)))


@attack("a full backlog that drops its oldest", '`max_queued=1000, overflow="drop_oldest"`, 500 more at a time')
async def dropping(a: Attacker) -> None:
    await a.queue.set_policy(ATTACKER, max_queued=a.many(1_000), overflow="drop_oldest")
    await a.put(nap() for _ in range(a.many(1_000)))
    async for _ in a.again():
        await a.put(nap() for _ in range(a.many(500)))


@attack("a full backlog that refuses", "`max_queued=1000`, and 20 callers that try all the same")
async def refused(a: Attacker) -> None:
    await a.queue.set_policy(ATTACKER, max_queued=a.many(1_000))

    async def call() -> None:
        async for _ in a.again():
            try:
                await a.put(nap() for _ in range(a.many(100)))
            except FairqueError:
                continue

    await asyncio.gather(*(call() for _ in range(20)))


async def wait_for(handle: TaskHandle[None]) -> None:
    try:
        await handle.result(timeout=0.5)
    except (ResultTimeout, FairqueError):
        return


@attack("thousands that wait for results", "`result` for 2,000 tasks, again and again")
async def waiting(a: Attacker) -> None:
    async for _ in a.again():
        handles = await a.put(nap().options(result_ttl=1) for _ in range(a.many(2_000)))
        await asyncio.gather(*(wait_for(handle) for handle in handles))


@attack("thousands that watch", "`watch` for 2,000 tasks that are due in a minute and canceled, in a loop")
async def watching(a: Attacker) -> None:
    async def watch(handle: TaskHandle[None]) -> None:
        async for _ in handle.watch():
            pass

    async for _ in a.again():
        handles = await a.put((nap() for _ in range(a.many(2_000))), delay=60)
        watches = asyncio.gather(*(watch(handle) for handle in handles))
        await asyncio.gather(*(handle.cancel() for handle in handles))
        await watches


@attack("reading without end", "20 callers: `stats`, `health`, `users`, `tasks`, `explain`, `dead_letters`, `usage`")
async def reading(a: Attacker) -> None:
    await a.put(nap(0.01) for _ in range(a.many(20_000)))
    numbers = count()

    async def call() -> None:
        queue = a.queue
        async for _ in a.again():
            await queue.stats()
            await queue.health()
            await queue.users(limit=1000)
            await queue.active_users(limit=1000)
            await queue.tasks(ATTACKER, limit=1000)
            await queue.explain(ATTACKER)
            await queue.dead_letters(limit=1000)
            await queue.usage(ATTACKER)
            if next(numbers) % 10 == 0:
                await a.put(nap(0.01) for _ in range(100))

    await asyncio.gather(*(call() for _ in range(20)))
