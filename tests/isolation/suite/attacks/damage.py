"""What breaks: tasks that kill their process, workers that are killed, keys that are lost, and values that are junk."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import msgspec

from fairque import FairqueError
from tests.isolation.suite.attack import ATTACKER, Attacker, attack
from tests.isolation.suite.bounds import Rivals
from tests.isolation.suite.tasks import fail, kill, nap

LEASE = 1.0
KILLS_EACH = 0.3
LEASES = 6
WITHIN_MS = 1_500.0 * LEASE * LEASES
"""A task whose worker dies as it is handed over waits for a lease and a half. It may happen again."""
USER = f":{ATTACKER}"


@attack(
    "tasks that kill their process",
    "`os._exit` in a task, the next one when that has failed for good",
    Rivals(dead=True),
    within_ms=WITHIN_MS,
    counts_all=False,
    lease=LEASE,
)
async def poison(a: Attacker) -> None:
    await a.put(nap(0.01) for _ in range(a.many(5_000)))
    async for _ in a.again(0.1):
        handle = await a.put_one(kill())
        while not ((await handle.state()).ended or a.is_stopped):  # noqa: ASYNC110 (another process ends it)
            await asyncio.sleep(0.1)


@attack(
    "workers that are killed",
    f"SIGKILL for one of the workers each {KILLS_EACH} s",
    Rivals(dead=True),
    within_ms=WITHIN_MS,
    counts_all=False,
    lease=LEASE,
    kills_each=KILLS_EACH,
)
async def kills(a: Attacker) -> None:
    await a.put(nap(0.01) for _ in range(a.many(5_000)))
    await a.until_stopped()


async def refill(a: Attacker, damage: Callable[[], None]) -> None:
    """A backlog that is put in again and again, beside the damage."""
    async for _ in a.again(0.02):
        with contextlib.suppress(Exception):  # its own calls may well fail now
            await a.put(nap() for _ in range(50))
            await a.put([fail(), nap().options(delay=0.01)])
        await asyncio.to_thread(damage)


def lost(place: str) -> None:
    @attack(
        f"a lost key, {place}",
        f"`DEL {place}:<its id>` each second, as an eviction does",
        counts_all=False,
        is_sample=place == "normal",
    )
    async def lose(a: Attacker) -> None:
        async for _ in a.again(1.0):
            with contextlib.suppress(FairqueError):
                await a.put(nap() for _ in range(50))
            await asyncio.to_thread(a.delete, f"{place}{USER}*")


def wrong(place: str) -> None:
    @attack(
        f"a key of the wrong type, {place}",
        f"`SET {place}:<its id> junk` in a loop",
        counts_all=False,
        is_sample=place == "normal",
    )
    async def break_type(a: Attacker) -> None:
        await refill(a, lambda: a.replace(f"{place}{USER}*", f"{place}{USER}"))


for place in ("normal", "normal-stream", "scheduled", "user", "task", "body"):
    lost(place)
for place in ("normal", "normal-stream", "scheduled", "user", "task", "metrics", "dead", "policy"):
    wrong(place)


@attack("corrupt bodies", "the bodies of its tasks are junk", counts_all=False)
async def corrupt(a: Attacker) -> None:
    await refill(a, lambda: a.replace(f"body{USER}:*", ""))


def packed(number: float) -> bytes:
    return msgspec.msgpack.encode(number)


@attack("corrupt options", "`timeout` of NaN, infinity and -1 in the message", counts_all=False)
async def corrupt_options(a: Attacker) -> None:
    valid = 123.25
    junk = [packed(number) for number in (float("nan"), float("inf"), -1.0)]

    def replace(task_id: str, by: bytes) -> None:
        key = a.key(f"body{USER}:{task_id}")
        body = a.execute("GET", key)
        if body:  # else it was served before
            a.execute("SET", key, body.replace(packed(valid), by))

    async for n in a.again(0.02):
        for handle in await a.put((nap().options(timeout=valid) for _ in range(20)), delay=0.1):
            await asyncio.to_thread(replace, handle.task_id, junk[n % len(junk)])


@attack(
    "a group of a stream that is gone", "`XGROUP DESTROY` of its streams in a loop", counts_all=False, is_sample=False
)
async def destroyed(a: Attacker) -> None:
    await refill(a, lambda: a.execute("XGROUP", "DESTROY", a.key(f"normal-stream{USER}"), "workers"))


@attack(
    "a permission that is missing",
    "`ACL SETUSER default -xclaim` for 0.1 s, again and again",
    within_ms=5_000.0,
    counts_all=False,
    is_sample=False,
)
async def forbidden(a: Attacker) -> None:
    async for n in a.again(0.1):
        await a.put(nap() for _ in range(100))
        await asyncio.to_thread(a.execute, "ACL", "SETUSER", "default", "+xclaim" if n % 5 else "-xclaim")
    await asyncio.to_thread(a.execute, "ACL", "SETUSER", "default", "+xclaim")
