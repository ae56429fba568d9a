"""Limits by a key over all users hold over all partitions of a queue."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest

from fairque import EVERYBODY, FindingKind, Limit, TaskQueue, Worker, current_task, task
from fairque.redis.delivery import Delivery, Outcome
from fairque.redis.partitions import partition_of
from fairque.redis.requester import pack
from tests.support.eventually import eventually

if TYPE_CHECKING:
    from fairque.redis.store import Store
    from tests.support.servers import Server

pytestmark = [pytest.mark.damages, pytest.mark.leaves_keys()]
PARTITIONS = 4
USERS = [f"user-{n}" for n in range(20)]


class Running:
    """How many run at once, by key."""

    def __init__(self) -> None:
        self.now: dict[str, int] = {}
        self.most: dict[str, int] = {}
        self.order: list[str] = []
        self.starts: list[float] = []

    def begin(self, key: str) -> None:
        self.order.append(current_task().user_id)
        self.now[key] = self.now.get(key, 0) + 1
        self.most[key] = max(self.most.get(key, 0), self.now[key])

    def end(self, key: str) -> None:
        self.now[key] -= 1


running = Running()


@task(limits=[Limit("shared-by-all")])
async def call_crm(seconds: float = 0.01) -> None:
    running.begin("crm")
    await asyncio.sleep(seconds)
    running.end("crm")


@task(limits=[Limit("account:{account}", shared=True)])
async def call_account(account: str, seconds: float = 0.005) -> None:
    running.begin(account)
    await asyncio.sleep(seconds)
    running.end(account)


@task(limits=[Limit("started-by-all")])
async def start() -> None:
    running.starts.append(time.monotonic())


@pytest.fixture(autouse=True)
def fresh() -> None:
    running.__init__()  # type: ignore[misc]


@pytest.fixture
async def queue(server: Server, queue_name: str) -> AsyncIterator[TaskQueue]:
    async with TaskQueue(server.url, name=queue_name, partitions=PARTITIONS) as queue:
        yield queue


@pytest.mark.parametrize("most", [1, 3, 7])
async def test_no_more_run_at_once_than_may_over_all_partitions(queue: TaskQueue, most: int) -> None:
    await queue.set_limit("shared-by-all", max_running=most)
    handles = [await queue.enqueue(call_crm(), user_id=user) for user in USERS * 4]
    async with Worker(queue, scheduler=False, concurrency=30), Worker(queue, scheduler=False, concurrency=30):
        for handle in handles:
            await handle.result(timeout=30)
    assert running.most["crm"] == most


async def test_a_place_goes_around_among_the_partitions(queue: TaskQueue) -> None:
    """Each of the users has one of every few starts, wherever it lives."""
    chosen = [next(user for user in USERS if partition_of(user, PARTITIONS) == at) for at in range(PARTITIONS)]
    await queue.set_limit("shared-by-all", max_running=1)
    handles = [h for user in chosen for h in await queue.enqueue_many([call_crm(0.005)] * 10, user_id=user)]
    async with Worker(queue, scheduler=False, concurrency=10):
        for handle in handles:
            await handle.result(timeout=30)
    assert running.most["crm"] == 1
    for user in chosen:
        at = [n for n, who in enumerate(running.order) if who == user]
        assert max(b - a for a, b in pairwise(at)) <= 3 * PARTITIONS, running.order


async def test_nothing_is_left_of_places_that_nobody_uses(queue: TaskQueue, server: Server) -> None:
    await queue.set_limit("account:{account}", max_running=2)
    handles = [await queue.enqueue(call_account(f"a{n % 5}"), user_id=USERS[n % 20]) for n in range(100)]
    async with Worker(queue, scheduler=False, concurrency=20):
        for handle in handles:
            await handle.result(timeout=30)
        assert set(running.most.values()) == {2}

        def is_clean() -> bool:
            return not any(
                server.execute("KEYS", f"fairque:{{{queue.name}/*{kind}*") for kind in ("loan:", "loans:", "exchanges")
            )

        await eventually(is_clean, 10)


async def test_nothing_is_left_of_a_rate_that_was_taken_back_while_a_partition_had_it(
    queue: TaskQueue, server: Server
) -> None:
    at = home_of_key("started-by-all")
    away = (at + 1) % PARTITIONS
    home, part = queue.reader.parts[at], queue.reader.parts[away]
    await queue.set_limit("started-by-all", rate="1/s burst 1")
    await queue.enqueue(start(), user_id=next(user for user in USERS if partition_of(user, PARTITIONS) == away))
    assert (await part.claim("w", 1, latest=0.0, floor=0.0)).deliveries == []
    found = await part.exchange(10)
    (told,) = (await home.lend(away, found.at_us, found.asks[at]))[away]
    assert told.lease > 0
    await queue.clear_limit("started-by-all")

    async def is_clean() -> bool:
        await home.exchange(10)
        return not server.execute("EXISTS", f"{home.keys.prefix}loans::started-by-all")

    await eventually(is_clean, 10)
    (delivery,) = (await part.claim("w", 1, latest=0.0, floor=0.0)).deliveries
    await part.settle("w", [Outcome(delivery, "finished", 1000, 0, b"")])
    await part.leave("w", [()])


async def test_a_rate_over_all_users_is_never_exceeded(queue: TaskQueue) -> None:
    """As Redis has it: a start comes some milliseconds later in the worker, those of one call together."""
    await queue.set_limit("started-by-all", rate="100/s burst 5")
    handles = [await queue.enqueue(start(), user_id=user) for user in USERS * 10]
    began = time.monotonic()
    async with Worker(queue, scheduler=False, concurrency=30):
        for handle in handles:
            await handle.result(timeout=60)
    took = time.monotonic() - began
    infos = [await handle.info() for handle in handles]
    starts = sorted(info.started_at for info in infos if info.started_at is not None)
    assert len(starts) == len(handles)
    for first, one in enumerate(starts):
        within = sum(1 for other in starts[first:] if other < one + 0.5)
        assert within <= 5 + 0.5 * 100 + 1, f"{within} starts within half a second"
    assert took < 20


async def test_a_limit_that_is_lowered_or_raised_holds_at_once(queue: TaskQueue) -> None:
    await queue.set_limit("shared-by-all", max_running=6)
    handles = [await queue.enqueue(call_crm(0.02), user_id=user) for user in USERS * 12]
    async with Worker(queue, scheduler=False, concurrency=30):
        await eventually(lambda: running.most.get("crm") == 6, 20)
        await queue.set_limit("shared-by-all", max_running=2)
        await eventually(lambda: running.now["crm"] <= 2, 20)
        running.most["crm"] = 0
        await eventually(lambda: len(running.order) >= 120, 30)
        assert running.most["crm"] == 2
        await queue.set_limit("shared-by-all", max_running=8)
        for handle in handles:
            await handle.result(timeout=30)
    assert 6 <= running.most["crm"] <= 8


async def test_what_runs_when_a_limit_is_set_counts_in_each_partition(queue: TaskQueue) -> None:
    handles = [await queue.enqueue(call_crm(0.5), user_id=user) for user in USERS[:10]]
    async with Worker(queue, scheduler=False, concurrency=30):
        await eventually(lambda: running.now.get("crm") == 10)
        await queue.set_limit("shared-by-all", max_running=3)
        handles += [await queue.enqueue(call_crm(0.01), user_id=user) for user in USERS * 2]
        await eventually(lambda: running.now["crm"] <= 3, 20)
        running.most["crm"] = 0
        for handle in handles:
            await handle.result(timeout=30)
    assert running.most["crm"] <= 3


async def test_many_keys_of_one_user_keep_those_of_others_waiting_for_little(queue: TaskQueue) -> None:
    await queue.set_limit("account:{account}", max_running=1)
    await queue.enqueue_many([call_account(f"many {n}") for n in range(1500)], user_id=USERS[0])
    neighbour = next(u for u in USERS[1:] if partition_of(u, PARTITIONS) == partition_of(USERS[0], PARTITIONS))
    async with Worker(queue, scheduler=False, concurrency=20):
        await eventually(lambda: len(running.order) > 20, 30)
        for n in range(5):
            handle = await queue.enqueue(call_account(f"few {n}"), user_id=neighbour)
            before = len(running.order)
            await handle.result(timeout=30)
            assert len(running.order) - before < 400
    await queue.purge(USERS[0])


async def test_places_that_nobody_would_move_are_found_and_moved(queue: TaskQueue, server: Server) -> None:
    await queue.set_limit("shared-by-all", max_running=1)
    for user in USERS[:8]:
        await queue.enqueue(call_crm(), user_id=user)
    running: list[tuple[Store, Delivery]] = []
    for part in queue.reader.parts:
        running += [(part, of) for of in (await part.claim("w", 5, latest=0.0, floor=0.0)).deliveries]
        await part.leave("w", [()])
    lost = [part.keys.prefix + "exchanges" for part in queue.reader.parts]
    assert server.execute("DEL", *lost) > 0
    found = {finding.kind for finding in (await queue.check()).findings}
    assert FindingKind.STRANDED_PLACES in found
    assert (await queue.check(repair=True)).sound
    for part, of in running:
        await part.settle("w", [Outcome(of, "finished", 1000, 0, b"")])
    for user in USERS[:8]:
        await queue.purge(user)


async def test_what_runs_under_a_limit_ends_when_only_a_pause_of_its_name_is_left(
    queue: TaskQueue, caplog: pytest.LogCaptureFixture
) -> None:
    users = USERS[:4]
    await queue.set_limit("shared-by-all", max_running=4)
    async with Worker(queue, scheduler=False, concurrency=10):
        handles = [await queue.enqueue(call_crm(1.0), user_id=user) for user in users]
        await eventually(lambda: running.now.get("crm") == len(users))
        await queue.pause_task("shared-by-all")
        await queue.clear_limit("shared-by-all")
        for handle in handles:
            await handle.result(timeout=10)
    assert caplog.messages == [], "each report was taken at the first try"
    await queue.resume_task("shared-by-all")
    assert (await queue.check()).findings == ()


async def test_a_user_that_is_moved_takes_no_place_along_and_gets_one_where_it_lives_then(queue: TaskQueue) -> None:
    """What has a place ends where it began; what is held for one is held there, beside others who compete for it."""
    await queue.set_limit("shared-by-all", max_running=2)
    mover, others = USERS[0], USERS[1:8]
    at = partition_of(mover, PARTITIONS)
    async with Worker(queue, scheduler=False, concurrency=20):
        handles = [await queue.enqueue(call_crm(0.3), user_id=mover) for _ in range(2)]
        await eventually(lambda: running.now.get("crm") == 2)
        handles += [await queue.enqueue(call_crm(), user_id=user) for user in (mover, *others) for _ in range(3)]
        for to in ((at + 1) % PARTITIONS, (at + 2) % PARTITIONS, at):
            assert (await queue.move(mover, to)).partition == to
            handles += [await queue.enqueue(call_crm(), user_id=mover) for _ in range(3)]
        for handle in handles:
            await handle.result(timeout=30)
    assert running.most["crm"] == 2
    assert sum(user == mover for user in running.order) == 14
    assert (await queue.check()).findings == ()


async def test_a_check_finds_nothing_wrong_with_places_that_go_around_or_tasks_that_are_paused(
    queue: TaskQueue,
) -> None:
    await queue.set_limit("shared-by-all", max_running=2)
    async with Worker(queue, scheduler=False, concurrency=20):
        handles = [await queue.enqueue(call_crm(), user_id=user) for user in USERS for _ in range(4)]
        looks = 0
        while not all([(await handle.state()).ended for handle in handles[-20:]]):
            assert (await queue.check()).findings == ()
            looks += 1
        assert looks
        handles = [await queue.enqueue(call_crm(), user_id=user) for user in USERS]
        await queue.pause_task("shared-by-all")
        for _ in range(3):
            assert (await queue.check()).findings == ()
        await queue.resume_task("shared-by-all")
        for handle in handles:
            await handle.result(timeout=30)


@pytest.mark.parametrize("paused", ["the user", "everybody"])
@pytest.mark.parametrize("user", USERS[:4])
async def test_who_was_paused_while_its_tasks_were_held_gets_places_when_it_goes_on(
    queue: TaskQueue, user: str, paused: str
) -> None:
    whose = user if paused == "the user" else EVERYBODY
    await queue.set_limit("shared-by-all", max_running=1)
    async with Worker(queue, scheduler=False, concurrency=20):
        first = await queue.enqueue(call_crm(0.5), user_id="first")
        await eventually(lambda: running.now.get("crm") == 1)
        handles = [await queue.enqueue(call_crm(), user_id=user) for _ in range(3)]
        await queue.pause(whose)
        await first.result(timeout=10)
        await eventually(lambda: nothing_is_asked(queue), 20)
        await queue.resume(whose)
        for handle in handles:
            await handle.result(timeout=10)


@pytest.mark.parametrize("rule", [{"max_running": 1}, {"rate": "5/s burst 1"}])
async def test_a_user_held_back_by_a_rule_of_its_own_gets_places_by_and_by(
    queue: TaskQueue, rule: dict[str, Any]
) -> None:
    await queue.set_limit("shared-by-all", max_running=3)
    for user in USERS[:4]:
        await queue.set_policy(user, **rule)
    async with Worker(queue, scheduler=False, concurrency=20):
        handles = [await queue.enqueue(call_crm(0.05), user_id=user) for user in USERS[:4] for _ in range(5)]
        for handle in handles:
            await handle.result(timeout=15)


def home_of_key(key: str) -> int:
    return int(hashlib.sha1(f":{key}".encode(), usedforsecurity=False).hexdigest()[:8], 16) % PARTITIONS


async def nothing_is_asked(queue: TaskQueue) -> bool:
    for part in queue.reader.parts:
        if await part._insist(pack((b"EXISTS", f"{part.keys.prefix}exchanges"))):
            return False
    return True
