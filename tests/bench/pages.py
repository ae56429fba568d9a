"""What pages read, in a queue of a million users and a million tasks: how long each takes.

    python tests/bench/pages.py [--users N] [--hog N] [--repeats N] [--url URL] [--fill-only]

Fills a private server, or a queue at the URL where that is empty, then reads each page again and again. `p50` and
`worst` are as the clock has it; `here` and `server` are the CPU time of a read in this process and in the server, which
others that use the machine do not change; `held` is the longest time for which one command of a read had the server, by
its clock. It needs some 2 GB and a minute or two.
"""

import argparse
import asyncio
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager
from datetime import timedelta
from typing import Any

import redis
from rich.console import Console
from rich.table import Table
from server import cores, pin, server

from fairque import Attempt, FailureKind, TaskQueue, TaskScheduler, TaskState, task
from fairque.redis.delivery import Delivery, Outcome
from fairque.redis.requester import BlockingRequester
from fairque.redis.store import Store, renew
from fairque.scheduler.schedule import Schedule
from fairque.tasks.message import Record, encode_record, encode_value

HOG = "hog"
AT_ONCE = 50_000
LETTERS, KINDS = 10_000, 40
RUNNING, WORKERS = 400, 20
SCHEDULES = 10_000
LIMIT_MS = 100.0

Read = Callable[[TaskQueue], Awaitable[Any]]


@task(name="pages.call")
async def call(number: int = 0) -> int:
    return number


def main() -> None:
    args = _arguments()
    server_core, bench_core = cores()
    with ExitStack() as stack:
        url = args.url or stack.enter_context(server(server_core))
        pin(bench_core)
        asyncio.run(_run(url, args))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=1_000_000, metavar="N", help="each with one waiting task")
    parser.add_argument("--hog", type=int, default=100_000, metavar="N", help="waiting tasks of one more user")
    parser.add_argument("--repeats", type=int, default=20, metavar="N")
    parser.add_argument("--url", help="of a server with an empty queue 'pages'; without it, a private one is started")
    parser.add_argument("--fill-only", action="store_true")
    return parser.parse_args()


async def _run(url: str, args: argparse.Namespace) -> None:
    console = Console(width=None)
    async with TaskQueue(url, name="pages", timeout=60) as queue:
        began = time.monotonic()
        if not (await queue.stats()).queued:
            await fill(queue, args.users, args.hog)
        console.print(f"filled in {time.monotonic() - began:.0f} s: {(await queue.stats()).queued:,} tasks wait")
        if args.fill_only:
            return
        table = Table("page", "p50 ms", "worst ms", "here ms", "server ms", "held ms")
        with redis.Redis.from_url(url) as client:
            for name, read in PAGES.items():
                figures = await _time(queue, client, read, args.repeats)
                style = "red" if figures[2] + figures[3] > LIMIT_MS else None
                table.add_row(name, *(f"{ms:.1f}" for ms in figures), style=style)
        console.print(table)


async def _time(queue: TaskQueue, client: Any, read: Read, repeats: int) -> tuple[float, float, float, float, float]:
    """In ms: the median and the worst read, CPU time of one here and in the server, the longest command."""
    give_signs(queue)
    await read(queue)
    client.config_set("slowlog-log-slower-than", 0)
    client.config_set("slowlog-max-len", 10_000)
    client.slowlog_reset()
    times, here, there = [], time.process_time(), _cpu(client)
    for _ in range(repeats):
        began = time.perf_counter()
        await read(queue)
        times.append((time.perf_counter() - began) * 1000)
    here, there = time.process_time() - here, _cpu(client) - there
    longest = max(entry["duration"] for entry in client.slowlog_get(10_000)) / 1000
    return statistics.median(times), max(times), here * 1000 / repeats, there * 1000 / repeats, longest


def _cpu(client: Any) -> float:
    told = client.info("cpu")
    return float(told["used_cpu_user"]) + float(told["used_cpu_sys"])


# What is in the queue


async def fill(queue: TaskQueue, users: int, hog: int) -> None:
    """Users with a task each, one with many; dead letters, running tasks, workers, schedules, policies."""
    await _fail(queue)
    for first in range(0, users, AT_ONCE):
        await queue.enqueue_many(
            [call(n).options(user_id=f"user-{n:07}") for n in range(first, min(users, first + AT_ONCE))]
        )
    for first in range(0, hog, AT_ONCE):
        await queue.enqueue_many([call()] * min(AT_ONCE, hog - first), user_id=HOG)
    await _run_some(queue)
    await TaskScheduler(queue).add_schedules(
        [
            Schedule(
                task=call(n),
                every=timedelta(hours=1 + n % 7),
                user_id=HOG if n % 10 == 0 else f"user-{n:07}",
                schedule_id=f"schedule-{n}",
            )
            for n in range(SCHEDULES)
        ]
    )
    for n in range(100):
        await queue.set_policy(f"user-{n:07}", weight=1 + n % 5, max_running=10)


