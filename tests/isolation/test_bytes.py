"""What one user keeps in Redis takes no memory from the others where `max_bytes` says so, and its count is exact."""

from __future__ import annotations

import contextlib
import random
import struct
from collections import Counter
from typing import Any

import msgspec
import pytest

from fairque import BatchClosed, DependencyError, FailureKind, QueueFull, QuotaExceeded
from fairque.models import Attempt, TaskState
from fairque.redis.delivery import Delivery, Needs, NewCallback, NewTask, Outcome, Refusal
from fairque.redis.store_batches import NewBatch
from fairque.redis.store_chunks import Batch, NoRoom
from fairque.tasks.message import Message, Record, decode_record, encode_body, encode_record, new_nonce
from tests.support.core import HOUR_MS, Core
from tests.support.eventually import eventually
from tests.support.tenants import fill, govern, numbered, put, whose

pytestmark = pytest.mark.leaves_keys()
PLENTY = 10**12
LARGE = 3_000
COUNTED = ("body", "errors", "result", "ends", "batch", "xcom", "schedule", "chunks")
OF_A_BATCH = 64


def task(user_id: str, task_id: str, size: int = 0, **fields: Any) -> NewTask:
    message = Message("t", msgspec.Raw(msgspec.msgpack.encode(["x" * size])))
    return NewTask(user_id, task_id, 3, "", encode_body(message, new_nonce(), 1.0, 3, 10**7))._replace(**fields)


def ended(of: Delivery, kind: str, size: int = 0, *, ttl_ms: int = HOUR_MS, pushed: bytes = b"") -> Outcome:
    """As a worker reports it."""
    text = "x" * size
    error = msgspec.msgpack.encode(Attempt(of.attempt, 1.0, FailureKind.ERROR, "ValueError", text, text, "w"))
    value: dict[str, Any] = {"value": msgspec.Raw(msgspec.msgpack.encode(text))}
    if kind == "failed":
        value = {"kind": FailureKind.ERROR, "type_name": "ValueError", "message": text, "traceback": text}
    record = Record("t", of.attempt, of.queued_ms, of.started_ms, 1.5, "w", **value)
    packed = encode_record(of.body, TaskState(kind), record) if kind in ("finished", "failed") else b""
    return Outcome(of, kind, ttl_ms, 0, packed, error if kind in ("failed", "retry") else b"", pushed, 1.5)


def xcom(key: str, size: int) -> bytes:
    return struct.pack(">IId", len("space"), len(key), HOUR_MS) + b"space" + key.encode() + b"v" * size


def measured(core: Core, user_id: str) -> int:
    """What the keys of the user hold."""
    total = 0
    for name, key in core.dump().items():
        kind, _, rest = name.partition(":")
        if kind not in COUNTED:
            continue
        fields = dict(zip(key.content[::2], key.content[1::2], strict=False)) if key.kind == "hash" else {}
        if kind == "batch":
            is_own = rest.partition(":")[0] == user_id
            total += sum(len(fields.get(name, b"")) for name in (b"on_complete", b"on_success")) if is_own else 0
        elif kind == "schedule":
            total += len(fields[b"body"]) if fields[b"user"].decode() == user_id else 0
        elif kind == "chunks":
            batches = key.content[0] if rest.partition(":")[0] == user_id else []
            total += sum(len(fields[-1]) + OF_A_BATCH for _, fields in batches)
        elif rest.partition(":")[0] == user_id:
            total += sum(len(part) for part in key.content)
    return total


async def counted(core: Core, user_id: str) -> int:
    found = (await core.store.user(user_id)).bytes
    assert found is not None
    return found


async def is_counted(core: Core) -> None:
    """What was there before there was a limit."""
    while "weighing" in core.state():
        await core.claim(1, groups=[["nobody"]])


