"""A user moved to another partition while the queue works: all of it is there, and nothing ran twice."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from fairque import (
    Collect,
    InvalidInput,
    Priority,
    Rate,
    TaskQueue,
    TaskScheduler,
    TaskState,
    Worker,
    current_task,
    task,
)
from fairque.redis.keys import encode_user
from fairque.redis.partitions import partition_of
from fairque.redis.store import Store
from fairque.redis.store_chunks import Batch
from fairque.transfer import moving
from fairque.transfer.fields import moved_fields
from fairque.transfer.kinds import MOVED_KINDS
from tests.support.core import outcome
from tests.support.eventually import eventually
from tests.support.moves import moved_while_served, starts_in
from tests.support.resp import RespClient
from tests.support.workers import Fleet
from tests.test_transfer import _READ, comparable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from tests.support.process import WorkerProcess
    from tests.support.servers import Server

    StartProcess = Callable[..., Awaitable[WorkerProcess]]

pytestmark = pytest.mark.leaves_keys()
USER, PARTITIONS = "a:b {ü}", 3
began: Counter[str] = Counter()
gates: list[asyncio.Event] = []


@task(name="move.note")
async def note(value: int = 0) -> int:
    return value


@task(name="move.hold")
async def hold(value: str) -> str:
    began[value] += 1
    await gates[-1].wait()
    return value


@task(name="move.fail")
async def fail() -> None:
    raise ValueError


@task(name="move.limited", limits=["crm:{value}"])
async def limited(value: int = 0) -> int:
    return value


@task(name="move.together", collect=Collect(100, within=3600))
async def together(values: list[int]) -> list[int]:
    return values


@pytest.fixture
async def queue(server: Server, queue_name: str) -> AsyncIterator[TaskQueue]:
    began.clear()
    gates[:] = [asyncio.Event()]
    async with TaskQueue(server.url, name=queue_name, partitions=PARTITIONS, lease=2.0, timeout=3.0) as queue:
        yield queue


def home_of(user_id: str) -> int:
    return partition_of(encode_user(user_id), PARTITIONS)


def elsewhere(user_id: str, by: int = 1) -> int:
    return (home_of(user_id) + by) % PARTITIONS


def contents(queue: TaskQueue, partition: int, user_id: str) -> dict[str, Any]:
    """What a partition has of a user, by the names of keys."""
    user, prefix = encode_user(user_id), queue.store().parts[partition].keys.prefix
    found: dict[str, Any] = {}
    with RespClient(queue.connector.url) as client:
        for full in client.execute("KEYS", f"{prefix.replace('{', '?').replace('}', '?')}*"):
            name = full.decode().removeprefix(prefix)
            kind, _, rest = name.partition(":")
            own = kind == "schedule" and client.execute("HGET", full, "user") == user.encode()
            if own or rest.split(":")[0].split("=")[0] == user:
                redis_type = client.execute("TYPE", full).decode()
                content = comparable(redis_type, client.execute(*_READ[redis_type](full)))
                found[name] = content
                if redis_type == "stream" and kind != "chunks":
                    pending = client.execute("XPENDING", full, "workers", "-", "+", 100)
                    found[f"{name} pending"] = [[id_, worker, many] for id_, worker, _, many in pending]
    return found


def as_moved(before: dict[str, Any]) -> dict[str, Any]:
    """What is held waits in its lane."""
    found = {name: value for name, value in before.items() if name.partition(":")[0] in _KINDS}
    lanes: dict[str, list[tuple[int, bytes]]] = {}
    for name, fields in before.items():
        kind, _, rest = name.partition(":")
        if kind == "task":
            found[name] = comparable("hash", moved_fields(kind, [part for pair in fields.items() for part in pair]))
            if b"held" in fields:
                lanes.setdefault(fields[b"lane"].decode(), []).append(
                    (int(fields[b"score"]), rest.split(":", 1)[1].encode())
                )
        if kind == "bytes":  # which begins with the partition's
            found[name] = fields | {b"gen": b"0"}
        if kind == "user":
            found[name] = {key: value for key, value in fields.items() if key != b"capped"}
    for lane, rows in lanes.items():
        key = f"{lane}:{encode_user(USER)}"
        all_rows = [*rows, *((int(score), id_) for id_, score in _pairs(before.get(key, [])))]
        found[key] = [part for score, id_ in sorted(all_rows) for part in (id_, b"%d" % score)]
    return found


def _pairs(flat: list[bytes]) -> list[tuple[bytes, bytes]]:
    return list(zip(flat[::2], flat[1::2], strict=True))


_KINDS = {
    *MOVED_KINDS,
    *(f"{lane}-stream" for lane in ("critical", "normal")),
    *("running", "xcom-expiry", "xcom-spaces", "dead-kinds", "dead-of"),
}


async def take(store: Store, user_id: str, want: int, worker: str = "ghost") -> list[Any]:
    part = store.part_of(encode_user(user_id))
    return (await part.claim(worker, want)).deliveries


async def rich(queue: TaskQueue, store: Store) -> list[Any]:
    """A user that has everything; what runs is returned."""
    part = store.part_of(encode_user(USER))
    await queue.enqueue_many([note(), fail(), note()], user_id=USER)
    first, second, third = await take(store, USER, 3)
    error = msgspec.msgpack.encode((1, 1e9, "error", "ValueError", "on purpose", "", "ghost"))
    ended = [outcome(first, "finished"), msgspec.structs.replace(outcome(second, "failed"), error=error)]
    assert await part.settle("ghost", [*ended, outcome(third, "finished")]) == [True] * 3
    await queue.set_policy(USER, weight=3, max_running=7, rate=Rate(1000, burst=100), max_bytes=10**6)
    await queue.set_limit("crm:{value}", max_running=1, user_id=USER, shared=False)
    await queue.set_limit("move.note", max_running=4, rate=Rate(5, burst=4), user_id=USER)
    await queue.enqueue_many([note(n) for n in range(2)], user_id=USER)
    await queue.enqueue(note(), user_id=USER, priority=Priority.CRITICAL)
    await queue.enqueue_many([limited(1), limited(1), limited(1)], user_id=USER)
    running = await take(store, USER, 4)
    assert len(running) == 4
    await part.append("ghost", [Batch(running[0], 1, 1, b"\x91\x01")])
    behind = await queue.enqueue(note(), user_id=USER, task_id="1:informed:held\n*", delay=3600)
    await queue.enqueue(note(), user_id=USER, depends_on=[behind])
    await queue.enqueue(note(), user_id=USER, delay=3600, expires=4000, unique=True)
    await queue.enqueue(note(note().output), user_id=USER, priority=Priority.LOW)
    await queue.enqueue(note().options(on_end=note(), delay=3600), user_id=USER)
    await queue.enqueue_many([together(n) for n in range(2)], user_id=USER)
    batch = await queue.batch(USER, batch_id="a:b", on_success=note()).open()
    await batch.enqueue(note(), delay=3600)
    await queue.xcom(USER, "a:b").push("key", 1)
    await TaskScheduler(queue).add_schedule(
        task=note(), user_id=USER, every=timedelta(hours=1), schedule_id=f"hourly-{queue.name}"
    )
    parent = queue.handle(USER, running[0].id)
    await queue.enqueue_child(parent, "c", note(), with_parent=True, options={"delay": 3600})
    with RespClient(queue.connector.url) as client:
        while client.execute("HGET", part.keys.state, "weighing"):  # its bytes are being counted
            await part.claim("counts", 0)
    return running


async def totals(queue: TaskQueue) -> tuple[int, ...]:
    stats = await queue.stats()
    return (*(stats.critical, stats.normal, stats.started, stats.scheduled, stats.deferred), stats.finished)


async def no_findings(queue: TaskQueue) -> None:
    assert (await queue.check()).findings == ()


@pytest.mark.parametrize("fairness", ["cost", "time"])
async def test_all_that_a_user_has_is_in_another_partition(server: Server, queue_name: str, fairness: Any) -> None:
    async with TaskQueue(
        server.url, name=f"{queue_name}/all", partitions=PARTITIONS, fairness=fairness, timeout=3.0
    ) as queue:
        await has_all_elsewhere(queue)


async def has_all_elsewhere(queue: TaskQueue) -> None:
    store = queue.store()
    running = await rich(queue, store)
    before = contents(queue, home_of(USER), USER)
    sums = await totals(queue)
    await no_findings(queue)
    moved = await queue.move(USER, elsewhere(USER))
    assert (moved.user_id, moved.partition) == (USER, elsewhere(USER))
    assert contents(queue, home_of(USER), USER) == {}
    after = contents(queue, elsewhere(USER), USER)
    assert after[f"user:{encode_user(USER)}"].pop(b"epoch")
    for name in {*after, *as_moved(before)}:
        assert after.get(name) == as_moved(before).get(name), name
    assert await totals(queue) == sums
    await no_findings(queue)
    there = store.parts[elsewhere(USER)]
    assert await there.settle("ghost", [outcome(each, "finished") for each in running]) == [True] * len(running)
    await no_findings(queue)
    await store.close()


def tag_of(queue: TaskQueue, partition: int, user_id: str) -> float:
    """In the virtual time that partitions share."""
    part = queue.store().parts[partition]
    with RespClient(queue.connector.url) as client:
        tag = client.execute("ZSCORE", f"{part.keys.prefix}ready", encode_user(user_id))
        return float(tag) + float(client.execute("HGET", part.keys.state, "offset") or 0)


async def test_a_user_keeps_its_place_in_virtual_time(queue: TaskQueue) -> None:
    store = queue.store()
    beside = [name for n in range(60) if home_of(name := f"beside {n}") == elsewhere("acme")][:2]
    for user in ("acme", *beside):
        await queue.enqueue_many([note(n) for n in range(20)], user_id=user)
    for many, user in ((12, "acme"), (7, beside[0])):
        part = store.part_of(user)
        taken = (await part.claim("ghost", many)).deliveries
        assert await part.settle("ghost", [outcome(each, "finished") for each in taken]) == [True] * many
    before = tag_of(queue, home_of("acme"), "acme")
    await queue.move("acme", elsewhere("acme"))
    assert tag_of(queue, elsewhere("acme"), "acme") == pytest.approx(before)
    await store.close()
    for user in ("acme", *beside):
        await queue.purge(user)


async def test_ends_that_are_still_to_be_told_are_told_where_the_user_lives(queue: TaskQueue) -> None:
    first = await queue.enqueue(note(1), user_id="acme")
    behind = await queue.enqueue_many([note(n).options(depends_on=[first]) for n in range(501)], user_id="acme")
    store = queue.store()
    part = store.part_of("acme")
    [taken] = (await part.claim("ghost", 1)).deliveries
    assert await part.settle("ghost", [outcome(taken, "finished")]) == [True]
    assert (await queue.stats()).deferred == 1
    await queue.move("acme", elsewhere("acme"))
    assert (await queue.stats()).deferred == 1
    async with Worker(queue, scheduler=False):
        assert await behind[-1].result(timeout=20) == 500
    await store.close()
    await no_findings(queue)


# What runs


async def test_who_waits_for_a_result_hears_of_it_where_the_user_lives(queue: TaskQueue) -> None:
    handle = await queue.enqueue(hold("it"), user_id="acme")
    async with Worker(queue, scheduler=False), TaskQueue(queue.connector.url, name=queue.name) as stranger:
        waiting = [asyncio.create_task(each.handle("acme", handle.task_id).result(20)) for each in (queue, stranger)]
        await eventually(lambda: began["it"] == 1)
        for by in (1, 2):
            await queue.move("acme", elsewhere("acme", by))
        gates[-1].set()
        assert await asyncio.gather(*waiting) == ["it", "it"]


async def test_what_runs_goes_on_and_is_reported_where_its_user_lives_by_then(queue: TaskQueue) -> None:
    handle = await queue.enqueue(hold("it"), user_id="acme")
    behind = await queue.enqueue(note(2), user_id="acme", depends_on=[handle])
    async with Worker(queue, scheduler=False) as worker:
        await eventually(lambda: began["it"] == 1)
        await queue.move("acme", elsewhere("acme"))
        info = await handle.info()
        assert (info.state, info.attempt) == (TaskState.STARTED, 1)
        gates[-1].set()
        assert await handle.result(timeout=10) == "it"
        assert await behind.result(timeout=10) == 2
        await eventually(lambda: worker.stats().busy == 0)
    assert began == {"it": 1}
    await no_findings(queue)


async def test_an_outcome_that_comes_before_a_renewal_goes_where_its_user_lives(
    server: Server, queue: TaskQueue
) -> None:
    async with TaskQueue(server.url, name=f"{queue.name}/slow", partitions=PARTITIONS, lease=100.0) as slow:
        handle = await slow.enqueue(hold("it"), user_id="acme")
        async with Worker(slow, scheduler=False):
            await eventually(lambda: began["it"] == 1)
            await slow.move("acme", elsewhere("acme"))
            gates[-1].set()
            assert await handle.result(timeout=10) == "it", "renewals come every 20 s"
        await no_findings(slow)


@pytest.fixture
def slow_departure(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds between the last page and the departure."""
    seconds, leave = [0.0], moving._Move._leave

    async def leave_later(self: moving._Move, epoch: int) -> None:
        await asyncio.sleep(seconds[0])
        await leave(self, epoch)

    monkeypatch.setattr(moving._Move, "_leave", leave_later)
    return seconds