@asynccontextmanager
async def _store(queue: TaskQueue) -> AsyncIterator[Store]:
    store = queue.store(patience=60)
    yield store
    await store.close()


async def _fail(queue: TaskQueue) -> None:
    await queue.enqueue_many([call().options(user_id=HOG if n % 2 else f"failing-{n % 500}") for n in range(LETTERS)])
    async with _store(queue) as store:
        number = 0
        while taken := (await store.claim("w0", 500)).deliveries:
            await store.settle("w0", [_failed(of, f"Error{(number + at) % KINDS}") for at, of in enumerate(taken)])
            number += len(taken)


def _failed(of: Delivery, type_name: str) -> Outcome:
    text, traceback = "something went wrong, and here is what it was", "  File x.py, line 1\n" * 40
    error = Attempt(1, time.time(), FailureKind.ERROR, type_name, text, traceback, "w0")
    record = Record(
        name="pages.call",
        attempt=1,
        queued_ms=of.queued_ms,
        started_ms=of.started_ms,
        run_ms=5.0,
        worker="w0",
        kind=FailureKind.ERROR,
        type_name=type_name,
        message=text,
        traceback=traceback,
    )
    body = encode_record(of.body, TaskState.FAILED, record)
    return Outcome(of, "failed", record=body, error=encode_value(error), run_ms=5.0)


async def _run_some(queue: TaskQueue) -> None:
    async with _store(queue) as store:
        for number in range(WORKERS):
            await store.claim(f"w{number}", RUNNING // WORKERS)


def give_signs(queue: TaskQueue) -> None:
    """Of workers that live: they would be forgotten within a minute."""
    requester = BlockingRequester(queue.connector)
    each = RUNNING // WORKERS
    for number in range(WORKERS):
        fields = {"host": "bench", "pid": number, "version": "0", "concurrency": 2 * each, "running": each}
        renew(requester, queue.keys, f"w{number}", fields | {"memory": 50_000_000}, [])
    requester.close()


# What pages read


async def read_overview(queue: TaskQueue) -> None:
    assert (await queue.overview()).holders()


async def read_users(queue: TaskQueue) -> None:
    assert (await queue.find_users(limit=50)).users


async def read_users_far_behind(queue: TaskQueue) -> None:
    page = await queue.find_users(limit=50, after=f"{round(time.time() * 1000) - 20_000}:user-0500000")
    assert page.known


async def read_users_by_id(queue: TaskQueue) -> None:
    assert (await queue.find_users(prefix="user-00", limit=50)).users


async def read_users_by_rare_id(queue: TaskQueue) -> None:
    assert (await queue.find_users(prefix="user-0000012", limit=50)).users


async def read_users_by_wait(queue: TaskQueue) -> None:
    assert (await queue.find_users(order="waiting", limit=50)).users


async def read_users_by_letters(queue: TaskQueue) -> None:
    assert (await queue.find_users(order="dead", limit=50)).users


async def read_user(queue: TaskQueue) -> None:
    await asyncio.gather(
        queue.user_view(HOG),
        queue.explain(HOG),
        queue.tasks(HOG, state=TaskState.QUEUED, limit=50),
        queue.dead_letters(HOG, limit=50),
        TaskScheduler(queue).schedule_page(HOG, limit=50),
    )


async def read_task(queue: TaskQueue) -> None:
    [waiting] = await queue.tasks(HOG, state=TaskState.QUEUED, limit=1)
    handle = queue.handle(HOG, waiting.task_id)
    await asyncio.gather(handle.info(), queue.explain(HOG, waiting.task_id), queue.graph(HOG, waiting.task_id))


async def read_letters(queue: TaskQueue) -> None:
    groups, letters = await asyncio.gather(queue.dead_groups(), queue.dead_letters(limit=50))
    assert groups.groups
    assert letters
    await queue.dead_letters(limit=50, group=groups.groups[0])


async def read_schedules(queue: TaskQueue) -> None:
    assert (await TaskScheduler(queue).schedule_page(limit=50)).schedules


async def read_workers(queue: TaskQueue) -> None:
    stats, running = await asyncio.gather(queue.stats(), queue.running())
    assert stats.workers
    assert running.tasks


async def read_limits(queue: TaskQueue) -> None:
    await queue.limits()


async def read_health(queue: TaskQueue) -> None:
    await queue.health()


PAGES: dict[str, Read] = {
    "overview": read_overview,
    "users by activity": read_users,
    "users, far behind": read_users_far_behind,
    "users by id": read_users_by_id,
    "users by rare id": read_users_by_rare_id,
    "users by backlog": read_users_by_wait,
    "users by dead letters": read_users_by_letters,
    "user with a large backlog": read_user,
    "task": read_task,
    "dead letters": read_letters,
    "schedules": read_schedules,
    "workers": read_workers,
    "limits": read_limits,
    "health": read_health,
}

if __name__ == "__main__":
    main()