class Play:
    """One call of the many that change what a user has, at each step."""

    def __init__(self, core: Core, seed: int, users: list[str]) -> None:
        self.core = core
        self.draw = random.Random(seed)
        self.users = users
        self.running: list[Delivery] = []
        self.yielded: Counter[bytes] = Counter()

    def _user(self) -> str:
        return self.draw.choice(self.users)

    def _id(self) -> str:
        return f"id:{self.draw.randrange(12)}"

    async def step(self) -> None:
        await getattr(self, self.draw.choice([name for name in dir(self) if name.startswith("do_")]))()

    async def do_enqueue(self) -> None:
        user_id = self._user()
        new = [task(user_id, self._id(), self.draw.randrange(400)) for _ in range(self.draw.randrange(1, 4))]
        await self.core.enqueue_all(new)

    async def do_wait_for_another(self) -> None:
        needs = msgspec.msgpack.encode(Needs(self.draw.choice(["cancel", "run", "wait"]), True, [self._id()]))
        with contextlib.suppress(DependencyError):  # a cycle
            await self.core.enqueue_all([task(self._user(), self._id(), 50, needs=needs)])

    async def do_call_back(self) -> None:
        body = task("", "", self.draw.randrange(400)).body
        callbacks = [NewCallback(kind, 3, "", body) for kind in ("on_success", "on_failure", "on_end")]
        nested = NewCallback("on_end", 3, "+20", body, (NewCallback("on_end", 3, "", body),))
        await self.core.enqueue_all([task(self._user(), self._id(), 100, callbacks=(*callbacks, nested))])

    async def do_batch(self) -> None:
        user_id, batch_id = self._user(), f"b:{self.draw.randrange(4)}"
        body = task("", "", self.draw.randrange(400)).body
        callbacks = (NewCallback("on_complete", 3, "", body),), (NewCallback("on_success", 3, "+20", body),)
        await self.core.store.open_batch(NewBatch(user_id, batch_id, HOUR_MS, *callbacks))
        with contextlib.suppress(BatchClosed):
            await self.core.enqueue_all([task(user_id, self._id(), 100, batch=batch_id) for _ in range(2)])
        if self.draw.random() < 0.5:
            await self.core.store.close_batch(user_id, batch_id)
        elif self.draw.random() < 0.3:
            await self.core.store.cancel_batch(user_id, batch_id, "")

    async def do_delay(self) -> None:
        await self.core.enqueue_all([task(self._user(), self._id(), 100, when="+20")])

    async def do_claim(self) -> None:
        self.running += await self.core.take(3)

    async def do_yield(self) -> None:
        """Some of those that run, the first of them as if a reply was cut."""
        batches = [self._batch(of) for of in self.running if self.draw.random() < 0.5]
        assert set(await self.core.store.append("w", batches)) <= {True, *Refusal}
        assert set(await self.core.store.append("w", batches[:1])) <= {True, *Refusal}

    def _batch(self, of: Delivery) -> Batch:
        self.yielded[of.stream_id] += 1
        return Batch(of, self.yielded[of.stream_id], 1, b"c" * self.draw.randrange(1, 300))

    async def do_settle(self) -> None:
        self.draw.shuffle(self.running)
        kinds = ["finished", "failed", "retry", "released", "canceled"]
        outcomes = []
        while self.running and self.draw.random() < 0.7:
            kind, size = self.draw.choice(kinds), self.draw.randrange(300)
            pushed = xcom(self._id(), size) if kind == "finished" and size % 2 else b""
            outcomes.append(ended(self.running.pop(), kind, size, pushed=pushed))
        await self.core.store.settle("w", outcomes)

    async def do_cancel(self) -> None:
        await self.core.store.cancel(self._user(), self._id(), "")

    async def do_requeue(self) -> None:
        await self.core.store.requeue(self._user(), [self._id()])

    async def do_discard(self) -> None:
        await self.core.store.discard(self._user(), [self._id()])

    async def do_share(self) -> None:
        space = self.draw.choice(["space", "other"])
        await self.core.store.xcom_push(self._user(), space, self._id(), b"v" * self.draw.randrange(300), HOUR_MS)

    async def do_forget(self) -> None:
        await self.core.store.xcom_delete(self._user(), "space", self._id())

    async def do_clear(self) -> None:
        if self.draw.random() < 0.2:
            await self.core.store.xcom_clear(self._user(), "space")

    async def do_drop(self) -> None:
        if self.draw.random() < 0.1:
            user_id = self._user()
            await govern(self.core, user_id, max_queued=2, overflow="drop_oldest")
            with contextlib.suppress(QueueFull):
                await self.do_enqueue()
            await govern(self.core, user_id, max_queued=None, overflow=None)

    async def agrees(self) -> None:
        for user_id in self.users:
            assert await counted(self.core, user_id) == measured(self.core, user_id)


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_the_count_is_what_the_keys_hold_after_each_call(core: Core, seed: int) -> None:
    play = Play(core, seed, ["a", "b"])
    await govern(core, "*", max_bytes=PLENTY)
    await is_counted(core)
    for _ in range(250):
        await play.step()
        await play.agrees()
    await core.store.purge_step("a", 500)
    assert "bytes:a" not in core.dump() or await counted(core, "a") == measured(core, "a")


