"""A queue whose contents are sealed: everything works, nothing of it can be read, and nothing can be made or moved."""

from __future__ import annotations

import asyncio
import base64
import re
import struct
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import product
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fairque import (
    BrokenSeal,
    Codec,
    Compress,
    Encrypt,
    FailureKind,
    Limit,
    MessageTooLarge,
    Retry,
    Schedule,
    ScheduleState,
    SealError,
    Sign,
    Task,
    TaskCanceled,
    TaskFailed,
    TaskHandler,
    TaskInfo,
    TaskQueue,
    TaskScheduler,
    TaskState,
    UnknownKey,
    Worker,
    current_task,
    sync,
    task,
    xcom_task,
)
from fairque.codec.codec import Sealer
from fairque.tasks.conditions import Unique, condition_of
from fairque.tasks.message import BadMessage, decode_body, decode_record, encode_record
from fairque.tasks.registry import registry
from fairque.tasks.sealed import open_record, open_task
from fairque.testing import assert_enqueued, run_all
from tests.support.command import call_command
from tests.support.contents import contents
from tests.support.core import outcome
from tests.support.eventually import eventually
from tests.support.servers import Server
from tests.workers.process_tasks import repeats

OLD, NEW = b"o" * 32, b"n" * 32
SECRET = "the-secret-of-acme"
CODECS = {
    "encrypt": Encrypt({"1": OLD}),
    "encrypt and compress": Encrypt({"1": OLD}, compress_above=8),
    "keys of users": Encrypt(key_for=lambda user_id: {"1": user_id.encode().ljust(32, b"-")}),
    "sign": Sign({"1": OLD}),
    "compress": Compress(8),
}


@task
async def join(*parts: str, times: int = 1) -> str:
    return "".join(parts) * times


@task
async def say(word: str) -> str:
    return word


@task
async def spell(word: str) -> AsyncIterator[str]:
    for letter in word:
        yield letter
    yield word


@task
async def spell_twice() -> AsyncIterator[str]:
    """What it yields tells the attempts apart; the first one fails."""
    for _ in range(2):
        yield str(current_task().attempt)
        await asyncio.sleep(0.05)  # in a batch of its own
    if current_task().attempt == 1:
        raise Retry(delay=0)


@task(max_retries=1)
async def stumble(text: str) -> None:
    current_task().progress(0.5, text)
    raise ValueError(text)


@task
async def linger(text: str) -> None:
    current_task().progress(0.5, text)
    await asyncio.Event().wait()


@xcom_task(push_key="pushed")
async def push(text: str) -> str:
    await current_task().xcom.push("other", [text], ttl=60)
    return text


@xcom_task(pull_keys={"pushed": "pushed"})
async def pull(pushed: str) -> str:
    return pushed + str(await current_task().xcom.pull("other"))


@xcom_task(auto_xcom=True)
async def gather(join: str) -> str:
    return join + str(current_task().inputs)


class Echo(TaskHandler):
    async def process_task(self, payload: dict[str, Any]) -> Any:
        return payload


@pytest.fixture(autouse=True)
def _registered():
    registry.update(
        {made.name: made for made in (join, say, spell, spell_twice, stumble, linger, push, pull, gather, repeats)}
    )


@asynccontextmanager
async def opened(server: Server, name: str, codec: Codec | None, **options: Any) -> AsyncIterator[TaskQueue]:
    async with TaskQueue(server.url, name=name, codec=codec, **options) as queue:
        yield queue


@pytest.fixture
async def sealed(server: Server, queue_name: str) -> AsyncIterator[TaskQueue]:
    """Encrypted by the key 1."""
    async with opened(server, queue_name, Encrypt({"1": OLD})) as queue:
        yield queue


async def serve(queue: TaskQueue, **options: Any) -> None:
    await Worker(queue, scheduler=False, **options).run_until_idle()


def key(queue: TaskQueue, *parts: str) -> str:
    return f"fairque:{{{queue.name}}}:{':'.join(parts)}"


def flips(data: bytes, step: int = 1) -> Iterator[bytes]:
    for at, bit in product(range(0, len(data), step), (0, 7)):
        yield data[:at] + bytes((data[at] ^ (1 << bit),)) + data[at + 1 :]


# All that a queue does


@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
async def test_everything_comes_back_as_it_was_put_in(server: Server, queue_name: str, codec: Codec):
    async with opened(server, queue_name, codec) as queue:
        calls = {
            "arguments": join("a", SECRET, times=2),
            "large": join("a" * 5000),
            "none": join(),
            "payload": Task.create(payload={"n": [1, SECRET]}),
            "output": join(join(SECRET).output, "b"),
            "process": repeats(SECRET, 2),
            "pushed": push(SECRET).options(task_id="pushed"),
            "pulled": pull().options(depends_on=["pushed"]),
            "gathered": gather().options(depends_on=[join(SECRET).options(task_id="given")]),
        }
        await queue.enqueue(join(SECRET).options(task_id="given"), user_id="acme")
        handles = {name: await queue.enqueue(call, user_id="acme") for name, call in calls.items()}
        await serve(queue, handler=Echo())
        found = {name: await handle.result(timeout=5) for name, handle in handles.items()}
        assert found == {
            "arguments": f"a{SECRET}" * 2,
            "large": "a" * 5000,
            "none": "",
            "payload": {"n": [1, SECRET]},
            "output": f"{SECRET}b",
            "process": SECRET * 2,
            "pushed": SECRET,
            "pulled": f"{SECRET}[{SECRET!r}]",
            "gathered": f"{SECRET}{ {'join': SECRET} }",
        }
        xcom = queue.xcom("acme")
        assert await xcom.pull("other", type=list[str]) == [SECRET]
        assert await xcom.pull("other", namespace=["empty", "default"]) == [SECRET]
        assert await xcom.pull_many(["pushed", "none"], namespace=["empty", "default"]) == {"pushed": SECRET}


