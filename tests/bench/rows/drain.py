"""How many waiting tasks a second one worker process serves, from the first start to the last end."""

import asyncio
import gc
import time

from bodies import tally
from contenders import Contender

USERS = [f"user-{i}" for i in range(100)]


async def measure(client: Contender, _url: str, task: str, tasks: int) -> dict[str, float]:
    await client.enqueue_many(task, range(tasks), USERS)
    gc.collect()
    tally.expect(tasks)
    before = time.process_time()
    async with client.work(100):
        await tally.done.wait()
        cpu = time.process_time() - before  # steadier than a rate where other processes compete for the core
        await asyncio.sleep(0.2)  # the last results are still being written
    figures = {"rate": tasks / tally.seconds, "cpu_us": 1e6 * cpu / tasks}
    return figures | ({"bare": await _bare_naps(2_000)} if task == "nap" else {})


async def _bare_naps(naps: int) -> float:
    """What the event loop itself allows: its timers are coarser than ten milliseconds are exact."""
    left = iter(range(naps))

    async def slot() -> None:
        for _ in left:
            await asyncio.create_task(asyncio.sleep(0.01))

    began = time.perf_counter()
    await asyncio.gather(*(slot() for _ in range(100)))
    return naps / (time.perf_counter() - began)
