"""A queue spread over partitions, by its own methods: a user lives in one of them, the queue is all of them."""

from __future__ import annotations

import re
from datetime import timedelta

import msgspec
import pytest

from fairque import (
    EVERYBODY,
    Attempt,
    DependencyError,
    FailureKind,
    InvalidInput,
    NotEncodable,
    SettingsMismatch,
    TaskQueue,
    TaskScheduler,
    TaskState,
    UnknownTask,
    task,
)
from fairque.redis.delivery import Outcome
from fairque.redis.keys import encode_user
from fairque.redis.partitions import partition_of
from fairque.redis.requester import pack
from fairque.tasks.message import Record, encode_record, encode_value
from fairque.testing import advance, enqueued, temporary_queue
from tests.support.command import call_command
from tests.support.servers import Server

COUNT = 4
USERS = [f"user {n}" for n in range(12)]
pytestmark = [pytest.mark.leaves_keys(), pytest.mark.partitions(COUNT)]


@task(name="partitions.double")
async def double(n: int) -> int:
    return 2 * n


def home_of(user_id: str) -> int:
    return partition_of(encode_user(user_id), COUNT)


async def put_in(queue: TaskQueue, each: int = 2) -> None:
    for n in range(each):
        for user in USERS:
            await queue.enqueue(double(n), user_id=user, task_id=f"t{n}")


async def totals(queue: TaskQueue) -> list[int]:
    await queue.reader.agree()
    return [(await part.stats()).queued for part in queue.reader.parts]


def test_the_users_of_these_tests_live_in_all_partitions() -> None:
    assert {home_of(user) for user in USERS} == set(range(COUNT))


# What a queue has agreed on


async def test_who_says_nothing_takes_over_how_many_it_has(server: Server, queue: TaskQueue, queue_name: str) -> None:
    await put_in(queue, 1)
    other = await TaskQueue(server.url, name=queue_name).open()
    assert other.settings.partitions == COUNT
    assert (await other.user(USERS[0])).queued == 1
    await other.close()


@pytest.mark.partitions(1)
async def test_who_has_not_opened_it_takes_over_how_many_there_are(server: Server, queue_name: str) -> None:
    async with TaskQueue(server.url, name=queue_name, partitions=COUNT) as queue:
        await put_in(queue, 1)
        by_enqueue, by_handle = (TaskQueue(server.url, name=queue_name) for _ in range(2))
        await by_enqueue.enqueue(double(5), user_id=USERS[1])
        assert (await queue.user(USERS[1])).queued == 2
        with pytest.raises(UnknownTask):
            await by_handle.handle(USERS[1], "unknown").info()
        assert (await TaskQueue.user(by_handle, USERS[1])).queued == 2
        assert sum(await totals(queue)) == len(USERS) + 1
        await by_enqueue.close()
        await by_handle.close()
    assert server.execute("EXISTS", f"fairque:{{{queue_name}}}:state") == 0


@pytest.mark.parametrize(("first", "second"), [(4, 8), (4, 1), (None, 4), (1, 4)])
@pytest.mark.partitions(1)
async def test_another_number_of_partitions_is_refused(
    server: Server, queue_name: str, first: int | None, second: int
) -> None:
    async with TaskQueue(server.url, name=queue_name, partitions=first) as queue:
        await queue.enqueue(double(1), user_id="anna")
    before = server.keys(queue_name)
    with pytest.raises(SettingsMismatch, match=f"partitions {first or 1}, not {second}"):
        await TaskQueue(server.url, name=queue_name, partitions=second).open()
    unopened = TaskQueue(server.url, name=queue_name, partitions=second)
    with pytest.raises(SettingsMismatch):
        await unopened.enqueue(double(2), user_id="anna")
    await unopened.close()
    assert server.keys(queue_name) == before
    fields = server.execute("HGETALL", f"fairque:{{{queue_name}}}:settings")
    assert (b"partitions" in fields) == (first == 4)


async def test_settings_are_changed_for_all(server: Server, queue: TaskQueue, queue_name: str) -> None:
    await put_in(queue, 1)
    await queue.change_settings(lease=33)
    async with TaskQueue(server.url, name=queue_name) as other:
        assert (other.settings.lease_ms, other.settings.partitions) == (33_000, COUNT)
        for part in other.reader.parts:
            assert part.settings.lease_ms == 33_000
            stored = await part._insist(pack((b"HGET", part.keys.settings, b"lease_ms")))
            assert stored == b"33000"