@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
async def test_errors_and_progress_are_shown_to_who_has_the_codec(server: Server, queue_name: str, codec: Codec):
    async with opened(server, queue_name, codec) as queue:
        handle = await queue.enqueue(stumble(SECRET), user_id="acme", retry=None)
        async with Worker(queue, scheduler=False):
            lingering = await queue.enqueue(linger(SECRET), user_id="acme")

            async def said() -> TaskInfo | None:
                info = await lingering.info()
                return info if info.message else None

            info = await eventually(said)
            assert (info.progress, info.message) == (0.5, SECRET)
            [listed] = await queue.tasks("acme", state=TaskState.STARTED)
            assert listed.message == SECRET
            with pytest.raises(TaskFailed) as failed:
                await handle.result(timeout=20)
            await lingering.cancel()
        assert (failed.value.type_name, failed.value.message) == ("ValueError", SECRET)
        assert f"ValueError: {SECRET}" in failed.value.traceback
        info = await handle.info()
        assert [(each.attempt, each.message) for each in info.errors] == [(1, SECRET), (2, SECRET)]
        assert all(SECRET in each.traceback for each in info.errors)
        [listed] = await queue.tasks("acme", state=TaskState.FAILED)
        assert listed.error is not None
        assert listed.error.message == SECRET
        [letter] = await queue.dead_letters("acme")
        assert letter.message == SECRET


async def test_nothing_can_be_read_without_a_key(server: Server, sealed: TaskQueue):
    def leaks() -> bool:
        return SECRET.encode() in contents(server, sealed.name)

    await sealed.enqueue(push(SECRET), user_id="acme")
    await sealed.enqueue(stumble(SECRET), user_id="acme")
    await sealed.enqueue(join(SECRET), user_id="acme")
    assert not leaks()
    async with Worker(sealed, scheduler=False):
        lingering = await sealed.enqueue(linger(SECRET), user_id="acme")
        await eventually(lambda: _has_message(lingering))
        await eventually(lambda: _has_failed(sealed))
        assert not leaks()
        await lingering.cancel()
    assert not leaks()
    assert len(contents(server, sealed.name)) > 1000


async def _has_message(handle: Any) -> bool:
    return bool((await handle.info()).message)


async def _has_failed(queue: TaskQueue) -> bool:
    return bool(await queue.dead_letters())


async def test_who_has_no_codec_sees_that_contents_are_sealed(server: Server, sealed: TaskQueue):
    finished = await sealed.enqueue(join(SECRET), user_id="acme")
    failed = await sealed.enqueue(stumble(SECRET), user_id="acme", max_retries=0)
    await serve(sealed)
    await sealed.xcom("acme").push("key", SECRET)
    async with opened(server, sealed.name, None) as plain:
        assert (await plain.handle("acme", finished.task_id).info()).name == join.name
        with pytest.raises(UnknownKey, match="no codec here"):
            await plain.handle("acme", finished.task_id).result(timeout=5)
        with pytest.raises(TaskFailed) as error:
            await plain.handle("acme", failed.task_id).result(timeout=5)
        assert (error.value.type_name, error.value.message, error.value.traceback) == ("ValueError", "(sealed)", "")
        info = await plain.handle("acme", failed.task_id).info()
        assert info.error is not None
        assert info.error.message == "(sealed)"
        with pytest.raises(UnknownKey):
            await plain.xcom("acme").pull("key")


async def test_a_message_is_as_before_where_there_is_no_codec(server: Server, queue: TaskQueue):
    handle = await queue.enqueue(join("a", times=2), user_id="acme")
    body = server.execute("GET", key(queue, "body", "acme", handle.task_id))
    assert body[18:] == msgspec.msgpack.encode([join.name, ["a"], {"times": 2}, None])
    await handle.cancel()


async def test_what_scripts_and_people_read_stays_readable(server: Server, sealed: TaskQueue):
    handle = await sealed.enqueue(join(SECRET), user_id="acme", timeout=5, priority=5, cost=2)
    body = server.execute("GET", key(sealed, "body", "acme", handle.task_id))
    message = decode_body(body)
    assert message.name == join.name
    assert message.overrides is not None
    assert message.overrides.timeout == 5
    info = await handle.info()
    assert (info.name, info.priority) == (join.name, 5)
    await handle.cancel()


