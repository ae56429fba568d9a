"""Users that are moved from partition to partition while others put in and serve."""

from __future__ import annotations

import asyncio
import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from fairque import EVERYBODY, TaskHandle, TaskQueue
from tests.workers import tasks

__all__ = ["moved_while_served", "starts_in"]

AT_ONCE = 8


async def moved_while_served(
    queue: TaskQueue, stranger: TaskQueue, log: Path, users: Sequence[str], tasks_each: int, moves: int, partitions: int
) -> dict[str, list[TaskHandle[str]]]:
    """All of them, `moves` times in all, in no order; each has half of its tasks from before, the others come
    meanwhile, from who knows nothing of moves. Returns their handles in the order in which they were put in.
    """
    await queue.set_policy(EVERYBODY, max_running=1)
    handles: defaultdict[str, list[TaskHandle[str]]] = defaultdict(list)

    async def put_in(opened: TaskQueue, user: str, many: int) -> None:
        made = [tasks.log(str(log), 0.0).options(task_id=f"{user}/{len(handles[user]) + n}") for n in range(many)]
        handles[user] += await opened.enqueue_many(made, user_id=user)

    for user in users:
        await put_in(queue, user, tasks_each // 2)
    turns = [users[n % len(users)] for n in range(moves)]
    random.shuffle(turns)
    moving = asyncio.Semaphore(AT_ONCE)

    async def move(user: str) -> None:
        async with moving:
            await queue.move(user, random.randrange(partitions))

    async def produce() -> None:
        for _ in range(tasks_each - tasks_each // 2):
            for user in users:
                await put_in(stranger, user, 1)

    await asyncio.gather(produce(), *map(move, turns))
    return handles


def starts_in(log: Path) -> tuple[dict[str, list[int]], Counter[str]]:
    """By user, the numbers of its tasks in the order in which they began; and how often each began."""
    order: defaultdict[str, list[int]] = defaultdict(list)
    counts: Counter[str] = Counter()
    for line in log.read_text().splitlines():
        _, task_id = line.split(" ", 1)
        user, _, number = task_id.rpartition("/")
        order[user].append(int(number))
        counts[task_id] += 1
    return order, counts
