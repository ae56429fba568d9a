"""A user moved to another partition while the queue works: all of it is there, and nothing ran twice."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from fairque import Collect, Priority, Rate, TaskQueue, TaskScheduler, task
from fairque.redis.keys import encode_user
from fairque.redis.partitions import partition_of
from fairque.redis.store import Store
from fairque.redis.store_chunks import Batch
from fairque.transfer.fields import moved_fields
from fairque.transfer.kinds import MOVED_KINDS
from tests.support.core import outcome
from tests.support.resp import RespClient
from tests.test_transfer import _READ, comparable

if TYPE_CHECKING:
    from tests.support.servers import Server

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


async def test_all_that_a_user_has_is_in_another_partition(queue: TaskQueue) -> None:
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