async def test_the_limit_of_a_message_holds_for_what_is_sealed(server: Server, queue_name: str):
    async with opened(server, queue_name, Encrypt({"1": OLD}, compress_above=10), max_message_bytes=1000) as queue:
        with pytest.raises(MessageTooLarge, match="the limit is 1000"):
            await queue.enqueue(join("a" * 1000), user_id="acme")
        handle = await queue.enqueue(join("a" * 900), user_id="acme")
        await handle.cancel()
    async with opened(server, queue_name, Encrypt({"1": OLD})) as queue:
        with pytest.raises(MessageTooLarge, match="when it is sealed, the limit is 1000"):
            await queue.enqueue(join("a" * 940), user_id="acme")


# What is yielded


@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
async def test_what_a_task_yields_is_read_by_who_has_the_codec(server: Server, queue_name: str, codec: Codec):
    async with opened(server, queue_name, codec) as queue:
        handle = await queue.enqueue(spell(SECRET), user_id="acme")
        async with Worker(queue, scheduler=False):
            assert [chunk async for chunk in handle.stream()] == [*SECRET, SECRET]
        if isinstance(codec, Encrypt):
            assert SECRET.encode() not in contents(server, queue_name)
        async with opened(server, queue_name, None) as plain:
            if not isinstance(codec, Compress):
                with pytest.raises(UnknownKey):
                    await anext(aiter(plain.handle("acme", handle.task_id).stream()))


async def test_what_was_yielded_cannot_be_made_or_moved(server: Server, sealed: TaskQueue):
    for task_id in ("a", "b"):
        await sealed.enqueue(spell(task_id).options(task_id=task_id), user_id="acme")
    await serve(sealed)
    names = [key(sealed, "chunks", "acme", task_id) for task_id in ("a", "b")]
    [[at, fields], *_], [[_, other], *_] = (server.execute("XRANGE", name, "-", "+") for name in names)
    forged = msgspec.msgpack.encode(["forged"])
    for chunks in (other[7], forged):
        server.execute("DEL", names[0])
        server.execute("XADD", names[0], at, *fields[:7], chunks)
        with pytest.raises(BrokenSeal):
            await anext(aiter(sealed.handle("acme", "a").stream()))
    server.execute("DEL", names[0])
    server.execute("XADD", names[0], "1-1", *fields)
    with pytest.raises(BrokenSeal):
        await anext(aiter(sealed.handle("acme", "a").stream()))
    server.execute("PEXPIRE", names[0], 60_000)


async def test_what_one_run_yielded_cannot_be_put_into_another_one(server: Server, sealed: TaskQueue):
    handle = await sealed.enqueue(spell_twice().options(max_retries=1), user_id="acme", task_id="a")
    await serve(sealed)
    chunks = key(sealed, "chunks", "acme", "a")
    entries = server.execute("XRANGE", chunks, "-", "+")
    first = next(fields for at, fields in entries if at == b"1-1")
    [second] = [(at, fields) for at, fields in entries if at == b"2-1"]
    mixed = [*first[:1], second[1][1], *first[2:]]  # as if the second run had yielded it
    for kept in (mixed, first):
        server.execute("DEL", chunks)
        server.execute("XADD", chunks, "2-1", *kept)
        server.execute("XADD", chunks, "2-2", *next(fields for at, fields in entries if at == b"2-2"))
        with pytest.raises(BrokenSeal):
            _ = [chunk async for chunk in handle.stream()]
    server.execute("PEXPIRE", chunks, 60_000)


# Why something was canceled


@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
async def test_a_reason_is_told_to_who_has_the_codec(server: Server, queue_name: str, codec: Codec):
    async with opened(server, queue_name, codec) as queue:
        one, other = [await queue.enqueue(join("x"), user_id="acme", delay=60) for _ in range(2)]
        batch = await queue.batch("acme").open()
        counted = await batch.enqueue(join("x"), delay=60)
        later = await queue.enqueue(join("x"), user_id="acme", depends_on=[one])
        await one.cancel(SECRET)
        await batch.cancel(SECRET)
        assert await queue.cancel_all("acme", reason=SECRET) == 1
        if isinstance(codec, Encrypt):
            assert SECRET.encode() not in contents(server, queue_name)
        for handle in (one, other, counted):
            with pytest.raises(TaskCanceled, match=SECRET):
                await handle.result(timeout=5)
            assert (await handle.info()).message == SECRET
        assert (await later.info()).message == f"dependency {one.task_id} canceled"
        told = {each.message for each in await queue.tasks("acme", state=TaskState.CANCELED)}
        assert told == {SECRET, f"dependency {one.task_id} canceled"}
        async with opened(server, queue_name, None) as plain:
            message = (await plain.handle("acme", one.task_id).info()).message
            assert message == (SECRET if isinstance(codec, Compress) else "(sealed)")


async def test_a_reason_of_what_runs_is_told_to_who_has_the_codec(sealed: TaskQueue):
    started = asyncio.Event()

    @task(name="tests.lingers")
    async def lingers() -> None:
        started.set()
        await asyncio.sleep(60)

    async with Worker(sealed, scheduler=False):
        handle = await sealed.enqueue(lingers(), user_id="acme")
        await started.wait()
        await handle.cancel(SECRET)
        with pytest.raises(TaskCanceled, match=SECRET):
            await handle.result(timeout=10)


