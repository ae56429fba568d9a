"""Much at once: backlogs, user ids, calls, priorities."""

from __future__ import annotations

import asyncio
from itertools import count

from fairque import Priority
from tests.isolation.suite.attack import ATTACKER, Attacker, Scale, attack
from tests.isolation.suite.bounds import Rivals
from tests.isolation.suite.tasks import nap

CALLERS = 50
FRESH = 100


def ids(scale: Scale) -> int:
    return scale.many(1_000)


@attack("one huge backlog", "`enqueue_many` of 100,000")
async def backlog(a: Attacker) -> None:
    await a.put(nap() for _ in range(a.many(100_000)))
    async for _ in a.again(0.05):
        await a.put(nap() for _ in range(500))


@attack("many single calls", f"`enqueue` by {CALLERS} callers at once")
async def single_calls(a: Attacker) -> None:
    async def call() -> None:
        async for _ in a.again():
            await a.put_one(nap())

    await asyncio.gather(*(call() for _ in range(CALLERS)))


@attack("many user ids", "20 tasks each of 1,000 ids", lambda scale: Rivals(users=ids(scale)))
async def user_ids(a: Attacker) -> None:
    async for _ in a.again(0.2):
        if (await a.queue.stats()).queued < 10 * ids(a.scale):
            for n in range(ids(a.scale)):
                await a.put((nap() for _ in range(20)), f"{ATTACKER}-{n}")


@attack("many user ids in a group", "the same, in one group")
async def grouped_ids(a: Attacker) -> None:
    for n in range(ids(a.scale)):
        await a.queue.set_policy(f"{ATTACKER}-{n}", group="crowd")
    await user_ids(a)


@attack("ever new user ids", f"each task of a new id, {FRESH} at a time", Rivals(users=FRESH, fresh=True))
async def new_ids(a: Attacker) -> None:
    numbers = count()

    async def come() -> None:
        async for _ in a.again():
            handle = await a.put_one(nap().options(result_ttl=60), f"{ATTACKER}-{next(numbers)}")
            await handle.result(timeout=30)

    await asyncio.gather(*(come() for _ in range(FRESH)))


ODD_IDS = ["@crowd", "**", "a:b", "a/b", "{q}", "a b", "é" * 256, "-" * 65, "%2A", "0", "quiet ", "Quiet", "quiet:1"]


@attack("odd user ids", "ids that look like keys, groups, everybody, or the quiet user", Rivals(users=len(ODD_IDS)))
async def odd_ids(a: Attacker) -> None:
    async for _ in a.again(0.1):
        if (await a.queue.stats()).queued < a.many(10_000):
            for user_id in ODD_IDS:
                await a.put((nap() for _ in range(a.many(1_000))), user_id)


@attack("only critical tasks", "`priority=CRITICAL` for 50,000 tasks")
async def critical(a: Attacker) -> None:
    await a.backlog_of(lambda _: nap(), a.many(50_000), priority=Priority.CRITICAL)


@attack("all priorities", "20,000 tasks of all priorities in turn")
async def priorities(a: Attacker) -> None:
    await a.backlog_of(lambda n: nap().options(priority=1 + n % 6), a.many(20_000))
