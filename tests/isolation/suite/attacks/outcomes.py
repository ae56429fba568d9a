"""Ends that make work: failures, breakers, dead letters, tasks that nobody knows."""

from __future__ import annotations

import asyncio

from fairque import FairqueError, task
from tests.isolation.suite.attack import ATTACKER, Attacker, attack
from tests.isolation.suite.tasks import end_subprocess, fail, nap


@task(name="isolation.of-nobody")
async def of_nobody() -> None:
    """No worker knows it."""


@attack("failing tasks", "20,000 that fail, and become dead letters")
async def failing(a: Attacker) -> None:
    await a.backlog_of(lambda _: fail(), a.many(20_000))


@attack("subprocesses that die", 'tasks with `run_in="process"` that end their subprocess')
async def dying(a: Attacker) -> None:
    await a.backlog_of(lambda _: end_subprocess(), a.many(500))


@attack("a breaker that opens and closes", "failing tasks with `breaker=Breaker(1, cooldown=0.01)`")
async def breaker(a: Attacker) -> None:
    await a.queue.set_policy(ATTACKER, breaker="1/60s/0.01s")
    await a.backlog_of(lambda n: fail() if n % 2 else nap(), a.many(5_000))


@attack("dead letters", "`requeue_all`, `discard` and failing anew, in a loop", counts_all=False)
async def letters(a: Attacker) -> None:
    await a.put(fail() for _ in range(a.many(2_000)))

    async def requeue() -> None:
        async for _ in a.again(0.01):
            await a.queue.requeue_all(ATTACKER)

    async def discard() -> None:
        async for _ in a.again(0.01):
            for letter in await a.queue.dead_letters(ATTACKER, limit=10):
                try:
                    await a.queue.discard(letter)
                except FairqueError:
                    continue  # it was requeued meanwhile
            await a.put(fail() for _ in range(10))

    await asyncio.gather(requeue(), discard())


@attack("tasks that no worker knows", "5,000 of a name without a function")
async def unknown(a: Attacker) -> None:
    await a.put(of_nobody() for _ in range(a.many(5_000)))
    async for _ in a.again(0.05):
        await a.put(of_nobody() for _ in range(20))
