"""How many tasks a second one process enqueues, with no worker about."""

import asyncio
from time import perf_counter, process_time

from contenders import Contender

USERS = [f"user-{i}" for i in range(100)]


async def measure(client: Contender, _url: str, how: str, tasks: int) -> dict[str, float]:
    await client.enqueue_many("noop", range(1_000), USERS)  # connections open, scripts loaded
    started, cpu = perf_counter(), process_time()
    if how == "bulk":
        await client.enqueue_many("noop", range(tasks), USERS)
    elif how == "single":
        await _one_by_one(client, tasks, USERS)
    else:
        await asyncio.gather(*(_one_by_one(client, tasks // len(USERS), [user]) for user in USERS))
    return {"rate": tasks / (perf_counter() - started), "cpu_us": 1e6 * (process_time() - cpu) / tasks}


async def _one_by_one(client: Contender, tasks: int, users: list[str]) -> None:
    for n in range(tasks):
        await client.enqueue("noop", n, users[n % len(users)])