@pytest.mark.parametrize("seed", [1, 2, 3, 4])
@pytest.mark.parametrize("whose_limit", ["a", "*"])
async def test_what_was_there_before_the_limit_is_counted_while_everything_goes_on(
    core: Core, seed: int, whose_limit: str
) -> None:
    users = ["a"] if whose_limit == "a" else ["a", "b"]
    play = Play(core, seed, users)
    await core.enqueue_all([task("a", f"more {name}", 20) for name in numbered(400)])
    for name in numbered(30):
        await core.store.xcom_push("a", "space", name, b"v" * 100, HOUR_MS)
    for _ in range(100):
        await play.step()
    await govern(core, whose_limit, max_bytes=PLENTY)
    while "weighing" in core.state():
        await play.step()
        await core.claim(1, groups=[["nobody"]])
    await play.agrees()
    for _ in range(30):
        await play.step()
        await play.agrees()


async def test_a_limit_that_comes_goes_and_comes_back_counts_anew(core: Core) -> None:
    for whose_limit in ("*", "a", "*", "a"):
        await govern(core, whose_limit, max_bytes=PLENTY)
        await core.enqueue("a", whose_limit + new_nonce().hex())
        if whose_limit == "a":
            await govern(core, "*", max_bytes=None)
        await is_counted(core)
        assert await counted(core, "a") == measured(core, "a")
        await govern(core, "a", max_bytes=None)
        await govern(core, "*", max_bytes=None)
        await core.enqueue("a", new_nonce().hex())


async def test_a_queue_without_such_a_limit_keeps_no_count(core: Core) -> None:
    await govern(core, "a", max_running=5)
    await core.enqueue("a", "1", "2")
    await core.settle(await core.take(2))
    assert not [name for name in core.dump() if "bytes" in name]
    await govern(core, "a", max_bytes=PLENTY)
    await govern(core, "a", max_bytes=None)
    assert not [name for name in core.dump() if "bytes" in name]


async def test_who_has_nothing_left_leaves_no_count(core: Core) -> None:
    await govern(core, "*", max_bytes=PLENTY)
    await is_counted(core)
    await core.enqueue("a", "1")
    [of] = await core.take(1)
    await core.store.settle("w", [ended(of, "failed")])
    assert "bytes:a" in core.dump()
    await core.store.discard("a", ["1"])
    assert not [name for name in core.dump() if "bytes" in name]


async def test_bodies_beyond_the_limit_are_refused_as_a_whole_before_anything_is_written(core: Core) -> None:
    await govern(core, "a", max_bytes=3 * LARGE)
    await is_counted(core)
    await core.enqueue_all([task("a", "1", LARGE)])
    before = core.dump()
    with pytest.raises(QuotaExceeded) as refused:
        await core.enqueue_all([task("b", "1", LARGE), task("a", "2", LARGE), task("a", "3", LARGE)])
    assert core.dump().keys() == before.keys()
    assert isinstance(refused.value, QueueFull)
    assert refused.value.limit == 3 * LARGE
    assert refused.value.used == measured(core, "a")
    assert refused.value.asked > 2 * LARGE
    assert refused.value.retry_after is not None
    assert 0 < refused.value.retry_after <= 60
    for told in ("'a'", "9,000", "max_bytes", "dead letters"):
        assert told in str(refused.value)
    assert await core.enqueue_all([task("b", "1", LARGE), task("a", "2", LARGE)]) == [True, True]


async def test_a_repeated_call_is_no_second_use(core: Core) -> None:
    await govern(core, "a", max_bytes=2 * LARGE)
    await is_counted(core)
    new = task("a", "1", LARGE)
    for _ in range(3):
        assert await core.enqueue_all([new]) == [True]
    assert await counted(core, "a") == measured(core, "a")


