"""What a claim costs where each of very many tasks has a limit key of its own, filled from its arguments.

    python tests/bench/limit_keys.py [--keys N ...] [--two-each]

For each number of keys: as many tasks wait, of one user in a hundred each, under `Limit("crm:{customer}",
max_running=1)`. Then batches of 20 are claimed and settled, and it prints the commands and the microseconds of the
server for each task. With ``--two-each`` a first task of each key runs throughout, and the second of each is held: the
claims then serve others beside that many keys that are full.
"""

import argparse
import asyncio

from fairque import Limit, TaskQueue, task
from fairque.embedded.server import EmbeddedServer
from fairque.redis.store import Store
from tests.support.core import outcome
from tests.support.resp import RespClient

BATCH, ROUNDS, ADDED = 20, 50, 5_000


@task(limits=[Limit("crm:{customer}", max_running=1)])
async def call(customer: int) -> None:
    pass


@task
async def other() -> None:
    pass


async def put_in(queue: TaskQueue, customers: range) -> None:
    for at in range(customers.start, customers.stop, ADDED):
        part = range(at, min(at + ADDED, customers.stop))
        await queue.enqueue_many([call(n) for n in part], user_id=f"user {at // ADDED % 100}")


async def fill(queue: TaskQueue, store: Store, keys: int) -> None:
    """The first task of each key runs, the second one is held."""
    await put_in(queue, range(keys))
    ran = 0
    while ran < keys:
        ran += len((await store.claim("busy", 500)).deliveries)
    await put_in(queue, range(keys))
    while (await store.claim("busy", 500)).deliveries or (await queue.stats()).users_ready:
        pass


async def serve(store: Store, rounds: int) -> int:
    served = 0
    for _ in range(rounds):
        taken = (await store.claim("w", BATCH)).deliveries
        await store.settle("w", [outcome(of, "finished") for of in taken])
        served += len(taken)
    return served


def spent(client: RespClient) -> tuple[int, int]:
    """Commands that scripts called, and microseconds of the scripts."""
    lines = client.execute("INFO", "commandstats").decode().splitlines()[1:]
    stats = {
        name.removeprefix("cmdstat_"): dict(field.split("=") for field in told.split(","))
        for name, _, told in (line.partition(":") for line in lines if line)
    }
    return sum(int(of["calls"]) for of in stats.values()), int(stats.get("fcall", {}).get("usec", 0))


async def measure(keys: int, two_each: bool) -> None:
    with EmbeddedServer() as server, RespClient(server.url, timeout=600) as client:
        async with TaskQueue(server.url, timeout=600, lease=86_400) as queue:
            await queue.set_limit("crm:{customer}", max_running=1)
            store = queue.store(patience=600)
            if two_each:
                await fill(queue, store, keys)
                await queue.enqueue_many([other()] * (BATCH * (ROUNDS + 5)), user_id="free")
            else:
                await put_in(queue, range(keys))
            await serve(store, 5)
            client.execute("CONFIG", "RESETSTAT")
            tasks = await serve(store, ROUNDS)
            commands, us = spent(client)
            used = int(client.execute("INFO", "memory").split(b"used_memory:")[1].split(b"\r")[0])
            held = client.execute("ZCARD", f"{queue.keys.prefix}held")
            each = max(1, tasks)
            print(
                f"{keys:>9,} keys {'full' if two_each else 'waiting':<8}{held:>9,} held {tasks:>6} tasks  "
                f"{commands / each:6.1f} commands  {us / each:6.1f} us  {used / max(1, keys):6.0f} bytes a key",
                flush=True,
            )
            await store.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--keys", type=int, nargs="+", default=[1_000, 100_000, 1_000_000])
    parser.add_argument("--two-each", action="store_true")
    args = parser.parse_args()
    for keys in args.keys:
        asyncio.run(measure(max(keys, BATCH * (ROUNDS + 5)), args.two_each))


if __name__ == "__main__":
    main()
