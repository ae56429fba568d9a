"""Queues in forked processes, and on more than one event loop."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import time
from collections.abc import Generator
from typing import TYPE_CHECKING

import pytest

from fairque import ConfigError, TaskQueue, Worker, task
from fairque.redis.connector import Connector
from fairque.redis.requester import Requester, pack
from tests.support.eventually import eventually

if TYPE_CHECKING:
    from tests.support.servers import Server


@task
async def work(n: int) -> int:
    return n


async def test_a_second_loop_is_refused_before_anything_is_written(server: Server, queue_name: str) -> None:
    async with TaskQueue(server.url, name=queue_name) as queue:
        refused: list[BaseException] = []

        def elsewhere() -> None:
            try:
                asyncio.run(queue.enqueue(work(1), user_id="acme"))
            except BaseException as exc:
                refused.append(exc)

        thread = threading.Thread(target=elsewhere)
        thread.start()
        await eventually(lambda: not thread.is_alive())
        assert isinstance(refused[0], ConfigError)
        assert "another event loop" in str(refused[0])
        assert (await queue.stats()).queued == 0


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning", "ignore:loop is closed:ResourceWarning")
def test_a_queue_that_was_left_open_goes_on_in_the_next_loop(server: Server, queue_name: str) -> None:
    queue = TaskQueue(server.url, name=queue_name)

    async def go_round() -> list[int]:
        handles = [await queue.enqueue(work(n), user_id="acme") for n in range(3)]
        waiters = [asyncio.create_task(handle.result(20)) for handle in handles]
        await Worker(queue).run_until_idle()
        return await asyncio.gather(*waiters)

    async def leave_in_the_middle() -> None:
        handle = await queue.enqueue(work(9).options(task_id="left", delay=3600), user_id="acme")
        left = [asyncio.create_task(handle.result()) for _ in range(5)]
        left += [asyncio.create_task(queue.stats()) for _ in range(5)]  # type: ignore[misc]
        await asyncio.sleep(0)

    async def end() -> None:
        await queue.handle("acme", "left").cancel()
        assert (await queue.stats()).finished == 6
        await queue.close()

    assert asyncio.run(go_round()) == [0, 1, 2]
    asyncio.run(leave_in_the_middle())
    assert asyncio.run(go_round()) == [0, 1, 2]
    asyncio.run(end())
    gc.collect()


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
async def test_a_forked_process_does_not_read_the_replies_of_its_parent(server: Server, queue_name: str) -> None:
    async with TaskQueue(server.url, name=queue_name) as queue:
        await queue.user("acme")
        pid = os.fork()
        if pid == 0:
            os._exit(_in_child(queue))
        names = [f"parent-{n}" for n in range(2000)]
        found = await asyncio.gather(*map(queue.user, names))
        _, status = await asyncio.to_thread(os.waitpid, pid, 0)
        assert [user.user_id for user in found] == names
        assert os.waitstatus_to_exitcode(status) == 0


class _Round:
    """Awaited: one more round of the loop, without asking which loop that is."""

    def __await__(self) -> Generator[None]:
        yield


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
async def test_a_forked_process_that_goes_on_in_the_loop_of_its_parent_takes_none_of_its_replies(
    server: Server,
) -> None:
    requester = Requester(Connector(server.url))
    await requester.request(pack(("PING",)))
    asked = [asyncio.create_task(requester.request(pack(("ECHO", n)))) for n in range(300)]
    await asyncio.sleep(0)  # they are written, and not answered
    pid = os.fork()
    if pid == 0:
        for _ in range(100):
            time.sleep(0.001)  # noqa: ASYNC251 -- the child is alone with the loop
            await _Round()
        os._exit(0)
    _, status = os.waitpid(pid, 0)  # noqa: ASYNC222 -- the parent must not read meanwhile
    assert await asyncio.gather(*asked) == [str(n).encode() for n in range(300)]
    assert os.waitstatus_to_exitcode(status) == 0
    await requester.close()


def _in_child(queue: TaskQueue) -> int:
    async def look() -> bool:
        names = [f"child-{n}" for n in range(2000)]
        found = await asyncio.gather(*map(queue.user, names))
        return [user.user_id for user in found] == names

    try:
        return 0 if asyncio.run(look()) else 1
    except BaseException:
        return 2