async def test_keys_of_another_partition_under_a_tag_are_refused(server: Server, queue: TaskQueue) -> None:
    await put_in(queue, 1)
    part = queue.reader.parts[2]
    server.execute("HSET", part.keys.settings, "partition", 1)
    async with TaskQueue(server.url, name=queue.name) as other:
        user = next(user for user in USERS if home_of(user) == 2)
        with pytest.raises(SettingsMismatch, match="says that it is 1 of 4"):
            await other.enqueue(double(1), user_id=user)
    server.execute("HSET", part.keys.settings, "partition", 2)


# Tasks of users


async def test_a_user_has_all_that_is_its_own_in_one_partition(server: Server, queue: TaskQueue) -> None:
    await put_in(queue)
    await queue.enqueue(double(1) >> double(2), user_id=USERS[0])
    await queue.enqueue_many([double(n).options(delay=60) for n in range(3)], user_id=USERS[0])
    await queue.xcom(USERS[0]).push("key", 1)
    await queue.set_policy(USERS[0], weight=3)
    name = encode_user(USERS[0])
    prefixes = {key.partition("}:")[0] for key in server.keys(queue.name) if name in key}
    assert prefixes == {queue.reader.keys_of(name).prefix.partition("}:")[0]}
    assert sum(await totals(queue)) == len(USERS) * 2 + 1


async def test_many_are_put_in_at_once_for_users_of_all_partitions(queue: TaskQueue) -> None:
    tasks = [double(n).options(user_id=USERS[n % len(USERS)], task_id=f"t{n}") for n in range(60)]
    handles = await queue.enqueue_many(tasks)
    assert [handle.task_id for handle in handles] == [f"t{n}" for n in range(60)]
    assert all(handle.created for handle in handles)
    again = await queue.enqueue_many([*tasks[:30], double(1).options(user_id=USERS[0], task_id="new")])
    assert [handle.created for handle in again] == [False] * 30 + [True]
    listed = [await queue.tasks(user) for user in USERS[:2]]
    assert [[int(each.task_id[1:]) for each in tasks if each.task_id != "new"] for tasks in listed] == [
        list(range(0, 60, 12)),
        list(range(1, 60, 12)),
    ]


async def test_what_is_refused_in_one_partition_is_written_nowhere_in_it(queue: TaskQueue) -> None:
    """Each partition's part is all or nothing."""
    bad = double(1).options(user_id=USERS[0], task_id="bad", depends_on=["unknown"])
    same = next(user for user in USERS[1:] if home_of(user) == home_of(USERS[0]))
    with pytest.raises(DependencyError):
        await queue.enqueue_many([bad, double(2).options(user_id=same, task_id="good")])
    assert (await totals(queue))[home_of(USERS[0])] == 0


async def test_what_breaks_a_rule_is_written_nowhere(queue: TaskQueue) -> None:
    with pytest.raises((InvalidInput, NotEncodable)):
        await queue.enqueue_many([double(1).options(user_id=user) for user in USERS] + [double(1)])
    assert sum(await totals(queue)) == 0


async def test_handles_reach_tasks_wherever_they_are(queue: TaskQueue) -> None:
    await put_in(queue, 1)
    for user in USERS:
        handle = queue.handle(user, "t0")
        assert (await handle.info()).state == "queued"
        assert await handle.cancel("enough")
        assert (await handle.info()).state == "canceled"
    assert (await queue.stats()).canceled == len(USERS)


async def test_results_are_waited_for_in_all_partitions(queue: TaskQueue) -> None:
    handles = [await queue.enqueue(double(n), user_id=user) for n, user in enumerate(USERS)]
    for part in queue.reader.parts:
        claim = await part.claim("w", 100, wait=False)
        record = encode_record(b"", TaskState.FINISHED, Record("", 1, 0, 0, 1.0, "w", msgspec.Raw(encode_value(7))))
        await part.settle("w", [Outcome(of, "finished", ttl_ms=60_000, record=record) for of in claim.deliveries])
        await part.leave("w", ())
    assert await queue.results(handles, timeout=10) == [7] * len(USERS)


