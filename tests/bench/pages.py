"""What pages read and answer, in a queue of a million users and a million tasks: how long each takes.

    python tests/bench/pages.py [--users N] [--hog N] [--repeats N] [--url URL] [--fill-only]

Fills a private server, or a queue at the URL where that is empty, then reads what is on each page again and again, and
asks the dashboard for each page (`GET`), as somebody who sees all. `first` is the CPU time of the first time, in which
scripts and templates are loaded, here and in the server; `p50` and `worst` are of those after it, as the clock has it;
`here` and `server` are the CPU time of one of them in this process and in the server, which others that use the machine
change little; `held` is the longest time for which one command of them had the server, by its clock. It needs some 2 GB
and a minute or two.
"""

import argparse
import asyncio
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager
from datetime import timedelta
from typing import Any, NamedTuple

import httpx
import redis
from rich.console import Console
from rich.table import Table
from server import cores, pin, server

from fairque import EVERYBODY, Attempt, FailureKind, TaskQueue, TaskScheduler, TaskState, task
from fairque.contrib.dashboard import Viewer, dashboard
from fairque.contrib.dashboard.look import link
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
    console = Console(width=100)
    async with TaskQueue(url, name="pages", timeout=60) as queue:
        began = time.monotonic()
        if not (await queue.stats()).queued:
            await fill(queue, args.users, args.hog)
        console.print(f"filled in {time.monotonic() - began:.0f} s: {(await queue.stats()).queued:,} tasks wait")
        if args.fill_only:
            return
        table = Table("page", "first ms", "p50 ms", "worst ms", "here ms", "server ms", "held ms")
        with redis.Redis.from_url(url) as client:
            async with _answers(queue) as answers:
                for name, read in {**PAGES, **answers}.items():
                    figures = await _time(queue, client, read, args.repeats)
                    style = "red" if figures.here + figures.server > LIMIT_MS else None
                    table.add_row(name, *(f"{ms:.1f}" for ms in figures), style=style)
        console.print(table)


class Figures(NamedTuple):
    """In ms: of the first time its CPU time here and in the server; then the median and the worst time, the CPU time of
    one time here and in the server, the longest command."""

    first: float
    p50: float
    worst: float
    here: float
    server: float
    held: float


async def _time(queue: TaskQueue, client: Any, read: Read, repeats: int) -> Figures:
    give_signs(queue)
    _, first_here, first_there = await _timed(client, lambda: read(queue))
    client.config_set("slowlog-log-slower-than", 0)
    client.config_set("slowlog-max-len", 10_000)
    client.slowlog_reset()
    figures = [await _timed(client, lambda: read(queue)) for _ in range(repeats)]
    longest = max(entry["duration"] for entry in client.slowlog_get(10_000)) / 1000
    client.config_set("slowlog-log-slower-than", -1)
    times, here, there = zip(*figures, strict=True)
    first = first_here + first_there
    return Figures(first, statistics.median(times), max(times), sum(here) / repeats, sum(there) / repeats, longest)


async def _timed(client: Any, read: Callable[[], Awaitable[Any]]) -> tuple[float, float, float]:
    """In ms: by the clock, of CPU here, of CPU in the server."""
    there, here, began = _cpu(client), time.process_time(), time.perf_counter()
    await read()
    took, here = time.perf_counter() - began, time.process_time() - here
    return took * 1000, here * 1000, (_cpu(client) - there) * 1000


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

# What pages answer


@asynccontextmanager
async def _answers(queue: TaskQueue) -> AsyncIterator[dict[str, Read]]:
    """Whole answers of the dashboard, each from its request to the last byte of its HTML, without a socket."""
    app = dashboard(queue, authorize=lambda _: Viewer("bench", users=EVERYBODY, acts=True, payloads=True))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        yield {f"GET {name}": _asks(client, address) for name, address in (await _addresses(queue)).items()}


def _asks(client: httpx.AsyncClient, address: str) -> Read:
    async def ask(_: TaskQueue) -> None:
        answer = await client.get(address)
        assert answer.status_code == 200, (address, answer.status_code, answer.text[:500])
        assert answer.text.rstrip().endswith("</html>")

    return ask


async def _addresses(queue: TaskQueue) -> dict[str, str]:
    [waiting] = await queue.tasks(HOG, state=TaskState.QUEUED, limit=1)
    group = (await queue.dead_groups()).groups[0]
    behind = f"{round(time.time() * 1000) - 20_000}:user-0500000"
    return {
        "overview": link("", ""),
        "users by activity": link("", "users"),
        "users, far behind": link("", "users", after=behind),
        "users by id": link("", "users", find="user-00"),
        "users by rare id": link("", "users", find="user-0000012"),
        **{f"users by {order}": link("", "users", order=order) for order in ("waiting", "wait", "running", "dead")},
        "user with a large backlog": link("", "user", user=HOG),
        "user with one task": link("", "user", user="user-0500000"),
        "task": link("", "task", user=HOG, task=waiting.task_id),
        "dead letters": link("", "dead-letters"),
        "dead letters of a kind": link("", "dead-letters", group=group.key),
        **{page: link("", page) for page in ("schedules", "workers", "limits", "health")},
    }


if __name__ == "__main__":
    main()