async def test_a_reason_cannot_be_made_or_moved(server: Server, sealed: TaskQueue):
    handles = [await sealed.enqueue(join("x"), user_id=user, delay=60) for user in ("acme", "acme", "zoe")]
    for handle in handles:
        await handle.cancel(handle.task_id)
    names = [key(sealed, "result", handle.user_id, handle.task_id) for handle in handles]
    records = [server.execute("GET", name) for name in names]
    for at in (1, 2):
        server.execute("SET", names[at], records[0], "KEEPTTL")
        assert "it was changed" in (await handles[at].info()).message
    _, record = decode_record(records[0])
    forged = encode_record(records[0][:9], TaskState.CANCELED, msgspec.structs.replace(record, message="forged"))
    server.execute("SET", names[0], forged, "KEEPTTL")
    assert (await handles[0].info()).message == "(not shown: it is not sealed)"


async def test_without_a_key_a_task_is_canceled_without_its_reason(server: Server, queue_name: str):
    async with opened(server, queue_name, Encrypt(key_for=lambda _: {"1": OLD})) as queue:
        handle = await queue.enqueue(join("x"), user_id="acme", delay=60)
    async with opened(server, queue_name, Encrypt(key_for=lambda _: {})) as queue:
        await queue.handle("acme", handle.task_id).cancel(SECRET)
        assert (await queue.handle("acme", handle.task_id).info()).message == ""


# Attacks: whoever may write to Redis, without a key


async def broken(queue: TaskQueue, user_id: str, task_id: str) -> TaskFailed:
    """How a task fails that a worker was handed."""
    await serve(queue)
    with pytest.raises(TaskFailed) as failed:
        await queue.handle(user_id, task_id).result(timeout=5)
    assert failed.value.kind == FailureKind.BAD_MESSAGE
    assert failed.value.type_name == "BrokenSeal"
    return failed.value


@pytest.mark.parametrize("codec", [Encrypt({"1": OLD}), Sign({"1": OLD})])
async def test_a_message_that_was_moved_to_another_tenant_or_id_is_a_dead_letter(
    server: Server, queue_name: str, codec: Codec
):
    async with opened(server, queue_name, codec) as queue:
        for user_id, task_id in (("zoe", "a"), ("acme", "b")):
            await queue.enqueue(join(SECRET).options(task_id="a"), user_id="acme")
            own = await queue.enqueue(join("own").options(task_id=task_id), user_id=user_id)
            stolen = server.execute("GET", key(queue, "body", "acme", "a"))
            server.execute("SET", key(queue, "body", user_id, task_id), stolen)
            failed = await broken(queue, user_id, own.task_id)
            assert f"the arguments of {task_id!r}, of user {user_id!r}" in failed.message
            assert "changed, or sealed for another place" in failed.message


async def test_a_message_of_another_queue_is_a_dead_letter_unless_they_share_a_realm(server: Server, queue_name: str):
    names = queue_name, f"{queue_name}-2"
    for realm in (None, "shared"):
        codec = Encrypt({"1": OLD}, realm=realm)
        async with opened(server, names[0], codec) as one, opened(server, names[1], codec) as other:
            await one.enqueue(join(SECRET).options(task_id=f"{realm}"), user_id="acme")
            await other.enqueue(join("own").options(task_id=f"{realm}"), user_id="acme")
            moved = server.execute("GET", key(one, "body", "acme", f"{realm}"))
            server.execute("SET", key(other, "body", "acme", f"{realm}"), moved)
            await serve(one)
            if realm is None:
                await broken(other, "acme", "None")
            else:
                await serve(other)
                assert await other.handle("acme", "shared").result(timeout=5) == SECRET
    server.forget(names[1])


async def test_no_part_of_a_message_can_be_changed(server: Server, sealed: TaskQueue):
    """Neither the head, nor the name, nor what was decided at the call, nor what is sealed. But for the priority, which
    scripts change.
    """
    await sealed.enqueue(join(SECRET).options(task_id="a", timeout=5, max_retries=3), user_id="acme")
    name = key(sealed, "body", "acme", "a")
    body = server.execute("GET", name)
    flipped = [changed for changed in flips(body) if changed[17] == body[17]]
    for changed in [*flipped, body[:-1], body + b"\0", body[:40]]:
        with pytest.raises((SealError, BadMessage)):
            open_task(sealed.sealer, "acme", "a", changed)
    cheaper = body[:9] + struct.pack(">d", 0.5) + body[17:]
    server.execute("SET", name, cheaper)
    await broken(sealed, "acme", "a")


async def test_headers_can_be_read_and_not_changed(server: Server, sealed: TaskQueue):
    await sealed.enqueue(join(SECRET).options(task_id="a", headers={"trace": "first"}), user_id="acme")
    name = key(sealed, "body", "acme", "a")
    body = server.execute("GET", name)
    assert b"first" in body
    assert (await sealed.handle("acme", "a").info()).headers == {"trace": "first"}
    server.execute("SET", name, body.replace(b"first", b"other"))
    await broken(sealed, "acme", "a")


