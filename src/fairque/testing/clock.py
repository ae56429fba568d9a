"""`advance`: lets time pass for what is scheduled."""

from __future__ import annotations

from fairque import InvalidInput, TaskQueue, TaskScheduler
from fairque.checks import Duration, check_seconds
from fairque.redis.store import Store
from fairque.tasks.message import new_nonce
from fairque.testing.arguments import Advance

__all__ = ["advance", "move"]

MOST_MOVED = 10_000


async def advance(queue: TaskQueue, seconds: Duration) -> int:
    """Have everything scheduled come `seconds` nearer: delayed tasks, and retries that wait for their backoff.

    What is due by then may run, in the order of its times; nothing runs by itself, so `run_all` comes next. Called
    twice, time passes twice. Results, leases, XCom values, rates and pauses do not age.

    Schedules fire as well, each slot that comes within that time, and one that is fired early does not fire again when
    its time has come. Times in the tasks are those that were planned.

    Returns:
        How many tasks are due now, those that schedules made among them.

    Raises:
        InvalidInput: `seconds` breaks a rule, or the queue has more than 10,000 users or tasks to move.
    """
    seconds = check_seconds("seconds", seconds)
    store = queue.store(patience=queue.connector.timeout)
    try:
        answer = await move(store, round(seconds * 1000), new_nonce().hex())
    finally:
        await store.close()
    if answer is None:
        raise InvalidInput(f"queue {queue.name!r} is too large for advance: more than 10,000 users or tasks to move")
    fired = await TaskScheduler(queue).fire_due(answer[1] / 1000)
    return answer[0] + fired


async def move(store: Store, ms: int, nonce: str) -> tuple[int, int] | None:
    """Move what is scheduled. Returns how many tasks are due, and the ms of all calls; None: too many to move."""
    answer = await store.call(Advance(ms, nonce, MOST_MOVED))
    return (answer[0], answer[1]) if answer else None
