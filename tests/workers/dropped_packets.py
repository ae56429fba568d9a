"""Loses all packets of the connections that are open, as a firewall that forgot them does, and prints how long callers
and a worker take to notice, in seconds. To be run in a network namespace of its own, as root.

    unshare --net python tests/workers/dropped_packets.py TIMEOUT
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Awaitable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fairque import TaskQueue, Worker, task
from fairque.embedded.server import EmbeddedServer

ESTABLISHED = "01"


@task
async def double(n: int) -> int:
    return 2 * n


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def begin() -> None:
    """Loopback works, and rules may come before the one by which it does."""
    ip("link", "set", "lo", "up")
    ip("rule", "add", "pref", "100", "lookup", "local")
    ip("rule", "del", "pref", "0")


def client_ports(server_port: int) -> set[int]:
    found = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, state, *_ = line.split()
        if state == ESTABLISHED and int(remote.partition(":")[2], 16) == server_port:
            found.add(int(local.partition(":")[2], 16))
    return found


def drop(ports: set[int]) -> None:
    for port in ports:
        for direction in ("sport", "dport"):
            ip("rule", "add", "pref", "1", "ipproto", "tcp", direction, str(port), "blackhole")


async def seconds(call: Awaitable[Any]) -> float:
    began = time.monotonic()
    await call
    return time.monotonic() - began


async def main(timeout: float) -> None:
    begin()
    with EmbeddedServer(tcp=True) as server:
        async with (
            TaskQueue(server.tcp_url, timeout=timeout) as queue,
            TaskQueue(server.tcp_url, timeout=timeout) as of_worker,
            Worker(of_worker, poll_interval=3600),
        ):
            print(json.dumps(await play(queue, server.tcp_url)))


async def play(queue: TaskQueue, url: str) -> dict[str, float]:
    await (await queue.enqueue(double(1), user_id="acme")).result(20)
    later = await queue.enqueue(double(2).options(delay=0.5), user_id="acme")
    waits = asyncio.create_task(seconds(later.result(20)))
    await asyncio.sleep(0.1)
    ports = client_ports(urlsplit(url).port or 0)
    drop(ports)
    found = {"connections": len(ports)}
    async with TaskQueue(url) as other:
        new = await other.enqueue(double(3), user_id="acme")
        found["woken"], found["result"], found["waited"] = await asyncio.gather(
            seconds(new.result(20)), seconds(queue.handle("acme", new.task_id).result(20)), waits
        )
    found["enqueued"] = await seconds(round_trip(queue))  # on one more connection, which is lost as well
    found["afterwards"] = await seconds(round_trip(queue))
    return found


async def round_trip(queue: TaskQueue) -> None:
    await (await queue.enqueue(double(4), user_id="acme")).result(20)


if __name__ == "__main__":
    asyncio.run(main(float(sys.argv[1])))
