"""Whoever puts a user into another group is killed at each of its calls: all is as it was, or as it is to be."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from fairque import Policy, TaskHandle, TaskQueue, Worker, current_task, task
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
FROM, TO, HOME = range(PARTITIONS)


def named(start: str, partition: int) -> str:
    return next(name for n in range(100) if partition_of(name := f"{start}-{n}", PARTITIONS) == partition)


USER = named("user", HOME)
"""Whose name leads to neither."""
BEFORE = Policy(group=named("@group", FROM)[1:], weight=2, max_running=1, max_bytes=10_000_000)
AFTER = Policy(group=named("@group", TO)[1:], weight=5, max_running=1, max_queued=1000)
CHANGER = """
import fairque.transfer.walk, fairque.transfer.moving
fairque.transfer.walk.HOLD_MS = 3000  # a user goes on so long after its mover
fairque.transfer.moving.ERASED = 20
from fairque.__main__ import main
main()
"""
CALLS = [
    *(("freeze", 1), ("manifest", 1), ("arrive", 1), ("import", 1), ("import", 2), ("depart", 1)),
    *(("thaw", 1), ("forward", 1), ("erase", 1)),
]
LEFT = {"thaw", "forward", "erase"}
began: Counter[str] = Counter()
order: list[int] = []


@task(name="group-change-kills.count")
async def count_up(n: int) -> int:
    began[current_task().task_id] += 1
    order.append(n)
    return n


async def kill_at(hold: Hold, proxy: CuttingProxy, queue: TaskQueue) -> None:
    words = f"policy set {USER} --group {AFTER.group} --weight 5 --max-queued 1000 --unset max_bytes".split()
    command = (sys.executable, "-c", CHANGER, *words, f"--url={proxy.url}", f"--queue={queue.name}")
    victim = await asyncio.create_subprocess_exec(*command, stdin=subprocess.DEVNULL)
    async with asyncio.timeout(30):
        await hold.reached.wait()
    victim.kill()
    await victim.wait()
    await proxy.refuse()  # a command that was kept back must not arrive after all
    hold.released.set()


async def watch(queue: TaskQueue, seen: Counter[str]) -> None:
    while True:
        policy = await queue.get_policy(USER)
        assert policy in (BEFORE, AFTER)
        seen[str(policy.group)] += 1
        await asyncio.sleep(0)


@pytest.mark.parametrize("is_after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(("script", "nth"), CALLS)
async def test_whoever_changes_a_group_and_is_killed_leaves_all_as_it_was_or_as_it_is_to_be(
    server: Server, proxy: CuttingProxy, queue_name: str, script: str, nth: int, is_after: bool
) -> None:
    began.clear()
    order.clear()
    make_known(server.execute, [load(script)])
    async with TaskQueue(server.url, name=queue_name, partitions=PARTITIONS, timeout=10.0) as queue:
        handles: list[TaskHandle[int]] = await queue.enqueue_many([count_up(n) for n in range(220)], user_id=USER)
        assert await queue.set_policy(USER, group=BEFORE.group, weight=2, max_running=1, max_bytes=10_000_000) == BEFORE
        has_left, seen = script in LEFT or (script, is_after) == ("depart", True), Counter[str]()
        watcher = asyncio.create_task(watch(queue, seen))
        await kill_at(proxy.hold(call_of(script), nth, of_reply=is_after), proxy, queue)
        async with Worker(queue, scheduler=False, poll_interval=0.3):
            await eventually(lambda: nobody_moves(queue), 20)
            handles += await queue.enqueue_many([count_up(n) for n in range(220, 230)], user_id=USER)
            assert [await handle.result(timeout=30) for handle in handles] == list(range(230))
        watcher.cancel()
        with pytest.raises(asyncio.CancelledError):
            await watcher
        assert seen.keys() == {str(BEFORE.group), str(AFTER.group)} if has_left else {str(BEFORE.group)}
        assert await queue.get_policy(USER, defaults=False) == (AFTER if has_left else BEFORE)
        home = await queue.reader.home_of(encode_user(USER))
        assert queue.reader.parts.index(home) == (TO if has_left else FROM)
        assert order == list(range(230))
        assert set(began.values()) == {1}
        assert (await queue.check()).findings == ()