async def test_linked_tasks_are_refused_likewise(core: Core) -> None:
    await govern(core, "a", max_bytes=2 * LARGE)
    await is_counted(core)
    needs = msgspec.msgpack.encode(Needs("cancel", False, ["1"]))
    with pytest.raises(QuotaExceeded):
        await core.enqueue_all([task("a", "1", LARGE), task("a", "2", LARGE, needs=needs)])
    assert measured(core, "a") == 0
    assert await core.enqueue_all([task("a", "1", 10), task("a", "2", LARGE, needs=needs)]) == [True, True]
    assert await counted(core, "a") == measured(core, "a")


async def test_a_result_that_does_not_fit_makes_a_failure_that_says_so(core: Core) -> None:
    await govern(core, "a", max_bytes=LARGE)
    await is_counted(core)
    await core.enqueue_all([task("a", "1", 100)])
    [of] = await core.take(1)
    outcome = ended(of, "finished", 2 * LARGE, pushed=xcom("key", 10))
    assert await core.store.settle("w", [outcome]) == [True]
    [packed] = await core.store.records("a", ["1"])
    assert packed is not None
    state, record = decode_record(packed)
    assert (state, record.kind, record.type_name) == (TaskState.FAILED, FailureKind.QUOTA, "QuotaExceeded")
    assert (record.name, record.attempt, record.worker, record.run_ms) == ("t", 1, "w", 1.5)
    assert "max_bytes" in record.message
    assert [letter[1] for letter in await core.store.dead_letters("a", 10, 0, "")] == [b"1"]
    [error] = (await core.store.info("a", "1")).errors
    assert msgspec.msgpack.decode(error, type=Attempt).kind == FailureKind.QUOTA
    assert await core.store.xcom_pull("a", ["space"], ["key"]) == [None]
    assert await counted(core, "a") == measured(core, "a") < LARGE
    assert await core.store.settle("w", [outcome]) == [True], "a repeated report is recognised"


async def test_what_a_task_yields_is_refused_beyond_the_limit_and_earlier_runs_make_room(
    core: Core,
) -> None:
    await govern(core, "a", max_bytes=3 * LARGE)
    await is_counted(core)
    await core.enqueue_all([task("a", "1", 100), task("b", "1", 100)])
    first = {of.user_id: of for of in await core.take(2)}
    batches = [Batch(first["a"], n, 1, b"c" * LARGE) for n in (1, 2, 3)]
    other = Batch(first["b"], 1, 1, b"c" * 9 * LARGE)
    told = await core.store.append("w", [*batches, other])
    assert told[:2] + told[3:] == [True] * 3
    assert isinstance(told[2], NoRoom)
    assert (told[2].of_task, told[2].limit) == (False, 3 * LARGE)
    assert await counted(core, "a") == measured(core, "a")
    await core.store.settle("w", [ended(first["a"], "retry", 10)])
    [second] = await core.take(1)
    again = [Batch(second, n, 1, b"d" * LARGE) for n in (1, 2)]
    assert await core.store.append("w", again) == [True, True]
    page = await core.store.chunks("a", "1", "1-0")
    assert [at for at, _, _ in page.batches] == ["2-1", "2-2"]
    assert await counted(core, "a") == measured(core, "a")
    await core.store.settle("w", [ended(second, "finished", 10)])
    assert await counted(core, "a") == measured(core, "a")
    assert core.dump()["chunks:a:1"].expires


@pytest.mark.parametrize("kind", ["failed", "retry"])
async def test_of_an_error_that_does_not_fit_its_kind_and_name_are_kept(core: Core, kind: str) -> None:
    await govern(core, "a", max_bytes=LARGE)
    await is_counted(core)
    await core.enqueue_all([task("a", "1", 100)])
    for _ in range(30):
        [of] = await core.take(1)
        outcome = ended(of, kind, LARGE)
        assert await core.store.settle("w", [outcome]) == [True]
        assert await core.store.settle("w", [outcome]) == [True], "a repeated report is recognised"
        await core.store.requeue("a", ["1"])
    [error] = map(msgspec.msgpack.Decoder(Attempt).decode, (await core.store.info("a", "1")).errors)
    assert (error.kind, error.type_name, error.traceback) == (FailureKind.ERROR, "ValueError", "")
    assert "max_bytes" in error.message
    assert await counted(core, "a") == measured(core, "a") < LARGE


