"""Tasks that wait for others: many for one, one after the other, in circles."""

from __future__ import annotations

from itertools import pairwise

from fairque import DependencyError, parallel, sequential
from tests.isolation.suite.attack import ATTACKER, Attacker, attack
from tests.isolation.suite.tasks import fail, nap

CALL = 500


async def wait_for(a: Attacker, root: str, dependents: int, **options: str) -> None:
    for _ in range(0, dependents, CALL):
        await a.put(nap().options(depends_on=[root], **options) for _ in range(min(CALL, dependents)))


@attack("a hundred thousand that wait for one", "`depends_on` of 100,000 tasks, then that one ends")
async def fan_out(a: Attacker) -> None:
    await a.put([nap().options(task_id="root", delay=3600)])
    await wait_for(a, "root", a.many(100_000))
    await a.queue.handle(ATTACKER, "root").cancel()
    async for n in a.again(0.05):
        await a.put_one(nap().options(task_id=f"root {n}"))
        await wait_for(a, f"root {n}", a.many(5_000), on_dependency_failure="run")


@attack("failures that cascade", "2,000 tasks that are canceled with the one they wait for, in a loop")
async def cascades(a: Attacker) -> None:
    async for n in a.again():
        await a.put([nap().options(task_id=f"root {n}", delay=3600)])
        await wait_for(a, f"root {n}", a.many(2_000), on_dependency_failure="cancel")
        await a.queue.handle(ATTACKER, f"root {n}").cancel()


@attack("failures that many wait for", "2,000 tasks wait for one that fails, and go on all the same")
async def failures(a: Attacker) -> None:
    async for n in a.again(0.05):
        await a.put([fail().options(task_id=f"root {n}")])
        await wait_for(a, f"root {n}", a.many(2_000), on_dependency_failure="run")


@attack("chains", "500 tasks, each waits for the one before, in a loop")
async def chains(a: Attacker) -> None:
    async for n in a.again(0.01):
        chain = [nap().options(task_id=f"{n} {at}") for at in range(a.many(500))]
        linked = [later.options(depends_on=[f"{n} {at}"]) for at, (_, later) in enumerate(pairwise(chain))]
        await a.put([chain[0], *linked])


@attack("cycles", "tasks that would wait for each other, through 200 others: refused")
async def cycles(a: Attacker) -> None:
    links = 200
    async for n in a.again():
        name = [f"{n} {at}" for at in range(links)]
        for at in range(links - 1):
            await a.put_one(nap().options(task_id=name[at], depends_on=[name[at + 1]], allow_unknown=True))
        try:
            await a.put_one(nap().options(task_id=name[-1], depends_on=[name[0]]))
        except DependencyError:
            continue
        raise AssertionError("a cycle was taken")


@attack("pipelines", "pipelines of 500 tasks: one, then all, then one")
async def pipelines(a: Attacker) -> None:
    width = a.many(500)
    async for _ in a.again(0.01):
        graph = sequential(nap(), parallel(*(nap() for _ in range(width))), nap())
        await a.queue.enqueue(graph, user_id=ATTACKER)
        a.put_in += width + 2
