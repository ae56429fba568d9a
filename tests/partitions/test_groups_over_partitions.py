"""Who is in a group lives where that lives: a group is served by one choice, in a queue with partitions as well."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from fairque import (
    EVERYBODY,
    FairQueueConfig,
    InvalidInput,
    Policy,
    TaskQueue,
    UserFrozen,
    Worker,
    current_task,
    task,
)
from fairque.redis.keys import encode_user
from fairque.redis.partitions import partition_of
from fairque.redis.places import MovedUser
from fairque.transfer import group_moves, moving
from fairque.transfer.moving import _Move
from tests.support.eventually import eventually
from tests.test_move_kills import nobody_moves

if TYPE_CHECKING:
    from tests.support.servers import Server

COUNT = 4
pytestmark = [pytest.mark.leaves_keys(), pytest.mark.partitions(COUNT)]
started: list[str] = []


@task(name="groups.noted")
async def noted(n: int) -> int:
    started.append(current_task().user_id)
    return n


def home_of(name: str) -> int:
    return partition_of(name, COUNT)


def users_in(partition: int, many: int) -> list[str]:
    return [name for n in range(200) if home_of(name := f"user-{n}") == partition][:many]


async def place_of(queue: TaskQueue, user_id: str) -> int:
    return queue.reader.parts.index(await queue.reader.home_of(encode_user(user_id)))


async def fill(queue: TaskQueue, users: list[str], each: int) -> None:
    for user in users:
        await queue.enqueue_many([noted(n).options(task_id=f"t{n}") for n in range(each)], user_id=user)


PLACE = home_of("@acme")
AWAY = (PLACE + 1) % COUNT
THIRD = next(name for n in range(40) if home_of("@" + (name := f"group-{n}")) == (PLACE + 3) % COUNT)
OTHER = next(name for n in range(40) if home_of("@" + (name := f"group-{n}")) == AWAY)


async def test_who_joins_a_group_is_carried_to_where_it_lives_with_all_that_it_has(queue: TaskQueue) -> None:
    users = [users_in(at, 1)[0] for at in range(COUNT)]
    await fill(queue, users, 3)
    for user in users:
        policy = await queue.set_policy(user, group="acme", weight=2)
        assert (policy.group, policy.weight) == ("acme", 2)
    assert {await place_of(queue, user) for user in users} == {PLACE}
    async with TaskQueue(queue.connector.url, name=queue.name) as other:  # which knows nothing
        assert [(await other.user(user)).queued for user in users] == [3] * COUNT
        await fill(other, users, 4)
        assert (await other.stats()).queued == 4 * COUNT
    assert (await queue.check()).findings == ()
    async with Worker(queue):
        for user in users:
            assert [await queue.handle(user, f"t{n}").result(timeout=10) for n in range(4)] == list(range(4))


async def test_a_group_has_the_share_of_one_wherever_its_members_come_from(queue: TaskQueue) -> None:
    members, alone = [users_in(at, 1)[0] for at in range(COUNT)], users_in(PLACE, 2)[1]
    for user in members:
        await queue.set_policy(user, group="acme")
    await fill(queue, [*members, alone], 40)
    started.clear()
    async with Worker(queue, concurrency=1):
        await queue.handle(alone, "t39").result(timeout=30)
    counted = Counter(started[:80])
    assert 36 <= counted[alone] <= 44
    assert max(counted[user] for user in members) - min(counted[user] for user in members) <= 2


async def test_groups_in_groups_live_with_the_outermost(queue: TaskQueue) -> None:
    [europe], [asia] = users_in(AWAY, 1), users_in((PLACE + 2) % COUNT, 1)
    await queue.set_policy(europe, group="acme/europe")
    await queue.set_policy(asia, group="acme/asia")
    await queue.set_group("acme/europe", weight=3)
    await queue.set_group("acme", weight=2)
    await queue.set_group("other", weight=5)
    assert await place_of(queue, europe) == await place_of(queue, asia) == PLACE
    assert await queue.groups() == {"acme": 2, "acme/europe": 3, "other": 5}
    assert await queue.get_group("acme/europe") == 3
    assert await queue.get_group("acme/asia") == 1
    await queue.set_group("acme", weight=None)
    assert await queue.groups() == {"acme/europe": 3, "other": 5}


async def test_who_leaves_a_group_stays_where_it_is(queue: TaskQueue) -> None:
    [user] = users_in(AWAY, 1)
    await queue.set_policy(user, group="acme", weight=3)
    await queue.set_policy(user, group=None)
    assert await place_of(queue, user) == PLACE
    assert (await queue.get_policy(user)).weight == 3
    await queue.move(user, AWAY)
    assert await place_of(queue, user) == AWAY


async def test_who_changes_to_another_group_moves_on(queue: TaskQueue) -> None:
    [user] = users_in((PLACE + 2) % COUNT, 1)
    await fill(queue, [user], 2)
    await queue.set_policy(user, group="acme", max_running=3)
    policy = await queue.set_policy(user, group=OTHER)
    assert (policy.group, policy.max_running) == (OTHER, 3)
    assert await place_of(queue, user) == AWAY
    assert (await queue.user(user)).queued == 2
    assert (await queue.check()).findings == ()


async def test_who_is_to_be_in_two_groups_at_once_is_in_one_and_lives_there(queue: TaskQueue) -> None:
    [user] = users_in((PLACE + 2) % COUNT, 1)
    async with TaskQueue(queue.connector.url, name=queue.name) as second:
        await asyncio.gather(second.set_policy(user, group=OTHER), queue.set_policy(user, group="acme"))
    group = (await queue.get_policy(user)).group
    assert group in ("acme", OTHER)
    assert await place_of(queue, user) == home_of(f"@{group}")
    assert (await queue.check()).findings == ()


async def test_who_changes_its_group_to_and_fro_is_always_in_one_with_all_that_was_said(queue: TaskQueue) -> None:
    [user] = users_in((PLACE + 2) % COUNT, 1)
    await fill(queue, [user], 30)
    wanted = [Policy(group="acme", weight=2, max_running=3), Policy(group=OTHER, weight=5, max_bytes=1 << 20)]
    await queue.set_policy(user, group="acme", weight=2, max_running=3)
    seen: Counter[str] = Counter()

    async def look(other: TaskQueue) -> None:
        while True:
            policy = await other.get_policy(user)
            assert policy in wanted
            assert (await other.explain(user)).weight in (2, 5)
            assert (await other.policies()).get(user) in wanted
            seen[str(policy.group)] += 1

    async with TaskQueue(queue.connector.url, name=queue.name) as other:
        watcher = asyncio.create_task(look(other))
        for _ in range(10):
            await queue.set_policy(user, group=OTHER, weight=5, max_running=None, max_bytes=1 << 20)
            await queue.set_policy(user, group="acme", weight=2, max_running=3, max_bytes=None)
        watcher.cancel()
        with pytest.raises(asyncio.CancelledError):
            await watcher
    assert seen.keys() == {"acme", OTHER}
    assert (await queue.check()).findings == ()
    assert (await queue.user(user)).queued == 30


async def test_lists_of_policies_have_that_of_where_a_user_lives_while_it_is_moved(
    queue: TaskQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    [user] = users_in((PLACE + 2) % COUNT, 1)
    seen: list[str | None] = []

    async def look_before(move: _Move, epoch: int) -> None:
        seen.append((await queue.policies())[user].group)
        await leave(move, epoch)

    async def look_behind(*given: Any) -> None:
        seen.append((await queue.policies())[user].group)
        await arrive(*given)

    leave, arrive = _Move._leave, moving._arrive
    await queue.set_policy(user, group="acme")
    monkeypatch.setattr(_Move, "_leave", look_before)
    monkeypatch.setattr(moving, "_arrive", look_behind)
    for group in (OTHER, "acme"):  # one of the two is asked first
        await queue.set_policy(user, group=group)
    assert seen == ["acme", OTHER, OTHER, "acme"]


async def test_lists_of_groups_have_the_weight_of_where_a_group_lives(
    queue: TaskQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    await queue.set_policy(users_in(PLACE, 1)[0], group="acme/europe")
    seen: list[float] = []

    async def look(*given: Any) -> moving.Moved:
        await queue.set_group("acme/europe", weight=next(weights))
        seen.append((await queue.groups())["acme/europe"])
        return await move(*given)

    move, weights = group_moves.move, iter((3.0, 4.0))
    await queue.set_group("acme/europe", weight=2)
    monkeypatch.setattr(group_moves, "move", look)
    for to in (AWAY, PLACE):  # one of the two is asked first
        await queue.move_group("acme", to)
    assert seen == [3, 4]


async def test_a_weight_that_is_set_while_a_group_is_taken_elsewhere_is_not_lost(
    queue: TaskQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, weight in (("acme", 2), ("acme/europe", 3), ("acme/asia", 4)):
        await queue.set_group(name, weight=weight)
    calls = 0

    async def change(*given: Any) -> Any:
        nonlocal calls
        calls += 1
        taken = await take(*given)
        if calls == 1:
            await queue.set_group("acme/europe", weight=6)
            await queue.set_group("acme/asia", weight=None)
            await queue.set_group("acme/africa", weight=7)
        return taken

    take = group_moves._take_weights
    monkeypatch.setattr(group_moves, "_take_weights", change)
    await queue.reader.parts[AWAY].set_policy("@acme/old", {"weight": 8.0})  # by a move that was broken off
    await queue.move_group("acme", AWAY)
    assert await queue.groups() == {"acme": 2, "acme/europe": 6, "acme/africa": 7}
    assert (await queue.check()).findings == ()


async def test_who_has_nothing_yet_is_put_into_a_group(queue: TaskQueue) -> None:
    [user] = users_in(AWAY, 1)
    assert await queue.set_policy(user, group="acme", min_running=2) == Policy(group="acme", min_running=2)
    assert await place_of(queue, user) == PLACE
    assert (await queue.check()).findings == ()
    assert await queue.policies() == {user: Policy(group="acme", min_running=2)}
    await queue.clear_policy(user)
    assert await place_of(queue, user) == PLACE
    assert (await queue.check()).findings == ()


async def test_a_limit_of_bytes_that_comes_or_goes_with_a_group_counts_what_is_there(queue: TaskQueue) -> None:
    [user], [alike] = users_in(AWAY, 1), users_in(PLACE, 1)
    for each in (user, alike):
        await fill(queue, [each], 50)
        await queue.set_policy(each, group="acme", max_bytes=1 << 20, paused=True)
    async with Worker(queue, poll_interval=0.1):  # whose claims count
        await eventually(lambda: have_as_many_bytes(queue, user, alike))
    assert (await queue.check()).findings == ()
    await queue.set_policy(user, group=OTHER, max_bytes=None)
    assert (await queue.explain(user)).bytes is None
    assert (await queue.check()).findings == ()
    await queue.set_policy(user, max_bytes=1 << 20)
    async with Worker(queue, poll_interval=0.1):
        await eventually(lambda: have_as_many_bytes(queue, user, alike))


async def have_as_many_bytes(queue: TaskQueue, *users: str) -> bool:
    [least, most] = sorted([(await queue.explain(user)).bytes or 0 for user in users])
    return 500 < least == most


async def test_who_is_on_its_way_to_a_group_that_moves_on_goes_where_that_lives(
    queue: TaskQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    [user], [member] = users_in((PLACE + 2) % COUNT, 1), users_in(PLACE, 1)
    await queue.set_policy(member, group="acme")
    await fill(queue, [user], 2)
    looks = 0

    async def too_early(move: _Move, policy: bytes) -> None:
        nonlocal looks
        await real(move, policy)
        looks += 1
        if looks == 1:
            await queue.move_group("acme", AWAY)

    real = _Move._refuse_grouped
    monkeypatch.setattr(_Move, "_refuse_grouped", too_early)
    assert (await queue.set_policy(user, group="acme", weight=4)) == Policy(group="acme", weight=4)
    assert looks > 1
    assert await place_of(queue, user) == await place_of(queue, member) == AWAY
    assert (await queue.user(user)).queued == 2
    assert (await queue.check()).findings == ()


async def test_a_group_that_moves_takes_along_who_is_about_to_arrive(
    queue: TaskQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    [user] = users_in((PLACE + 2) % COUNT, 1)
    async with TaskQueue(queue.connector.url, name=queue.name) as other:
        moving: list[asyncio.Task[int]] = []

        async def late(move: _Move, epoch: int) -> None:
            if not moving:
                moving.append(asyncio.create_task(other.move_group("acme", AWAY)))
                await eventually(lambda: _lives_in(queue, "@acme", AWAY))
            await real(move, epoch)

        real = _Move._leave
        monkeypatch.setattr(_Move, "_leave", late)
        await queue.set_policy(user, group="acme", weight=4)
        assert await moving[0] == 1
    assert await queue.get_policy(user) == Policy(group="acme", weight=4)
    assert await place_of(queue, user) == AWAY
    assert (await queue.check()).findings == ()


async def _lives_in(queue: TaskQueue, name: str, partition: int) -> bool:
    return queue.reader.parts.index(await queue.reader.home_of(name)) == partition


async def test_members_that_have_changed_to_another_group_do_not_keep_theirs_from_moving(queue: TaskQueue) -> None:
    users = [users_in(PLACE, 12)[n] for n in range(12)]
    for user in users:
        await queue.set_policy(user, group="acme")

    async def change() -> None:
        for user in reversed(users):
            await queue.set_policy(user, group=THIRD)

    await asyncio.gather(change(), queue.move_group("acme", AWAY))
    assert {await place_of(queue, user) for user in users} == {home_of(f"@{THIRD}")}
    assert {(await queue.get_policy(user)).group for user in users} == {THIRD}
    assert (await queue.check()).findings == ()


async def test_who_is_in_a_group_does_not_leave_it_alone(queue: TaskQueue) -> None:
    [user] = users_in(PLACE, 1)
    await queue.set_policy(user, group="acme")
    with pytest.raises(InvalidInput, match="group"):
        await queue.move(user, AWAY)
    assert await place_of(queue, user) == PLACE


async def test_not_everybody_is_in_one_group(queue: TaskQueue) -> None:
    with pytest.raises(InvalidInput, match="everybody"):
        await queue.set_policy(EVERYBODY, group="acme")


async def test_groups_of_a_file_are_set(queue: TaskQueue) -> None:
    [user] = users_in(AWAY, 1)
    sections: dict[str, Any] = {
        "policies": [{"user": user, "group": "acme"}],
        "groups": [{"name": "acme", "weight": 2}],
    }
    config = FairQueueConfig.from_dict(sections)
    for _ in range(2):
        await queue.apply_policies(config)
        assert (await queue.get_policy(user)).group == "acme"
        assert await place_of(queue, user) == PLACE
    assert await queue.groups() == {"acme": 2}


@pytest.mark.partitions(1)
async def test_who_is_in_a_group_is_imported_to_where_it_lives(server: Server, queue_name: str) -> None:
    [user] = users_in(AWAY, 1)
    async with (
        TaskQueue(server.url, name=f"{queue_name}/one") as one,
        TaskQueue(server.url, name=f"{queue_name}/many", partitions=COUNT) as many,
    ):
        await fill(one, [user], 3)
        await one.set_policy(user, group="acme", weight=4)
        records = [record async for record in one.export_user(user)]
        await many.import_user(records)
        policy = await many.get_policy(user)
        assert (policy.group, policy.weight) == ("acme", 4)
        assert await place_of(many, user) == PLACE
        assert (await many.user(user)).queued == 3
        assert (await many.check()).findings == ()


@pytest.mark.partitions(1)
@pytest.mark.parametrize("is_killed", [False, True], ids=["failed", "killed"])
@pytest.mark.parametrize("moves_on", [False, True], ids=["stays", "moves on"])
async def test_who_is_imported_is_served_only_once_it_is_in_its_group(
    server: Server, queue_name: str, monkeypatch: pytest.MonkeyPatch, is_killed: bool, moves_on: bool
) -> None:
    [user] = users_in(AWAY, 1)
    async with (
        TaskQueue(server.url, name=f"{queue_name}/one") as one,
        TaskQueue(server.url, name=f"{queue_name}/many", partitions=COUNT, timeout=1.0) as many,
        Worker(many, poll_interval=0.1),
    ):
        await fill(one, [user], 300)
        await one.set_policy(user, group="acme", weight=4, max_bytes=1 << 20)
        records = [record async for record in one.export_user(user)]
        with monkeypatch.context() as patched:
            patched.setattr(_Move, "_leave", broken_off)
            if is_killed:
                patched.setattr(_Move, "_give_up", nothing)
            with pytest.raises(ConnectionError):
                await many.import_user(records)
        if moves_on:
            await eventually(lambda: nobody_moves(many), 20)
            await many.move_group("acme", (PLACE + 2) % COUNT)
        with pytest.raises(UserFrozen):
            await many.enqueue(noted(1), user_id=user)
        stats = await many.stats()
        assert (stats.queued, stats.finished, stats.started) == (300, 0, 0)
        home = many.reader.parts[home_of(user)]
        server.execute("HSET", f"{home.keys.prefix}frozen:{user}", "leaves_until", 1)  # as if it had died long before
        await many.set_policy(user, max_running=9)
        await many.import_user(records)
        assert await many.get_policy(user) == Policy(group="acme", weight=4, max_bytes=1 << 20, max_running=9)
        assert await place_of(many, user) == ((PLACE + 2) % COUNT if moves_on else PLACE)
        assert [await many.handle(user, f"t{n}").result(timeout=20) for n in range(300)] == list(range(300))
        await eventually(lambda: nobody_moves(many), 20)
        assert (await many.check()).findings == ()
        assert (await many.stats()).finished == 300


@pytest.mark.partitions(1)
async def test_nothing_of_an_import_changes_while_it_is_carried_to_its_group(
    server: Server, queue_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    [user] = users_in(AWAY, 1)

    async def leave(move: _Move, epoch: int) -> None:
        with pytest.raises(UserFrozen):
            await many.set_policy(user, max_running=9)
        with pytest.raises(UserFrozen):
            await many.set_limit("crm", user_id=user, max_running=9)
        await real(move, epoch)

    real = _Move._leave
    monkeypatch.setattr(_Move, "_leave", leave)
    async with (
        TaskQueue(server.url, name=f"{queue_name}/one") as one,
        TaskQueue(server.url, name=f"{queue_name}/many", partitions=COUNT, timeout=0.5) as many,
    ):
        await one.set_policy(user, group="acme")
        await many.import_user([record async for record in one.export_user(user)])
        assert await place_of(many, user) == PLACE
        await many.set_policy(user, max_running=9)
        assert (await many.check()).findings == ()


async def broken_off(*_: object) -> None:
    raise ConnectionError("on purpose")


async def nothing(*_: object) -> None: ...


# Moves of groups


async def group_of_four(queue: TaskQueue) -> list[str]:
    """One member from each partition, with tasks, in acme and in groups of it."""
    users = [users_in(at, 1)[0] for at in range(COUNT)]
    for user, path in zip(users, ("acme", "acme", "acme/europe", "acme/asia"), strict=True):
        await queue.set_policy(user, group=path, max_running=5)
    await queue.set_group("acme", weight=3)
    await queue.set_group("acme/europe", weight=2)
    await fill(queue, users, 3)
    return users


async def test_a_group_moves_with_all_who_are_in_it(queue: TaskQueue) -> None:
    users = await group_of_four(queue)
    await queue.set_group("other", weight=7)
    assert await queue.move_group("acme", AWAY) == COUNT
    assert {await place_of(queue, user) for user in users} == {AWAY}
    assert await queue.groups() == {"acme": 3, "acme/europe": 2, "other": 7}
    assert (await queue.check()).findings == ()
    async with TaskQueue(queue.connector.url, name=queue.name) as other:  # which knows nothing
        assert (await other.get_policy(users[2])).group == "acme/europe"
        assert await other.get_group("acme") == 3
        await other.set_group("acme", weight=4)
        newcomer = users_in(PLACE, 2)[1]
        await other.set_policy(newcomer, group="acme")
        assert await place_of(other, newcomer) == AWAY
        assert (await other.stats()).queued == 3 * COUNT
    assert await queue.groups() == {"acme": 4, "acme/europe": 2, "other": 7}
    async with Worker(queue):
        for user in users:
            assert [await queue.handle(user, f"t{n}").result(timeout=10) for n in range(3)] == list(range(3))


async def test_who_knows_nothing_changes_a_group_where_it_lives_by_now(server: Server, queue: TaskQueue) -> None:
    await group_of_four(queue)
    await queue.move_group("acme", AWAY)
    for call in (
        lambda other: other.set_group("acme/asia", weight=6),
        lambda other: other.set_group("acme", weight=None),
        lambda other: other.set_policy(users_in(PLACE, 2)[1], group="acme/asia"),
    ):
        async with TaskQueue(server.url, name=queue.name) as other:
            await call(other)
    assert await queue.groups() == {"acme/asia": 6, "acme/europe": 2}
    for at, part in enumerate(queue.reader.parts):
        names = [key.removeprefix(part.keys.prefix) for key in server.keys(queue.name) if part.keys.prefix in key]
        assert any(name.startswith("policy:@acme") for name in names) is (at == AWAY)
    assert (await queue.check()).findings == ()


async def test_a_group_that_moves_on_and_comes_back_is_found(queue: TaskQueue) -> None:
    users = await group_of_four(queue)
    async with TaskQueue(queue.connector.url, name=queue.name) as old:
        assert await old.get_group("acme") == 3
        for to in (AWAY, (PLACE + 2) % COUNT, PLACE):
            await queue.move_group("acme", to)
            assert {await place_of(queue, user) for user in users} == {to}
            assert await queue.groups() == {"acme": 3, "acme/europe": 2}
        await old.set_group("acme", weight=9)
        assert await queue.get_group("acme") == 9
        assert [(await old.user(user)).queued for user in users] == [3] * COUNT
    assert (await queue.check()).findings == ()


async def test_a_move_of_a_group_that_was_broken_off_goes_on(queue: TaskQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    users = await group_of_four(queue)
    carried: list[str] = []

    async def some(store: Any, user_id: str, partition: int) -> Any:
        if len(carried) == 2:
            raise ConnectionError("on purpose")
        carried.append(user_id)
        return await real(store, user_id, partition)

    real = group_moves.move
    monkeypatch.setattr(group_moves, "move", some)
    with pytest.raises(ConnectionError):
        await queue.move_group("acme", AWAY)
    monkeypatch.setattr(group_moves, "move", real)
    assert await queue.get_group("acme/europe") == 2
    assert (await queue.stats()).queued == 3 * COUNT
    assert await queue.move_group("acme", AWAY) == COUNT - 2
    assert {await place_of(queue, user) for user in users} == {AWAY}
    assert await queue.groups() == {"acme": 3, "acme/europe": 2}
    assert await queue.move_group("acme", AWAY) == 0
    assert (await queue.check()).findings == ()


async def test_a_group_that_is_half_moved_takes_at_most_the_share_of_two(
    queue: TaskQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who is not in it keeps more than half of what it had, and all of it again when the move has gone on."""
    first, second, alone = *sorted(users_in(PLACE, 2)), users_in((PLACE + 2) % COUNT, 1)[0]
    for user in (first, second):
        await queue.set_policy(user, group="acme")
    await fill(queue, [first, second, alone], 120)

    async def one(store: Any, user_id: str, partition: int) -> Any:
        if user_id != first:
            raise ConnectionError("on purpose")
        return await real(store, user_id, partition)

    async def share(last: str) -> float:
        started.clear()
        async with Worker(queue, concurrency=1):
            await queue.handle(alone, last).result(timeout=30)
        return started.count(alone) / len(started)

    real = group_moves.move
    monkeypatch.setattr(group_moves, "move", one)
    with pytest.raises(ConnectionError):
        await queue.move_group("acme", AWAY)
    monkeypatch.setattr(group_moves, "move", real)
    assert (await place_of(queue, first), await place_of(queue, second)) == (AWAY, PLACE)
    assert 0.29 <= await share("t39") <= 0.38
    assert await queue.move_group("acme", AWAY) == 1
    assert 0.45 <= await share("t79") <= 0.55


