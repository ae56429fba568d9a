"""From a queue without partitions to one with some, user by user, as docs/concepts/scale.md has it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections import defaultdict
from typing import TYPE_CHECKING

import pytest

from fairque import TaskQueue, Worker, current_task, task
from tests.support.eventually import eventually

if TYPE_CHECKING:
    from tests.support.servers import Server

pytestmark = [pytest.mark.damages, pytest.mark.leaves_keys()]
USERS = [f"user-{n}" for n in range(12)]
MOVED = USERS[::4]
ran: defaultdict[str, list[int]] = defaultdict(list)


@task
async def note_in_order(number: int) -> None:
    ran[current_task().user_id].append(number)
    await asyncio.sleep(0.001)


async def carry_over(user_id: str, old: TaskQueue, new: TaskQueue) -> None:
    await old.pause(user_id)
    await eventually(lambda: nothing_runs(user_id, old))
    await new.import_user(old.export_user(user_id))
    await new.resume(user_id)
    await old.purge(user_id)


async def nothing_runs(user_id: str, queue: TaskQueue) -> bool:
    return not (await queue.user(user_id)).started


class Producers:
    """One for each user, which waits while its user is carried over."""

    def __init__(self, queue: TaskQueue) -> None:
        self.queue = dict.fromkeys(USERS, queue)
        self.turn = {user: asyncio.Lock() for user in USERS}
        self.put_in = dict.fromkeys(USERS, 0)

    async def run(self, user: str) -> None:
        for number in itertools.count():
            async with self.turn[user]:
                await self.queue[user].enqueue(note_in_order(number), user_id=user)
                self.put_in[user] = number + 1
            await asyncio.sleep(0.005)


async def test_users_are_carried_over_one_by_one_while_both_queues_are_served(server: Server, queue_name: str) -> None:
    ran.clear()
    async with contextlib.AsyncExitStack() as stack:
        old = await stack.enter_async_context(TaskQueue(server.url, name=f"{queue_name}-old"))
        new = await stack.enter_async_context(TaskQueue(server.url, name=queue_name, partitions=4))
        await new.stats()
        producers = Producers(old)
        for queue in (old, new):
            await stack.enter_async_context(Worker(queue, scheduler=False, concurrency=1))
        running = [asyncio.create_task(producers.run(user)) for user in USERS]
        await eventually(lambda: min(producers.put_in.values()) > 20)
        for user in MOVED:
            others = {other: producers.put_in[other] for other in USERS if other != user}
            async with producers.turn[user]:
                await carry_over(user, old, new)
                await eventually(lambda: all(producers.put_in[o] > others[o] for o in others))  # noqa: B023
                producers.queue[user] = new
        least = {user: producers.put_in[user] + 10 for user in USERS}
        await eventually(lambda: all(producers.put_in[user] > least[user] for user in USERS))
        for each in running:
            each.cancel()
        await asyncio.wait(running)
        await eventually(lambda: all(len(ran[user]) >= producers.put_in[user] for user in USERS), 60)
        assert {info.user_id for info in await old.users()} == set(USERS) - set(MOVED)
    for user in USERS:
        assert ran[user] == list(range(len(ran[user]))), "nothing lost, nothing twice, in order"
