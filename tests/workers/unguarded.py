"""A script without a main guard: ``unguarded.py URL QUEUE``. It makes a task for a subprocess, and runs it."""

import asyncio
import sys

from fairque import TaskQueue, Worker, task


@task(run_in="process")
def double(n: int) -> int:
    return 2 * n


async def main() -> None:
    async with TaskQueue(sys.argv[1], name=sys.argv[2]) as queue:
        handle = await queue.enqueue(double(21), user_id="anna")
        async with Worker(queue):
            print("result", await handle.result(20))


asyncio.run(main())
print("ran to its end")
