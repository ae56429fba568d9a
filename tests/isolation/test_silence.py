"""Nobody looks for what silent workers had while all workers live; when one dies, all of it is found."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import pytest

from fairque import TaskQueue, Worker
from fairque.redis.requester import BlockingRequester
from fairque.redis.store import Store, renew
from tests.support.core import new_task, outcome
from tests.support.together import keys_of_all, store_of_all

if TYPE_CHECKING:
    from fairque.redis.delivery import Delivery
    from tests.support.servers import Server

USERS = 2000
LEASE = 1.0
RENEWAL = 0.2
SECONDS = 3

pytestmark = pytest.mark.leaves_keys()


def calls(server: Server) -> dict[str, int]:
    """How often each command was called so far."""
    found = {}
    for line in server.execute("INFO", "commandstats").decode().splitlines():
        name, _, rest = line.partition(":")
        if name.startswith("cmdstat_"):
            found[name.removeprefix("cmdstat_")] = int(rest.partition("calls=")[2].partition(",")[0])
    return found


async def keep(queue: TaskQueue, worker: str, taken: list[Delivery], seconds: float) -> None:
    """Renew them for so long, as their worker does."""
    with contextlib.closing(BlockingRequester(queue.connector)) as requester:
        for _ in range(round(seconds / RENEWAL)):
            await asyncio.sleep(RENEWAL)
            for at in range(0, len(taken), 500):
                lost, *_ = renew(requester, keys_of_all(queue), worker, {"running": len(taken)}, taken[at : at + 500])
                assert not lost


async def put_in(queue: TaskQueue, users: int) -> None:
    store = queue.store()
    for at in range(0, users, 500):
        await store.enqueue([new_task(f"user {n}", "t", 3, 1.0, 0, b"n" * 8) for n in range(at, min(at + 500, users))])
    await store.close()


async def take(store: Store, worker: str, tasks: int) -> list[Delivery]:
    taken: list[Delivery] = []
    while len(taken) < tasks:
        taken += (await store.claim(worker, min(500, tasks - len(taken)), wait=False)).deliveries
    return taken


@pytest.fixture
async def queue(server: Server, queue_name: str) -> AsyncIterator[TaskQueue]:
    async with TaskQueue(server.url, name=queue_name, lease=LEASE) as queue:
        yield queue


async def test_idle_workers_do_not_look_at_what_live_ones_have(server: Server, queue: TaskQueue) -> None:
    await put_in(queue, USERS)
    store = store_of_all(queue.store())
    taken = await take(store, "busy", USERS)
    async with Worker(queue, scheduler=False), Worker(queue, scheduler=False):
        await keep(queue, "busy", taken, 2 * LEASE)
        before = calls(server)
        await keep(queue, "busy", taken, SECONDS)
        grown = {name: count - before.get(name, 0) for name, count in calls(server).items()}
    renewals = SECONDS / RENEWAL * USERS / 500
    few = 8 * SECONDS * len(store.parts)
    assert grown["fcall"] + grown.get("fcall_ro", 0) - renewals <= few, "a bounded few a second, of each partition"
    assert grown.get("xpending", 0) <= USERS / 10, "five times at each lane, if it were not for that"
    while taken:
        await store.settle("busy", [outcome(of, "finished") for of in taken[:500]])
        del taken[:500]
    await store.close()


async def test_what_a_worker_had_that_fell_silent_is_found_and_then_nobody_looks_any_more(
    server: Server, queue: TaskQueue
) -> None:
    await put_in(queue, 100)
    store = store_of_all(queue.store())
    lives, dies = await take(store, "lives", 50), await take(store, "dies", 50)
    await keep(queue, "lives", lives, 1.5 * LEASE)
    keeping = asyncio.create_task(keep(queue, "lives", lives, 60))
    requester = BlockingRequester(queue.connector)
    # A tenth of them may be suspects.
    renew(requester, keys_of_all(queue), "many", {"concurrency": 10_000, "running": 0}, [])
    requester.close()
    found: list[Delivery] = []
    for thief in range(60):
        found += (await store.claim(f"thief {thief}", 1, wait=False)).deliveries
    assert {of.user_id for of in found} == {of.user_id for of in dies}
    before = calls(server)
    for thief in range(60, 80):
        assert not (await store.claim(f"thief {thief}", 1, wait=False)).deliveries
    assert calls(server).get("xpending", 0) == before.get("xpending", 0)
    keeping.cancel()
    await asyncio.wait([keeping])
    await store.settle("lives", [outcome(of, "finished") for of in lives])
    await store.close()


async def test_a_worker_that_died_before_it_saw_the_answer_to_its_claim_is_missed_as_well(queue: TaskQueue) -> None:
    """Its last sign was that it had nothing: it came after the claim, and knew nothing of it."""
    await put_in(queue, 1)
    store = store_of_all(queue.store())
    [lost] = (await store.claim("dies", 1, wait=False, number=7)).deliveries
    requester = BlockingRequester(queue.connector)
    renew(requester, keys_of_all(queue), "dies", {"running": 0, "claims": 6}, [])
    requester.close()
    await asyncio.sleep(1.1 * LEASE)
    [found] = (await store.claim("thief", 1, wait=False)).deliveries
    assert found.user_id == lost.user_id
    await store.close()


async def test_a_worker_that_ran_nothing_but_had_not_reported_all_when_it_died_is_missed_as_well(
    queue: TaskQueue,
) -> None:
    await put_in(queue, 1)
    store = store_of_all(queue.store())
    taken = await take(store, "dies", 1)
    requester = BlockingRequester(queue.connector)
    renew(requester, keys_of_all(queue), "dies", {"running": 0}, taken)
    requester.close()
    await asyncio.sleep(1.1 * LEASE)
    [found] = (await store.claim("thief", 1, wait=False)).deliveries
    assert found.user_id == taken[0].user_id
    await store.settle("thief", [outcome(found, "finished")])
    await store.close()


@pytest.mark.parametrize("groups", [((),), (["user 0", "user 1", "user 2"],)], ids=["everybody", "an assignment"])
async def test_what_a_worker_had_that_knew_a_longer_lease_is_found_within_the_shorter_one(
    server: Server, queue_name: str, groups: tuple[list[str], ...]
) -> None:
    """Each lane was to be looked at after 30 of the longer leases."""
    async with TaskQueue(server.url, name=queue_name, lease=600.0) as before:
        await put_in(before, 3)
        store = store_of_all(before.store())
        lost = (await store.claim("dies", 3, wait=False, groups=groups)).deliveries
        await store.close()
        await before.change_settings(lease=LEASE)
    async with TaskQueue(server.url, name=queue_name) as queue:
        store = store_of_all(queue.store())
        await asyncio.sleep(1.1 * LEASE)
        with contextlib.closing(BlockingRequester(queue.connector)) as requester:  # a tenth may be suspects
            renew(requester, keys_of_all(queue), "many", {"concurrency": 100, "running": 0}, [])
        for thief in range(3):
            [found] = (await store.claim(f"thief {thief}", 1, wait=False, groups=groups)).deliveries
            lost = [of for of in lost if of.user_id != found.user_id]
            await store.settle(f"thief {thief}", [outcome(found, "finished")])
        assert not lost
        await store.close()