async def test_leases_begin_anew_where_their_user_arrives(queue: TaskQueue, slow_departure: list[float]) -> None:
    """Their workers could not renew them there, however long the move took."""
    await queue.enqueue(note(), user_id="acme")
    store, lease = queue.store(), queue.settings.lease_ms / 1000
    [taken] = await take(store, "acme", 1)
    slow_departure[:] = [1.2 * lease]
    await queue.move("acme", elsewhere("acme"))
    there = store.parts[elsewhere("acme")]
    for _ in range(3):
        assert (await there.claim("thief", 1)).deliveries == []
    assert await there.settle("ghost", [outcome(taken, "finished")]) == [True]
    await store.close()


async def test_leases_of_what_runs_are_renewed_where_its_user_lives(queue: TaskQueue) -> None:
    """For longer than a lease, while others would steal."""
    handle = await queue.enqueue(hold("it"), user_id="acme")
    async with Worker(queue, scheduler=False), Worker(queue, scheduler=False):
        await eventually(lambda: began["it"] == 1)
        for by in (1, 2, 3):
            await queue.move("acme", elsewhere("acme", by))
            await asyncio.sleep(1.5 * queue.settings.lease_ms / 1000)  # a lease that nobody renews would be over
        gates[-1].set()
        assert await handle.result(timeout=10) == "it"
        assert (await handle.info()).attempt == 1
    assert began == {"it": 1}
    await no_findings(queue)


