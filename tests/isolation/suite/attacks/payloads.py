"""Large things: bodies, results, shared values, errors, progress."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from fairque import QueueFull
from tests.isolation.suite.attack import ATTACKER, Attacker, attack
from tests.isolation.suite.tasks import fail, flow, large, progress, share, swallow, write_log

LARGE = 200 * 1024
MOST_BYTES = 20_000_000


@attack("huge bodies", "messages of 200 KiB, 500 waiting")
async def bodies(a: Attacker) -> None:
    data = bytes(LARGE)
    await a.backlog_of(lambda _: swallow(data), a.many(500))


@attack("huge results", "results of 200 KiB, kept")
async def results(a: Attacker) -> None:
    async for _ in a.again(0.02):
        if (await a.queue.user(ATTACKER)).queued < a.many(100):
            await a.put(large(LARGE).options(result_ttl=5) for _ in range(a.many(100)))


@attack("huge errors", "exceptions with a text of 200 KiB, kept as dead letters")
async def errors(a: Attacker) -> None:
    await a.backlog_of(lambda _: fail(LARGE), a.many(500))


@attack("a flood of progress", "tasks that report it 1,000 times")
async def reports(a: Attacker) -> None:
    await a.backlog_of(lambda _: progress(1_000), 20)


@attack("a flood of chunks", "generators that yield 100 times 10 KiB, as fast as they can")
async def chunks(a: Attacker) -> None:
    await a.backlog_of(lambda _: flow(100, 10 * 1024), a.many(500))


@attack("a flood of log records", 'tasks with `run_in="process"` that log 1,000 records of 1 KB')
async def records(a: Attacker) -> None:
    await a.backlog_of(lambda _: write_log(1_000), 20)


@attack("a flood of XCom from tasks", "each pushes 20 values of 10 KiB")
async def shared(a: Attacker) -> None:
    await a.backlog_of(lambda _: share(20, 10 * 1024), a.many(500))


@attack("a flood of XCom from outside", "20 callers push 100 KiB and pull it, in 1,000 namespaces")
async def pushed(a: Attacker) -> None:
    async def call(caller: int) -> None:
        async for n in a.again():
            xcom = a.queue.xcom(ATTACKER, f"space {(20 * n + caller) % 1_000}")
            await xcom.push("value", bytes(100 * 1024))
            await xcom.pull("value", type=bytes)

    await asyncio.gather(*(call(caller) for caller in range(20)))


@attack("all the memory there is", f"bodies, results and XCom of 200 KiB, `max_bytes={MOST_BYTES:,}`")
async def memory(a: Attacker) -> None:
    await a.queue.set_policy(ATTACKER, max_bytes=MOST_BYTES)

    async def fill(calls: Callable[[int], Awaitable[object]]) -> None:
        async for n in a.again():
            with contextlib.suppress(QueueFull):
                await calls(n)

    xcom = a.queue.xcom(ATTACKER)
    await asyncio.gather(
        fill(lambda n: xcom.push(f"key {n}", bytes(LARGE), ttl=600)),
        fill(lambda _: a.put(swallow(bytes(LARGE)) for _ in range(10))),
        fill(lambda _: a.put_one(large(LARGE))),
    )
