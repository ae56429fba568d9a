"""Much at one moment: delays, retries, schedules."""

from __future__ import annotations

import contextlib
import time
from datetime import UTC, datetime

from fairque import InvalidInput, TaskScheduler
from tests.isolation.suite.attack import ATTACKER, Attacker, Scale, attack
from tests.isolation.suite.bounds import Rivals
from tests.isolation.suite.tasks import again, nap

PER_SECOND = 5_000
"""Tasks that a producer puts in, at the least."""


def at(moment: float) -> datetime:
    return datetime.fromtimestamp(moment, UTC)


@attack("a bomb of due tasks", "50,000 with the same `execute_after`, again and again")
async def bomb(a: Attacker) -> None:
    tasks = a.many(50_000)
    moment = time.time() + 0.3 + tasks / PER_SECOND
    await a.put((nap() for _ in range(tasks)), execute_after=at(moment))
    a.begin(moment)
    async for _ in a.again(0.1):
        await a.put((nap() for _ in range(a.many(5_000))), execute_after=at(time.time() + 0.1))


@attack("a task due each millisecond", "50,000 with `execute_after` of successive milliseconds")
async def drumfire(a: Attacker) -> None:
    tasks = a.many(50_000)
    begin = time.time() + 0.2
    await a.put(nap().options(execute_after=at(begin + n / 1000)) for n in range(tasks))
    a.begin(begin)
    async for _ in a.again(0.1):
        now = time.time()
        await a.put(nap().options(execute_after=at(now + 0.1 + n / 1000)) for n in range(100))


@attack(
    "a bomb of many ids",
    "50 due tasks each of 500 ids, at one moment",
    lambda scale: Rivals(users=scale.many(500)),
)
async def bomb_of_many(a: Attacker) -> None:
    users = a.many(500)
    moment = time.time() + 0.3 + 50 * users / PER_SECOND
    for n in range(users):
        await a.put((nap() for _ in range(50)), f"{ATTACKER}-{n}", execute_after=at(moment))
    a.begin(moment)
    await a.until_stopped()


@attack("retries without delay", "5,000 tasks that raise `Retry(delay=0)` for ever")
async def retries(a: Attacker) -> None:
    await a.put(again() for _ in range(a.many(5_000)))
    await a.until_stopped()


def seconds(scale: Scale) -> int:
    return scale.many(1_000)


@attack("schedules each second", "1,000 schedules with `every=1`", counts_all=False)
async def schedules(a: Attacker) -> None:
    scheduler = TaskScheduler(a.queue)
    for n in range(seconds(a.scale)):
        await scheduler.add_schedule(task=nap(), every=1, user_id=ATTACKER, schedule_id=f"s{n}")
    a.begin(time.time() + 1)
    await a.until_stopped()


@attack("schedules at one moment", "1,000 schedules with the same `at`, again and again", counts_all=False)
async def schedules_at_once(a: Attacker) -> None:
    scheduler = TaskScheduler(a.queue)
    many = seconds(a.scale)
    moment = time.time() + 0.5 + many / 500
    for _ in range(many):
        with contextlib.suppress(InvalidInput):
            await scheduler.add_schedule(task=nap(), at=at(moment), user_id=ATTACKER)
    a.begin(moment)
    async for _ in a.again():
        with contextlib.suppress(InvalidInput):  # the moment has passed before the call came
            await scheduler.add_schedule(task=nap(), at=at(time.time() + 0.1), user_id=ATTACKER)
