"""A function in a thread cannot be stopped: it is told."""

import asyncio
import threading
import time

from fairque import TaskQueue, Worker, current_task, task


async def heard_by(ended: threading.Event) -> bool:
    return await asyncio.to_thread(ended.wait, 20)


def listens_until(ended: threading.Event, name: str, started: threading.Event, **options):
    def work() -> None:
        started.set()
        deadline = time.monotonic() + 20
        while not current_task().canceled and time.monotonic() < deadline:
            time.sleep(0.01)
        if current_task().canceled:
            ended.set()

    return task(name=name, **options)(work)


async def test_a_thread_hears_that_its_time_is_over(queue: TaskQueue):
    ended, started = threading.Event(), threading.Event()
    late = listens_until(ended, "late", started, timeout=0.2)
    await queue.enqueue(late(), user_id="anna")
    async with Worker(queue):
        assert await heard_by(ended)


async def test_a_thread_hears_that_its_worker_stops(queue: TaskQueue):
    ended, started = threading.Event(), threading.Event()
    handle = await queue.enqueue(listens_until(ended, "stopped", started)(), user_id="anna")
    async with Worker(queue, shutdown_timeout=0):
        assert await heard_by(started)
    assert await heard_by(ended)
    assert await handle.state() == "queued"
    await handle.cancel()