async def test_a_purge_leaves_nothing_of_a_user_and_all_of_others(server: Server, queue: TaskQueue) -> None:
    await put_in(queue)
    await queue.handle(USERS[0], "t0").cancel()
    purged = await queue.purge(USERS[0])
    assert (purged.queued, purged.results) == (1, 1)
    assert not [key for key in server.keys(queue.name) if encode_user(USERS[0]) + ":" in key]
    assert (await queue.stats()).queued == 2 * (len(USERS) - 1)


async def test_all_of_a_user_is_canceled_at_once(queue: TaskQueue) -> None:
    await put_in(queue, 3)
    assert await queue.cancel_all(USERS[3]) == 3
    assert (await queue.stats()).queued == 3 * (len(USERS) - 1)


async def test_batches_live_where_their_user_does(queue: TaskQueue) -> None:
    for user in USERS[:4]:
        async with queue.batch(user, batch_id="b") as batch:
            await batch.enqueue_many([double(n) for n in range(3)])
        assert (await queue.batch(user, batch_id="b").progress()).total == 3


# What is of the whole queue


async def test_statistics_are_those_of_all_partitions(queue: TaskQueue) -> None:
    await put_in(queue)
    stats = await queue.stats()
    assert (stats.queued, stats.users_known, stats.users_ready, stats.missing) == (24, 12, 12, ())
    health, overview, demand, shares = (
        await queue.health(),
        await queue.overview(),
        await queue.demand(),
        await queue.shares(),
    )
    assert health.stats.queued == overview.stats.queued == demand.backlog == 24
    assert {user.user_id for user in overview.users} == set(USERS)
    assert len(shares.users) == len(USERS)
    assert {user.user_id for user in await queue.active_users()} == set(USERS)


async def test_what_is_held_back_in_any_partition_asks_for_no_slots(queue: TaskQueue) -> None:
    await put_in(queue)
    assert (await queue.demand()).slots_needed > 0
    for user in USERS[1:]:
        await queue.pause(user)
    assert (await queue.demand()).slots_needed > 0
    await queue.pause(USERS[0])
    assert (await queue.demand()).slots_needed == 0
    await queue.resume(USERS[5])
    assert (await queue.demand()).slots_needed > 0


async def test_users_come_in_pages_the_latest_first(queue: TaskQueue) -> None:
    await put_in(queue, 1)
    everyone = [user.user_id for user in await queue.users()]
    assert sorted(everyone) == sorted(USERS)
    seen = [user.seen_at for user in await queue.users()]
    assert seen == sorted(seen, reverse=True)  # type: ignore[type-var]
    paged = [user.user_id for at in range(0, 12, 5) for user in await queue.users(offset=at, limit=5)]
    assert paged == everyone
    found: list[str] = []
    after = None
    while True:
        page = await queue.find_users(limit=5, after=after)
        assert page.known == 12
        found += [user.user_id for user in page.users]
        if (after := page.after) is None:
            break
    assert found == everyone


async def test_users_are_found_by_the_beginning_of_their_ids(queue: TaskQueue) -> None:
    await put_in(queue, 1)
    await queue.enqueue(double(1), user_id="other")
    found: list[str] = []
    after = None
    while True:
        page = await queue.find_users(prefix="user", limit=3, after=after)
        found += [user.user_id for user in page.users]
        if (after := page.after) is None:
            break
    assert sorted(set(found)) == sorted(USERS)
    page = await queue.find_users(order="waiting", limit=20)
    assert {user.user_id for user in page.users} == {*USERS, "other"}


async def fail_all(queue: TaskQueue) -> None:
    for part in queue.reader.parts:
        claim = await part.claim("w", 100, wait=False)
        record = encode_record(
            b"", TaskState.FAILED, Record("", 1, 0, 0, 1.0, "w", kind=FailureKind.ERROR, type_name="ValueError")
        )
        error = msgspec.msgpack.encode(Attempt(1, 0.0, FailureKind.ERROR, "ValueError", "no", "", "w"))
        outcomes = [Outcome(of, "failed", ttl_ms=60_000, record=record, error=error) for of in claim.deliveries]
        await part.settle("w", outcomes)
        await part.leave("w", ())


