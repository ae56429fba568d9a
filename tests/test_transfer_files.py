"""Exports by any hand: what is wrong with one is told, nothing is written of it, and no other user is touched."""

from __future__ import annotations

import contextlib
import math
import struct
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairque import BadExport, InvalidInput, TaskQueue, TaskScheduler, Worker, task
from fairque.transfer.record import Digest, End, Header, Record, decode, encode
from tests.support.resp import RespClient
from tests.test_transfer import contents, kept

if TYPE_CHECKING:
    from tests.support.servers import Server

pytestmark = pytest.mark.leaves_keys()
Records = list[Header | Record]
Change = Callable[[Records], Records]


@task(name="transfer_files.plain")
async def plain(value: int = 0) -> int:
    return value


@task(name="transfer_files.fail")
async def fail() -> None:
    raise ValueError("on purpose")


async def build(queue: TaskQueue, user_id: str) -> None:
    await queue.enqueue(plain(1), user_id=user_id, task_id="done")
    await queue.enqueue(fail(), user_id=user_id, task_id="dead")
    await Worker(queue, scheduler=False).run_until_idle()
    await queue.enqueue(plain(1), user_id=user_id, task_id="normal")
    await queue.enqueue(plain(1), user_id=user_id, task_id="critical", priority=6)
    await queue.enqueue(plain(1).options(on_end=plain(2)), user_id=user_id, task_id="scheduled", delay=3600)
    await queue.enqueue(plain(1), user_id=user_id, task_id="deferred", depends_on=["scheduled"])
    await queue.enqueue(plain(1), user_id=user_id, task_id="throttled", throttle=600)
    await queue.batch(user_id, batch_id="b", on_complete=plain()).open()
    await queue.xcom(user_id).push("key", 1)
    await queue.set_policy(user_id, weight=2)
    await queue.set_limit("crm", max_running=2, user_id=user_id, shared=False)
    await TaskScheduler(queue).add_schedule(task=plain(), user_id=user_id, every=3600, schedule_id=f"of {user_id}")


@pytest.fixture
async def here(server: Server, queue_name: str) -> AsyncIterator[TaskQueue]:
    async with TaskQueue(server.url, name=queue_name) as queue:
        yield queue


@pytest.fixture
async def there(server: Server, queue_name: str) -> AsyncIterator[TaskQueue]:
    async with TaskQueue(server.url, name=f"{queue_name}/2") as queue:
        yield queue


async def exported(queue: TaskQueue) -> Records:
    await build(queue, "mallory")
    *records, _ = [decode(record) for record in await kept(queue.export_user("mallory"))]
    return [record for record in records if not isinstance(record, End)]


def sealed_up(records: Sequence[Header | Record]) -> list[bytes]:
    """With an end that fits: whoever forges one forges that as well."""
    digest, packed = Digest(), [encode(record) for record in records]
    for record in packed:
        digest.add(record)
    return [*packed, encode(End(len(packed), digest.value))]


def everything_in(queue: TaskQueue) -> dict[bytes, bytes | None]:
    with RespClient(queue.connector.url) as client:
        keys = client.execute("KEYS", queue.keys.prefix.replace("{", "?").replace("}", "?") + "*")
        return {key: client.execute("DUMP", key) for key in keys}


# What is forged


def on(kind: str, change: Callable[[Record], Record | list[Record]], name: str | None = None) -> Change:
    """Changes the first record of a kind."""

    def forge(records: Records) -> Records:
        at = next(
            at
            for at, record in enumerate(records)
            if isinstance(record, Record) and record.kind == kind and name in (None, record.name)
        )
        record = records[at]
        assert isinstance(record, Record)
        changed = change(record)
        return [*records[:at], *(changed if isinstance(changed, list) else [changed]), *records[at + 1 :]]

    return forge


def parts(*given: bytes) -> Callable[[Record], Record]:
    return lambda record: msgspec.structs.replace(record, parts=list(given))


def replaced(**fields: Any) -> Callable[[Record], Record]:
    return lambda record: msgspec.structs.replace(record, **fields)


def with_field(name: bytes, value: bytes) -> Callable[[Record], Record]:
    def change(record: Record) -> Record:
        fields = dict(zip(record.parts[::2], record.parts[1::2], strict=True)) | {name: value}
        return msgspec.structs.replace(record, parts=[part for pair in fields.items() for part in pair])

    return change


def without_field(name: bytes) -> Callable[[Record], Record]:
    def change(record: Record) -> Record:
        fields = dict(zip(record.parts[::2], record.parts[1::2], strict=True))
        del fields[name]
        return msgspec.structs.replace(record, parts=[part for pair in fields.items() for part in pair])

    return change


def head(cost: float = 1.0, priority: int = 3) -> Callable[[Record], Record]:
    def change(record: Record) -> Record:
        return msgspec.structs.replace(record, parts=[struct.pack(">B8sdB", 1, b"x" * 8, cost, priority) + b"\x90"])

    return change


