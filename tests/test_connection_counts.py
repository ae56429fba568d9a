"""How many connections each part of a process has, as docs/guides/deploying.md says it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest

from fairque import QueueUnavailable, TaskQueue, TaskScheduler, Worker, current_task, task
from fairque.queue.sender import LARGE
from tests.support.eventually import eventually
from tests.support.outages import execute

if TYPE_CHECKING:
    from fairque.embedded.server import EmbeddedServer

NAME = "counted"


@task
async def use_everything(number: int) -> int:
    """All that a task may ask its worker for, and the queue of its process."""
    current_task().progress(0.5)
    await current_task().xcom.push("number", number)
    return number


@task
async def weigh(text: str) -> int:
    return len(text)


@pytest.fixture
def lone(own_server: Callable[..., EmbeddedServer]) -> EmbeddedServer:
    return own_server()


@pytest.fixture
async def queue(lone: EmbeddedServer) -> AsyncIterator[TaskQueue]:
    async with TaskQueue(lone.url, name=NAME) as queue:
        yield queue


def connections(server: EmbeddedServer) -> int:
    """Of the queue of these tests."""
    return sum(f" name=fairque-{NAME} ".encode() in line for line in execute(server, "CLIENT", "LIST").splitlines())


async def is_queued(queue: TaskQueue) -> bool:
    return (await queue.stats()).queued > 0


async def test_a_queue_has_one_connection_one_more_for_messages_and_one_for_what_is_large(
    lone: EmbeddedServer, queue: TaskQueue
) -> None:
    assert connections(lone) == 1
    await asyncio.gather(*(queue.enqueue(use_everything(n), user_id=f"user {n}") for n in range(50)))
    handle = await queue.enqueue(use_everything(1), user_id="acme")
    await asyncio.gather(queue.stats(), queue.explain("acme"), handle.info(), queue.xcom("acme").keys())
    assert connections(lone) == 1
    waits = [asyncio.create_task(handle.result()) for _ in range(20)]
    await eventually(lambda: connections(lone) == 2)
    await queue.enqueue(weigh("x" * (LARGE + 1)), user_id="acme")
    assert connections(lone) == 3
    for wait in waits:
        wait.cancel()
    await asyncio.wait(waits)
    await asyncio.gather(*(queue.enqueue(use_everything(n), user_id=f"user {n}") for n in range(50)))
    assert connections(lone) == 3
    await queue.close()
    await eventually(lambda: connections(lone) == 0)


async def test_a_scheduler_has_two_connections(lone: EmbeddedServer, queue: TaskQueue) -> None:
    scheduler = TaskScheduler(queue)
    await scheduler.add_schedule(schedule_id="often", task=use_everything(1).options(user_id="acme"), every=1)
    running = asyncio.create_task(scheduler.run())
    await eventually(lambda: connections(lone) == 2)
    await eventually(lambda: is_queued(queue))
    assert connections(lone) == 2
    await scheduler.stop()
    await running


@pytest.mark.parametrize("scheduler", [True, False])
async def test_a_worker_has_three_connections_more_than_its_queue(
    lone: EmbeddedServer, queue: TaskQueue, scheduler: bool
) -> None:
    async with Worker(queue, concurrency=50, scheduler=scheduler):
        most = 0
        for _ in range(3):
            handles = [await queue.enqueue(use_everything(n), user_id=f"user {n % 7}") for n in range(300)]
            handles.append(await queue.enqueue(use_everything(1).options(max_retries=1), user_id="acme"))
            for handle in handles:
                await handle.result(timeout=20)
                most = max(most, connections(lone) if handle is handles[-1] else 0)
        assert most == 2 + 3
    await eventually(lambda: connections(lone) == 2)


@pytest.mark.parametrize("room", [20])
async def test_who_has_opened_a_queue_can_enqueue_on_a_server_that_takes_no_more_clients(
    own_server: Callable[..., EmbeddedServer], room: int
) -> None:
    server = own_server(maxclients=room)
    async with AsyncExitStack() as stack:
        queues = [TaskQueue(server.url, name=NAME, timeout=0.5) for _ in range(2 * room)]
        opened = await asyncio.gather(*(stack.enter_async_context(queue) for queue in queues), return_exceptions=True)
        refused = [error for error in opened if isinstance(error, BaseException)]
        able = [queue for queue in opened if isinstance(queue, TaskQueue)]
        assert len(able) >= room - 5, "a few are the test's own"
        assert len(able) + len(refused) == 2 * room
        for error in refused:
            assert isinstance(error, QueueUnavailable)
        handles = await asyncio.gather(*(queue.enqueue(weigh("x"), user_id="acme") for queue in able))
        assert len({handle.task_id for handle in handles}) == len(able)
    async with TaskQueue(server.url, name=NAME) as queue:
        assert (await queue.stats()).queued == len(able)


# Connections that fail


class Rude:
    """A server that ends every connection, and counts them."""

    def __init__(self) -> None:
        self.count = 0

    def greet(self, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.count += 1
        writer.close()


@pytest.fixture
async def rude(queue_name: str) -> AsyncIterator[tuple[Rude, TaskQueue]]:
    rude = Rude()
    async with await asyncio.start_server(rude.greet, "127.0.0.1", 0) as server:
        yield rude, TaskQueue(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}", name=queue_name, timeout=2)


async def test_many_who_call_during_an_outage_connect_no_more_often_than_one(rude: tuple[Rude, TaskQueue]) -> None:
    server, queue = rude
    calls = [queue.stats() for _ in range(300)] + [queue.enqueue(weigh("x"), user_id=f"u{n}") for n in range(300)]
    told = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(error, QueueUnavailable) for error in told)
    assert 3 <= server.count <= 20
    await queue.close()


async def received(server: EmbeddedServer) -> int:
    text = await asyncio.to_thread(execute, server, "INFO", "stats")
    return int(text.partition(b"total_connections_received:")[2].split()[0])


async def test_who_may_subscribe_no_longer_tries_ever_more_rarely(own_server: Callable[..., EmbeddedServer]) -> None:
    server = own_server(tcp=True)
    execute(server, "ACL", "SETUSER", "app", "on", ">secret", "~*", "&*", "+@all")
    async with TaskQueue(f"redis://app:secret@127.0.0.1:{server.port}", name=NAME) as queue, Worker(queue):
        execute(server, "ACL", "SETUSER", "app", "resetchannels")
        before = await received(server)
        await asyncio.sleep(4)
        assert await received(server) - before <= 15


async def test_a_connection_for_messages_that_is_cut_again_and_again_is_made_ever_more_rarely(
    lone: EmbeddedServer, queue: TaskQueue
) -> None:
    async with Worker(queue):
        before = await received(lone)
        for _ in range(200):
            execute(lone, "CLIENT", "KILL", "TYPE", "pubsub")
            await asyncio.sleep(0.02)
        assert await received(lone) - before - 200 - 2 <= 15
        handle = await queue.enqueue(weigh("x"), user_id="acme")
        assert await handle.result(timeout=20) == 1


@pytest.mark.parametrize("whose", ["", "acme"])
async def test_a_connection_on_which_nobody_waits_is_asked_ever_more_rarely(lone: EmbeddedServer, whose: str):
    """Of one on which somebody waits for a task it is known within the timeout that it is gone."""
    async with TaskQueue(lone.url, name=NAME, timeout=0.5) as queue:
        await queue.listener.subscribe("fairque:tell", lambda _: None, whose)
        await asyncio.sleep(3)
        assert (pings(lone) <= 5) is (whose == "")


def pings(server: EmbeddedServer) -> int:
    stats = execute(server, "INFO", "commandstats").decode()
    return sum(int(line.split("calls=")[1].split(",")[0]) for line in stats.splitlines() if "cmdstat_ping:" in line)
