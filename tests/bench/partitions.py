"""What partitions cost: beside a queue without them, on 1, 3 and 8 nodes, and where workers have nothing to do.

    python tests/bench/partitions.py [life] [nodes] [idle] [--repeats N] [--tasks N]

On two cores throughput says little of many machines, so all of this is cost: CPU time of a worker process, and of the
main threads of servers, less what they use when nobody asks anything. What is compared is measured in turns.

life   a task from its enqueue to its result on one server, 16 partitions against none, 100 and 1,000 tasks at a time
nodes  the same with 64 partitions on 1, 3 and 8 masters: each node, calls and messages of a task, connections
idle   200 workers on 64 partitions of three masters that believe to be 1,000: what these would cost a node
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import redis
from rich.console import Console
from rich.table import Table
from server import cluster, cluster_info, server

from fairque import TaskQueue, Worker, task

try:
    from uvloop import run
except ImportError:
    from asyncio import run

NAME = "bench"
SCRIPTS = ("fcall", "fcall_ro")
PUBLISHED = ("publish", "spublish")
REST_SECONDS = 3.0
MANY = 1_000
LAST_SECONDS = 0.3
WARM_UP = 0.2  # of the tasks, while scripts and modules are loaded
left, goal = 0, 0
reached = asyncio.Event()


@task(name="bench.noop")
async def noop(number: int) -> int:
    global left
    left -= 1
    if left <= goal:
        reached.set()
    return number


async def until_left(tasks: int) -> None:
    global goal
    goal = tasks
    reached.clear()
    await reached.wait()


# The worker, in a process of its own


async def work(url: str, concurrency: int, tasks: int) -> None:
    """Serves so many tasks, and tells what that took."""
    global left
    left = tasks
    async with TaskQueue(url, name=NAME) as queue, Worker(queue, concurrency=concurrency, scheduler=False):
        await until_left(round(tasks * (1 - WARM_UP)))
        before, began, measured = _used(), time.monotonic(), left
        await until_left(0)
        rate = measured / (time.monotonic() - began)
        await asyncio.sleep(LAST_SECONDS)  # the last results are still being written
        print(json.dumps({"cpu": (_used() - before) / measured, "rate": rate}), flush=True)
        await asyncio.to_thread(sys.stdin.readline)  # until its connections are counted


async def be_idle(url: str, workers: int) -> None:
    """So many, with connections of their own, until the input ends."""
    queues = [TaskQueue(url, name=NAME) for _ in range(workers)]
    async with asyncio.TaskGroup() as group:
        serving = [Worker(queue, concurrency=10) for queue in queues]
        running = [group.create_task(_serve(queue, worker)) for queue, worker in zip(queues, serving, strict=True)]
        print("{}", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        for worker in serving:
            await worker.stop()
        await asyncio.wait(running)


async def _serve(queue: TaskQueue, worker: Worker) -> None:
    async with queue:
        await worker.run()


def _used() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


@contextmanager
def child(*words: str):
    """Yields what it tells."""
    command = [sys.executable, __file__, "--child", *words]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield json.loads(process.stdout.readline())
        finally:
            process.stdin.close()
            process.wait(60)


# Servers


class Seen(NamedTuple):
    """Of all nodes: seconds of CPU of the main threads, and how often each command came."""

    at: float
    cpu: list[float]
    calls: list[dict[str, int]]
    bus: int

    def since(self, before: Seen, idle: Sequence[float]) -> list[float]:
        """Seconds of each node, less what it uses anyway."""
        took = self.at - before.at
        return [now - then - took * rest for now, then, rest in zip(self.cpu, before.cpu, idle, strict=True)]

    def called(self, before: Seen, names: Sequence[str]) -> int:
        return sum(
            now.get(name, 0) - then.get(name, 0)
            for now, then in zip(self.calls, before.calls, strict=True)
            for name in names
        )


class Nodes:
    def __init__(self, urls: Sequence[str]) -> None:
        self.clients = [redis.Redis.from_url(url) for url in urls]
        is_cluster = not urls[0].endswith("/0")
        self.url = "cluster://" + ",".join(url.removeprefix("redis://") for url in urls) if is_cluster else urls[0]

    def see(self) -> Seen:
        found = [(client.info("cpu"), client.info("commandstats")) for client in self.clients]
        cpu = [of["used_cpu_user_main_thread"] + of["used_cpu_sys_main_thread"] for of, _ in found]
        calls = [{k.removeprefix("cmdstat_"): v["calls"] for k, v in of.items()} for _, of in found]
        return Seen(time.monotonic(), cpu, calls, sum(map(_sent, self.clients)))

    def at_rest(self) -> list[float]:
        """CPU seconds of each node in a second in which nobody asks anything."""
        before = self.see()
        time.sleep(REST_SECONDS)
        after = self.see()
        return [max(0.0, spent) / REST_SECONDS for spent in after.since(before, [0.0] * len(after.cpu))]

    def connections(self) -> list[int]:
        return [len(client.client_list()) - 1 for client in self.clients]

    def forget(self) -> None:
        for client in self.clients:
            client.flushall()

    def pretend(self, workers: int) -> None:
        """That there were more of them in each partition."""
        for client in self.clients:
            for key in client.scan_iter(f"fairque:{{{NAME}/*:workers", count=1000):
                client.zadd(key, {f"other-{n}": 1e15 for n in range(workers)})


def _sent(client: redis.Redis) -> int:
    """Messages that a node passed on to the others because somebody published something."""
    try:
        info = cluster_info(client)
    except redis.ResponseError:
        return 0
    return sum(int(info.get(f"cluster_stats_messages_{kind}_sent", 0)) for kind in ("publish", "publishshard"))


# One life of many tasks


class Life(NamedTuple):
    """Microseconds a task, but for the last ones."""

    worker: float
    put_in: list[float]
    served: list[float]
    rate: float
    calls: float
    published: float
    bus: float
    connections: int

    @property
    def redis(self) -> float:
        return sum(self.put_in) + sum(self.served)

    @property
    def nodes(self) -> list[float]:
        return [sum(each) for each in zip(self.put_in, self.served, strict=True)]


def lives(nodes: Nodes, partitions: int, tasks: int, users: int, concurrency: int) -> Life:
    nodes.forget()
    asyncio.run(_put_in(nodes.url, partitions, 1, 1))  # scripts are loaded, settings are there
    idle, before = nodes.at_rest(), nodes.see()
    asyncio.run(_put_in(nodes.url, partitions, tasks, users))
    between, alone = nodes.see(), nodes.connections()
    with child("work", nodes.url, str(concurrency), str(tasks)) as told:
        after = nodes.see()
        connections = [many - few for many, few in zip(nodes.connections(), alone, strict=True)]
    each = 1e6 / tasks
    return Life(
        1e6 * told["cpu"],
        [spent * each for spent in between.since(before, idle)],
        [spent * each for spent in after.since(between, idle)],
        told["rate"],
        after.called(before, SCRIPTS) / tasks,
        after.called(before, PUBLISHED) / tasks,
        (after.bus - before.bus) / tasks,
        max(connections),
    )


async def _put_in(url: str, partitions: int, tasks: int, users: int) -> None:
    async with TaskQueue(url, name=NAME, partitions=partitions) as queue:
        await queue.stats()
        await queue.enqueue_many([noop(n).options(user_id=f"user-{n % users}") for n in range(tasks)])


# What is shown


def show_life(args: argparse.Namespace) -> None:
    table = Table("concurrency", "partitions", "Redis µs", "worker µs", "tasks/s", "calls a task", title="life")
    with server(None) as url:
        nodes = Nodes([url])
        for concurrency in (100, 1_000):
            played: dict[int, list[Life]] = {1: [], 16: []}
            for _ in range(args.repeats):
                for partitions, runs in played.items():
                    runs.append(lives(nodes, partitions, args.tasks, 1_000, concurrency))
            for partitions, runs in played.items():
                cells = [_median(runs, _of(name)) for name in ("redis", "worker", "rate", "calls")]
                shown = f"{cells[0]:.1f}", f"{cells[1]:.1f}", f"{cells[2]:,.0f}", f"{cells[3]:.2f}"
                table.add_row(f"{concurrency:,}", str(partitions), *shown)
            one, many = ([_median(runs, _of(name)) for name in ("redis", "worker", "rate")] for runs in played.values())
            table.add_row("", "16 : 1", *(f"{b / a:.2f}" for a, b in zip(one, many, strict=True)))
    Console().print(table)


def show_nodes(args: argparse.Namespace) -> None:
    table = Table("nodes", "Redis µs", "busiest : mean", "worker µs", "calls", "published", "bus", "connections a node")
    for masters in (1, 3, 8):
        with cluster(masters) as urls:
            nodes = Nodes(urls)
            runs = [lives(nodes, 64, args.tasks, 10_000, 1_000) for _ in range(args.repeats)]
        busiest = _median(runs, lambda run: max(run.nodes) / statistics.mean(run.nodes))
        each = [round(_median(runs, lambda run, at=at: run.nodes[at]), 1) for at in range(masters)]
        cells = [_median(runs, _of(name)) for name in ("redis", "worker", "calls", "published", "bus", "connections")]
        shown = f"{cells[1]:.1f}", f"{cells[2]:.2f}", f"{cells[3]:.3f}", f"{cells[4]:.3f}", f"{cells[5]:.0f}"
        table.add_row(f"{masters}", f"{cells[0]:.1f} = {' + '.join(map(str, each))}", f"{busiest:.2f}", *shown)
    Console(width=160).print(table)


def show_idle(args: argparse.Namespace) -> None:
    workers, partitions, masters = 200, 64, 3
    with cluster(masters) as urls, ExitStack() as stack:
        nodes = Nodes(urls)
        asyncio.run(_put_in(nodes.url, partitions, 1, 1))  # with the first task the queue is made
        idle = nodes.at_rest()
        for _ in range(4):
            stack.enter_context(child("idle", nodes.url, str(workers // 4)))
            time.sleep(10)
        nodes.pretend(MANY - workers)
        time.sleep(args.settle)
        before = nodes.see()
        time.sleep(args.seconds)
        after = nodes.see()
        took = after.at - before.at
        spent = after.since(before, idle)
        names = ("fcall", "fcall_ro", "ping", "client|list", "subscribe", "cluster|slots")
        rates = {name: after.called(before, [name]) / took / workers for name in names}
    told = ", ".join(f"{rate:.3f} {name}" for name, rate in rates.items() if rate)
    print(f"one idle worker of {MANY:,}, {partitions} partitions on {masters} nodes, a second: {told}")
    of_each = ", ".join(f"{100 * each / took:.3f} %" for each in spent)
    reckoned = MANY / workers * max(spent) / took
    print(f"{workers} of them cost the nodes {of_each}; {MANY:,} the busiest {reckoned:.2%} of its time")


def _of(name: str) -> Callable[[Life], Any]:
    return lambda life: getattr(life, name)


def _median(runs: Sequence[Life], of: Callable[[Life], float]) -> float:
    return statistics.median(map(of, runs))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shown", nargs="*", metavar="WHAT", default=["life", "nodes", "idle"], help="life, nodes, idle")
    parser.add_argument("--repeats", type=int, default=3, metavar="N")
    parser.add_argument("--tasks", type=int, default=20_000, metavar="N")
    parser.add_argument(
        "--seconds",
        type=float,
        default=420.0,
        help="for which idle workers are watched: most partitions hear of each of them every 400 s",
    )
    parser.add_argument("--settle", type=float, default=60.0, help="seconds before that")
    args = parser.parse_args()
    print(f"load before: {os.getloadavg()[0]:.1f}")
    for name in args.shown:
        {"life": show_life, "nodes": show_nodes, "idle": show_idle}[name](args)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        kind, where, *numbers = sys.argv[2:]
        run({"work": work, "idle": be_idle}[kind](where, *map(int, numbers)))
    else:
        main()
