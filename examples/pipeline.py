"""Pipelines: which task comes after which, and whose result is whose argument.

Run it with ``python examples/pipeline.py``; it brings its own server (``pip install 'fairque[embedded]'``).
"""

import asyncio

from fairque import Task, TaskQueue, Worker, current_task, task

STORE = {"s3://sales": "bolt 250,nut 150,bolt 100"}


@task
async def extract(url: str) -> list[str]:
    print("extract  reads", url)
    return STORE[url].split(",")


@task
def clean(rows: list[str]) -> list[tuple[str, int]]:
    print("clean    gets", len(rows), "rows")
    return [(name, int(cents)) for name, _, cents in (row.partition(" ") for row in rows)]


@task
def total(sales: list[tuple[str, int]], *, of: str = "") -> int:
    """`sales` travels as data and arrives as the annotation says: a list of tuples."""
    chosen = [cents for name, cents in sales if of in name]
    print("total   ", of or "all", "is the sum of", len(chosen))
    return sum(chosen)


@task
async def report(totals: dict[str, int]) -> str:
    print("report   gets", totals)
    return ", ".join(f"{name}: {cents / 100:.2f} EUR" for name, cents in totals.items())


@task
async def say(text: str) -> None:
    print("say     ", text)


@task(max_retries=1)
async def publish() -> str:
    print("publish  for", current_task().user_id)
    return "published"


def sales_report(url: str) -> Task[str]:
    """Data flow: the `output` of a task as an argument of another one puts them in order."""
    sales = clean(extract(url).output)
    return report({"bolts": total(sales.output, of="bolt").output, "all": total(sales.output).output})


async def main() -> None:
    written = sales_report("s3://sales").options(task_id="report")
    # Operators put in order what hands nothing on: ">>" is "then", "|" is "beside".
    pipeline = say("begin") >> written >> (publish() | say("done"))
    print("The pipeline, before anything has run:\n")
    print(pipeline, end="\n\n")

    async with TaskQueue("embedded://") as queue:
        run = await queue.enqueue(pipeline, user_id="acme")  # all of it in one step
        print("put in:", len(run), "tasks in one call")
        async with Worker(queue, concurrency=1):  # one at a time, so that the order is easy to follow
            print("\nresult of the last ones:", await run.result(timeout=30))
        print("the report:", await run["report"].result())
        state = await run.state()
        print("tasks by state:", {name.value: count for name, count in state.tasks.items()})


if __name__ == "__main__":
    asyncio.run(main())
