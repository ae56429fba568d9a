"""The clock of the server is set back: what silent workers have is found all the same."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from fairque import TaskQueue, Worker
from fairque.embedded.binary import server_binary
from tests.support.core import new_task
from tests.support.gate import new_gate, work
from tests.support.servers import Server
from tests.support.timed import TimedCore

BACK_SECONDS = 600
LEASE = 1.0
PRELOADED = next(iter(Path("/usr/lib").glob("*/faketime/libfaketime.so.1")), None)

pytestmark = pytest.mark.leaves_keys()


async def test_what_a_worker_has_that_falls_silent_after_the_clock_was_set_back_is_found_after_a_lease(
    server: Server, queue_name: str
) -> None:
    """On a clock of the test's own, which streams do not go by."""
    async with TimedCore(server.url, queue_name) as core:
        core.renew("many", [], concurrency=1000)
        await core.enqueue_all([new_task(f"user {n}", "t", 3, 1.0, 0, b"n" * 8) for n in range(250)])
        taken = await core.take(250, worker="dead", lease_ms=1)
        core.tick(-BACK_SECONDS * 1_000_000)
        found = set()
        for thief in range(300):
            core.rest()
            stolen = await core.take(1, worker=f"thief {thief}", lease_ms=1)
            found |= {of.user_id for of in stolen}
            await core.settle(stolen, worker=f"thief {thief}")
        assert found == {of.user_id for of in taken}


async def test_however_many_limits_tasks_wait_for_all_are_looked_at_on_the_new_clock(
    server: Server, queue_name: str
) -> None:
    many = 2_500
    async with TimedCore(server.url, queue_name) as core:
        await core.claim(1, lease_ms=1000)
        core.execute("EVAL", _LIST, 1, ":held", many, core.now_us() // 1000)
        core.tick(-BACK_SECONDS * 1_000_000)
        for _ in range(5):
            core.rest()
            await core.claim(0, lease_ms=1000)
        assert core.execute("ZCOUNT", ":held", "-inf", core.now_us() // 1000) == many
        core.execute("DEL", ":held")


_LIST = "for at = 1, ARGV[1] do redis.call('ZADD', KEYS[1], ARGV[2] + at, ':key ' .. at) end"


class Clock:
    """Of a server that was started with it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.set(0)

    def set(self, seconds: int) -> None:
        self._path.write_text(f"{seconds:+d}")

    @property
    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "LD_PRELOAD": str(PRELOADED),
            "FAKETIME_TIMESTAMP_FILE": str(self._path),
            "FAKETIME_NO_CACHE": "1",
            "DONT_FAKE_MONOTONIC": "1",
        }


@pytest.fixture
def clock(tmp_path: Path) -> Clock:
    return Clock(tmp_path / "clock")


@pytest.fixture
def url(tmp_path: Path, clock: Clock) -> Iterator[str]:
    socket = tmp_path / "socket"
    command = [server_binary(), "--port", "0", "--unixsocket", socket, "--save", "", "--dir", tmp_path]
    with subprocess.Popen(command, env=clock.environment, stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 20
        while not socket.exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield f"unix://{socket}"
        process.kill()


@pytest.fixture
async def queue(url: str) -> AsyncIterator[TaskQueue]:
    async with TaskQueue(url, name="q", lease=LEASE) as queue:
        yield queue


@pytest.mark.skipif(PRELOADED is None, reason="needs libfaketime, of Debian's package faketime")
@pytest.mark.parametrize("dies_first", [True, False])
async def test_on_a_server_whose_clock_is_set_back_the_task_of_a_dead_worker_runs_again_within_two_leases(
    queue: TaskQueue, clock: Clock, dies_first: bool
) -> None:
    gate = new_gate()
    gate.open()
    async with Worker(queue, poll_interval=0.2, scheduler=False, concurrency=1):
        first = await queue.enqueue(work(0), user_id="acme")
        assert await first.result(timeout=10) == 0
    handle = await queue.enqueue(work(1), user_id="acme")
    store = queue.store()
    if not dies_first:
        clock.set(-BACK_SECONDS)
    assert (await store.claim("dead", 1, wait=False)).deliveries
    if dies_first:
        clock.set(-BACK_SECONDS)
    async with Worker(queue, poll_interval=0.2, scheduler=False):
        began = time.monotonic()
        assert await handle.result(timeout=20) == 1
    assert time.monotonic() - began < 2 * LEASE
    await store.close()