async def test_caps_hold_while_their_user_is_moved(queue: TaskQueue) -> None:
    await queue.set_policy("acme", max_running=2)
    handles = await queue.enqueue_many([hold(str(n)) for n in range(6)], user_id="acme")
    async with Worker(queue, scheduler=False):
        await eventually(lambda: began.total() == 2)
        for by in (1, 2, 0):
            await queue.move("acme", elsewhere("acme", by))
            await queue.enqueue(note(), user_id="other")
            assert began.total() == 2
            assert (await queue.user("acme")).started == 2
        gates[-1].set()
        assert [await handle.result(timeout=10) for handle in handles] == [str(n) for n in range(6)]
    assert max(began.values()) == 1
    await no_findings(queue)


@task(name="move.count")
async def count_up(many: int) -> AsyncIterator[int]:
    for n in range(many):
        began["yielded"] += 1
        yield n
        await asyncio.sleep(0.002)


async def test_what_a_task_yields_follows_its_user(queue: TaskQueue, slow_departure: list[float]) -> None:
    slow_departure[:] = [0.3]
    handle = await queue.enqueue(count_up(2000), user_id="acme")
    async with Worker(queue, scheduler=False):
        for by in (1, 2, 0, 1):
            reached = began["yielded"] + 50
            await eventually(lambda reached=reached: began["yielded"] > reached)
            await queue.move("acme", elsewhere("acme", by))
        assert (await handle.result(timeout=20)).chunks == 2000
    assert [chunk async for chunk in handle.stream()] == list(range(2000))
    await no_findings(queue)