def header(**fields: Any) -> Change:
    return lambda records: [msgspec.structs.replace(records[0], **fields), *records[1:]]


def also(record: Record) -> Callable[[Record], list[Record]]:
    return lambda first: [first, record]


def callbacks(cost: float) -> bytes:
    body = struct.pack(">B8sdB", 1, b"x" * 8, cost, 3) + b"\x90"
    return b"\x93\x01\x91\x95\xa6on_end\x03\xa0" + bytes([0xA0 + len(body)]) + body + b"\xa0\xa0"


FAR = b"9000000000000000"
FORGED: dict[str, Change] = {
    **{f"cost {cost}": on("body", head(cost)) for cost in (math.inf, math.nan, -1.0, 0.0, 1e9)},
    **{f"priority {priority}": on("body", head(priority=priority)) for priority in (0, 7, 255)},
    "body: short": on("body", parts(b"\x01")),
    "body: two": on("body", parts(b"\x01" * 20, b"\x01" * 20)),
    "body: none": on("body", parts()),
    **{
        f"task: {field.decode()}": on("task", with_field(field, b"1"), "scheduled")
        for field in (b"stream_id", b"worker", b"limited", b"keys", b"held", b"paid", b"charged", b"Odd Field", b"lane")
    },
    "task: state": on("task", with_field(b"state", b"started"), "scheduled"),
    "task: another state": on("task", with_field(b"state", b"queued"), "scheduled"),
    "task: due": on("task", with_field(b"due", b"nan"), "deferred"),
    "task: large": on("task", with_field(b"progress_text", b"x" * 100_000), "deferred"),
    "lane: in the future": on("normal", parts(b"normal", FAR)),
    "lane: nan": on("normal", parts(b"normal", b"nan")),
    "lane: no pair": on("normal", parts(b"normal")),
    "lane: unknown": on("normal", parts(b"nobody", b"1")),
    "lane: of another": on("normal", parts(b"critical", b"1")),
    "lane: gone": lambda records: [
        record for record in records if not (isinstance(record, Record) and record.kind == "normal")
    ],
    "scheduled: below nothing": on("scheduled", parts(b"scheduled", b"-1")),
    "result: no letter": on("result", parts(b"\x01" * 9 + b"Z")),
    "ends: junk": on("ends", parts(b"\xc1")),
    "ends: cost": on("ends", parts(callbacks(math.inf))),
    "batch: callback": on("batch", with_field(b"on_complete", callbacks(1e30))),
    "batch: state": on("batch", with_field(b"state", b"odd")),
    "batch: keep_ms": on("batch", with_field(b"keep_ms", b"inf")),
    "chunks: no entry": on("result", also(Record("chunks", "done", -1, [b"1-1", b"2", b"a", b"b"]))),
    "chunks: backwards": on(
        "result",
        also(Record("chunks", "done", -1, 2 * [b"1-1", b"8", *b"of a bytes 1 earlier 0 chunks x".split()])),
    ),
    "chunks: pages backwards": on(
        "result",
        lambda record: [
            record,
            *(
                Record("chunks", "done", -1, [at, b"8", *b"of a bytes 1 earlier 0 chunks x".split()])
                for at in (b"2-1", b"1-1")
            ),
        ],
    ),
    "dead: in the future": on("dead", parts(b"dead", FAR)),
    "unique: odd name": on("unique", replaced(name="zoe:1")),
    "xcom: short": on("xcom", parts(b"key", b"short")),
    "xcom: nan": on("xcom", parts(b"key", struct.pack(">d", math.nan) + b"\x01")),
    "xcom: odd namespace": on("xcom", replaced(name="a:b")),
    "metrics: no list": on("metrics", parts(b"\x80")),
    "metrics: too few": on("metrics", parts(b"\x91\x01")),
    "metrics: later": on("metrics", parts(msgspec.msgpack.encode([1.0] * 9 + [1e15] + [1.0] * 8))),
    "metrics: inf": on("metrics", parts(msgspec.msgpack.encode([math.inf] * 18))),
    "schedule: of another": on("schedule", with_field(b"user", b"zoe")),
    "schedule: no spec": on("schedule", without_field(b"spec")),
    "schedule: bad spec": on("schedule", with_field(b"spec", b"\xc1")),
    "schedule: cost": on("schedule", with_field(b"body", struct.pack(">B8sdB", 1, b"x" * 8, math.inf, 3))),
    "schedules: of another": on("schedules", parts(b"of zoe", b"1")),
    "policy: junk": on("policy", parts(b"\x81\xa6weight\xa1x")),
    "policy: weight": on("policy", parts(b"\x81\xa6weight\xcb" + struct.pack(">d", 1e300))),
    "policy: field": on("policy", parts(b"\x93\x01\x02\x03")),
    "limit: of another": on("limit", replaced(name="zoe:crm")),
    "limit: junk": on("limit", parts(b"hand", b"many")),
    "usage: odd day": on("metrics", also(Record("usage", "x", -1, [b"1", b"\x93\x01\x01\x01"]))),
    "usage: odd hour": on("metrics", also(Record("usage", "20000", -1, [b"99", b"\x93\x01\x01\x01"]))),
    "no such kind": on("body", replaced(kind="ready")),
    "key of the queue": on("body", replaced(kind="state")),
    "no name": on("body", replaced(name="")),
    "long name": on("body", replaced(name="x" * 600)),
    "a name where there is none": on("normal", replaced(name="zoe")),
    "expires in 300 million years": on("result", replaced(expires_ms=2**63 - 1)),
    "expires before all": on("result", replaced(expires_ms=-5)),
    "too many parts": on("deferred", parts(*(b"%d" % n for n in range(20_001)))),
    "twice": on("body", lambda record: [record, record]),
    "not in order": lambda records: [records[0], *reversed(records[1:])],
    "two headers": lambda records: [records[0], *records],
    "no header": lambda records: records[1:],
    "nothing": lambda records: records[:1],
    "version": header(version=2),
    "layout": header(layout=2),
    "user": header(user_id=""),
    "long user": header(user_id="x" * 600),
    "realm": header(realm="secret"),
    "step": header(priority_step_ms=1),
    "export id": header(export_id="zoe}:state"),
    **{f"ahead {ahead}": header(ahead=ahead) for ahead in (-1.0, math.inf, math.nan)},
}