async def test_a_value_that_does_not_fit_is_refused_and_the_one_before_stays(core: Core) -> None:
    await govern(core, "a", max_bytes=2 * LARGE)
    await is_counted(core)
    await core.store.xcom_push("a", "space", "key", b"v" * LARGE, HOUR_MS)
    with pytest.raises(QuotaExceeded):
        await core.store.xcom_push("a", "space", "key", b"w" * 2 * LARGE, HOUR_MS)
    assert await core.store.xcom_pull("a", ["space"], ["key"]) == [b"v" * LARGE]
    await core.store.xcom_push("b", "space", "key", b"w" * 2 * LARGE, HOUR_MS)
    await core.store.xcom_clear("a", "space")
    await core.store.xcom_push("a", "space", "key", b"v" * LARGE, HOUR_MS)
    assert await counted(core, "a") == measured(core, "a")


async def test_what_expires_counts_no_longer_than_ten_seconds_more(core: Core) -> None:
    await govern(core, "a", max_bytes=2 * LARGE)
    await is_counted(core)
    await core.enqueue("a", "1")
    [of] = await core.take(1)
    await core.store.settle("w", [ended(of, "finished", LARGE, ttl_ms=100)])
    await core.store.xcom_push("a", "space", "key", b"v" * 1_000, 100)
    with pytest.raises(QuotaExceeded) as refused:
        await core.enqueue_all([task("a", "2", LARGE)])
    assert refused.value.retry_after is not None
    assert refused.value.retry_after <= 11

    async def fits() -> bool:
        try:
            return await core.enqueue_all([task("a", "2", 2 * LARGE - 500)]) == [True]
        except QuotaExceeded:
            return False

    await eventually(fits, 15)
    assert await counted(core, "a") == measured(core, "a")


async def test_a_user_without_bytes_left_is_served_and_makes_room(core: Core) -> None:
    await govern(core, "a", max_bytes=10 * LARGE)
    await is_counted(core)
    accepted = 0
    for name in numbered(1_000):
        with contextlib.suppress(QuotaExceeded):
            accepted += len(await core.enqueue_all([task("a", name, LARGE)]))
    assert accepted == 9
    await fill(core, "b", tasks=5)
    taken = await core.take(100)
    assert whose(taken) == {"a": 9, "b": 5}
    await core.store.settle("w", [ended(of, "finished", 10) for of in taken])
    assert await core.enqueue_all([task("a", "again", LARGE)]) == [True]


async def test_counting_what_is_there_goes_by_bounded_steps(core: Core) -> None:
    await put(core, [task("a", name, 10) for name in numbered(5_000)])
    await govern(core, "a", max_bytes=PLENTY)
    steps = 0
    while "weighing" in core.state():
        await core.claim(1, groups=[["nobody"]])
        steps += 1
    assert steps > 5
    assert await counted(core, "a") == measured(core, "a")


async def test_renewals_go_on_counting_where_all_slots_are_taken(core: Core) -> None:
    await core.enqueue_all([task("a", name, 10) for name in numbered(10)])
    await govern(core, "a", max_bytes=PLENTY)
    while "weighing" in core.state():
        core.renew("w", [])
    assert await counted(core, "a") == measured(core, "a")


async def test_a_user_that_was_refused_everything_is_forgotten_like_others(core: Core) -> None:
    await govern(core, "*", max_bytes=100)
    await is_counted(core)
    with pytest.raises(QuotaExceeded):
        await core.enqueue_all([task("a", "1", LARGE)])
    core.execute("ZADD", ":users", 1, "a")
    await core.claim(1, wait=True)
    assert not [name for name in core.dump() if "bytes" in name]
    assert core.execute("ZSCORE", ":users", "a") is None


@pytest.mark.parametrize("damaged", ["bytes:a", "bytes-expiring:a", "xcom-bytes:a"])
async def test_a_damaged_count_keeps_nobody_from_working(core: Core, damaged: str) -> None:
    await govern(core, "*", max_bytes=PLENTY)
    await is_counted(core)
    await core.enqueue_all([task("a", "1", 10), task("b", "1", 10)])
    core.execute("DEL", f":{damaged}")
    core.execute("SET", f":{damaged}", "damaged")
    taken = await core.take(2)
    assert whose(taken) == {"a": 1, "b": 1}
    core.execute("DEL", f":{damaged}")
    core.execute("SET", f":{damaged}", "damaged")
    assert await core.store.settle("w", [ended(of, "finished", 10) for of in taken]) == [True, True]
    assert await core.enqueue_all([task("a", "2", 10), task("b", "2", 10)]) == [True, True]
