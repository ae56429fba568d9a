"""Queues in forked processes, and on more than one event loop."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
from typing import TYPE_CHECKING

import pytest

from fairque import ConfigError, TaskQueue, Worker, task
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


def _in_child(queue: TaskQueue) -> int:
    async def look() -> bool:
        names = [f"child-{n}" for n in range(2000)]
        found = await asyncio.gather(*map(queue.user, names))
        return [user.user_id for user in found] == names

    try:
        return 0 if asyncio.run(look()) else 1
    except BaseException:
        return 2
