"""Dependencies: tasks that wait for others, what becomes of them when those fail, and how a failure is repaired.

Run it with ``python examples/dependencies.py``; it brings its own server (``pip install 'fairque[embedded]'``).
"""

import asyncio

from fairque import DependencyError, Task, TaskCanceled, TaskHandle, TaskQueue, Worker, task

cables = {"power": "plugged in", "network": "loose"}


@task
async def check(cable: str) -> str:
    if cables[cable] == "loose":
        print(f"  check {cable}: loose!")
        raise ConnectionError(f"the {cable} cable is loose")
    print(f"  check {cable}: fine")
    return "fine"


@task
async def boot() -> str:
    print("  boot")
    return "running"


@task(on_dependency_failure="cancel")
async def celebrate() -> None:
    print("  celebrate")


@task(on_dependency_failure="run")
async def write_log() -> None:
    print("  write the log")


async def show(title: str, handles: dict[str, TaskHandle]) -> None:
    print(title, ", ".join([f"{name} is {await handle.state()}" for name, handle in handles.items()]))


async def main() -> None:
    async with TaskQueue("embedded://") as queue:

        async def put_in(made: Task, after: list) -> TaskHandle:
            return await queue.enqueue(made, user_id="acme", depends_on=after)

        print("Three tasks wait for two others:")
        power, network = await put_in(check("power"), []), await put_in(check("network"), [])
        both = [power, network]
        after = {
            "boot": await put_in(boot(), both),  # waits until both have finished
            "celebrate": await put_in(celebrate(), both),  # is canceled when one of them fails
            "write_log": await put_in(write_log(), both),  # runs in any case, when both have ended
        }
        await show("at first:", after)
        await Worker(queue, concurrency=1).run_until_idle()
        await show("with a loose cable:", after)
        try:
            await after["celebrate"].result()
        except TaskCanceled as canceled:
            print("celebrate:", str(canceled).replace(network.task_id, "check('network')"))

        print("\nSomebody plugs it in, and requeues the dead letter:")
        [letter] = await queue.dead_letters("acme")
        print(f"{letter.name.rpartition('.')[2]}: {letter.type_name}, {letter.message}")
        cables["network"] = "plugged in"
        await queue.requeue(letter)
        await Worker(queue, concurrency=1).run_until_idle()
        await show("in the end:", after)

        print("\nRefused before anything is written:")
        try:
            await put_in(boot(), ["nobody"])
        except DependencyError as error:
            print(" ", str(error).partition(" depends ")[2])


if __name__ == "__main__":
    asyncio.run(main())