async def test_dead_letters_come_in_pages_the_oldest_first(queue: TaskQueue) -> None:
    await put_in(queue)
    await fail_all(queue)
    everyone = await queue.dead_letters()
    assert len(everyone) == 24
    assert [letter.at for letter in everyone] == sorted(letter.at for letter in everyone)
    paged, after = [], None
    while page := await queue.dead_letters(limit=5, after=after):
        paged += page
        after = page[-1]
    assert paged == everyone
    groups = await queue.dead_groups()
    assert groups.total == 24
    assert {letter.user_id for letter in await queue.dead_letters(USERS[1])} == {USERS[1]}


async def test_dead_letters_of_all_are_requeued_and_discarded(queue: TaskQueue) -> None:
    await put_in(queue)
    await fail_all(queue)
    assert await queue.requeue_all(limit=10) == 10
    assert (await queue.stats()).queued == 10
    [group] = (await queue.dead_groups()).groups
    first = await queue.discard_group(group, limit=8)
    assert (first.done, first.left) == (8, 6)
    assert (await queue.discard_group(group, after=first.after)).done == 6
    assert (await queue.dead_groups()).total == 0


async def test_limits_and_policies_of_each_user_hold_and_are_listed(queue: TaskQueue) -> None:
    for user in USERS:
        await queue.set_policy(user, weight=2)
        await queue.set_limit("crm", user_id=user, max_running=1)
    await queue.set_limit("each", shared=False, max_running=3)
    await queue.set_policy(EVERYBODY, max_queued=5)
    await queue.pause_task("partitions.double")
    first = await queue.policies(limit=7)
    last = await queue.policies(limit=7, after=list(first)[-1])
    assert [*first, *last] == sorted(USERS, key=encode_user)
    assert all(policy.weight == 2 for policy in first.values())
    assert (await queue.get_policy(USERS[5])).max_queued == 5
    assert (await queue.get_policy(EVERYBODY)).max_queued == 5
    limits = await queue.limits()
    assert [limit.key for limit in limits].count("crm") == len(USERS)
    assert [limit.key for limit in limits if limit.user_id is None] == ["partitions.double", "each"]
    assert (await queue.stats()).paused_tasks == ("partitions.double",)
    await put_in(queue, 1)
    for part in queue.reader.parts:
        assert not (await part.claim("w", 10, wait=False)).deliveries
        await part.leave("w", ())
    await queue.resume_task("partitions.double")
    await queue.clear_policy(EVERYBODY)
    await queue.clear_limit("each", shared=False)
    assert (await queue.get_policy(EVERYBODY)).max_queued is None


async def test_usage_of_all_is_that_of_all_partitions(queue: TaskQueue) -> None:
    await put_in(queue)
    for user in USERS:
        await queue.cancel_all(user)
    assert (await queue.stats()).metrics.canceled == 24
    assert await queue.usage(EVERYBODY) == []


# Schedules


async def test_schedules_live_with_their_users_and_are_found_by_id(queue: TaskQueue) -> None:
    scheduler = TaskScheduler(queue)
    for user in USERS:
        await scheduler.add_schedule(every=60, task=double(1), user_id=user, schedule_id=f"s {user}")
    listed = await scheduler.list_schedules()
    assert [each.user_id for each in listed] == sorted(USERS, key=lambda user: encode_user(user) + ":")
    page = await scheduler.schedule_page(limit=5)
    rest = await scheduler.schedule_page(limit=100, after=page.after)
    views = [*page.schedules, *rest.schedules]
    assert [view.schedule.user_id for view in views] == [each.user_id for each in listed]
    assert [each.user_id for each in await scheduler.list_schedules(USERS[3])] == [USERS[3]]
    known = await scheduler.get_schedule(f"s {USERS[2]}")
    assert known.user_id == USERS[2]
    await scheduler.pause_schedule(f"s {USERS[2]}")
    assert not (await scheduler.get_schedule(f"s {USERS[2]}")).active
    assert await scheduler.remove_schedule(f"s {USERS[2]}")
    assert not await scheduler.remove_schedule(f"s {USERS[2]}")
    assert await scheduler.run_now(f"s {USERS[4]}")
    assert (await queue.user(USERS[4])).queued == 1


