"""A user carried from one queue to another: all of it is there, in its order, and nothing of another's."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from fairque import (
    BadExport,
    Encrypt,
    QueueUnavailable,
    TaskHandle,
    TaskQueue,
    TaskScheduler,
    TaskState,
    UserFrozen,
    Worker,
    task,
)
from fairque.redis.keys import encode_user
from fairque.tasks.message import Record, encode_record
from fairque.testing import advance
from fairque.transfer import walk
from fairque.transfer.fields import as_carried
from fairque.transfer.kinds import KINDS, MOVED_KINDS, Part
from tests.support.core import outcome
from tests.support.eventually import eventually
from tests.support.everything import USER, everything
from tests.support.key_table import rules_in
from tests.support.process import ROOT
from tests.support.resp import RespClient

if TYPE_CHECKING:
    from fairque.embedded.server import EmbeddedServer
    from tests.support.servers import Server

pytestmark = pytest.mark.leaves_keys()
_READ: dict[str, Callable[[bytes], tuple[Any, ...]]] = {
    "string": lambda key: ("GET", key),
    "list": lambda key: ("LRANGE", key, 0, -1),
    "set": lambda key: ("SMEMBERS", key),
    "zset": lambda key: ("ZRANGE", key, 0, -1, "WITHSCORES"),
    "hash": lambda key: ("HGETALL", key),
    "stream": lambda key: ("XRANGE", key, "-", "+"),
}


def contents(queue: TaskQueue, user_id: str) -> dict[tuple[str, str], Any]:
    """What the user has, by kind and name, in a form that can be compared."""
    user, prefix = encode_user(user_id), queue.keys.prefix
    found: dict[tuple[str, str], Any] = {}
    with RespClient(queue.connector.url) as client:
        for full in client.execute("KEYS", f"{prefix.replace('{', '?').replace('}', '?')}*"):
            kind, whose, name = [*full.decode().removeprefix(prefix).split(":", 2), "", ""][:3]
            if kind == "schedule":
                name, whose = full.decode().removeprefix(f"{prefix}schedule:"), user
                if client.execute("HGET", full, "user") != user.encode():
                    continue
            if kind in KINDS and KINDS[kind].part is not Part.LIMIT and whose == user:
                found[kind, name] = comparable(
                    KINDS[kind].redis_type, client.execute(*_READ[KINDS[kind].redis_type](full))
                )
    return found


def comparable(redis_type: str, content: Any) -> Any:
    if redis_type == "set":
        return sorted(content)
    return dict(zip(content[::2], content[1::2], strict=True)) if redis_type == "hash" else content


async def kept(records: AsyncIterator[bytes]) -> list[bytes]:
    return [record async for record in records]


def pairs(parts: list[bytes]) -> Iterable[tuple[bytes, bytes]]:
    return zip(parts[::2], parts[1::2], strict=True)


def carried(before: dict[tuple[str, str], Any]) -> dict[tuple[str, str], Any]:
    """As it is elsewhere: what runs, or is held, waits in its lane."""
    found = dict(before)
    lanes = {lane: list(pairs(found.pop((lane, ""), []))) for lane in ("critical", "normal")}
    for (kind, name), fields in before.items():
        if kind != "task":
            continue
        if fields.get(b"state") == b"started" or b"held" in fields:
            lanes[fields[b"lane"].decode()].append((name.encode(), fields[b"score"]))
        again = {key: fields[key] for key in (b"dead_kind",) if key in fields}
        flat = as_carried(kind, [part for pair in fields.items() for part in pair])
        found[kind, name] = comparable("hash", flat) | again
    for lane, placed in lanes.items():
        if placed:
            found[lane, ""] = [part for row in sorted(placed, key=lambda row: int(row[1])) for part in row]
    return found


async def test_all_that_a_user_has_is_in_another_queue(server: Server, queue_name: str) -> None:
    async with everything(server.url, queue_name) as here, TaskQueue(server.url, name=f"{queue_name}/2") as there:
        before = contents(here, USER)
        records = await kept(here.export_user(USER))
        assert contents(here, USER) == before
        imported = await there.import_user(records)
        assert (imported.user_id, imported.records) == (USER, len(records) - 1)
        assert contents(there, USER) == carried(before)
        assert (await there.check()).findings == ()
        assert (await here.check()).findings == ()


async def serve(queue: TaskQueue) -> None:
    await Worker(queue, concurrency=1, scheduler=False).run_until_idle()


@task(name="transfer.note")
async def note(value: str) -> str:
    started.append(value)
    return value


@task(name="transfer.join")
async def join(values: list[str]) -> str:
    started.append("+".join(values))
    return "+".join(values)


@task(name="transfer.hold")
async def hold(value: str) -> str:
    started.append(value)
    await gates[-1].wait()
    return value


@task(name="transfer.fail")
async def fail(value: str) -> str:
    started.append(value)
    if is_broken:
        raise ValueError(value)
    return value


started: list[str] = []
gates: list[asyncio.Event] = []
is_broken: list[bool] = []


@pytest.fixture(autouse=True)
async def nothing_started() -> None:
    started.clear()
    is_broken.clear()
    gates[:] = [asyncio.Event()]


@pytest.fixture
async def here(server: Server, queue_name: str) -> AsyncIterator[TaskQueue]:
    async with TaskQueue(server.url, name=queue_name, lease=1.0, timeout=2.0) as queue:
        yield queue


@pytest.fixture
async def there(server: Server, queue_name: str) -> AsyncIterator[TaskQueue]:
    async with TaskQueue(server.url, name=f"{queue_name}/2", lease=1.0, timeout=2.0) as queue:
        yield queue


async def carry(here: TaskQueue, there: TaskQueue, user_id: str) -> None:
    await there.import_user(await kept(here.export_user(user_id)))


async def rich_user(queue: TaskQueue) -> dict[str, TaskHandle[Any]]:
    """Tasks in every place that run to their ends in an order that is known."""
    handles = {name: await queue.enqueue(note(name), user_id="acme", task_id=name) for name in ("c", "b", "a")}
    handles["first"] = await queue.enqueue(note("first"), user_id="acme", priority=6)
    handles["low"] = await queue.enqueue(note("low"), user_id="acme", priority=1)
    handles["later"] = await queue.enqueue(note("later"), user_id="acme", delay=3600)
    handles["behind"] = await queue.enqueue(note("behind"), user_id="acme", depends_on=[handles["low"]])
    handles["joined"] = await queue.enqueue(join([note("x").output, note("y").output]), user_id="acme")
    await queue.xcom("acme").push("key", {"a": 1})
    return handles


async def test_tasks_run_to_their_ends_elsewhere_in_the_order_in_which_they_would_have(
    here: TaskQueue, there: TaskQueue
) -> None:
    handles = await rich_user(here)
    await carry(here, there, "acme")
    for queue in (here, there):
        started.clear()
        await serve(queue)
        assert await advance(queue, 3600) == 1
        await serve(queue)
        if queue is here:
            expected = list(started)
    assert started == expected
    for handle in handles.values():
        other = there.handle("acme", handle.task_id)
        assert await other.result(timeout=0) == await handle.result(timeout=0)
    assert await there.xcom("acme").pull("key") == {"a": 1}
    assert (await there.stats()).queued == 0


async def test_a_workflow_goes_on_in_the_middle(here: TaskQueue, there: TaskQueue) -> None:
    run = await here.enqueue(note("x") >> note("y") >> note("z"), user_id="acme")
    store = here.store()
    [taken] = (await store.claim("ghost", 1)).deliveries
    record = encode_record(
        taken.body, TaskState.FINISHED, Record("transfer.note", 1, 1, 1, 1.0, "ghost", msgspec.Raw(b"\xa1x"))
    )
    assert await store.settle("ghost", [msgspec.structs.replace(outcome(taken, "finished"), record=record)]) == [True]
    await store.close()
    await carry(here, there, "acme")
    await here.purge("acme")
    await serve(there)
    assert [await there.handle("acme", handle.task_id).result(timeout=0) for handle in run.tasks.values()] == [
        "x",
        "y",
        "z",
    ]


async def test_what_runs_waits_elsewhere_with_its_attempts(here: TaskQueue, there: TaskQueue) -> None:
    handle = await here.enqueue(hold("it"), user_id="acme")
    async with Worker(here, scheduler=False):
        await eventually(lambda: started == ["it"])
        await carry(here, there, "acme")
        assert (await there.handle("acme", handle.task_id).info()).state is TaskState.QUEUED
        gates[-1].set()
        assert await handle.result(timeout=10) == "it"
    await serve(there)
    assert (await there.handle("acme", handle.task_id).info()).attempt == 2


async def test_dead_letters_batches_schedules_and_rules_go_along(here: TaskQueue, there: TaskQueue) -> None:
    is_broken.append(True)
    dead = await here.enqueue(fail("dead"), user_id="acme")
    await serve(here)
    async with here.batch("acme", batch_id="b", on_success=note("all")) as batch:
        await batch.enqueue_many([note("one"), note("two")])
    scheduler = TaskScheduler(here)
    await scheduler.add_schedule(task=note("tick"), user_id="acme", every=timedelta(hours=1), schedule_id="hourly")
    await here.set_policy("acme", weight=3, max_running=7, rate="1000/s burst 100", max_queued=50, max_bytes=10**6)
    await here.set_limit("crm", max_running=2, rate="5/s burst 3", user_id="acme", shared=False)
    await here.set_limit("transfer.note", max_running=4, user_id="acme")
    await here.purge("other")
    await carry(here, there, "acme")
    assert await there.get_policy("acme") == await here.get_policy("acme")
    assert await there.limits() == await here.limits()
    assert [each.schedule_id for each in await TaskScheduler(there).list_schedules("acme")] == ["hourly"]
    assert await TaskScheduler(there).fire_due(3600) == 1
    assert [letter.task_id for letter in await there.dead_letters("acme")] == [dead.task_id]
    assert (await there.dead_groups()).groups == (await here.dead_groups()).groups
    is_broken.clear()
    started.clear()
    await there.requeue(there.handle("acme", dead.task_id))
    await serve(there)
    assert sorted(started) == ["all", "dead", "one", "tick", "two"]
    assert (await there.batch("acme", batch_id="b").progress()).finished == 2
    assert (await there.check()).findings == ()


async def test_what_is_held_for_a_limit_waits_in_its_lane_elsewhere(here: TaskQueue, there: TaskQueue) -> None:
    await here.set_limit("one", max_running=1)
    handles = [await here.enqueue(note(str(n)).options(limits=["one"]), user_id="acme") for n in range(4)]
    store = here.store()
    assert len((await store.claim("ghost", 4)).deliveries) == 1
    await store.close()
    assert (await here.user("acme")).held == 3
    await carry(here, there, "acme")
    assert (await there.user("acme")).queued == 4
    await serve(there)
    assert started == ["0", "1", "2", "3"]
    assert [await there.handle("acme", handle.task_id).result(timeout=0) for handle in handles] == started
    await here.purge("acme", timeout=0)


# Standing still


async def frozen(queue: TaskQueue, user_id: str) -> AsyncGenerator[bytes]:
    """An export that has begun."""
    records = queue.export_user(user_id)
    await anext(records)
    return records


async def test_calls_about_a_user_that_is_exported_wait_and_those_about_others_do_not(here: TaskQueue) -> None:
    await rich_user(here)
    records = await frozen(here, "acme")
    waiting = [
        asyncio.create_task(here.enqueue(note("new"), user_id="acme")),
        asyncio.create_task(here.handle("acme", "a").cancel()),
        asyncio.create_task(here.xcom("acme").push("key", 2)),
    ]
    for _ in range(20):
        await here.enqueue(note("zoe"), user_id="zoe")
    await serve(here)
    assert started == ["zoe"] * 20
    assert not any(call.done() for call in waiting)
    await records.aclose()
    for call in waiting:
        await call
    await serve(here)
    assert "new" in started
    assert "a" not in started
    assert (await here.check()).findings == ()


async def test_a_call_that_has_waited_for_its_timeout_says_why(here: TaskQueue) -> None:
    await here.enqueue(note("a"), user_id="acme")
    records = await frozen(here, "acme")
    with pytest.raises(UserFrozen, match="'acme' stands still"):
        await here.enqueue(note("new"), user_id="acme")
    with pytest.raises(UserFrozen, match="'acme' is being exported"):
        await frozen(here, "acme")
    with pytest.raises(UserFrozen):
        await here.purge("acme")
    await records.aclose()
    await serve(here)
    assert started == ["a"]


async def test_what_ends_while_its_user_stands_still_is_taken_when_it_goes_on(here: TaskQueue) -> None:
    handle = await here.enqueue(hold("it"), user_id="acme")
    await here.enqueue(note("behind"), user_id="acme", depends_on=[handle])
    async with Worker(here, scheduler=False):
        await eventually(lambda: started == ["it"])
        records = await frozen(here, "acme")
        gates[-1].set()
        await asyncio.sleep(0)
        other = await here.enqueue(note("zoe"), user_id="zoe")
        assert await other.result(timeout=10) == "zoe"
        assert await handle.state() is TaskState.STARTED
        await records.aclose()
        assert await handle.result(timeout=10) == "it"
        await eventually(lambda: "behind" in started)
    assert started.count("it") == 1


async def test_a_user_goes_on_by_itself_when_its_exporter_is_gone(
    here: TaskQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(walk, "HOLD_MS", 300)
    await rich_user(here)
    store = here.store()
    await store.freeze("acme", "0" * 32, "export", 300)
    await store.close()
    async with Worker(here, scheduler=False):
        await eventually(lambda: "behind" in started)
    assert (await here.check()).findings == ()


async def test_an_export_that_stood_still_for_too_long_says_so(
    here: TaskQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(walk, "HOLD_MS", 1)
    await rich_user(here)
    records = await frozen(here, "acme")
    await eventually(lambda: thawed(here, "acme"))
    with pytest.raises(QueueUnavailable, match="begin it anew"):
        await kept(records)


async def thawed(queue: TaskQueue, user_id: str) -> bool:
    with RespClient(queue.connector.url) as client:
        return client.execute("EXISTS", f"{queue.keys.prefix}frozen:{user_id}") == 0


# What the page says


def test_the_page_says_of_each_key_that_names_a_user_how_it_moves() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    table = page.partition("| key | export | move | how |")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| (`[^|]+`) \| ([a-z ]+) \| ([a-z ]+) \|", table, re.MULTILINE)
    said = {form: hows for cell, *hows in rows for form in re.findall(r"`([^`]+)`", cell)}
    named = {rule.form for rule in rules_in(page) if "<u>" in rule.form}
    assert said.keys() == named | {"schedule:<s>", "limit:<r>", "limit-rate:<k>", "running:<k>"}
    for at, kinds in enumerate((KINDS, MOVED_KINDS)):
        assert {form.partition(":")[0] for form, hows in said.items() if hows[at] == "dumped"} == kinds.keys()
        assert {hows[at] for hows in said.values()} == {"dumped", "derived again", "stays"}


# Partitions


async def test_a_user_goes_into_a_queue_with_partitions_and_back(server: Server, queue_name: str) -> None:
    async with (
        TaskQueue(server.url, name=queue_name) as plain,
        TaskQueue(server.url, name=f"{queue_name}/4", partitions=4) as many,
        TaskQueue(server.url, name=f"{queue_name}/1") as last,
    ):
        for user_id in ("acme", "zoe", "max"):
            handles = [await plain.enqueue(note(f"{user_id} {n}"), user_id=user_id) for n in range(3)]
            await plain.xcom(user_id).push("key", user_id)
            await plain.set_policy(user_id, weight=2)
            await plain.set_limit("crm", max_running=2, user_id=user_id, shared=False)
            await carry(plain, many, user_id)
            assert (await many.user(user_id)).queued == 3
            assert await many.get_policy(user_id) == await plain.get_policy(user_id)
            assert (await many.check()).findings == ()
            await carry(many, last, user_id)
            assert await last.xcom(user_id).pull("key") == user_id
            assert [limit.user_id for limit in await last.limits()] == [limit.user_id for limit in await many.limits()]
            assert [await last.handle(user_id, handle.task_id).state() for handle in handles] == [TaskState.QUEUED] * 3
        await serve(last)
        assert len(started) == 9
        assert (await last.check()).findings == ()
        await many.purge("acme")
        assert (await many.user("acme")).queued == 0


async def test_a_user_that_is_in_a_group_is_in_it_in_a_queue_with_partitions_as_well(
    here: TaskQueue, server: Server, queue_name: str
) -> None:
    await here.enqueue(note("a"), user_id="acme")
    await here.set_policy("acme", group="plan")
    async with TaskQueue(server.url, name=f"{queue_name}/4", partitions=4) as many:
        await carry(here, many, "acme")
        assert (await many.get_policy("acme")).group == "plan"
        assert (await many.check()).findings == ()


async def test_health_names_a_half_imported_user_and_none_that_is_exported(here: TaskQueue) -> None:
    await here.enqueue(note("a"), user_id="acme")
    records = await frozen(here, "acme")
    assert (await here.health()).damaged_users == ()
    await records.aclose()
    store = here.store()
    await store.freeze("zoe", "0" * 32, "import")
    await store.close()
    assert (await here.health()).damaged_users == ("zoe",)
    await here.purge("zoe")
    assert (await here.health()).damaged_users == ()


# Sealed contents


async def test_sealed_contents_are_read_in_a_queue_of_the_same_realm_alone(
    server: Server, queue_name: str, own_server: Callable[..., EmbeddedServer]
) -> None:
    codec = Encrypt({"1": b"k" * 32})
    async with (
        TaskQueue(server.url, name=queue_name, codec=codec) as here,
        TaskQueue(own_server().url, name=queue_name, codec=codec) as there,
        TaskQueue(server.url, name=f"{queue_name}/other", codec=codec) as other,
        TaskQueue(server.url, name=f"{queue_name}/plain") as plain,
    ):
        await here.enqueue(note("secret"), user_id="acme", task_id="done")
        await serve(here)
        await here.enqueue(note("secret 2"), user_id="acme", task_id="waits")
        await here.xcom("acme").push("key", "secret 3")
        records = await kept(here.export_user("acme"))
        assert not any(b"secret" in record for record in records)
        for wrong in (other, plain):
            with pytest.raises(BadExport, match=f"sealed for '{queue_name}'"):
                await wrong.import_user(records)
        await there.import_user(records)
        await serve(there)
        assert await there.handle("acme", "done").result(timeout=0) == "secret"
        assert await there.handle("acme", "waits").result(timeout=0) == "secret 2"
        assert await there.xcom("acme").pull("key") == "secret 3"
        with pytest.raises(BadExport, match="not sealed"):
            await here.import_user(await kept(await a_plain_export(plain)))


async def a_plain_export(queue: TaskQueue) -> AsyncIterator[bytes]:
    await queue.enqueue(note("a"), user_id="zoe")
    return queue.export_user("zoe")
