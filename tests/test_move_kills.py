"""A mover that is killed at each of its calls, while a worker serves: nothing is lost, nothing runs twice."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import pytest

from fairque import TaskHandle, TaskQueue, Worker, current_task, task
from fairque.redis.keys import encode_user
from fairque.redis.partitions import partition_of
from fairque.redis.scripts import load
from tests.support.calls import call_of, make_known
from tests.support.eventually import eventually
from tests.support.resp import RespClient

if TYPE_CHECKING:
    from tests.support.proxy import CuttingProxy, Hold
    from tests.support.servers import Server

pytestmark = pytest.mark.leaves_keys()
PARTITIONS = 3
began: Counter[str] = Counter()
order: list[int] = []
gates: list[asyncio.Event] = []
HOME = next(name for n in range(100) if partition_of(encode_user(name := f"user {n}"), PARTITIONS) == 0)
CALLS = [
    *(("freeze", 1), ("manifest", 1), ("arrive", 1), ("import", 1), ("import", 2), ("depart", 1)),
    *(("thaw", 1), ("forward", 1), ("erase", 1), ("erase", 2)),
]
LEFT = {"thaw", "forward", "erase"}
MOVER = """
import sys
import fairque.transfer.walk, fairque.transfer.moving
fairque.transfer.walk.HOLD_MS = int(sys.argv.pop())
fairque.transfer.moving.ERASED = 20
from fairque.__main__ import main
main()
"""


@task(name="kills.count")
async def count_up(n: int) -> int:
    began[current_task().task_id] += 1
    order.append(n)
    return n


@task(name="kills.hold")
async def hold() -> str:
    began[current_task().task_id] += 1
    await gates[-1].wait()
    return "held"


@pytest.fixture
async def queue(server: Server, queue_name: str) -> AsyncIterator[TaskQueue]:
    began.clear()
    order.clear()
    gates[:] = [asyncio.Event()]
    async with TaskQueue(server.url, name=queue_name, partitions=PARTITIONS, lease=3.0, timeout=5.0) as queue:
        yield queue


async def kill_at(hold: Hold, proxy: CuttingProxy, queue: TaskQueue, hold_ms: int) -> None:
    words = "move", HOME, "2", f"--url={proxy.url}", f"--queue={queue.name}", str(hold_ms)
    command = (sys.executable, "-c", MOVER, *words)
    victim = await asyncio.create_subprocess_exec(*command, stdin=subprocess.DEVNULL)
    async with asyncio.timeout(30):
        await hold.reached.wait()
    victim.kill()
    await victim.wait()
    await proxy.refuse()  # a command that was kept back must not arrive after all
    hold.released.set()


def nobody_was_heard(queue: TaskQueue) -> None:
    """Ten seconds later: workers take moves on."""
    with RespClient(queue.connector.url) as client:
        for part in queue.store().parts:
            for user in client.execute("ZRANGE", f"{part.keys.prefix}moves", 0, -1):
                client.execute("ZADD", f"{part.keys.prefix}moves", 1, user)


async def nobody_moves(queue: TaskQueue) -> bool:
    nobody_was_heard(queue)
    with RespClient(queue.connector.url) as client:
        return not any(client.execute("EXISTS", f"{part.keys.prefix}moves") for part in queue.store().parts)


def homes(queue: TaskQueue) -> set[int]:
    """Where there is anything of it."""
    found = set()
    with RespClient(queue.connector.url) as client:
        for at, part in enumerate(queue.store().parts):
            pattern = f"{part.keys.prefix.replace('{', '?').replace('}', '?')}*:{encode_user(HOME)}*"
            if client.execute("KEYS", pattern):
                found.add(at)
    return found


@pytest.mark.parametrize("is_after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(("script", "nth"), CALLS)
async def test_a_mover_that_is_killed_loses_and_doubles_nothing(
    server: Server, proxy: CuttingProxy, queue: TaskQueue, script: str, nth: int, is_after: bool
) -> None:
    make_known(server.execute, [load(script)])
    if script == "forward":  # where the name leads is neither
        await queue.move(HOME, 1)
    at = 1 if script == "forward" else 0
    running = await queue.enqueue(hold(), user_id=HOME, task_id="runs", priority=6)
    handles: list[TaskHandle[int]] = [*await queue.enqueue_many([count_up(n) for n in range(300)], user_id=HOME)]
    await queue.set_policy(HOME, max_running=1)
    async with Worker(queue, scheduler=False, poll_interval=0.3):
        await eventually(lambda: began["runs"] == 1)
        has_left = script in LEFT or (script, is_after) == ("depart", True)
        stopped = proxy.hold(call_of(script), nth, of_reply=is_after)
        await kill_at(stopped, proxy, queue, 30_000 if has_left else 3_000)
        more, _ = await asyncio.gather(
            queue.enqueue_many([count_up(n) for n in range(300, 320)], user_id=HOME),
            eventually(lambda: nobody_moves(queue), 20),
        )
        handles += more
        await eventually(lambda: homes(queue) == {2 if has_left else at}, 20)
        assert began == {"runs": 1}, "its cap holds"
        gates[-1].set()
        assert [await handle.result(timeout=30) for handle in handles] == list(range(320))
        assert await running.result(timeout=10) == "held"
    assert order == list(range(320))
    assert set(began.values()) == {1}
    stats = await queue.stats()
    assert (stats.finished, stats.queued, stats.started) == (321, 0, 0)
    assert (await queue.check()).findings == ()
    assert (await queue.move(HOME, 1)).partition == 1
    assert (await queue.check()).findings == ()


@pytest.mark.parametrize("lost", ["moves", "departing", "state"])
async def test_a_repair_goes_on_with_a_move_that_nobody_knows_of(server: Server, queue: TaskQueue, lost: str) -> None:
    await queue.enqueue_many([count_up(n) for n in range(5)], user_id=HOME)
    store, token = queue.store(), "0" * 32
    source, target = store.parts[0], store.parts[1]
    frozen = await source.freeze(HOME, token, "move", 30_000)
    names = [
        name async for page in source.all_names_of(encode_user(HOME)) for name, kind, _ in page if kind != "frozen"
    ]
    await source.note_manifest(encode_user(HOME), token, 0, names)
    assert await target.arrive(encode_user(HOME), token, 0, frozen.passport) is None
    assert await source.depart(encode_user(HOME), token, 1, 7, {"normal": 5})
    await target.thaw(HOME, token)
    if lost == "state":
        server.execute("HDEL", source.keys.state, "moves")
    else:
        server.execute("DEL", f"{source.keys.prefix}{lost}")
    [finding] = (await queue.check()).findings
    assert (finding.kind, finding.partition) == ("forsaken-move", 0)
    assert (await queue.check(repair=True)).sound
    nobody_was_heard(queue)
    await queue.check(repair=True)
    assert homes(queue) <= {1}
    assert (await queue.check()).findings == ()
    await store.close()
