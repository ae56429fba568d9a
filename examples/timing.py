"""How long tasks run, and how they end, by name, for a dashboard. Run it as it is: python examples/timing.py"""

import asyncio
import time
from collections import Counter, defaultdict
from typing import Any

from fairque import CallNext, Task, TaskContext, TaskHandler, TaskQueue, Worker, task

BOUNDS = (0.01, 0.1, 1.0, 10.0, float("inf"))  # seconds


class Timing:
    """A middleware around runs, which counts them into buckets: of each name and outcome, how many took up to so long.

    The names of functions come from code. Those of tasks with a payload come from whoever puts them in, and count as
    one: else a caller could fill the memory with names.
    """

    def __init__(self, names: set[str]) -> None:
        self._names = names
        self.buckets: defaultdict[tuple[str, str], Counter[float]] = defaultdict(Counter)

    async def __call__(self, run: TaskContext, call_next: CallNext) -> Any:
        began, outcome = time.perf_counter(), "canceled"
        try:
            value = await call_next()
            outcome = "returned"
        except Exception:
            outcome = "raised"
            raise
        else:
            return value
        finally:
            seconds = time.perf_counter() - began
            name = run.name if run.name in self._names else "(payload)"
            self.buckets[name, outcome][next(bound for bound in BOUNDS if seconds <= bound)] += 1

    def lines(self) -> list[str]:
        return [
            f"{name} {outcome} up to {bound:g} s: {buckets[bound]}"
            for (name, outcome), buckets in sorted(self.buckets.items())
            for bound in sorted(buckets)
        ]


@task(name="nap")
async def nap(seconds: float) -> None:
    await asyncio.sleep(seconds)


@task(name="divide")
def divide(a: int, b: int) -> float:
    time.sleep(0.2)  # in a thread
    return a / b


class Slow(TaskHandler):
    async def process_task(self, payload: dict[str, Any]) -> None:
        await asyncio.sleep(payload["seconds"])


async def main() -> None:
    timing = Timing({"nap", "divide"})
    async with TaskQueue("embedded://") as queue, Worker(queue, handler=Slow(), run_middleware=[timing]):
        calls: list[Task[Any]] = [nap(0.2), nap(0.2), divide(1, 2), divide(1, 0)]
        calls += [Task.create(payload={"seconds": 0.15}, name=f"made up {n}") for n in range(3)]
        for handle in await queue.enqueue_many(calls, user_id="acme"):
            async for _ in handle.watch():  # until it has ended
                pass
        hangs = await queue.enqueue(nap(60), user_id="acme")
        async for info in hangs.watch():
            if info.state == "started":
                await hangs.cancel()
    print("\n".join(timing.lines()))


if __name__ == "__main__":
    asyncio.run(main())
