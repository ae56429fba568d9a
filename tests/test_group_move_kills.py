"""Whoever moves a group is killed at each of its calls, while a worker serves: called again, it goes on."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections import Counter, defaultdict
from typing import TYPE_CHECKING

import pytest

from fairque import TaskHandle, TaskQueue, Worker, current_task, task
from fairque.redis.keys import encode_user
from fairque.redis.partitions import partition_of
from fairque.redis.scripts import load
from tests.support.calls import call_of, make_known
from tests.support.eventually import eventually
from tests.test_move_kills import nobody_moves

if TYPE_CHECKING:
    from tests.support.proxy import CuttingProxy, Hold
    from tests.support.servers import Server

pytestmark = pytest.mark.leaves_keys()
PARTITIONS = 3
PLACE = partition_of("@acme", PARTITIONS)
AWAY = (PLACE + 1) % PARTITIONS
MOVER = """
import fairque.transfer.walk
fairque.transfer.walk.HOLD_MS = 3000  # a user goes on so long after its mover
from fairque.__main__ import main
main()
"""
USERS = [f"member-{n}" for n in range(3)]
CALLS = [("forward", 1), ("policy", 2), ("forward", 2), ("depart", 1), ("depart", 3), ("policy", 3)]
began: Counter[tuple[str, str]] = Counter()
order: defaultdict[str, list[int]] = defaultdict(list)


@task(name="group-kills.count")
async def count_up(n: int) -> int:
    began[current_task().user_id, current_task().task_id] += 1
    order[current_task().user_id].append(n)
    return n


async def kill_at(hold: Hold, proxy: CuttingProxy, queue: TaskQueue) -> None:
    command = (sys.executable, "-c", MOVER, "move-group", "acme", str(AWAY), f"--url={proxy.url}")
    victim = await asyncio.create_subprocess_exec(*command, f"--queue={queue.name}", stdin=subprocess.DEVNULL)
    async with asyncio.timeout(30):
        await hold.reached.wait()
    victim.kill()
    await victim.wait()
    await proxy.refuse()  # a command that was kept back must not arrive after all
    hold.released.set()


@pytest.mark.parametrize("is_after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(("script", "nth"), CALLS)
async def test_who_moves_a_group_and_is_killed_loses_and_doubles_nothing(
    server: Server, proxy: CuttingProxy, queue_name: str, script: str, nth: int, is_after: bool
) -> None:
    began.clear()
    order.clear()
    make_known(server.execute, [load(script)])
    async with TaskQueue(server.url, name=queue_name, partitions=PARTITIONS, timeout=10.0) as queue:
        for user, path in zip(USERS, ("acme", "acme", "acme/europe"), strict=True):
            await queue.set_policy(user, group=path, max_running=1)
        await queue.set_group("acme", weight=3)
        await queue.set_group("acme/europe", weight=2)
        handles: list[TaskHandle[int]] = []
        for user in USERS:
            handles += await queue.enqueue_many([count_up(n) for n in range(60)], user_id=user)
        async with Worker(queue, scheduler=False, poll_interval=0.3):
            await kill_at(proxy.hold(call_of(script), nth, of_reply=is_after), proxy, queue)
            await eventually(lambda: nobody_moves(queue), 20)
            for user in USERS:
                handles += await queue.enqueue_many([count_up(n) for n in range(60, 70)], user_id=user)
            await queue.move_group("acme", AWAY)
            for handle in handles:
                await handle.result(timeout=30)
        assert order == {user: list(range(70)) for user in USERS}
        assert set(began.values()) == {1}
        assert await queue.groups() == {"acme": 3, "acme/europe": 2}
        for user in USERS:
            assert queue.reader.parts.index(await queue.reader.home_of(encode_user(user))) == AWAY
        assert (await queue.check(repair=True)).complete
        assert (await queue.check()).findings == ()
