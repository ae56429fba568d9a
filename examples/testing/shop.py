"""A shop that ships orders in the background."""

from fairque import TaskQueue, task


@task(max_retries=2)
async def ship(order: int, express: bool = False) -> str:
    return f"order {order} goes {'by air' if express else 'by road'}"


@task
async def remind(order: int) -> str:
    return f"please pay order {order}"


async def sell(queue: TaskQueue, customer: str, order: int) -> None:
    """What the shop does when somebody clicks on Buy."""
    await queue.enqueue(ship(order), user_id=customer)
    await queue.enqueue(remind(order), user_id=customer, delay=14 * 86_400)
