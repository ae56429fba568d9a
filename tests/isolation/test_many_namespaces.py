"""One user has a hundred thousand namespaces of XCom values; another is served beside what becomes of them."""

from __future__ import annotations

import asyncio
import statistics
import time
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from fairque import TaskQueue, Worker, task
from tests.support.core import HOUR_MS, Core
from tests.support.tenants import govern

if TYPE_CHECKING:
    from tests.support.servers import Server

NAMESPACES = 100_000
AT_ONCE = 5_000
FILL = """
local prefix, user, from, to, expiry = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
for n = from, to do
  local space = 'run-' .. n
  redis.call('HSET', prefix .. 'xcom:' .. user .. ':' .. space, 'key', struct.pack('>d', expiry) .. 'value')
  redis.call('ZADD', prefix .. 'xcom-expiry:' .. user .. ':' .. space, expiry, 'key')
  redis.call('ZADD', prefix .. 'xcom-spaces:' .. user, expiry, space)
  for _, kind in ipairs({ 'xcom:', 'xcom-expiry:' }) do
    redis.call('PEXPIREAT', prefix .. kind .. user .. ':' .. space, expiry)
  end
  redis.call('HSET', prefix .. 'xcom-bytes:' .. user, space, 16)
  redis.call('HINCRBY', prefix .. 'bytes:' .. user, 'used', 16)
end
redis.call('PEXPIREAT', prefix .. 'xcom-spaces:' .. user, expiry)
"""


@task
async def work() -> None: ...


async def fill(core: Core) -> None:
    expiry = round(time.time() * 1000) + HOUR_MS
    for at in range(0, NAMESPACES, AT_ONCE):
        last = at + AT_ONCE - 1
        core.execute("EVAL", FILL, 0, core.keys.prefix, "attacker", at, last, expiry)
        await asyncio.sleep(0)


async def waits_while(queue: TaskQueue, busy: asyncio.Task[object]) -> list[float]:
    """Seconds from the enqueueing of a task of the quiet user to its result, one after the other."""
    found = []
    while not busy.done():
        began = time.monotonic()
        await (await queue.enqueue(work(), user_id="quiet")).result(timeout=30)
        found.append(time.monotonic() - began)
    return found


@pytest.mark.leaves_keys
async def test_a_purge_of_them_goes_in_steps_between_which_others_are_served(server: Server, queue: TaskQueue) -> None:
    async with Core(server.url, queue.name) as core:
        await govern(core, "attacker", max_bytes=10**9)
        await fill(core)
        async with Worker(queue, scheduler=False):
            before = await waits_while(queue, asyncio.create_task(asyncio.sleep(1)))
            purging = asyncio.create_task(queue.purge("attacker", timeout=60))
            waits = await waits_while(queue, purging)
            assert (await purging).xcom_namespaces == NAMESPACES
        assert len(waits) >= 20, "its tasks come between the steps"
        assert statistics.median(waits) < 10 * statistics.median(before), (before, waits)
        left = [key for key in core.dump() if "attacker" in key]
        assert left == []


@pytest.mark.damages
@pytest.mark.leaves_keys
async def test_a_count_whose_namespaces_are_gone_is_put_right_by_and_by(server: Server, queue: TaskQueue) -> None:
    """All at once, as they expire together: no call goes through all of them."""
    async with Core(server.url, queue.name) as core:
        await govern(core, "attacker", max_bytes=10**9)
        await queue.enqueue(work(), user_id="attacker")
        await fill(core)
        core.execute("DEL", ":xcom-spaces:attacker")
        left = [core.execute("HLEN", ":xcom-bytes:attacker")]
        for _ in range(3):
            await queue.enqueue(work(), user_id="attacker")
            left.append(core.execute("HLEN", ":xcom-bytes:attacker"))
        assert all(0 < before - after <= 1000 for before, after in pairwise(left)), left
