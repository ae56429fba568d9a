"""docs/architecture.md tells the truth about the keys of a queue, its scripts and the folders of the source."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import fairque
from fairque import (
    EVERYBODY,
    Breaker,
    Collect,
    Priority,
    QueueFull,
    Retry,
    TaskQueue,
    TaskScheduler,
    TaskState,
    Worker,
    current_task,
    task,
    xcom_task,
)
from fairque.embedded.server import EmbeddedServer
from fairque.redis.delivery import Delivery
from fairque.redis.places import MovedUser
from fairque.redis.store import Store
from fairque.tasks.registry import unregister
from fairque.testing import advance
from tests.support.core import metrics_of_old, outcome
from tests.support.eventually import eventually
from tests.support.key_table import KeyWatch, Rule, rules_in
from tests.support.process import ROOT
from tests.support.resp import RespClient
from tests.test_public_face import rooms

PAGE = (ROOT / "docs" / "architecture.md").read_text()
RULES = rules_in(PAGE)
HOUR = timedelta(hours=1)
ODD_USER, ODD_ID = "a:b {ü}", "1:informed:held\n*"

Look = Callable[[], None]


# Tasks, known while this test runs: workers declare the limits and schedules of all functions they know


@pytest.fixture
def known() -> Iterator[SimpleNamespace]:
    opened = asyncio.Event()

    async def ok(value: int = 0) -> int:
        current_task().charge(0.5)
        return value

    async def gated() -> None:
        current_task().progress(0.5, "half way")
        await opened.wait()

    async def letters() -> AsyncIterator[str]:
        yield "a"
        await opened.wait()

    async def broken() -> None:
        raise ValueError("on purpose")

    async def flaky() -> None:
        if current_task().attempt == 1:
            raise Retry(delay=0.01)

    async def tick() -> None: ...

    async def grouped(numbers: list[int]) -> list[int | Exception]:
        return list(numbers)

    functions = [
        task(name="ok: fine")(ok),
        task(name="gated")(gated),
        task(name="letters")(letters),
        task(name="broken")(broken),
        task(name="flaky", max_retries=2)(flaky),
        task(name="one: at a time", max_running=1, rate="1000/s burst 10")(gated),
        task(name="tick", every=3600, user_id="system")(tick),
        xcom_task("value", name="pushes")(ok),
        task(name="grouped", collect=Collect(3, within=60))(grouped),
    ]
    names = ["ok", "gated", "letters", "broken", "flaky", "limited", "tick", "pushes", "grouped"]
    yield SimpleNamespace(opened=opened, **dict(zip(names, functions, strict=True)))
    for function in functions:
        unregister(function.name)


@pytest.fixture
def loud_server(own_server: Callable[..., EmbeddedServer]) -> EmbeddedServer:
    return own_server(notify_keyspace_events="Kn")


@pytest.fixture
async def queue(loud_server: EmbeddedServer, queue_name: str) -> AsyncIterator[TaskQueue]:
    async with TaskQueue(loud_server.url, name=queue_name, lease=0.5) as queue:
        yield queue


async def serve(queue: TaskQueue) -> None:
    await Worker(queue, scheduler=False).run_until_idle()


# A busy run of every feature. Each part takes care that the keys of its own are there when somebody looks.


async def waits_in_every_place(queue: TaskQueue, known: SimpleNamespace, look: Look) -> None:
    for user_id in (ODD_USER, "acme"):
        first = await queue.enqueue(known.ok(1), user_id=user_id, task_id=ODD_ID)
        await queue.enqueue(known.ok(2), user_id=user_id, priority=Priority.CRITICAL)
        await queue.enqueue(known.ok(3), user_id=user_id, delay=3600)
        await queue.enqueue(known.ok(4), user_id=user_id, depends_on=[first])
        await queue.enqueue(known.flaky(), user_id=user_id, expires=10_000, unique=True)
        await queue.enqueue(known.ok(8), user_id=user_id, throttle=60)
        await queue.enqueue(known.ok(known.ok(5).output) >> [known.pushes(6), known.ok(7)], user_id=user_id)
    await queue.xcom("acme", "a:b").push("key", 1)
    look()
    assert await advance(queue, 3600) == 2
    look()
    await serve(queue)


async def runs_and_is_watched(queue: TaskQueue, known: SimpleNamespace, look: Look) -> None:
    async with Worker(queue, scheduler=False), Worker(queue, assigned_users=["acme"], steal_targets=[EVERYBODY]):
        handles = [await queue.enqueue(known.gated(), user_id="acme", priority=level) for level in (3, 6)]
        watching = asyncio.create_task(anext(aiter(handles[0].watch())))
        await eventually(lambda: has_workers(queue, running=2))
        look()
        assert (await watching).state is TaskState.STARTED
        await handles[1].cancel()
        waiting = await queue.enqueue(known.ok(9), user_id="acme", delay=3600)
        assert await waiting.set_priority(6)
        assert await waiting.reschedule(1800)
        look()
        await waiting.cancel()
        known.opened.set()
        await handles[0].result(timeout=10)
        await eventually(lambda: has_workers(queue, running=0))
        look()
    known.opened.clear()


async def has_workers(queue: TaskQueue, running: int) -> bool:
    """Whether both have reported, and so many tasks run."""
    stats = await queue.stats()
    return len(stats.workers) == 2 and stats.started == running


async def yields(queue: TaskQueue, known: SimpleNamespace, look: Look) -> None:
    async with Worker(queue, scheduler=False):
        handle = await queue.enqueue(known.letters(), user_id=ODD_USER)
        async for _ in handle.stream():
            look()
            known.opened.set()
    look()
    known.opened.clear()


async def fails_and_is_brought_back(queue: TaskQueue, known: SimpleNamespace, look: Look) -> None:
    letters = [await queue.enqueue(known.broken(), user_id="acme") for _ in range(3)]
    await queue.enqueue(known.ok(1) >> known.broken(), user_id="linked")
    await serve(queue)
    look()
    await queue.purge("linked")
    assert len(await queue.dead_letters("acme")) == 3
    await queue.requeue(letters[0])
    await queue.discard(letters[1])
    look()
    await letters[0].cancel()


async def calls_back(queue: TaskQueue, known: SimpleNamespace, look: Look) -> None:
    for made in (known.ok(1), known.broken()):
        await queue.enqueue(made.options(on_end=known.ok()), user_id=ODD_USER, task_id=ODD_ID)
        look()
        await serve(queue)
        look()


async def has_children(queue: TaskQueue, known: SimpleNamespace, look: Look) -> None:
    parent = await queue.enqueue(known.broken(), user_id=ODD_USER, task_id=ODD_ID)
    store = queue.store()
    [taken] = (await store.claim("ghost", 1)).deliveries
    await queue.enqueue_child(parent, "c", known.ok(), with_parent=True, options={})
    look()
    assert await store.settle("ghost", [outcome(taken, "failed")]) == [True]
    await store.close()
    look()
    await queue.discard(parent)
    await serve(queue)


async def counts_a_batch(queue: TaskQueue, known: SimpleNamespace, look: Look) -> None:
    async with queue.batch(ODD_USER, batch_id=ODD_ID, on_complete=known.ok(), on_success=known.ok()) as batch:
        await batch.enqueue_many([known.ok(1), known.broken()])
        look()
    await serve(queue)
    look()


async def tells_many_that_wait(queue: TaskQueue, known: SimpleNamespace, look: Look) -> None:
    first = await queue.enqueue(known.broken(), user_id="many", task_id=ODD_ID)
    await queue.enqueue_many([known.ok().options(depends_on=[first])] * 600, user_id="many")
    await first.cancel()
    look()
    await serve(queue)
    look()
    await queue.purge("many")


async def is_governed(queue: TaskQueue, known: SimpleNamespace, look: Look) -> None:
    await queue.set_policy(EVERYBODY, max_running=100, breaker=Breaker(failures=50))
    await queue.set_group("plan", weight=2)
    await queue.set_policy("member", group="plan", min_running=1)
    await queue.set_policy("slow", rate="1/h", weight=3)
    await queue.set_policy("small", max_queued=3, overflow="drop_oldest")
    await queue.set_policy("tiny", max_queued=0)
    await queue.pause("acme", until=datetime.now(UTC) + HOUR)
    with pytest.raises(QueueFull):
        await queue.enqueue(known.ok(), user_id="tiny")
    for user_id in ("member", "slow", "small", "acme", "broke"):
        await queue.enqueue_many([known.ok()] * 3, user_id=user_id)
    await queue.enqueue(known.ok(), user_id="small")
    look()
    await queue.enqueue(known.broken(), user_id="broke")
    await serve(queue)
    look()
    await queue.pause(EVERYBODY, until=datetime.now(UTC) + HOUR)
    for user_id in ("member", "slow", "small", "tiny", "acme"):
        await queue.clear_policy(user_id)
    await queue.clear_policy(EVERYBODY)
    look()
    await serve(queue)


async def is_served_by_workers_of_its_own(queue: TaskQueue, known: SimpleNamespace, look: Look) -> None:
    users = [["apart", *(f"apart-{number}" for number in range(150))]]
    await queue.set_policy("apart", group="plan/team", min_running=5)
    await queue.set_policy("dear", group="plan/team")
    await queue.enqueue(known.ok().options(cost=50), user_id="dear")
    await queue.enqueue_many([known.ok()] * 3, user_id="apart")
    store = queue.store()
    taken = (await store.claim("own", 1, groups=users)).deliveries
    assert not (await store.claim("other", 1, groups=[["nobody"]])).deliveries
    look()
    assert await store.settle("own", [outcome(of, "finished") for of in taken]) == [True]
    for name in ("own", "other"):
        await store.leave(name, users if name == "own" else [["nobody"]])
        look()
    await store.close()
    await queue.set_policy(EVERYBODY, weight=2)
    look()
    await serve(queue)
    look()
    for user_id in (EVERYBODY, "apart", "dear"):
        await queue.clear_policy(user_id)


async def leaves_others_behind(queue: TaskQueue, known: SimpleNamespace, look: Look) -> None:
    """With more than they have had, alone and in a group."""
    store = queue.store()
    for user_id, group in (("left", None), ("stays", None), ("member", "plan"), ("sibling", "plan")):
        await queue.set_policy(user_id, group=group)
    for user_id, tasks, cost in (("left", 1, 9), ("stays", 5, 1), ("member", 1, 9), ("sibling", 5, 1)):
        await queue.enqueue_many([known.ok().options(cost=cost)] * tasks, user_id=user_id)
    taken = (await store.claim("ghost", 4, wait=False)).deliveries
    assert len(taken) == 4
    look()
    assert all(await store.settle("ghost", [outcome(of, "released") for of in taken]))
    await store.close()
    for user_id in ("left", "stays", "member", "sibling"):
        await queue.purge(user_id)


async def is_held_by_its_name(queue: TaskQueue, known: SimpleNamespace, look: Look) -> None:
    async with Worker(queue, scheduler=False):
        handles = [await queue.enqueue(known.limited(), user_id=ODD_USER) for _ in range(3)]
        await eventually(lambda: is_held(queue, 2))
        look()
        await handles[2].cancel()
        known.opened.set()
        await handles[1].result(timeout=10)
    known.opened.clear()
    await is_let_in(queue, known, look)
    await queue.clear_limit("one: at a time", declared=True)


async def is_let_in(queue: TaskQueue, known: SimpleNamespace, look: Look) -> None:
    handles = [await queue.enqueue(known.limited(), user_id=ODD_USER) for _ in range(2)]
    store = queue.store()
    [first] = (await store.claim("ghost", 2)).deliveries
    assert await store.settle("ghost", [outcome(first, "finished")]) == [True]
    await store.close()
    look()
    await handles[1].cancel()


async def keeps_a_place_while_it_waits_for_another(queue: TaskQueue, known: SimpleNamespace, look: Look) -> None:
    for key in ("a", "b"):
        await queue.set_limit(key, max_running=1, rate="1/m burst 5")
        await queue.enqueue(known.ok(1).options(limits=[key]), user_id="acme")
    store = queue.store()
    first = (await store.claim("ghost", 2)).deliveries
    await queue.enqueue(known.ok(1).options(limits=["a", "b"]), user_id=ODD_USER)
    assert not (await store.claim("ghost", 2)).deliveries
    for delivery in first:
        await store.settle("ghost", [outcome(delivery, "finished")])
        look()
    await store.close()
    await serve(queue)
    for key in ("a", "b"):
        await queue.clear_limit(key)


async def is_collected(queue: TaskQueue, known: SimpleNamespace, look: Look) -> None:
    handles = await queue.enqueue_many([known.grouped(n) for n in range(5)], user_id=ODD_USER)
    look()
    assert not await handles[0].promote(), "it was served with the group that is full"
    await handles[3].promote()
    await serve(queue)
    look()


async def is_paused_by_name(queue: TaskQueue, known: SimpleNamespace, look: Look) -> None:
    await queue.pause_task(known.ok.name)
    await queue.enqueue(known.ok(1), user_id=ODD_USER)
    store = queue.store()
    assert not (await store.claim("ghost", 1)).deliveries
    await store.close()
    look()
    await queue.resume_task(known.ok.name)
    await serve(queue)


async def holds_what_has_a_key_of_its_own(queue: TaskQueue, known: SimpleNamespace, look: Look) -> None:
    await queue.set_limit("crm:{value}", max_running=1)
    filled = known.ok(value=1).options(limits=["crm:{value}"])
    await queue.enqueue_many([filled, filled], user_id=ODD_USER)
    store = queue.store()
    [first] = (await store.claim("ghost", 2)).deliveries
    look()
    await store.settle("ghost", [outcome(first, "finished")])
    await store.close()
    await serve(queue)
    await queue.clear_limit("crm:{value}")


async def is_held(queue: TaskQueue, tasks: int) -> bool:
    return (await queue.user(ODD_USER)).held == tasks


async def outlives_its_worker(queue: TaskQueue, known: SimpleNamespace, look: Look) -> None:
    handle = await queue.enqueue(known.ok(8), user_id="acme")
    store = queue.store()
    assert (await store.claim("ghost", 1)).deliveries
    await queue.set_limit("ok: fine", max_running=5)
    look()
    await queue.clear_limit("ok: fine")
    [suspect] = await eventually(lambda: taken_by(store, "thief"))
    look()
    await store.settle("thief", [outcome(suspect, "released", 0)])
    await store.close()
    async with Worker(queue, scheduler=False):
        assert await handle.result(timeout=10) == 8
    assert (await handle.info()).attempt == 2


async def taken_by(store: Store, worker: str) -> list[Delivery]:
    return (await store.claim(worker, 1, wait=False)).deliveries


async def is_charged_by_time(queue: TaskQueue, known: SimpleNamespace, look: Look) -> None:
    await queue.change_settings(fairness="time")
    async with TaskQueue(queue.connector.url, name=queue.name) as by_time:
        for hours in (1, 0):
            await by_time.enqueue(known.ok(), user_id="acme")
            await serve(by_time)
            for whose in ("acme", "*"):
                set_clock_of_usage(queue, whose, hours)
    look()
    assert len(await queue.usage("acme", since=datetime.now(UTC) - 2 * HOUR)) == 2


def set_clock_of_usage(queue: TaskQueue, whose: str, hours: int) -> None:
    """As if the services so far had been so many hours ago."""
    with RespClient(queue.connector.url) as client:
        key = f"{queue.keys.prefix}metrics:{whose}"
        client.execute("SET", key, metrics_of_old(client.execute("GET", key), hours), "KEEPTTL")


async def has_a_limit_of_bytes(queue: TaskQueue, known: SimpleNamespace, look: Look) -> None:
    store = queue.store()
    await queue.xcom(ODD_USER, "a:b").push("key", 1)
    await queue.enqueue(known.ok(), user_id=ODD_USER)
    await serve(queue)
    await queue.set_policy(ODD_USER, max_bytes=10**6)
    while queue_state(queue, "weighing"):
        await store.claim("ghost", 1, groups=[["nobody"]], wait=False)
        look()
    await store.leave("ghost", [["nobody"]])
    await store.close()
    await queue.clear_policy(ODD_USER)


def queue_state(queue: TaskQueue, field: str) -> Any:
    with RespClient(queue.connector.url) as client:
        return client.execute("HGET", queue.keys.state, field)


async def is_fired_by_schedules(queue: TaskQueue, known: SimpleNamespace, look: Look) -> None:
    scheduler = TaskScheduler(queue)
    times: list[dict[str, Any]] = [
        {"cron_expr": "0 9 * * *", "timezone": "Europe/Berlin", "schedule_id": "9:00"},
        {"every": HOUR, "max_runs": 1, "overlap": "skip"},
        {"at": datetime.now(UTC) + HOUR},
    ]
    ids = [await scheduler.add_schedule(task=known.ok(), user_id=ODD_USER, **when) for when in times]
    await scheduler.run_now(ids[0])
    lose(queue, f"schedule:{await scheduler.add_schedule(task=known.ok(), user_id=ODD_USER, every=HOUR)}")
    assert await scheduler.fire_due(2 * 3600) >= 2
    await scheduler.pause_schedule(ids[0])
    async with Worker(queue):
        await eventually(lambda: is_declared(scheduler))
        look()
    look()
    await scheduler.remove_schedule(ids[0])


def lose(queue: TaskQueue, key: str) -> None:
    with RespClient(queue.connector.url) as client:
        client.execute("DEL", f"{queue.keys.prefix}{key}")


async def is_declared(scheduler: TaskScheduler) -> bool:
    return bool(await scheduler.list_schedules("system"))


async def is_repaired(queue: TaskQueue) -> None:
    with RespClient(queue.connector.url) as client:
        client.execute("SET", f"{queue.keys.prefix}policy-groups", "what it should not be")
    assert (await queue.check(repair=True)).sound


async def knows_of_one_that_lives_elsewhere(queue: TaskQueue, known: SimpleNamespace, look: Look) -> None:  # noqa: ARG001
    assert await queue.reader.forward(MovedUser("gone", 1, 1))
    look()


async def is_carried_elsewhere(queue: TaskQueue, known: SimpleNamespace, look: Look) -> None:
    await queue.enqueue(known.ok(), user_id="carried")
    async for _ in queue.export_user("carried"):
        look()
    store = queue.store()
    await store.freeze("half", "0" * 32, "import")
    look()
    await store.close()
    await queue.purge("carried")
    await queue.purge("half")


async def moves_to_another_partition(queue: TaskQueue, known: SimpleNamespace, look: Look) -> None:
    await queue.enqueue(known.ok(), user_id="leaves")
    store, token = queue.store(), "1" * 32
    frozen = await store.freeze("leaves", token, "move", 30_000)
    assert await store.note_manifest("leaves", token, 0, ["normal:leaves"])
    look()
    assert await store.arrive("arrives", token, 1, frozen.passport) is None
    assert await store.depart("leaves", token, 1, 7, {"normal": 1})
    look()
    for user in ("leaves", "arrives"):
        assert await store.erase(user, token, 100) == 0
    look()
    await store.close()


async def is_left_alone_for_a_lost_key(queue: TaskQueue, known: SimpleNamespace, look: Look) -> None:
    lost = await queue.enqueue(known.ok(), user_id="broken")
    with RespClient(queue.connector.url) as client:
        client.execute("DEL", f"{queue.keys.prefix}normal:broken")
        store = queue.store()
        assert (await store.claim("ghost", 1, groups=[["*"]], wait=False)).deliveries == []
        look()
        client.execute("ZADD", f"{queue.keys.prefix}damaged", 1, "broken")
    await store.leave("ghost", [["*"]])
    await store.close()
    await serve(queue)
    await queue.check(repair=True)
    await serve(queue)
    assert await lost.state() is TaskState.FINISHED


async def lends_places(queue: TaskQueue, stack: contextlib.ExitStack, watch: KeyWatch) -> None:
    """In a queue with partitions, whose keys are told beside those of the queue."""
    url, users = queue.connector.url, [f"user {n}" for n in range(20)]

    @task(max_running=1, name="takes a place")
    async def takes_a_place() -> None:
        await asyncio.sleep(0.01)

    async with TaskQueue(url, name=f"{queue.name}/4", partitions=4) as many, contextlib.AsyncExitStack() as looking:
        watches = [stack.enter_context(KeyWatch(url, part.keys.prefix)) for part in many.reader.parts]
        for each in watches:
            await looking.enter_async_context(looked_at_all_the_time(each))
        handles = [await many.enqueue(takes_a_place(), user_id=user) for user in users]
        async with Worker(many, scheduler=False):
            for handle in handles:
                await handle.result(timeout=20)
    unregister(takes_a_place.name)
    for each in watches:
        watch.names |= each.names
        watch.found |= each.found


PARTS = [
    waits_in_every_place,
    runs_and_is_watched,
    yields,
    fails_and_is_brought_back,
    calls_back,
    counts_a_batch,
    has_children,
    tells_many_that_wait,
    is_governed,
    leaves_others_behind,
    is_served_by_workers_of_its_own,
    is_held_by_its_name,
    keeps_a_place_while_it_waits_for_another,
    is_paused_by_name,
    holds_what_has_a_key_of_its_own,
    is_collected,
    outlives_its_worker,
    is_charged_by_time,
    has_a_limit_of_bytes,
    is_fired_by_schedules,
    is_carried_elsewhere,
    knows_of_one_that_lives_elsewhere,
    moves_to_another_partition,
    is_left_alone_for_a_lost_key,
]


# The table


@contextlib.asynccontextmanager
async def looked_at_all_the_time(watch: KeyWatch) -> AsyncIterator[None]:
    async def keep_looking() -> None:
        while True:
            watch.look()
            await asyncio.sleep(0.02)

    looking = asyncio.create_task(keep_looking())
    try:
        yield
    finally:
        looking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await looking


def rules_for(key: str) -> list[Rule]:
    return [rule for rule in RULES if rule.pattern.fullmatch(key)]


async def test_every_key_of_a_busy_queue_is_in_the_table_and_no_row_is_dead(
    queue: TaskQueue, known: SimpleNamespace
) -> None:
    with KeyWatch(queue.connector.url, queue.keys.prefix) as watch:
        async with looked_at_all_the_time(watch):
            for part in PARTS:
                await part(queue, known, watch.look)
            await queue.purge(ODD_USER)
            watch.look()
        await is_repaired(queue)
        watch.look()
        with contextlib.ExitStack() as stack:
            await lends_places(queue, stack, watch)

    for key in watch.names | {found.key for found in watch.found}:
        assert len(rules_for(key)) == 1, f"{key!r}: {[rule.form for rule in rules_for(key)] or 'not in the table'}"
    seen: defaultdict[str, set[bool]] = defaultdict(set)
    for found in watch.found:
        [rule] = rules_for(found.key)
        assert rule.kind in (found.kind, "any"), found
        assert found.expires in rule.expires, found
        seen[rule.form].add(found.expires)
    assert seen == {rule.form: rule.expires for rule in RULES}


def test_the_table_of_scripts_has_each_of_them_once() -> None:
    table = PAGE.partition("| script | does |")[2].partition("\n\n")[0]
    scripts = Path(fairque.__file__).parent.glob("*/lua/*.lua")
    assert sorted(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == sorted(path.stem for path in scripts)


def test_who_writes_a_key_is_a_script() -> None:
    table = PAGE.partition("| key | type | expires |")[2].partition("\n\n")[0]
    scripts = {path.stem for path in Path(fairque.__file__).parent.glob("*/lua/*.lua")}
    forms = {rule.form for rule in RULES}
    rows = table.splitlines()[2:]
    assert rows
    for row in rows:
        writers = row.split(" | ")[4]
        assert set(re.findall(r"`([^`]+)`", writers)) <= scripts | forms, row


def test_the_table_of_layers_has_each_folder_and_module_below_those_that_it_imports() -> None:
    table = PAGE.partition("| folder | what it holds |")[2]
    imported, above = rooms(), set[str]()
    for cell in re.findall(r"^\| (`.*?) \| ", table, re.MULTILINE):
        row = set(re.findall(r"`(\w+)/?`", cell))
        for name in row:
            assert imported[name] <= above | row, name
        above |= row
    assert above == set(imported) - {"__main__"}
