"""Rules that are changed in a loop, and limits that are used up."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from itertools import cycle
from typing import Any

from tests.isolation.suite.attack import ATTACKER, Attacker, attack
from tests.isolation.suite.bounds import CREDIT, Rivals
from tests.isolation.suite.tasks import LIMITED, limited, nap

PLACES = 4
WEIGHT = 10.0
SHARE = 0.75


async def backlog(a: Attacker) -> None:
    await a.put(nap() for _ in range(a.many(100_000)))


async def change(a: Attacker, *rules: dict[str, Any], pause: float = 0.0) -> None:
    """In turn, without an end, while a backlog waits."""
    await backlog(a)
    turns = cycle(rules)
    async for n in a.again(pause):
        await a.queue.set_policy(ATTACKER, **next(turns))
        if n % 100 == 0:
            await a.put(nap() for _ in range(100))


@attack("group hopping", "`set_policy(group=…)` in a loop, another group each time")
async def hopping(a: Attacker) -> None:
    await change(a, *({"group": f"group {n}"} for n in range(1_000)))


@attack("in and out of a group", "`set_policy(group=…)` and `group=None` in a loop")
async def in_and_out(a: Attacker) -> None:
    await change(a, {"group": "mine"}, {"group": None})


@attack("a weight that changes", f"`weight` of 1, {WEIGHT:g}, 0.01 and {WEIGHT:g} in a loop", Rivals(weight=WEIGHT))
async def weights(a: Attacker) -> None:
    await change(a, {"weight": 1}, {"weight": WEIGHT}, {"weight": 0.01}, {"weight": WEIGHT})


@attack("pausing itself", "`pause` and `resume` in a loop")
async def pausing(a: Attacker) -> None:
    await change(a, {"paused": True}, {"paused": None})


@attack("a cap that changes", "`max_running` of 1, 2, 3 and none in a loop", Rivals(credit=CREDIT))
async def capping(a: Attacker) -> None:
    await change(a, *({"max_running": cap} for cap in (1, 2, 3, None)))


@attack("a rate that changes", '`rate` of "1/h", "1000/s burst 100" and none in a loop')
async def rating(a: Attacker) -> None:
    await change(a, {"rate": "1/h"}, {"rate": "1000/s burst 100"}, {"rate": None})


@attack("clearing its policy", "`set_policy` of everything and `clear_policy` in a loop", Rivals(credit=CREDIT))
async def clearing(a: Attacker) -> None:
    await backlog(a)
    async for _ in a.again():
        await a.queue.set_policy(ATTACKER, max_running=2, rate="10000/s burst 1000", group="mine", max_queued=1_000_000)
        await a.queue.clear_policy(ATTACKER)


async def choke(a: Attacker, limit: Callable[[], Awaitable[None]]) -> None:
    await limit()
    await a.put(limited(n).options(result_ttl=0) for n in range(a.many(20_000)))
    async for _ in a.again(0.05):
        await a.put(limited(n).options(result_ttl=0) for n in range(100))


@attack("a limit of a task name, used up", f"20,000 tasks of a name with `max_running={PLACES}`, the quiet user's free")
async def choking(a: Attacker) -> None:
    await choke(a, lambda: a.queue.set_limit(LIMITED, max_running=PLACES))


@attack(
    "the same, of the quiet user's tasks",
    "the quiet user's tasks have the limited name as well",
    Rivals(places=PLACES),
    same_name=True,
)
async def choking_the_same(a: Attacker) -> None:
    await choke(a, lambda: a.queue.set_limit(LIMITED, max_running=PLACES))


@attack("a limit that changes", "`set_limit` of 1, 2, none in a loop, 20,000 tasks of the name", counts_all=True)
async def limit_in_a_loop(a: Attacker) -> None:
    await a.put(limited(n).options(result_ttl=0) for n in range(a.many(20_000)))
    turns = cycle((1, 2, None))
    async for _ in a.again():
        await a.queue.set_limit(LIMITED, max_running=next(turns))


@attack("long tasks in every slot", "tasks of 0.2 s: the next slot comes free after as long", within_ms=1_200.0)
async def long(a: Attacker) -> None:
    await a.put(nap(0.2) for _ in range(20 * a.slots))
    await a.until_stopped()


@attack("endless tasks, with a cap", "tasks of an hour, `max_running` of all slots but one", Rivals(credit=CREDIT))
async def endless(a: Attacker) -> None:
    await a.queue.set_policy(ATTACKER, max_running=a.slots - 1)
    await a.put(nap(3600.0) for _ in range(a.many(5_000)))
    await a.until_stopped()


@attack("endless tasks, with a share", f"tasks of an hour, `max_share={SHARE}`", Rivals(credit=CREDIT))
async def endless_share(a: Attacker) -> None:
    await a.queue.set_policy(ATTACKER, max_share=SHARE)
    await a.put(nap(3600.0) for _ in range(a.many(5_000)))
    await a.until_stopped()
