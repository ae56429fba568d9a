"""What a service is charged: large, small, afterwards."""

from __future__ import annotations

from fairque import InvalidInput
from fairque.tasks.options import MAX_COST, MIN_COST
from tests.isolation.suite.attack import Attacker, attack
from tests.isolation.suite.bounds import Rivals
from tests.isolation.suite.tasks import charge, nap

TINY = 0.01


@attack("the largest costs", f"`cost={MAX_COST:,}`")
async def huge(a: Attacker) -> None:
    await a.backlog_of(lambda _: nap().options(cost=MAX_COST), a.many(5_000))


@attack("tiny costs", f"`cost={TINY}`, so that {1 / TINY:.0f} are worth one of the quiet user's", Rivals(cost=TINY))
async def tiny(a: Attacker) -> None:
    await a.backlog_of(lambda _: nap().options(cost=TINY), a.many(20_000))


@attack("tiny and large costs in turn", f"`cost={TINY}` and `cost={MAX_COST:,}`", Rivals(cost=TINY))
async def both(a: Attacker) -> None:
    await a.backlog_of(lambda n: nap().options(cost=TINY if n % 200 else MAX_COST), a.many(20_000))


@attack("negative costs", "`cost=-1`, `cost=0`, `charge(-1)`: refused")
async def negative(a: Attacker) -> None:
    await a.put(charge(-1.0) for _ in range(a.many(1_000)))
    async for n in a.again():
        try:
            await a.put_one(nap().options(cost=(-1.0, 0.0, MIN_COST / 2, float("nan"), -float("inf"))[n % 5]))
        except InvalidInput:
            continue
        raise AssertionError("a cost that breaks the rules was taken")


@attack("huge charges", "`charge(1e9)` in each task")
async def charged(a: Attacker) -> None:
    await a.backlog_of(lambda _: charge(1e9), a.many(2_000))


@attack("charges of nothing", "`charge(0)` and `cost` of 1")
async def uncharged(a: Attacker) -> None:
    await a.backlog_of(lambda _: charge(0.0), a.many(5_000))
