"""What a task enqueues has the headers of that task, and so on. Run it as it is: python examples/inherit_headers.py"""

import asyncio
import contextlib

from fairque import CallNext, EnqueueCall, FairqueError, TaskQueue, Worker, current_task, task


async def inherit_headers(call: EnqueueCall, call_next: CallNext) -> None:
    """Headers that a task of the call has itself stay as they are."""
    with contextlib.suppress(FairqueError):  # outside of a task, there is nothing to inherit
        call.add_headers(current_task().headers)
    await call_next()


queue = TaskQueue("embedded://", enqueue_middleware=[inherit_headers])


@task(name="month")
async def close_month(customers: list[str]) -> list[str]:
    tell()
    bills = [send_bill(each) for each in customers]
    bills[-1] = bills[-1].options(headers={"reason": "asked for"})
    handles = await queue.enqueue_many(bills, user_id=current_task().user_id)
    return [handle.task_id for handle in handles]


@task(name="bill")
def send_bill(customer: str) -> None:
    tell(customer)


def tell(*words: str) -> None:
    print(current_task().name, *words, dict(current_task().headers))


async def main() -> None:
    async with queue, Worker(queue, concurrency=1):
        headers = {"request-id": "7f3a", "reason": "the month is over"}
        month = await queue.enqueue(close_month(["anna", "ben"]), user_id="acme", headers=headers)
        for task_id in await month.result(timeout=10):
            await queue.handle("acme", task_id).result(timeout=10)


if __name__ == "__main__":
    asyncio.run(main())