async def test_the_id_of_a_schedule_is_taken_in_all_partitions(queue: TaskQueue) -> None:
    scheduler = TaskScheduler(queue)
    await scheduler.add_schedule(every=60, task=double(1), user_id=USERS[0], schedule_id="s")
    other = next(user for user in USERS if home_of(user) != home_of(USERS[0]))
    with pytest.raises(InvalidInput, match="taken"):
        await scheduler.add_schedule(every=60, task=double(1), user_id=other, schedule_id="s")
    assert [each.user_id for each in await scheduler.list_schedules()] == [USERS[0]]


# Helpers


async def test_what_waits_is_told_of_all_partitions(queue: TaskQueue) -> None:
    await put_in(queue, 1)
    assert sorted(each.user_id for each in await enqueued(queue)) == sorted(USERS)


async def test_a_check_names_the_partition(server: Server, queue: TaskQueue) -> None:
    await put_in(queue, 1)
    part = queue.reader.parts[home_of(USERS[0])]
    server.execute("ZREM", f"{part.keys.prefix}ready", encode_user(USERS[0]))
    found = await queue.check()
    assert [(each.partition, each.user_id) for each in found.findings] == [(home_of(USERS[0]), USERS[0])]
    assert (await queue.check(repair=True)).sound
    assert (await queue.check()).findings == ()


async def test_a_temporary_queue_with_partitions_leaves_nothing(server: Server) -> None:
    async with temporary_queue(server.url, partitions=3) as queue:
        await put_in(queue, 1)
        name = queue.name
        assert server.keys(name)
    assert server.keys(name) == []


async def test_time_is_let_pass_in_all_partitions(queue: TaskQueue) -> None:
    for user in USERS:
        await queue.enqueue(double(1).options(delay=60), user_id=user)
    assert await advance(queue, timedelta(seconds=61)) == len(USERS)


# The command line


async def test_a_queue_with_partitions_is_made_at_a_terminal(server: Server, queue_name: str) -> None:
    words = ["--url", server.url, "--queue", queue_name]
    made = await call_command("settings", "partitions=4", *words)
    assert made.code == 0, made
    assert re.search(r"partitions +4", made.out)
    refused = await call_command("settings", "partitions=8", *words)
    assert refused.code == 2
    assert "partitions 4, not 8" in refused.err


async def test_rules_for_redis_name_each_partition() -> None:
    ended = await call_command("acl", "--role", "worker", "--queue", "q", "--partitions", "3")
    assert ended.code == 0
    assert ended.out.count("&fairque") == 4
    assert ended.out.count("~fairque") == 5, "and that of the copy of its settings"


# Why a task waits


@pytest.mark.parametrize("position", [0, 3, 9])
async def test_who_is_ahead_in_other_partitions_is_counted_as_in_a_queue_without(
    server: Server, queue: TaskQueue, position: int
) -> None:
    """Up to one task of each user: where tags are the same, names decide, and others do so in each partition."""
    async with temporary_queue(server.url, partitions=1) as without:
        told = []
        for each in (queue, without):
            await put_in(each, 10)
            told.append(await each.explain(USERS[4], f"t{position}"))
        spread, whole = told
        assert spread.ahead_own == whole.ahead_own == position
        assert abs(spread.ahead_others - whole.ahead_others) < len(USERS)
        assert spread.share == whole.share == pytest.approx(1 / len(USERS))
        assert spread.missing == ()
    alone = sum(home_of(user) == home_of(USERS[4]) for user in USERS) - 1
    if position:
        assert spread.ahead_others > alone * (position + 1), "those of its own partition are not all"


async def test_users_that_had_more_elsewhere_are_not_counted_as_ahead(queue: TaskQueue) -> None:
    """Tags of all partitions mean the same, whatever is added to those of one."""
    first, other = USERS[0], next(user for user in USERS if home_of(user) != home_of(USERS[0]))
    await queue.enqueue_many([double(n).options(user_id=first) for n in range(50)])
    part = queue.reader.part_of(encode_user(first))
    claim = await part.claim("w", 40, wait=False)
    await part.settle("w", [Outcome(of, "finished", ttl_ms=60_000, record=b"") for of in claim.deliveries])
    await part.leave("w", ())
    await queue.enqueue_many([double(n).options(user_id=other, task_id=f"t{n}") for n in range(50)])
    assert (await queue.explain(other, "t30")).ahead_others == 0
    assert (await queue.explain(other, "t49")).ahead_others == pytest.approx(10, abs=2)
