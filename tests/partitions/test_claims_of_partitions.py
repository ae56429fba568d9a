"""What a claim in one partition knows of the others: how far it goes, and from where one goes on that stood still."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import pytest

from fairque import task
from tests.support.eventually import eventually

if TYPE_CHECKING:
    from fairque import TaskQueue
    from fairque.redis.delivery import Claim, Delivery
    from fairque.redis.store import Store

WORKER = "w"
FAR = 1000.0


@task
async def share_in_partition(n: int = 0) -> int:
    return n


@pytest.fixture
async def store(queue: TaskQueue) -> AsyncIterator[Store]:
    """Hands back what was claimed by it."""
    store = queue.store()
    yield store
    await queue.purge("acme")
    for user in await queue.users():
        await queue.purge(user.user_id)
    await store.leave(WORKER, [()])
    await store.close()


async def put_in(queue: TaskQueue, user: str, many: int) -> None:
    await queue.enqueue_many([share_in_partition(n) for n in range(many)], user_id=user)


async def served(store: Store, want: int, **how: Any) -> Claim:
    claim = await store.claim(WORKER, want, latest=how.pop("latest", 0.0), floor=how.pop("floor", -FAR), **how)
    await settle(store, claim.deliveries)
    return claim


async def settle(store: Store, deliveries: list[Delivery]) -> None:
    from fairque.redis.delivery import Outcome

    if deliveries:
        await store.settle(WORKER, [Outcome(of, "finished", 1000, 0, b"") for of in deliveries])


def users_of(claim: Claim) -> dict[bytes, int]:
    return Counter(of.user for of in claim.deliveries)


@pytest.mark.damages
async def test_a_claim_stops_where_the_next_partition_stands(queue: TaskQueue, store: Store) -> None:
    for user in ("acme", "zoe"):
        await put_in(queue, user, 20)
    claim = await served(store, 30, up_to=4.0)
    assert users_of(claim) == {b"acme": 5, b"zoe": 5}
    assert claim.heads is not None
    assert claim.heads.head == 5.0
    nobody = await served(store, 30, up_to=4.5)
    assert not nobody.deliveries
    assert nobody.heads is not None
    assert nobody.heads.head == 5.0


@pytest.mark.damages
async def test_who_is_left_for_later_keeps_nobody_waiting_in_the_list_of_idle_workers(
    server: Any, queue: TaskQueue, store: Store
) -> None:
    await put_in(queue, "acme", 5)
    await served(store, 30, up_to=1.0)
    waiting = f"{queue.keys.prefix}waiting"
    assert not server.execute("SMEMBERS", waiting)
    await served(store, 30)
    assert server.execute("SMEMBERS", waiting) == [WORKER.encode()]


@pytest.mark.damages
async def test_a_partition_that_stood_empty_goes_on_from_the_time_of_the_others(queue: TaskQueue, store: Store) -> None:
    await put_in(queue, "acme", 2)
    assert len((await served(store, 10)).deliveries) == 2
    await put_in(queue, "zoe", 3)
    assert not (
        await served(store, 10, latest=FAR, up_to=FAR)
    ).deliveries  # as others do, it comes half a service later
    claim = await served(store, 10, latest=FAR, up_to=FAR + 0.5)
    assert len(claim.deliveries) == 1
    assert claim.heads is not None
    assert claim.heads.time == pytest.approx(FAR)
    assert claim.heads.head == pytest.approx(FAR + 1.5)


@pytest.mark.damages
async def test_a_partition_that_was_away_with_a_backlog_is_owed_no_more_than_the_floor(
    queue: TaskQueue, store: Store
) -> None:
    await put_in(queue, "acme", 20)
    await served(store, 2)
    claim = await served(store, 10, latest=FAR, floor=FAR - 3, up_to=FAR)
    assert len(claim.deliveries) == 4  # at FAR - 3 and so on
    again = await served(store, 10, latest=FAR, floor=FAR - 3, up_to=FAR + 1)
    assert len(again.deliveries) == 1


@pytest.mark.damages
async def test_looks_tell_what_claims_tell(queue: TaskQueue, store: Store) -> None:
    assert await store.heads() == (None, 0.0, 0.0, 0, 0, 0.0, False, -1, 0)
    for user in ("acme", "zoe"):
        await put_in(queue, user, 4)
    claim = await served(store, 3, latest=FAR)
    assert claim.heads == await store.heads()
    assert claim.heads.head == pytest.approx(FAR + 1)


@pytest.mark.damages
async def test_a_look_tells_that_somebody_is_due(queue: TaskQueue, store: Store) -> None:
    await queue.enqueue(share_in_partition(), user_id="acme", delay=0.05)

    async def is_due() -> bool:
        return (await store.heads()).head is not None

    await eventually(is_due)
    assert len((await served(store, 1)).deliveries) == 1


@pytest.mark.damages
async def test_a_partition_with_reservations_that_are_not_met_goes_first(queue: TaskQueue, store: Store) -> None:
    await put_in(queue, "acme", 4)
    await served(store, 2)
    await queue.set_policy("zoe", min_running=1)
    await put_in(queue, "zoe", 1)
    assert (await store.heads()).head == -math.inf
    claim = await store.claim(WORKER, 1, latest=0.0, floor=-FAR, up_to=-FAR)
    assert users_of(claim) == {b"zoe": 1}
    await settle(store, claim.deliveries)


@pytest.mark.damages
async def test_workers_of_some_users_see_the_heads_of_those(queue: TaskQueue, store: Store) -> None:
    mine = {"groups": [["zoe"]], "latest": 0.0, "floor": -FAR}
    await put_in(queue, "acme", 4)
    nobody = await store.claim("of zoe", 1, **mine)  # type: ignore[arg-type]
    assert nobody.heads is not None
    assert nobody.heads.head is None
    await put_in(queue, "zoe", 3)
    assert (await store.heads([["zoe"]])).head == 0.0
    claim = await store.claim("of zoe", 2, **mine)  # type: ignore[arg-type]
    assert claim.heads is not None
    assert claim.heads.head == 2.0
    await store.settle("of zoe", [_released(of) for of in claim.deliveries])
    await store.leave("of zoe", [["zoe"]])


def _released(delivery: Delivery) -> Any:
    from fairque.redis.delivery import Outcome

    return Outcome(delivery, "released")


@pytest.mark.damages
async def test_a_worker_that_has_no_time_hands_on_what_it_was_told(server: Any, queue: TaskQueue, store: Store) -> None:
    heard: asyncio.Queue[str] = asyncio.Queue()
    busy, idle = "busy", "idle"
    for name in (busy, idle):
        await queue.listener.subscribe(queue.keys.wake_channel(name), lambda _, name=name: heard.put_nowait(name))
    while not heard.empty():
        heard.get_nowait()
    for name in (busy, idle):
        await store.claim(name, 1, latest=0.0, groups=[()])
    await put_in(queue, "acme", 1)
    told = await asyncio.wait_for(heard.get(), 5)
    await store.hand_on(told, [()])
    assert {told, await asyncio.wait_for(heard.get(), 5)} == {busy, idle}
    assert not server.execute("SMEMBERS", f"{queue.keys.prefix}waiting")
    for name in (busy, idle):
        await store.leave(name, [()])