@task(name="move.parent")
async def parent() -> int:
    began["parent"] += 1
    await gates[-1].wait()
    child = await current_task().enqueue(note(7))
    return child.task_id != ""


async def test_children_and_cancellation_follow_their_user(queue: TaskQueue) -> None:
    handle = await queue.enqueue(parent(), user_id="acme")
    canceled = await queue.enqueue(hold("canceled"), user_id="acme")
    async with Worker(queue, scheduler=False):
        await eventually(lambda: (began["parent"], began["canceled"]) == (1, 1))
        await queue.move("acme", elsewhere("acme"))
        await canceled.cancel()
        await eventually(lambda: _is_canceled(canceled))
        gates[-1].set()
        assert await handle.result(timeout=10) is True
        await eventually(lambda: _has_finished(queue, 2))
    await no_findings(queue)


async def _is_canceled(handle: Any) -> bool:
    return await handle.state() is TaskState.CANCELED


async def _has_finished(queue: TaskQueue, many: int) -> bool:
    return (await queue.stats()).finished == many


async def test_schedules_fire_in_time_where_their_user_lives(queue: TaskQueue) -> None:
    async with Worker(queue):
        await TaskScheduler(queue).add_schedule(
            task=note(), user_id="acme", every=timedelta(seconds=1), schedule_id=f"each second-{queue.name}"
        )
        for by in (1, 2, 0):
            had = (await queue.stats()).finished
            await eventually(lambda had=had: _has_more(queue, had))
            await queue.move("acme", elsewhere("acme", by))
        had = (await queue.stats()).finished
        await eventually(lambda: _has_more(queue, had), 10)
    await no_findings(queue)
    await queue.purge("acme")