async def test_a_message_that_is_not_sealed_is_refused_unless_it_is_said_to_be_accepted(
    server: Server, sealed: TaskQueue
):
    async with opened(server, sealed.name, None) as plain:
        await plain.enqueue(join("forged").options(task_id="a"), user_id="acme")
        failed = await broken(sealed, "acme", "a")
        assert "not sealed" in failed.message
        await plain.enqueue(join("old").options(task_id="b"), user_id="acme")
    async with opened(server, sealed.name, Encrypt({"1": OLD}, accepts_plain=True)) as lenient:
        handle = await lenient.enqueue(join("new"), user_id="acme")
        await serve(lenient)
        assert await lenient.handle("acme", "b").result(timeout=5) == "old"
        assert await handle.result(timeout=5) == "new"
    with pytest.raises(UnknownKey):
        async with opened(server, sealed.name, None) as plain:
            await plain.handle("acme", "b").result(timeout=5)


async def test_results_cannot_be_made_changed_or_moved(server: Server, sealed: TaskQueue):
    for name in ("a", "b"):
        await sealed.enqueue(join(SECRET + name).options(task_id=name), user_id="acme")
    await serve(sealed)
    names = {name: key(sealed, "result", "acme", name) for name in ("a", "b")}
    record, other = (server.execute("GET", name) for name in names.values())
    [start] = [at for at in range(len(record)) if record.startswith(b"\xc7", at) and record[at + 2] == 83]
    forged = record[:start] + msgspec.msgpack.encode("forged") + record[start + 3 + record[start + 1] :]
    for changed in (forged, other):
        server.execute("SET", names["a"], changed, "PX", 60_000)
        with pytest.raises(BrokenSeal):
            await sealed.handle("acme", "a").result(timeout=0)
    for changed in flips(record):
        with pytest.raises((SealError, BadMessage)):
            open_record(sealed.sealer, "acme", "a", changed)


async def test_an_old_result_under_the_same_id_is_not_told_from_a_new_one(server: Server, sealed: TaskQueue):
    """As the documentation says: the record of an earlier task of the same user and id opens."""
    records = []
    for text in ("first", "second"):
        await sealed.enqueue(join(text).options(task_id="a"), user_id="acme")
        await serve(sealed)
        records.append(server.execute("GET", key(sealed, "result", "acme", "a")))
    server.execute("SET", key(sealed, "result", "acme", "a"), records[0], "PX", 60_000)
    assert await sealed.handle("acme", "a").result(timeout=5) == "first"


async def test_an_output_that_was_changed_is_no_argument(server: Server, sealed: TaskQueue):
    other = await sealed.enqueue(join("other").options(task_id="other"), user_id="acme")
    await serve(sealed)
    moved = server.execute("GET", key(sealed, "result", "acme", other.task_id))
    first = join("given")
    run = await sealed.enqueue(first >> join(first.output).options(delay=0.5), user_id="acme")
    names = list(run)
    await serve(sealed)
    assert await run[names[0]].result(timeout=5) == "given"
    server.execute("SET", key(sealed, "result", "acme", run[names[0]].task_id), moved, "KEEPTTL")
    async with Worker(sealed, scheduler=False):
        with pytest.raises(TaskFailed, match="what others give cannot be opened") as failed:
            await run[names[1]].result(timeout=10)
    assert failed.value.kind == FailureKind.BAD_ARGUMENTS


async def test_values_cannot_be_moved_to_another_key_space_or_user(server: Server, sealed: TaskQueue):
    own = sealed.xcom("acme")
    await own.push("key", SECRET)
    await own.push("other", "x")
    await sealed.xcom("acme", "space").push("key", "x")
    await sealed.xcom("zoe").push("key", "x")
    stolen = server.execute("HGET", key(sealed, "xcom", "acme", "default"), "key")
    for place, name in ((("acme", "default"), "other"), (("acme", "space"), "key"), (("zoe", "default"), "key")):
        server.execute("HSET", key(sealed, "xcom", *place), name, stolen)
    for user_id, space, name in (("acme", "default", "other"), ("acme", "space", "key"), ("zoe", "default", "key")):
        with pytest.raises(BrokenSeal):
            await sealed.xcom(user_id, space).pull(name)
    assert await own.pull("key") == SECRET


async def test_texts_that_are_not_sealed_are_not_shown(server: Server, sealed: TaskQueue):
    handle = await sealed.enqueue(stumble(SECRET), user_id="acme", max_retries=0)
    await serve(sealed)
    name = key(sealed, "errors", "acme", handle.task_id)
    attempt = msgspec.msgpack.decode(server.execute("LINDEX", name, 0))
    forged = msgspec.msgpack.encode([*attempt[:4], "pay to …", "forged", attempt[6]])
    moved = msgspec.msgpack.encode([attempt[0] + 1, *attempt[1:]])
    server.execute("RPUSH", name, forged, moved)
    found = (await handle.info()).errors
    assert [each.message for each in found][:2] == [SECRET, "(not shown: it is not sealed)"]
    assert "sealed for another place" in found[2].message
    assert not found[1].traceback