@pytest.mark.parametrize("what", FORGED)
async def test_a_forged_export_is_refused_and_leaves_nothing(here: TaskQueue, there: TaskQueue, what: str) -> None:
    records = await exported(here)
    await build(there, "zoe")
    before = everything_in(there)
    with pytest.raises(BadExport):
        await there.import_user(sealed_up(FORGED[what](records)))
    assert everything_in(there) == before
    assert (await there.import_user(sealed_up(records))).user_id == "mallory"


async def test_an_export_that_was_changed_or_broken_off_is_refused_wherever_that_is(
    here: TaskQueue, there: TaskQueue
) -> None:
    await build(here, "mallory")
    records = await kept(here.export_user("mallory"))
    for at in range(len(records)):
        for broken in (records[:at], [*records[:at], *records[at + 1 :]], [*records[:at], records[at], *records[at:]]):
            with pytest.raises(BadExport):
                await there.import_user(broken)
    assert contents(there, "mallory") == {}
    assert (await there.check()).findings == ()


async def test_no_record_reaches_another_user(here: TaskQueue, there: TaskQueue) -> None:
    """Also one whose id begins as that of the user does."""
    records = await exported(here)
    for user_id in ("mallory2", "mallory:x", "zoe"):
        await build(there, user_id)
    before = {key: value for key, value in everything_in(there).items() if b":mallory2" in key or b":zoe" in key}
    await there.import_user(sealed_up(records))
    await there.purge("mallory")
    after = everything_in(there)
    assert {key: after.get(key) for key in before} == before


async def test_a_schedule_that_another_user_has_stays_its_own(here: TaskQueue, there: TaskQueue) -> None:
    records = await exported(here)
    scheduler = TaskScheduler(there)
    await scheduler.add_schedule(task=plain(), user_id="zoe", every=60, schedule_id="of mallory")
    with pytest.raises(BadExport, match="belongs to another user"):
        await there.import_user(sealed_up(records))
    assert [each.user_id for each in await scheduler.list_schedules()] == ["zoe"]
    await there.purge("mallory")
    assert [each.user_id for each in await scheduler.list_schedules()] == ["zoe"]


async def test_a_user_that_is_known_is_not_merged(here: TaskQueue, there: TaskQueue) -> None:
    records = sealed_up(await exported(here))
    for act in (
        lambda: there.enqueue(plain(), user_id="mallory", delay=60),
        lambda: there.set_policy("mallory", weight=3),
        lambda: there.xcom("mallory").push("key", 1),
        lambda: there.set_limit("crm", max_running=1, user_id="mallory", shared=False),
    ):
        await act()
        before = contents(there, "mallory")
        with pytest.raises(InvalidInput, match="is known here"):
            await there.import_user(records)
        assert contents(there, "mallory") == before
        await there.purge("mallory")
        await there.clear_limit("crm", user_id="mallory", shared=False)
    await there.import_user(records)


async def test_what_is_no_record_at_all_is_told(there: TaskQueue) -> None:
    for junk in (
        [b""],
        [b"\xc1"],
        ["text"],
        [1],
        [None],
        [b"\x91\xa3end"],
        [msgspec.msgpack.encode(["key", 1, 2, 3])],
        [],
    ):
        with pytest.raises(BadExport):
            await there.import_user(junk)  # type: ignore[arg-type]


@given(st.lists(st.binary(max_size=60), max_size=5))
def test_any_bytes_are_refused_by_an_error_of_ours(junk: list[bytes]) -> None:
    for data in junk:
        with contextlib.suppress(BadExport):
            decode(data)
