"""Users who do not live where their names lead: whoever knows nothing of that is sent on, and remembers."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from fairque import InvalidInput, QueueUnavailable, TaskQueue, TaskScheduler, UserFrozen, Worker, sync, task
from fairque.redis import arguments as args
from fairque.redis.arguments import Arguments, Values
from fairque.redis.asking import Answers
from fairque.redis.delivery import Delivery
from fairque.redis.keys import encode_user
from fairque.redis.merges.letters import merged_letters
from fairque.redis.merges.schedules import merged_page, merged_schedules
from fairque.redis.merges.users import merged_active, merged_holders, merged_names, merged_running
from fairque.redis.partitions import partition_of
from fairque.redis.places import MovedUser, Places, UserElsewhere, moved_in
from fairque.redis.requester import BlockingRequester, pack
from fairque.redis.store import Store, renew
from fairque.redis.store_chunks import Batch
from fairque.testing import arguments as arguments_of_tests
from tests.partitions.test_routes import kinds_of
from tests.partitions.test_same_as_without import BETWEEN
from tests.support.core import outcome
from tests.support.eventually import eventually
from tests.test_cut_calls import CALLS, LEASE, prepare, starts

if TYPE_CHECKING:
    from tests.support.servers import Server

COUNT = 4
USER = "acme"
pytestmark = [pytest.mark.leaves_keys(), pytest.mark.partitions(COUNT)]


@task(name="moved.double")
async def double(n: int) -> int:
    return 2 * n


@task(name="moved.count")
async def count_up(upto: int) -> Any:
    for n in range(upto):
        yield n


def home_of(user_id: str) -> int:
    return partition_of(encode_user(user_id), COUNT)


def away_from_home(user_id: str, steps: int = 1) -> int:
    return (home_of(user_id) + steps) % COUNT


async def move_nothing(queue: TaskQueue, user_id: str, *path: int, epoch: int = 1) -> None:
    """A user that has nothing lives in the last of these partitions, by way of the others."""
    await queue.reader.agree()
    at = home_of(user_id)
    for to in path:
        assert await queue.reader.parts[at].forward(MovedUser(encode_user(user_id), to, epoch))
        at, epoch = to, epoch + 1


def homes_with_keys(server: Server, queue: TaskQueue, user_id: str) -> set[int]:
    """Partitions in which something has the user in its name."""
    user, found = encode_user(user_id), set()
    for at, part in enumerate(queue.reader.parts):
        names = [key.removeprefix(part.keys.prefix) for key in server.keys(queue.name) if part.keys.prefix in key]
        if any(user in name.split(":")[1:2] for name in names):
            found.add(at)
    return found


# All calls


NOT_ALIKE = {"accuse", "append", "chunks", "expire", "hand_on", "heads", "limits", "receive", "repair"}
"""What their calls tell depends on who is served next, which is not the same in one partition and in two."""


@pytest.mark.partitions(1)
@pytest.mark.parametrize("script", sorted(CALLS.keys() - NOT_ALIKE - BETWEEN))
async def test_calls_of_who_knows_nothing_are_those_of_a_queue_in_which_nobody_has_moved(
    server: Server, queue_name: str, script: str
) -> None:
    stayed = await told(server, f"{queue_name}/stayed", script, moved=False)
    assert await told(server, f"{queue_name}/moved", script, moved=True) == stayed


async def told(server: Server, name: str, script: str, *, moved: bool) -> Any:
    async with TaskQueue(server.url, name=name, lease=LEASE, partitions=COUNT) as queue:
        for user in ("acme", "zoe", "system") if moved else ():
            await move_nothing(queue, user, away_from_home(user))
        await prepare(queue)
    starts.clear()
    async with TaskQueue(server.url, name=name, lease=LEASE, partitions=COUNT) as far:  # which knows nothing
        answer = await CALLS[script](far)
        stats = await far.stats()
        assert (await far.check()).findings == ()
        if moved and script != "purge":
            assert homes_with_keys(server, far, "acme") <= {away_from_home("acme")}
    totals = [stats.queued, stats.started, stats.scheduled, stats.deferred, stats.finished, stats.failed]
    return answer, [*totals, stats.canceled, stats.retried, stats.users_known, stats.users_ready]


# What each script says of one that lives elsewhere


MOVES = {*["freeze", "dump", "import", "thaw", "forward", "arrive", "manifest", "depart", "erase", "moving"]}
"""Scripts that carry a user."""
_DUMMIES: dict[str, Any] = {"int": 1, "float": 1.0, "bool": False, "Value": 0}


def about(kind: type[Arguments], user: str) -> Arguments:
    """Arguments of the kind that are about the user."""
    given: dict[str, Any] = {}
    for field in msgspec.structs.fields(kind):
        written = next(
            vars(base)["__annotations__"][field.name]
            for base in kind.__mro__
            if field.name in vars(base).get("__annotations__", {})
        )
        if field.name == "user":
            given["user"] = user
        elif written.startswith(("list", "Sequence")):
            given[field.name] = []
        elif written.startswith(("dict", "Mapping")):
            given[field.name] = {}
        else:
            given[field.name] = _DUMMIES.get(written.partition(" ")[0], "x")
    return kind(**given)


def kinds_about_users() -> list[type[Arguments]]:
    kinds = [*kinds_of(args).values(), *kinds_of(arguments_of_tests).values()]
    return [kind for kind in kinds if "user" in kind.__struct_fields__ and kind.script not in MOVES]


async def sent_on(part: Store, arguments: Arguments, values: Values | None = None) -> MovedUser:
    with pytest.raises(UserElsewhere) as refused:
        await part.call(arguments, values or (), 0.0)
    return refused.value.moved[0]


@pytest.mark.parametrize("kind", kinds_about_users(), ids=lambda kind: kind.script)
async def test_each_script_about_a_user_sends_on_whoever_looks_where_it_does_not_live(
    queue: TaskQueue, kind: type[Arguments]
) -> None:
    to = away_from_home(USER)
    await move_nothing(queue, USER, to, epoch=7)
    part = queue.reader.parts[home_of(USER)]
    before = await part.stats()
    assert await sent_on(part, about(kind, USER)) == (USER, to, 7)
    assert (await part.stats()).users_known == before.users_known == 0


async def test_scripts_about_several_users_name_all_who_live_elsewhere(queue: TaskQueue) -> None:
    named = [name for n in range(40) if home_of(name := f"u{n}") == 0]
    for name in named:
        await move_nothing(queue, name, 1)
    part, everyone = queue.reader.parts[0], [MovedUser(name, 1, 1) for name in named]
    for asked in (
        args.Enqueue(1, [args.AddedTask(name, "t", 3, "", 0) for name in named]),
        args.EnqueueLinked(1, 1, [args.AddedTask(name, "t", 3, "", 0) for name in named], []),
        args.Users(0, 0, named),
        args.Policies(["*", *named]),
    ):
        with pytest.raises(UserElsewhere) as refused:
            await part.call(asked)
        assert list(refused.value.moved) == everyone
    assert (await sent_on(part, args.Policy(named[0], {"weight": 2.0}, [])))[:2] == (named[0], 1)
    for record in (f"{named[0]}:some task", f"{named[0]}=some key"):
        limit = args.LimitRecord(record, True, 3, None, None)
        assert (await sent_on(part, args.Limits(False, [limit])))[:2] == (named[0], 1)
    written = args.WrittenSchedule("s", named[0], "", "", [])
    assert (await sent_on(part, args.Schedule("aa", 1, [written])))[:2] == (named[0], 1)


async def test_a_call_for_many_who_have_moved_is_made_again_a_few_times_only(queue: TaskQueue) -> None:
    users = [f"u{n}" for n in range(120)]
    for user in users:
        await move_nothing(queue, user, away_from_home(user))
    calls: list[str] = []
    queue.time_calls(lambda script, _: calls.append(script))
    handles = await queue.enqueue_many([double(n).options(user_id=user) for n, user in enumerate(users)])
    assert len({(handle.user_id, handle.task_id) for handle in handles}) == len(users)
    assert calls.count("enqueue") <= 2 * COUNT
    assert (await queue.stats()).queued == len(users)
    assert {(await queue.user(user)).queued for user in users} == {1}


# Outcomes and renewals


async def deliveries_of(part: Store, queue: TaskQueue, user_id: str, many: int) -> list[Delivery]:
    for n in range(many):
        await queue.enqueue(double(n), user_id=user_id, task_id=f"t{n}")
    return (await part.claim("w", many, wait=False)).deliveries


async def test_what_runs_is_told_where_its_user_lives_and_keeps_nothing_from_others(
    server: Server, queue: TaskQueue
) -> None:
    await queue.reader.agree()
    at = home_of(USER)
    other = next(name for n in range(40) if home_of(name := f"other {n}") == at)
    part, to = queue.reader.parts[at], (at + 1) % COUNT
    gone, stays = [(await deliveries_of(part, queue, user, 1))[0] for user in (USER, other)]
    server.execute("HSET", f"{part.keys.prefix}moved", USER, f"{to} 5")
    server.execute("HSET", part.keys.state, "moved", 1)

    requester = BlockingRequester(part.backend.connector)
    try:
        renewed = renew(requester, part.keys, "w", {}, [gone, stays])
    finally:
        requester.close()
    assert (renewed.lost, renewed.canceled) == ([], [])
    assert [(of, error.moved) for of, error in renewed.moved] == [(gone, ((USER, to, 5),))]
    chunks = [Batch(of, 1, 1, b"\x91\x01") for of in (gone, stays)]
    refused, kept = await part.append("w", chunks)
    assert isinstance(refused, UserElsewhere)
    assert kept is True
    answers = await part.settle("w", [outcome(of, "finished") for of in (gone, stays)])
    assert isinstance(answers[0], UserElsewhere)
    assert answers[0].moved == ((USER, to, 5),)
    assert answers[1] is True
    assert (await part.stats()).started == 1
    server.execute("HINCRBY", part.keys.state, "started", -1)  # as it takes along what counts
    [finding] = (await queue.check()).findings
    assert (finding.kind, finding.partition) == ("two-homes", at)
    server.execute("DEL", f"{part.keys.prefix}moved")
    server.execute("HINCRBY", part.keys.state, "started", 1)


# Ways


async def test_who_was_moved_twice_is_found_by_way_of_both(server: Server, queue: TaskQueue) -> None:
    first, second = away_from_home(USER, 1), away_from_home(USER, 2)
    await move_nothing(queue, USER, first, second)
    await queue.enqueue(double(1), user_id=USER, task_id="t")
    assert queue.reader.places.of(USER) == second
    assert homes_with_keys(server, queue, USER) == {second}
    async with TaskQueue(server.url, name=queue.name) as other:
        assert (await other.handle(USER, "t").info()).state.value == "queued"


async def test_who_comes_back_home_is_found_there_by_who_knew_where_it_was(server: Server, queue: TaskQueue) -> None:
    await move_nothing(queue, USER, away_from_home(USER))
    await queue.user(USER)
    home, away = queue.reader.parts[home_of(USER)], queue.reader.parts[away_from_home(USER)]
    server.execute("DEL", f"{home.keys.prefix}moved")
    server.execute("HDEL", home.keys.state, "moved")
    assert await away.forward(MovedUser(USER, home_of(USER), 2))
    await queue.enqueue(double(1), user_id=USER)
    assert homes_with_keys(server, queue, USER) == {home_of(USER)}


async def test_an_older_entry_sends_nobody_back(queue: TaskQueue) -> None:
    """A user that is on its way to a partition that it has left before: who arrives first waits."""
    home, away = home_of(USER), away_from_home(USER)
    await move_nothing(queue, USER, away, home)  # which says still that it went away
    hasty = await patient(queue, 0.3)
    with pytest.raises(QueueUnavailable, match="'acme' is on its way"):
        await TaskQueue.user(hasty, USER)
    with pytest.raises(UserFrozen, match="'acme' is on its way"):
        await hasty.enqueue(double(1), user_id=USER)
    arriving = asyncio.create_task(queue.enqueue(double(1), user_id=USER))
    await eventually(lambda: queue.reader.places.of(USER) == home)
    part = queue.reader.parts[home]
    await part._insist(pack(("HDEL", f"{part.keys.prefix}moved", USER)))
    await arriving
    assert (await part.stats()).queued == 1


async def test_nobody_waits_for_one_that_is_on_its_way(queue: TaskQueue) -> None:
    """Neither whose tasks are sent with its own, nor who looks at users."""
    home, away = home_of(USER), away_from_home(USER)
    await move_nothing(queue, USER, away, home)
    others = [name for n in range(60) if home_of(name := f"other-{n}") in (home, away)]
    late = [asyncio.create_task(queue.enqueue(double(n), user_id=USER)) for n in range(3)]
    async with asyncio.timeout(queue.connector.timeout / 2):
        await asyncio.gather(*(queue.enqueue(double(n), user_id=user) for n, user in enumerate(others)))
        seen = await queue.reader.named_users([encode_user(user) for user in (*others[:3], USER, *others[3:])])
    assert [info.user_id for info in seen] == others
    assert not any(each.done() for each in late)
    part = queue.reader.parts[home]
    await part._insist(pack(("HDEL", f"{part.keys.prefix}moved", USER)))
    await asyncio.gather(*late)
    assert (await queue.user(USER)).queued == 3


async def test_who_waits_for_a_task_goes_on_while_its_user_is_on_its_way(server: Server, queue: TaskQueue) -> None:
    await queue.enqueue(double(4), user_id=USER, task_id="t")
    home, away = (queue.reader.parts[at] for at in (home_of(USER), away_from_home(USER)))
    assert await away.forward(MovedUser(USER, home_of(USER), 2))
    server.execute("HSET", f"{home.keys.prefix}moved", USER, f"{away_from_home(USER)} 1")
    server.execute("HSET", home.keys.state, "moved", 1)
    handle = (await patient(queue, 0.3)).handle(USER, "t")
    waiting = asyncio.create_task(handle.result(timeout=20))
    for _ in range(2):
        with pytest.raises(QueueUnavailable, match="on its way"):
            await handle.state()
    assert not waiting.done()
    server.execute("DEL", f"{home.keys.prefix}moved")
    async with Worker(queue):
        assert await waiting == 8


async def patient(queue: TaskQueue, seconds: float) -> TaskQueue:
    other = TaskQueue(queue.connector.url, name=queue.name, timeout=seconds)
    await other.open()
    _opened.append(other)
    return other


_opened: list[TaskQueue] = []


@pytest.fixture(autouse=True)
async def _closes() -> Any:
    yield
    while _opened:
        await _opened.pop().close()


async def test_a_partition_that_sends_to_itself_ends_in_an_error(queue: TaskQueue) -> None:
    await move_nothing(queue, USER, home_of(USER))
    with pytest.raises(QueueUnavailable, match="user 'acme'"):
        await TaskQueue.user(await patient(queue, 0.3), USER)


async def test_an_older_move_is_not_written_over_a_later_one(queue: TaskQueue) -> None:
    await move_nothing(queue, USER, 1 if home_of(USER) != 1 else 2, epoch=5)
    part = queue.reader.parts[home_of(USER)]
    assert await part.forward(MovedUser(USER, 3, 4)) is False
    assert await part.forward(MovedUser(USER, 3, 6)) is True


async def test_nobody_is_sent_on_from_where_it_lives(queue: TaskQueue) -> None:
    await queue.enqueue(double(1), user_id=USER)
    with pytest.raises(InvalidInput, match="lives in the partition"):
        await queue.reader.parts[home_of(USER)].forward(MovedUser(USER, 3, 1))


# Who waits


async def test_who_waits_hears_of_what_ends_elsewhere(server: Server, queue: TaskQueue) -> None:
    """The message of a move is enough: nobody looks by itself for seconds."""
    await queue.reader.agree()
    handle = queue.handle(USER, "t")
    to = queue.reader.parts[away_from_home(USER)]
    await queue.enqueue(double(4), user_id=USER, task_id="t", delay=3600)
    waiting = asyncio.create_task(handle.result(timeout=20))
    home = queue.reader.parts[home_of(USER)]
    await eventually(lambda: _listens(server, home.keys.done_channel(USER, "t")))
    move_keys(server, home, to, USER)
    await eventually(lambda: _listens(server, to.keys.done_channel(USER, "t")), 3)
    async with Worker(queue):
        await handle.promote()
        assert await waiting == 8


def _listens(server: Server, channel: str) -> bool:
    return bool(server.execute("PUBSUB", "SHARDNUMSUB", channel)[1])


def move_keys(server: Server, home: Store, to: Store, user: str) -> None:
    """By hand, of one with nothing but a task that is scheduled."""
    moved = f"{user} {to.backend.number} 1"  # type: ignore[attr-defined]
    for key in server.execute("KEYS", "*"):
        name = key.decode().removeprefix(home.keys.prefix)
        if name != key.decode() and name.split(":")[1:2] == [user]:
            server.execute("RENAME", key, to.keys.prefix + name)
    for index in ("users", "due"):
        score = server.execute("ZSCORE", home.keys.prefix + index, user)
        if score is not None:
            server.execute("ZREM", home.keys.prefix + index, user)
            server.execute("ZADD", to.keys.prefix + index, score, user)
    server.execute("HINCRBY", home.keys.state, "scheduled", -1)
    server.execute("HINCRBY", to.keys.state, "scheduled", 1)
    server.execute("HSET", home.keys.prefix + "moved", user, moved.partition(" ")[2])
    server.execute("HSET", home.keys.state, "moved", 1)
    server.execute("SPUBLISH", home.keys.moves_channel, moved)


async def test_readers_of_streams_and_watchers_find_one_that_has_moved(queue: TaskQueue) -> None:
    await move_nothing(queue, USER, away_from_home(USER))
    handle = await queue.enqueue(count_up(3), user_id=USER)
    async with Worker(queue):
        assert [n async for n in handle.stream()] == [0, 1, 2]
    assert [info.state.value async for info in handle.watch()] == ["finished"]


async def test_workers_serve_one_that_has_moved(queue: TaskQueue) -> None:
    await move_nothing(queue, USER, away_from_home(USER))
    handles = await queue.enqueue_many([double(n) for n in range(20)], user_id=USER)
    async with Worker(queue, concurrency=5):
        assert [await handle.result(timeout=10) for handle in handles] == [2 * n for n in range(20)]


async def test_schedules_of_one_that_has_moved_fire_where_it_lives(server: Server, queue: TaskQueue) -> None:
    await move_nothing(queue, USER, away_from_home(USER))
    scheduler = TaskScheduler(queue)
    await scheduler.add_schedule(task=double(3), schedule_id="s", user_id=USER, every=1)
    async with Worker(queue):
        await eventually(lambda: _has_finished(queue, USER))
    assert [each.user_id for each in await scheduler.list_schedules()] == [USER]
    assert await scheduler.remove_schedule("s")
    assert homes_with_keys(server, queue, USER) == {away_from_home(USER)}


async def _has_finished(queue: TaskQueue, user_id: str) -> bool:
    return (await queue.user(user_id)).finished > 0


def test_blocking_code_is_sent_on_as_well(server: Server, queue_name: str) -> None:
    async def prepare_moved() -> None:
        async with TaskQueue(server.url, name=queue_name) as queue:
            await move_nothing(queue, USER, away_from_home(USER))

    asyncio.run(prepare_moved())
    with sync.TaskQueue(server.url, name=queue_name) as blocking:
        blocking.enqueue(double(1), user_id=USER, task_id="t")
        assert blocking.user(USER).queued == 1


# What is known


def test_what_is_known_is_bounded_and_the_latest_is_kept() -> None:
    places = Places(COUNT, most=2)
    for n in range(3):
        assert places.learn(MovedUser(f"u{n}", away_from_home(f"u{n}"), 1))
        places.of("u0")
    assert places.of("u0") == away_from_home("u0")
    assert places.of("u1") == home_of("u1")
    assert places.of("u2") == away_from_home("u2")
    assert not places.learn(MovedUser("u0", home_of("u0"), 0))
    assert not places.learn(MovedUser("u0", home_of("u0"), 1))
    assert not places.learn(MovedUser("u0", COUNT, 9))
    assert places.learn(MovedUser("u0", home_of("u0"), 2))
    assert places.of("u0") == home_of("u0")


def test_what_is_known_may_be_learnt_from_many_threads() -> None:
    places = Places(COUNT, most=50)

    def learn(first: int) -> None:
        for n in range(first, first + 2000):
            places.learn(MovedUser(f"u{n % 70}", n % COUNT, n))
            assert 0 <= places.of(f"u{n % 70}") < COUNT

    threads = [threading.Thread(target=learn, args=(at,)) for at in (0, 1000, 2000, 3000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(f"u{n}" in places._moved for n in range(70)) <= 50


@pytest.mark.parametrize(
    ("text", "moved"),
    [
        ("ELSEWHERE a 1 2", [("a", 1, 2)]),
        ("ELSEWHERE a 1 2 b 3 17", [("a", 1, 2), ("b", 3, 17)]),
        ("ELSEWHERE a 1 2 script: fairque_x, on @user_function:17.", [("a", 1, 2)]),
    ],
)
def test_what_a_partition_answers_is_read(text: str, moved: list[Any]) -> None:
    assert list(moved_in(text).moved) == moved


# When it is lost where somebody lives


async def test_users_whom_nobody_finds_are_told_and_found_again_by_a_repair(server: Server, queue: TaskQueue) -> None:
    to = away_from_home(USER)
    await move_nothing(queue, USER, to)
    await queue.enqueue(double(1), user_id=USER)
    home = queue.reader.parts[home_of(USER)]
    server.execute("DEL", f"{home.keys.prefix}moved")
    [finding] = (await queue.check()).findings
    assert (finding.kind, finding.user_id, finding.partition) == ("astray", USER, home_of(USER))
    assert str(to) in finding.detail
    [mended] = (await queue.check(repair=True)).findings
    assert mended.mended
    assert (await queue.check()).findings == ()
    async with TaskQueue(server.url, name=queue.name) as other:
        assert (await other.user(USER)).queued == 1


async def test_what_is_in_two_partitions_is_for_somebody_to_decide(server: Server, queue: TaskQueue) -> None:
    await move_nothing(queue, USER, away_from_home(USER))
    await queue.enqueue(double(1), user_id=USER)
    server.execute("DEL", f"{queue.reader.parts[home_of(USER)].keys.prefix}moved")
    async with TaskQueue(server.url, name=queue.name) as other:
        await other.enqueue(double(1), user_id=USER)
    [finding] = (await queue.check(repair=True)).findings
    assert (finding.kind, finding.mended) == ("astray", False)
    assert "both" in finding.how
    await queue.purge(USER)


async def test_who_is_on_its_way_is_not_astray(queue: TaskQueue) -> None:
    await queue.reader.agree()
    part = queue.reader.parts[away_from_home(USER)]
    await part.freeze(USER, "0" * 32, "import")
    assert (await queue.check()).findings == ()
    await part.thaw(USER, "0" * 32)
    await part.purge_step(USER, 10)


async def test_a_lost_mark_in_the_state_is_told_and_mended(server: Server, queue: TaskQueue) -> None:
    await move_nothing(queue, USER, away_from_home(USER))
    server.execute("HDEL", queue.reader.parts[home_of(USER)].keys.state, "moved")
    [finding] = (await queue.check(repair=True)).findings
    assert (finding.kind, finding.mended) == ("unmarked", True)
    await queue.enqueue(double(1), user_id=USER)
    assert homes_with_keys(server, queue, USER) == {away_from_home(USER)}


# Lists of the whole queue, while a user is in two partitions


def answers(*replies: Any) -> Answers:
    return Answers(list(replies), ())


def test_lists_name_a_user_once_that_is_in_two_partitions() -> None:
    names = args.UserNames(0, "", 10)
    assert merged_names(names, answers([2, b"a", b"5", b"m", b"3"], [2, b"m", b"4", b"z", b"1"])) == [
        *(4, b"a", b"5", b"m", b"4", b"z", b"1")
    ]
    assert merged_active(args.Active(10), answers([b"a", b"m"], [b"m", b"z"])) == [b"a", b"m", b"z"]
    assert merged_holders(args.Holders(10, 10), answers([0, b"m"], [0, b"m", b"z"])) == [0, b"m", b"z"]


def test_lists_name_what_a_user_has_once_that_is_in_two_partitions() -> None:
    letter, other = [b"m", b"t", b"7", b"", b"f"], [b"a", b"t", b"6", b"", b"f"]
    assert merged_letters(args.Dead("", 10, 0, "", 1, ""), answers([letter], [other, letter])) == [other, letter]
    row = [b"s", b"", [b"user", b"m"]]
    assert merged_schedules([[5, b"", row], [6, b"", row]]) == [6, b"", row]
    assert merged_page(args.Schedules([], "", "", 10), [[5, b"", row], [6, b"", row]]) == [6, b"", row]
    task_of = [b"m", b"t", b"f", 1, b"1", b"w"]
    assert merged_running(args.Running("", 10, 10), answers([5, 0, *task_of], [6, 0, *task_of])) == [6, 0, *task_of]
