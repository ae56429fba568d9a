"""One user floods the queue, another waits for nobody. Run it as it is: python examples/quickstart.py"""

import asyncio

from fairque import TaskQueue, Worker, task


@task(max_retries=3, timeout=30)
async def resize(image: str, width: int = 800) -> str:
    await asyncio.sleep(0.01)  # the work
    return f"{image}, {width} px wide"


async def main() -> None:
    async with TaskQueue("embedded://") as queue:  # or "redis://localhost:6379"
        flood = await queue.enqueue_many([resize(f"photo {n}") for n in range(1000)], user_id="acme")
        single = await queue.enqueue(resize("logo", width=200), user_id="zoe")

        async with Worker(queue, concurrency=10):
            print("zoe has her", await single.result(timeout=10))
            print("acme had", (await queue.user("acme")).finished, "of", len(flood), "by then")
            for handle in flood:
                await handle.result(timeout=10)

        print("in the end:", (await queue.stats()).finished)


asyncio.run(main())