async def _has_more(queue: TaskQueue, finished: int) -> bool:
    return (await queue.stats()).finished > finished


async def test_users_that_are_moved_to_and_fro_while_processes_work_lose_nothing_and_keep_their_order(
    server: Server, queue: TaskQueue, worker_process: StartProcess, tmp_path: Path
) -> None:
    users, log = [f"user-{n}" for n in range(6)], tmp_path / "starts"
    options = {"lease": 5.0, "partitions": PARTITIONS, "timeout": 10.0}
    fleet = Fleet(worker_process, server.url, f"{queue.name}/fro", **options)
    async with (
        TaskQueue(server.url, name=f"{queue.name}/fro", **options) as here,
        TaskQueue(server.url, name=f"{queue.name}/fro", **options) as stranger,
    ):
        for _ in range(2):
            await fleet.start(concurrency=5)
        handles = await moved_while_served(here, stranger, log, users, 40, 30, PARTITIONS)
        for each in handles.values():
            assert [await handle.result(timeout=30) for handle in each] == [handle.task_id for handle in each]
        order, counts = starts_in(log)
        assert set(counts.values()) == {1}
        assert all(numbers == list(range(40)) for numbers in order.values())
        assert (await here.stats()).finished == 240
        await no_findings(here)


# Bad input, and no move


async def test_a_user_is_moved_only_to_a_partition_of_a_queue_that_has_some(
    server: Server, queue: TaskQueue, queue_name: str
) -> None:
    for number in (-1, PARTITIONS, 10**9):
        with pytest.raises(InvalidInput, match="partition"):
            await queue.move("acme", number)
    async with TaskQueue(server.url, name=f"{queue_name}/plain") as plain:
        with pytest.raises(InvalidInput, match="partitions"):
            await plain.move("acme", 0)


async def test_a_user_with_nothing_lives_where_it_is_moved(queue: TaskQueue) -> None:
    assert (await queue.move("new", home_of("new"))).records == 0
    assert (await queue.move("new", elsewhere("new"))).records == 0
    await queue.enqueue(note(1), user_id="new")
    assert contents(queue, home_of("new"), "new") == {}
    assert contents(queue, elsewhere("new"), "new") != {}
    await no_findings(queue)
    await queue.move("new", home_of("new"))
    assert contents(queue, elsewhere("new"), "new") == {}
    async with TaskQueue(queue.connector.url, name=queue.name) as stranger:
        assert (await stranger.user("new")).queued == 1
    await no_findings(queue)
    await queue.purge("new")