async def test_what_is_no_move_of_a_group_is_refused(queue: TaskQueue) -> None:
    for group, partition, text in (("acme/europe", 1, "move that"), ("acme", COUNT, "no partition"), ("", 1, "group")):
        with pytest.raises(InvalidInput, match=text):
            await queue.move_group(group, partition)


async def test_groups_move_while_their_users_put_in_and_are_served(queue: TaskQueue) -> None:
    users = await group_of_four(queue)
    handles = []

    async def put_in() -> None:
        for n in range(25):
            handles.extend([await queue.enqueue(noted(n), user_id=user) for user in users])

    async def move_about() -> None:
        for to in (AWAY, (PLACE + 2) % COUNT, PLACE):
            await queue.move_group("acme", to)

    async with Worker(queue, concurrency=4):
        await asyncio.gather(put_in(), move_about())
        for at, handle in enumerate(handles):
            assert await handle.result(timeout=20) == at // COUNT
    assert (await queue.check()).findings == ()


async def test_who_lives_apart_from_its_group_is_told_and_carried_there_by_a_repair(queue: TaskQueue) -> None:
    user = users_in(PLACE, 1)[0]
    await queue.set_policy(user, group="acme")
    await fill(queue, [user], 2)
    # As if the group had moved, and whoever moved it had died.
    assert await queue.reader.parts[PLACE].forward(MovedUser("@acme", AWAY, 5))
    [finding] = (await queue.check()).findings
    assert (finding.kind, finding.user_id, finding.partition) == ("apart", user, PLACE)
    [mended] = (await queue.check(repair=True)).findings
    assert mended.mended
    assert (await queue.check()).findings == ()
    assert await place_of(queue, user) == AWAY
    assert (await queue.user(user)).queued == 2
