"""What the workers of the suite run."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator

from fairque import Retry, current_task, task

NAP = 0.001
LIMITED = "isolation.limited"


@task(name="isolation.double")
async def double(n: int) -> int:
    """The quiet user's."""
    return 2 * n


@task(name=LIMITED)
async def limited(n: int) -> int:
    await asyncio.sleep(NAP)
    return 2 * n


@task(name="isolation.nap", result_ttl=0)
async def nap(seconds: float = NAP) -> None:
    await asyncio.sleep(seconds)


@task(name="isolation.swallow", result_ttl=0)
async def swallow(data: bytes) -> None:
    assert data


@task(name="isolation.fail")
async def fail(length: int = 10) -> None:
    raise ValueError("x" * length)


@task(name="isolation.again", result_ttl=0)
async def again() -> None:
    """Never ends."""
    raise Retry(delay=0)


@task(name="isolation.large", result_ttl=60)
async def large(size: int) -> bytes:
    return bytes(size)


@task(name="isolation.progress", result_ttl=0)
async def progress(reports: int) -> None:
    for n in range(reports):
        current_task().progress(n / reports, "x" * 100)
        await asyncio.sleep(0)


@task(name="isolation.flow", result_ttl=1)
async def flow(many: int, size: int) -> AsyncIterator[bytes]:
    for _ in range(many):
        yield bytes(size)


@task(name="isolation.share", result_ttl=0)
async def share(keys: int, size: int) -> None:
    for n in range(keys):
        await current_task().xcom.push(f"key {n}", bytes(size))


@task(name="isolation.charge", result_ttl=0)
async def charge(cost: float) -> None:
    await asyncio.sleep(NAP)
    current_task().charge(cost)


@task(name="isolation.kill", result_ttl=0)
async def kill() -> None:
    """Takes its process with it."""
    os._exit(9)


@task(name="isolation.end-subprocess", result_ttl=0, run_in="process")
def end_subprocess() -> None:
    os._exit(9)


@task(name="isolation.write-log", result_ttl=0, run_in="process")
def write_log(records: int) -> None:
    for n in range(records):
        logging.getLogger("isolation").error("record %d: %s", n, "x" * 1_000)