async def test_a_compression_bomb_is_a_dead_letter_and_harms_nobody_else(server: Server, queue_name: str):
    async with opened(server, queue_name, Compress(8)) as queue:
        await queue.enqueue(join("a").options(task_id="a"), user_id="acme")
        other = await queue.enqueue(join("b"), user_id="zoe")
        name = key(queue, "body", "acme", "a")
        bomb = b"c\1" + zlib.compress(b"\x92\x91\xc6" + (1 << 26).to_bytes(4) + bytes(1 << 26) + b"\xc0", 9)
        assert len(bomb) < 100_000
        body = server.execute("GET", name)
        at = body.index(b"\x91\xa1a")
        server.execute("SET", name, body[:at] + b"\xc9" + len(bomb).to_bytes(4) + b"\x53" + bomb + body[at + 3 :])
        failed = await broken(queue, "acme", "a")
        assert "more than 262144 bytes" in failed.message
        assert await other.result(timeout=5) == "b"


class Vault(Codec):
    """Of somebody's own: a device that may not answer."""

    def __init__(self) -> None:
        self.answers = True

    def seal(self, place: Any, plain: bytes, associated: bytes) -> bytes:
        del place, associated
        if not self.answers:
            raise OSError("no answer")
        return plain[::-1]

    def open(self, place: Any, sealed: bytes, associated: bytes, most: int) -> bytes:
        return self.seal(place, sealed, associated)[:most]


async def test_a_codec_that_fails_costs_no_task(server: Server, queue_name: str):
    codec = Vault()

    @task
    async def unplug(text: str) -> str:
        codec.answers = False
        return text

    async with opened(server, queue_name, codec) as queue:
        handle = await queue.enqueue(join(SECRET), user_id="acme")
        last = await queue.enqueue(unplug(SECRET), user_id="acme")
        async with Worker(queue, concurrency=1, scheduler=False):
            await eventually(lambda: _has_failed(queue))
            later = await eventually(lambda: _refused(queue))
        assert "cannot be sealed: OSError" in str(later)
        codec.answers = True
        assert await handle.result(timeout=5) == SECRET
        await queue.requeue(last)
        await last.cancel()
    registry.pop(unplug.name)


async def _refused(queue: TaskQueue) -> UnknownKey | None:
    try:
        await queue.enqueue(join("x"), user_id="acme")
    except UnknownKey as error:
        return error
    return None


# Keys that change


async def test_keys_change_without_a_pause(server: Server, queue_name: str):
    """What is sealed by a key that a worker does not have yet waits for one that has it."""
    before, after = Encrypt({"1": OLD}), Encrypt({"2": NEW, "1": OLD})
    async with opened(server, queue_name, before) as old, opened(server, queue_name, after) as new:
        first = await old.enqueue(join("first"), user_id="acme")
        second = await new.enqueue(join("second"), user_id="acme")
        async with Worker(old, scheduler=False):
            assert await first.result(timeout=10) == "first"
            await eventually(lambda: _is_put_back(second))
        async with Worker(new, scheduler=False):
            assert await second.result(timeout=20) == "second"
        assert await new.handle("acme", first.task_id).result(timeout=5) == "first"


async def _is_put_back(handle: Any) -> bool:
    return (await handle.info()).state is TaskState.SCHEDULED


async def test_an_output_under_a_key_that_is_not_known_here_puts_the_task_back(server: Server, queue_name: str):
    before, after = Encrypt({"1": OLD}), Encrypt({"2": NEW, "1": OLD})
    async with opened(server, queue_name, before) as old, opened(server, queue_name, after) as new:
        last = await old.enqueue(join(join("first").output, "second").options(delay=0.5), user_id="acme")
        await serve(new)
        async with Worker(old, scheduler=False):
            await eventually(lambda: _was_returned(server, last, old))
        async with Worker(new, scheduler=False):
            assert await new.handle("acme", last.task_id).result(timeout=20) == "firstsecond"


async def _was_returned(server: Server, handle: Any, queue: TaskQueue) -> bool:
    return bool(server.execute("HGET", key(queue, "task", handle.user_id, handle.task_id), "returned"))


async def test_a_key_that_nobody_has_makes_a_dead_letter_after_a_while(server: Server, sealed: TaskQueue):
    async with opened(server, sealed.name, Encrypt({"2": NEW, "1": OLD})) as new:
        handle = await new.enqueue(join(SECRET), user_id="acme")
    async with Worker(sealed, unknown_task_patience=0.1, scheduler=False):
        with pytest.raises(TaskFailed) as failed:
            await sealed.handle("acme", handle.task_id).result(timeout=20)
    assert failed.value.kind == FailureKind.BAD_MESSAGE
    assert failed.value.type_name == "UnknownKey"
    assert "no worker had the key for 0.1 s: the key '2' of user 'acme'" in failed.value.message


