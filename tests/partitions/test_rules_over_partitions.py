"""What governs all users is the same in each partition, before that serves anybody."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import pytest

from fairque import EVERYBODY, Limit, TaskQueue, Worker, task
from fairque.redis import arguments
from fairque.redis.keys import encode_user
from fairque.tasks.registry import unregister
from tests.support.eventually import eventually

if TYPE_CHECKING:
    from fairque.redis.arguments import Arguments
    from tests.support.servers import Server

pytestmark = [pytest.mark.damages, pytest.mark.leaves_keys()]
USERS = [f"user-{n}" for n in range(20)]
at_once, most = 0, 0


@task(limits=[Limit("by the rules")])
async def follow_rules(seconds: float = 0.01) -> None:
    global at_once, most
    at_once += 1
    most = max(most, at_once)
    await asyncio.sleep(seconds)
    at_once -= 1


@pytest.fixture
async def queue(server: Server, queue_name: str) -> AsyncIterator[TaskQueue]:
    global at_once, most
    at_once = most = 0
    async with TaskQueue(server.url, name=queue_name, partitions=4) as queue:
        yield queue


async def tell_the_first(queue: TaskQueue, change: Arguments) -> None:
    """As if the others were away."""
    await queue.reader.parts[0].call(change)


def limit(record: str, most: int) -> arguments.Limits:
    return arguments.Limits(False, [arguments.LimitRecord(record, True, most, None, None)], -1)


async def revisions(queue: TaskQueue) -> list[int]:
    return [(await part.heads()).revision for part in queue.reader.parts]


async def test_partitions_that_were_away_are_brought_a_limit_before_they_serve(queue: TaskQueue) -> None:
    handles = [await queue.enqueue(follow_rules(), user_id=user) for user in USERS * 2]
    await tell_the_first(queue, limit(":by the rules", 1))
    async with Worker(queue, scheduler=False, concurrency=20):
        for handle in handles:
            await handle.result(timeout=30)
    assert most == 1
    assert len(set(await revisions(queue))) == 1


async def test_partitions_that_were_away_are_brought_a_pause_before_they_serve(queue: TaskQueue) -> None:
    for user in USERS:
        await queue.enqueue(follow_rules(), user_id=user)
    await tell_the_first(queue, arguments.Policy("*", {"paused": True}, [], revision=-1))
    async with Worker(queue, scheduler=False, concurrency=20):

        async def are_told() -> bool:
            return len(set(await revisions(queue))) == 1

        await eventually(are_told, 20)
        assert most == 0
        await queue.resume(EVERYBODY)
        await eventually(lambda: most > 0, 20)


async def test_what_was_taken_back_meanwhile_is_taken_back(queue: TaskQueue) -> None:
    await queue.set_limit("old", max_running=1)
    await queue.pause_task("some.task")
    await queue.set_limit("of:{one}", max_running=3, user_id="user-1")
    await queue.set_policy(EVERYBODY, max_queued=7)
    first, *others = queue.reader.parts
    await tell_the_first(queue, arguments.Limits(False, [arguments.LimitRecord(":old", False, None, None, None)], -1))
    await tell_the_first(queue, limit("=new%3A%7Bx%7D", 5))
    await tell_the_first(queue, arguments.Policy("*", {}, ["*"], revision=-1))
    for other in others:
        await other.follow(await first.rulebook())
        await other.follow(await first.rulebook())  # once is enough
    books = [await part.rulebook() for part in queue.reader.parts]
    assert all(book == books[0] for book in books)
    assert [rule.record for rule in books[0].follow.rules] == [":some.task", "=new%3A%7Bx%7D"]
    assert books[0].policy == b""
    assert [info.user_id for info in await queue.limits()].count("user-1") == 1
    assert (await queue.get_policy(EVERYBODY)).max_queued is None


async def test_a_change_that_follows_one_that_was_missed_brings_both(queue: TaskQueue) -> None:
    await tell_the_first(queue, limit(":missed", 1))
    await queue.set_limit("told", max_running=2)
    for part in queue.reader.parts:
        assert [rule.record for rule in (await part.rulebook()).follow.rules] == [":missed", ":told"]
    assert await revisions(queue) == [2] * 4


async def test_what_changes_nothing_has_no_revision(queue: TaskQueue) -> None:
    for _ in range(3):
        await queue.set_limit("same", max_running=2)
        await queue.set_policy(EVERYBODY, weight=2)
    assert await revisions(queue) == [2] * 4


async def test_a_partition_with_an_older_revision_hands_out_nothing(queue: TaskQueue) -> None:
    await queue.enqueue(follow_rules(), user_id="acme")
    part = queue.reader.part_of(encode_user("acme"))
    claim = await part.claim("w", 1, latest=0.0, floor=0.0, revision=1, wait=False)
    assert claim.is_outdated
    assert not claim.deliveries
    assert (await part.claim("w", 1, latest=0.0, floor=0.0, wait=False)).deliveries
    await part.leave("w", [()])


async def test_a_worker_declares_limits_over_all_users_once(queue: TaskQueue) -> None:
    @task(max_running=2, name="declared over partitions")
    async def declared() -> None: ...

    try:
        for _ in range(2):
            handle = await queue.enqueue(declared(), user_id="acme")
            async with Worker(queue, scheduler=False):
                await handle.result(timeout=20)
        assert (await revisions(queue))[0] == 1
        [info] = [info for info in await queue.limits() if info.key == declared.name]
        assert info.max_running == 2
        assert info.declared
    finally:
        unregister(declared.name)
