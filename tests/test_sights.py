"""What pages and screens look at: an overview, users in an order. What it costs does not grow with the queue."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from fairque import InvalidInput, Reason, Severity, StoreError, TaskQueue, UserOrder, UserPage, Worker, WorkerInfo, task
from fairque.embedded.server import EmbeddedServer
from fairque.models import SILENT_AFTER
from fairque.redis.delivery import Delivery
from fairque.redis.keys import encode_user
from fairque.redis.requester import BlockingRequester
from fairque.redis.store import Store, renew
from fairque.tasks.registry import unregister
from tests.support.commands import commands_of
from tests.support.core import Core, outcome
from tests.support.eventually import eventually
from tests.support.resp import RespClient
from tests.support.servers import Server


async def _nothing() -> None: ...


pytestmark = pytest.mark.leaves_keys()
idle = task(name="sights.idle")(_nothing)


@pytest.fixture
async def own_queue(own_server: Callable[..., EmbeddedServer], queue_name: str) -> AsyncIterator[TaskQueue]:
    async with TaskQueue(own_server().url, name=queue_name) as queue:
        yield queue


async def fill(queue: TaskQueue, users: int, tasks: int = 2, first: int = 0) -> None:
    made = [idle().options(user_id=f"user {n:06}") for n in range(first, first + users) for _ in range(tasks)]
    await queue.enqueue_many(made)


@asynccontextmanager
async def closing(store: Store) -> AsyncIterator[Store]:
    yield store
    await store.close()


async def take(queue: TaskQueue, want: int, worker: str = "w") -> list[Delivery]:
    async with closing(queue.store()) as store:
        return (await store.claim(worker, want)).deliveries


async def end(queue: TaskQueue, deliveries: list[Delivery], kind: str = "finished", worker: str = "w") -> None:
    async with closing(queue.store()) as store:
        assert all(each is True for each in await store.settle(worker, [outcome(of, kind) for of in deliveries]))


def tell(queue: TaskQueue, taken: list[Delivery], worker: str = "w", **fields: Any) -> None:
    """As a worker does with each renewal."""
    requester = BlockingRequester(queue.connector)
    renew(requester, queue.keys, worker, fields, taken)
    requester.close()


# The overview


async def test_an_overview_tells_who_holds_the_fleet_and_what_each_is_entitled_to(queue: TaskQueue) -> None:
    await fill(queue, 3, tasks=10)
    await queue.set_policy("user 000001", weight=2)
    taken = await take(queue, 8)
    tell(queue, taken, concurrency=10, running=8)
    found = await queue.overview()
    assert (found.stats.slots, found.stats.started, found.stats.queued) == (10, 8, 22)
    holders = found.holders()
    held = {holder.user.user_id: holder.held for holder in holders}
    assert held == {"user 000000": 0.2, "user 000001": 0.4, "user 000002": 0.2}
    assert holders[0].user.user_id == "user 000001", "the largest first"
    assert holders[0].entitled == 0.5
    assert found.shares.jain == pytest.approx(1)
    assert found.demand.running == 8
    assert found.queue == queue.name
    assert not found.is_sample


async def test_slots_of_a_worker_that_fell_silent_are_none(server: Server, begun: TaskQueue) -> None:
    queue = begun
    requester = BlockingRequester(queue.connector)
    for name, slots in (("heard", 3), ("silent", 5)):
        fields = {"host": "h", "pid": 1, "version": "0", "concurrency": slots, "running": 0}
        await asyncio.to_thread(renew, requester, queue.keys, name, fields, [])
    requester.close()
    async with Core(server.url, queue.name) as core:
        core.execute("HSET", ":worker:silent", "seen", round((time.time() - SILENT_AFTER - 1) * 1000))
        stats = await queue.stats()
        assert [worker.worker_id for worker in stats.silent] == ["silent"]
        assert (stats.slots, stats.free_slots, len(stats.workers)) == (3, 3, 2)
        assert (await queue.demand()).slots == 3
        core.execute("DEL", ":workers", ":worker:heard", ":worker:silent")


async def test_an_overview_says_in_words_what_is_wrong(queue: TaskQueue) -> None:
    await fill(queue, 1)
    found = await queue.overview()
    assert found.severity is Severity.CRITICAL
    assert [(each.name, each.text) for each in found.problems] == [("workers", "0 workers, 1 wanted")]


async def test_an_overview_says_what_of_its_policy_holds_a_user_back(queue: TaskQueue) -> None:
    await fill(queue, 2)
    await queue.pause("user 000000")
    statuses = (await queue.overview()).statuses
    [hold] = statuses["user 000000"].holds
    assert (hold.reason, hold.text, hold.until) == (Reason.PAUSED, "paused until it is resumed", None)
    assert not statuses["user 000001"].holds


async def test_those_who_were_not_looked_at_have_their_part_of_what_others_are_entitled_to(queue: TaskQueue) -> None:
    await fill(queue, 40)
    found = await queue.overview(limit=4)
    assert len(found.users) < 40
    assert [share.entitled for share in found.shares.users] == pytest.approx([1 / 40] * len(found.users))


@pytest.mark.damages
async def test_a_damaged_user_hides_no_other(queue: TaskQueue) -> None:
    await fill(queue, 3)
    with RespClient(queue.connector.url) as client:
        client.execute("SET", f"{queue.keys.prefix}dead:{encode_user('user 000001')}", "not a set")
    found = await queue.overview()
    assert sorted(user.user_id for user in found.users) == ["user 000000", "user 000002"]
    assert (await queue.health()).damaged_users == ("user 000001",)
    assert len(await queue.users()) == len((await queue.find_users()).users) == 2
    with pytest.raises(StoreError, match="dead:user"):
        await queue.user("user 000001")


async def test_an_overview_of_many_users_costs_no_more_commands_than_one_of_some(own_queue: TaskQueue) -> None:
    await fill(own_queue, 300)
    some = await commands_of(own_queue, lambda: own_queue.overview(limit=50))
    await fill(own_queue, 3000, tasks=3, first=300)
    many = await commands_of(own_queue, lambda: own_queue.overview(limit=50))
    assert sum(many.values()) <= sum(some.values()) * 1.1


# Users


async def all_pages(queue: TaskQueue, **options: object) -> list[UserPage]:
    pages, after = [], None
    while True:
        pages.append(await queue.find_users(after=after, **options))  # type: ignore[arg-type]
        after = pages[-1].after
        if after is None:
            return pages


@pytest.mark.parametrize("limit", [1, 7, 50])
async def test_users_by_activity_come_once_each_also_where_many_share_a_moment(queue: TaskQueue, limit: int) -> None:
    await fill(queue, 30, tasks=1)
    await fill(queue, 30, tasks=1, first=30)
    pages = await all_pages(queue, limit=limit)
    found = [user for page in pages for user in page.users]
    assert len(found) == 60
    assert len({user.user_id for user in found}) == 60
    assert [user.seen_at for user in found] == sorted((user.seen_at for user in found), reverse=True)
    assert all(page.known == 60 and not page.is_sample for page in pages)


async def test_who_becomes_active_between_two_pages_moves_no_other(queue: TaskQueue) -> None:
    await fill(queue, 20, tasks=1)
    first = await queue.find_users(limit=5)
    await queue.enqueue(idle(), user_id="someone new")
    rest = await all_pages(queue, limit=5)
    second = await queue.find_users(limit=50, after=first.after)
    assert {user.user_id for user in (*first.users, *second.users)} == {f"user {n:06}" for n in range(20)}
    assert rest[0].users[0].user_id == "someone new"


@pytest.mark.parametrize("limit", [5, 50, 1000])
async def test_a_search_finds_each_user_whose_id_begins_so(queue: TaskQueue, limit: int) -> None:
    await fill(queue, 300, tasks=1)
    await queue.enqueue_many([idle().options(user_id=f"a*b {n}") for n in range(20)])
    pages = await all_pages(queue, prefix="a*b ", limit=limit)
    assert {user.user_id for page in pages for user in page.users} == {f"a*b {n}" for n in range(20)}
    everybody = await all_pages(queue, prefix="user 0", limit=limit)
    assert {user.user_id for page in everybody for user in page.users} == {f"user {n:06}" for n in range(300)}
    assert all(len(page.users) <= 2 * limit + 20 for page in everybody)


async def test_the_user_of_just_this_id_is_on_the_first_page(queue: TaskQueue) -> None:
    await fill(queue, 500, tasks=1)
    await queue.enqueue(idle(), user_id="user")
    page = await queue.find_users(prefix="user", limit=5)
    assert page.users[0].user_id == "user"
    assert page.is_sample
    assert page.after
    assert not (await queue.find_users(prefix="nobody", limit=5)).users


async def test_other_orders_are_among_a_sample_that_is_marked(queue: TaskQueue) -> None:
    await fill(queue, 5, tasks=1)
    await queue.enqueue_many([idle()] * 30, user_id="large")
    page = await queue.find_users(order="waiting", limit=2)
    assert page.users[0].user_id == "large"
    assert (page.known, page.looked_at, page.is_sample) == (6, 6, False)
    await fill(queue, 900, tasks=1, first=100)
    page = await queue.find_users(order=UserOrder.WAIT, limit=2)
    assert page.is_sample
    assert page.looked_at < page.known == 906


async def test_those_with_the_most_dead_letters_are_found_behind_many_active_ones(queue: TaskQueue) -> None:
    await queue.enqueue_many([idle()] * 3, user_id="failing")
    await end(queue, await take(queue, 3), "failed")
    await fill(queue, 1500, tasks=1)
    page = await queue.find_users(order="dead", limit=5)
    assert (page.users[0].user_id, page.users[0].dead_letters) == ("failing", 3)


@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        ({"limit": 0}, "limit"),
        ({"order": "size"}, "order must be activity"),
        ({"after": "x"}, "after must be that of the page before"),
        ({"after": "12:"}, "after"),
        ({"prefix": "a", "after": "-1"}, "after"),
        ({"prefix": "a", "order": "dead"}, "leave order"),
        ({"prefix": "a" * 513}, "prefix"),
        ({"prefix": "\udc80"}, "prefix"),
        ({"order": "dead", "after": "1:a"}, "no next page"),
    ],
)
async def test_what_no_page_can_be_is_refused(queue: TaskQueue, options: dict, wrong: str) -> None:
    with pytest.raises(InvalidInput, match=wrong):
        await queue.find_users(**options)


async def test_a_page_costs_the_same_wherever_it_is_and_however_many_users_there_are(own_queue: TaskQueue) -> None:
    await fill(own_queue, 200, tasks=1)
    first = await commands_of(own_queue, lambda: own_queue.find_users(limit=20))
    await fill(own_queue, 3000, tasks=1, first=200)
    after = (await own_queue.find_users(limit=1000)).after
    later = await commands_of(own_queue, lambda: own_queue.find_users(limit=20, after=after))
    assert sum(later.values()) <= sum(first.values()) * 1.1 + 40  # a search by halves where many share a moment


# Workers, and what they run


async def test_what_runs_is_told_with_its_worker_and_its_start(queue: TaskQueue) -> None:
    await fill(queue, 3, tasks=4)
    await take(queue, 4, worker="one")
    await take(queue, 2, worker="two")
    found = await queue.running()
    assert len(found.tasks) == 6
    assert not found.is_sample
    assert {each.name for each in found.tasks} == {"sights.idle"}
    assert all(each.started_at is not None and 0 <= found.at - each.started_at < 60 for each in found.tasks)
    assert sorted(each.worker for each in found.tasks) == ["one"] * 4 + ["two"] * 2
    assert [each.worker for each in (await queue.running(worker_id="two")).tasks] == ["two"] * 2
    assert not (await queue.running(worker_id="three")).tasks


async def test_one_users_many_running_tasks_hide_no_others(queue: TaskQueue) -> None:
    await queue.enqueue_many([idle()] * 50, user_id="many")
    await take(queue, 50)
    await fill(queue, 4, tasks=1)
    await take(queue, 4)
    found = await queue.running(limit=10)
    assert {each.user_id for each in found.tasks} == {"many", *(f"user {n:06}" for n in range(4))}
    assert found.is_sample


async def test_a_worker_tells_its_memory_and_that_it_drains(queue: TaskQueue) -> None:
    opened = asyncio.Event()

    async def gated() -> None:
        await opened.wait()

    gate = task(name="sights.gated")(gated)
    handle = await queue.enqueue(gate(), user_id="acme")
    worker = Worker(queue, concurrency=3, scheduler=False, shutdown_timeout=20)
    try:
        async with worker:
            await eventually(lambda: has_worker(queue, lambda told: told.running == 1))
            [told] = (await queue.stats()).workers
            assert told.memory > 1_000_000
            assert (told.draining, (await queue.stats()).free_slots) == (False, 2)
            worker.retire()
            await eventually(lambda: has_worker(queue, lambda told: told.draining))
            assert (await queue.stats()).free_slots == 0
            opened.set()
            await handle.result(timeout=10)
    finally:
        unregister(gate.name)


async def has_worker(queue: TaskQueue, wanted: Callable[[WorkerInfo], bool]) -> bool:
    return any(wanted(worker) for worker in (await queue.stats()).workers)


async def test_a_missing_permission_is_told_and_not_taken_for_damage_of_each_user(
    own_server: Callable[..., EmbeddedServer], queue_name: str
) -> None:
    server = own_server(tcp=True)
    async with TaskQueue(server.url, name=queue_name) as queue:
        await fill(queue, 3)
        await take(queue, 1)
        looks = (queue.users, queue.running, queue.demand, queue.overview)
        for look in looks:
            await look()
        with RespClient(server.url) as client:
            client.execute("ACL", "SETUSER", "default", "-scard", "-getrange")
        for look in looks:
            with pytest.raises(StoreError):
                await look()