async def test_one_whose_key_is_forgotten_harms_nobody_else(server: Server, queue_name: str):
    keys = {"acme": {"1": OLD}, "zoe": {"1": NEW}}
    async with opened(server, queue_name, Encrypt(key_for=lambda user_id: keys.get(user_id, {}))) as queue:
        kept = await queue.enqueue(join(SECRET), user_id="acme")
        await serve(queue)
        waiting = await queue.enqueue(join(SECRET), user_id="acme")
        others = [await queue.enqueue(join("own"), user_id="zoe") for _ in range(3)]
        del keys["acme"]
        with pytest.raises(UnknownKey, match="no key for user 'acme'"):
            await queue.enqueue(join(SECRET), user_id="acme")
        async with Worker(queue, scheduler=False):
            for handle in others:
                assert await handle.result(timeout=10) == "own"
            await eventually(lambda: _is_put_back(waiting))
        with pytest.raises(UnknownKey):
            await kept.result(timeout=5)
        assert (await kept.info()).name == join.name, "its name and times stay"
        assert (await queue.user("acme")).finished == 1
        await waiting.cancel()


async def test_what_cannot_be_sealed_at_the_end_is_kept_nowhere(server: Server, queue_name: str):
    keys = {"1": OLD}

    @task
    async def forget(text: str) -> str:
        keys.clear()
        return text

    async with opened(server, queue_name, Encrypt(key_for=lambda _: dict(keys))) as queue:
        handle = await queue.enqueue(forget(SECRET), user_id="acme")
        await serve(queue)
        [letter] = await queue.dead_letters()
        assert (letter.type_name, letter.message) == ("UnknownKey", "not kept: there was no key to seal it with")
        keys["1"] = OLD
        with pytest.raises(TaskFailed):
            await handle.result(timeout=5)
    assert SECRET.encode() not in contents(server, queue_name)
    registry.pop(forget.name)


# Schedules


@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
async def test_schedules_make_tasks_that_can_be_opened(server: Server, queue_name: str, codec: Codec):
    async with opened(server, queue_name, codec) as queue:
        scheduler = TaskScheduler(queue)
        options = {"every": 3600, "user_id": "acme", "schedule_id": "s"}
        await scheduler.add_schedule(task=join(SECRET), **options)
        before = server.execute("HGETALL", key(queue, "schedule", "s"))
        await scheduler.add_schedule(task=join(SECRET), **options)
        assert server.execute("HGETALL", key(queue, "schedule", "s")) == before, "it is the same"
        by_hand = await scheduler.run_now("s")
        assert await scheduler.fire_due(ahead=3601) == 1
        if isinstance(codec, Encrypt):
            assert SECRET.encode() not in contents(server, queue_name)
        await serve(queue)
        assert await queue.handle("acme", by_hand).result(timeout=5) == SECRET
        assert (await queue.stats()).finished == 2
        await scheduler.update_schedule("s", task=join("other"))
        assert await queue.handle("acme", await scheduler.run_now("s")).state() is TaskState.QUEUED
        await serve(queue)
        assert (await queue.stats()).finished == 3
        await scheduler.remove_schedule("s")


async def test_a_schedule_that_was_made_or_moved_by_another_hand_is_paused(
    server: Server, sealed: TaskQueue, caplog: pytest.LogCaptureFixture
):
    scheduler = TaskScheduler(sealed)
    for user_id in ("acme", "zoe"):
        await scheduler.add_schedule(task=join(SECRET), every=3600, user_id=user_id, schedule_id=user_id)
    body = server.execute("HGET", key(sealed, "schedule", "acme"), "body")
    server.execute("HSET", key(sealed, "schedule", "zoe"), "body", body)
    with pytest.raises(BrokenSeal):
        await scheduler.run_now("zoe")
    assert await scheduler.fire_due(ahead=3601) == 1
    assert (await scheduler.get_schedule("zoe")).state is ScheduleState.PAUSED
    assert "schedule 'zoe' is paused: the schedule of 'zoe'" in caplog.text
    await serve(sealed)
    for user_id in ("acme", "zoe"):
        await scheduler.remove_schedule(user_id)


async def test_a_schedule_whose_key_a_scheduler_does_not_have_is_fired_by_another_one(
    server: Server, sealed: TaskQueue
):
    async with opened(server, sealed.name, Encrypt({"2": NEW, "1": OLD})) as new:
        known, unknown = TaskScheduler(new), TaskScheduler(sealed)
        await known.add_schedule(task=join(SECRET), every=3600, user_id="acme", schedule_id="s")
        await unknown.add_schedule(task=join("own"), every=3600, user_id="zoe", schedule_id="own")
        assert await unknown.fire_due(ahead=3600.5) == 1, "that of somebody else"
        assert (await unknown.get_schedule("s")).state is ScheduleState.ACTIVE
        with pytest.raises(UnknownKey):
            await unknown.run_now("s")
        assert await known.fire_due(ahead=3630) == 1
        await serve(new)
        assert (await new.stats()).finished == 2
        for name in ("s", "own"):
            await known.remove_schedule(name)


async def test_schedules_whose_keys_are_forgotten_keep_those_of_others_from_nothing(server: Server, queue_name: str):
    keys = {"acme": {"1": OLD}, "zoe": {"1": NEW}}
    async with opened(server, queue_name, Encrypt(key_for=lambda user_id: keys.get(user_id, {}))) as queue:
        scheduler = TaskScheduler(queue)
        many = [
            Schedule(task=join(SECRET), every=1, user_id="acme", schedule_id=f"acme {number}") for number in range(120)
        ]
        await scheduler.add_schedules(many)
        await scheduler.add_schedule(task=join("own"), every=1, user_id="zoe", schedule_id="zoe")
        del keys["acme"]
        firing = asyncio.create_task(scheduler.run())
        await eventually(lambda: _has_queued(queue, "zoe", 2))
        await scheduler.stop()
        await firing
        assert not (await queue.user("acme")).queued
        assert all(each.active for each in await scheduler.list_schedules("acme"))
        await queue.purge("acme")
        await queue.purge("zoe")


async def _has_queued(queue: TaskQueue, user_id: str, least: int) -> bool:
    return (await queue.user(user_id)).queued >= least


# What hangs on messages


@pytest.mark.leaves_keys("limit*")
async def test_keys_of_limits_that_are_made_from_arguments_are_hashes(server: Server, sealed: TaskQueue):
    await sealed.set_limit("job:{word}", max_running=1, shared=True)
    handles = [
        await sealed.enqueue(say(word).options(limits=[Limit("job:{word}", shared=True), "fixed"]), user_id=user_id)
        for user_id, word in (("acme", SECRET), ("zoe", SECRET), ("acme", "other"))
    ]
    one, same, other = [(await handle.info()).limits for handle in handles]
    assert one == same != other, "all users count together"
    assert one[1] == "fixed"
    assert re.fullmatch(r"job:[0-9a-f]{32}", one[0])
    claim = await sealed.reader.claim("w", 3, settings=sealed.settings, wait=False)
    assert len(claim.deliveries) == 2, "one for each key"
    assert SECRET.encode() not in contents(server, sealed.name)
    await sealed.reader.settle("w", [outcome(of, "released") for of in claim.deliveries])
    await sealed.reader.leave("w", [])
    await serve(sealed)
    assert [await handle.result(timeout=5) for handle in handles] == [SECRET, SECRET, "other"]


async def test_what_a_worker_fills_in_is_sealed_anew(server: Server, sealed: TaskQueue):
    @task(cost=3, limits=["word:{word}"])
    async def weigh(word: str) -> str:
        return word

    handle = await sealed.enqueue_by_name(weigh.name, [SECRET], user_id="acme")
    await serve(sealed)
    assert await handle.result(timeout=5) == SECRET
    assert SECRET.encode() not in contents(server, sealed.name)
    registry.pop(weigh.name)


async def test_unique_keys_are_told_by_nobody_without_the_key(sealed: TaskQueue):
    found = []
    for codec_key in (OLD, NEW):
        codec = Encrypt({"1": codec_key})
        stand_in = Sealer(codec, sealed.name, lambda: 1).stand_in("acme")
        call = say(SECRET)
        found.append(
            condition_of(Unique("{word}"), call.name, call.signature, call.args, call.kwargs, stand_in).pointer
        )
    assert found[0] != found[1]
    first, again = [await sealed.enqueue(say(SECRET).options(unique="{word}"), user_id="acme") for _ in range(2)]
    assert first.created
    assert not again.created
    await serve(sealed)


async def test_test_helpers_see_arguments(sealed: TaskQueue):
    await sealed.enqueue(join(SECRET, times=2), user_id="acme")
    [found] = await assert_enqueued(sealed, join, args=[SECRET], kwargs={"times": 2}, count=1)
    assert found.user_id == "acme"
    [ran] = await run_all(sealed)
    assert ran.state is TaskState.FINISHED


async def test_blocking_code_takes_a_codec(server: Server, queue_name: str):
    def use() -> tuple[str, list[str]]:
        with sync.TaskQueue(server.url, name=queue_name, codec=Encrypt({"1": OLD})) as queue:
            handle = queue.enqueue(join(SECRET), user_id="acme")
            with queue.worker(scheduler=False):
                return handle.result(timeout=10), queue.xcom("acme").keys()

    assert await asyncio.to_thread(use) == (SECRET, [])


async def test_commands_show_contents_to_a_configuration_with_the_codec(
    server: Server, sealed: TaskQueue, tmp_path: Path
):
    await sealed.enqueue(join(SECRET).options(task_id="waits"), user_id="acme", delay=60)
    await sealed.enqueue(join(SECRET).options(task_id="done"), user_id="acme")
    await sealed.enqueue(stumble(SECRET).options(task_id="failed"), user_id="acme", max_retries=0)
    await serve(sealed)
    config = tmp_path / "fairque.toml"
    config.write_text(f'[codec]\nmethod = "encrypt"\nkeys = ["1:{base64.b64encode(OLD).decode()}"]\n')
    where = (f"--url={server.url}", f"--queue={sealed.name}")
    for task_id in ("waits", "done", "failed"):
        without = await call_command("task", "acme", task_id, "--payload", *where)
        having = await call_command("task", "acme", task_id, "--payload", *where, f"--config={config}")
        assert SECRET not in without.out
        assert "sealed" in without.out
        assert SECRET in having.out
    assert SECRET not in (await call_command("dead", "list", *where)).out
    await sealed.handle("acme", "waits").cancel()
