"""Everything that carries contents, in a queue that seals them: it works, and nothing of it can be read in Redis."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Any

import pytest

from fairque import (
    BrokenSeal,
    Cause,
    Collect,
    Compress,
    Debounce,
    Encrypt,
    Fail,
    Sign,
    Snooze,
    Task,
    TaskFailed,
    TaskQueue,
    TaskScheduler,
    UnknownKey,
    Worker,
    current_task,
    task,
)
from fairque.queue.callbacks import callbacks_of
from fairque.tasks.cause import cause_in
from fairque.tasks.message import decode_body, encode_value, joined_follow_up, parted_follow_up
from fairque.tasks.registry import registry
from fairque.tasks.sealed import open_task
from fairque.testing import enqueued
from tests.support.contents import contents
from tests.support.eventually import eventually
from tests.support.servers import Server

pytestmark = pytest.mark.leaves_keys("*")
SECRET = "the-secret-of-acme"
KEY, OTHER = b"k" * 32, b"o" * 32
CODECS = [Encrypt({"1": KEY}), Encrypt({"1": KEY}, compress_above=8), Sign({"1": KEY}), Compress(8)]
told: list[tuple[str, str, Cause | None]] = []
is_broken = True


@task
async def say(word: str) -> str:
    return word


@task
async def fragile(word: str) -> str:
    if is_broken:
        raise Fail(word)
    return word


@task
async def note(word: str) -> str:
    told.append((current_task().task_id, word, current_task().cause))
    return word


@task(cost=3, limits=["word:{word}"])
async def weighed(word: str) -> str:
    told.append((current_task().task_id, word, current_task().cause))
    return word


@task
async def bear(word: str) -> str:
    child = await current_task().enqueue(say(word), key="child")
    return await child.result(10)


@task
async def doze(word: str) -> str:
    if not current_task().snoozed:
        raise Snooze(0.01)
    return word


@task
async def shout(word: str) -> str:
    return word.upper()


@task(collect=Collect(3, within=0.2))
async def together(words: list[str]) -> list[str | Exception]:
    return [ValueError(word) if word.endswith("!") else word for word in words]


@pytest.fixture(autouse=True)
def _fresh() -> None:
    global is_broken
    is_broken = True
    told.clear()
    made = (say, fragile, note, weighed, bear, doze, shout, together)
    registry.update({each.name: each for each in made})


@pytest.fixture
async def sealed(server: Server, queue_name: str) -> AsyncIterator[TaskQueue]:
    async with TaskQueue(server.url, name=queue_name, codec=CODECS[0]) as queue:
        yield queue


@pytest.fixture(params=CODECS, ids=["encrypt", "encrypt and compress", "sign", "compress"])
async def coded(request: pytest.FixtureRequest, server: Server, queue_name: str) -> AsyncIterator[TaskQueue]:
    async with TaskQueue(server.url, name=queue_name, codec=request.param) as queue:
        yield queue


async def serve(queue: TaskQueue) -> None:
    await Worker(queue, scheduler=False).run_until_idle()


def key(queue: TaskQueue, *parts: str) -> str:
    return f"fairque:{{{queue.name}}}:{':'.join(parts)}"


def words() -> list[str]:
    return sorted(word for _, word, _ in told)


# Nothing can be read


async def test_no_feature_leaves_anything_readable(server: Server, sealed: TaskQueue) -> None:
    def leaks() -> list[str]:
        return re.findall(f".{{80}}{SECRET}", contents(server, sealed.name).decode(), re.IGNORECASE)

    chain = note(SECRET).options(on_success=note(SECRET), on_end=Task.by_name(weighed.name, [SECRET]))
    calls = [
        say(SECRET).options(on_success=chain, on_failure=note(SECRET), on_end=note(SECRET)),
        fragile(SECRET).options(on_failure=chain),
        say(SECRET).options(unique="{word}"),
        say(SECRET).options(throttle=60),
        say(SECRET).options(debounce=Debounce(0.1, key="{word}")),
        shout(SECRET).options(debounce=0.1),
        say(SECRET).options(task_id="replaced", on_conflict="replace"),
        say(SECRET).options(task_id="replaced", on_conflict="replace"),
        bear(SECRET),
        doze(SECRET),
        together(SECRET),
        together(f"{SECRET}!"),
        Task.by_name(weighed.name, [SECRET]),
        Task.by_name(weighed.name, [], {"word": SECRET}),
        Task.create(payload={"word": SECRET}),
        shout(say(SECRET).output),
    ]
    async with sealed.batch("acme", on_complete=chain, on_success=note(SECRET)) as batch:
        for call in calls:
            await sealed.enqueue(call, user_id="acme")
        await batch.enqueue(say(SECRET))
        later = await sealed.enqueue(say(SECRET), user_id="acme", delay=3600)
        await later.set_priority(6)
        await later.promote()
        assert not leaks()
    async with Worker(sealed, scheduler=False, concurrency=2):
        await eventually(lambda: len(told) >= 12)
        assert not leaks()
    assert not leaks()
    assert set(words()) == {SECRET}
    await sealed.purge("acme")


# Callbacks


async def test_callbacks_have_their_arguments_and_the_cause(coded: TaskQueue) -> None:
    ended = say("a" * 50).options(on_success=note("success").options(on_end=note("then")), on_end=note("end"))
    await coded.enqueue(ended, user_id="acme", task_id="a")
    await serve(coded)
    assert words() == ["end", "success", "then"]
    causes = {task_id: cause for task_id, _, cause in told}
    assert causes["a.on_success"].result == "a" * 50
    assert causes["a.on_success.on_end"].result == "success"


async def test_callbacks_of_another_life_have_their_arguments(coded: TaskQueue) -> None:
    global is_broken
    failing = fragile(SECRET).options(on_failure=[note("one"), note("two")], on_success=note("success"))
    handle = await coded.enqueue(failing, user_id="acme", task_id="a")
    await serve(coded)
    await coded.requeue(handle)
    await serve(coded)
    is_broken = False
    await coded.requeue(handle)
    await serve(coded)
    assert words() == ["one", "one", "success", "two", "two"]
    causes = {task_id: cause for task_id, _, cause in told}
    assert set(causes) == {"a.on_failure", "a.on_failure-2", "a.on_failure-3", "a.on_failure-4", "a.on_success-3"}
    assert causes["a.on_failure-3"].failure.message == SECRET
    assert causes["a.on_success-3"].result == SECRET


async def test_callbacks_whose_ids_are_taken_have_their_arguments(coded: TaskQueue) -> None:
    await coded.enqueue(say("taken").options(task_id="a.on_end"), user_id="acme")
    await coded.enqueue(say("x").options(task_id="a", on_end=note("end").options(on_end=note("more"))), user_id="acme")
    await serve(coded)
    assert words() == ["end", "more"]
    assert all(re.fullmatch(r"a\.on_end-\d+(\.on_end)?", task_id) for task_id, _, _ in told)


async def test_what_looks_like_a_callback_by_its_id_is_none(coded: TaskQueue) -> None:
    handle = await coded.enqueue(say("x").options(on_end=note("end")), user_id="acme", task_id="a.on_end-7")
    await serve(coded)
    assert await handle.result(5) == "x"
    assert words() == ["end"]


async def test_callbacks_of_schedules_have_their_arguments(server: Server, coded: TaskQueue) -> None:
    scheduler = TaskScheduler(coded)
    made = say("x").options(on_success=note(SECRET).options(on_end=note(SECRET)))
    for _ in range(2):
        await scheduler.add_schedule(task=made, every=3600, user_id="acme", schedule_id="s")
        kept = server.execute("HGETALL", key(coded, "schedule", "s"))
    await scheduler.add_schedule(task=made, every=3600, user_id="acme", schedule_id="s")
    assert server.execute("HGETALL", key(coded, "schedule", "s")) == kept, "it is the same"
    first = await scheduler.run_now("s")
    await scheduler.fire_due(3601)
    await serve(coded)
    assert [word for _, word, _ in told] == [SECRET] * 4
    assert {f"{first}.on_success", f"{first}.on_success.on_end"} <= {task_id for task_id, _, _ in told}
    await scheduler.remove_schedule("s")


async def test_callbacks_of_a_schedule_cannot_be_moved_or_made(server: Server, sealed: TaskQueue) -> None:
    scheduler = TaskScheduler(sealed)
    for name in ("s", "t"):
        made = say("x").options(on_success=note(name))
        await scheduler.add_schedule(task=made, every=3600, user_id="acme", schedule_id=name)
    own = server.execute("HGET", key(sealed, "schedule", "s"), "callbacks")
    for wrong in (own, encode_value([])):
        server.execute("HSET", key(sealed, "schedule", "t"), "callbacks", wrong)
        with pytest.raises(BrokenSeal):
            await scheduler.run_now("t")
    for name in ("s", "t"):
        await scheduler.remove_schedule(name)


async def test_callbacks_of_batches_have_their_arguments(coded: TaskQueue) -> None:
    async with coded.batch("acme", batch_id="b", on_complete=note("complete"), on_success=note("success")) as batch:
        await batch.enqueue(say("x"))
    await serve(coded)
    assert words() == ["complete", "success"]


@pytest.mark.parametrize("codec", [None, *CODECS], ids=["none", "encrypt", "encrypt and compress", "sign", "compress"])
async def test_a_callback_by_name_knows_its_cause_when_its_code_has_said_more(
    server: Server, queue_name: str, codec: Any
) -> None:
    async with TaskQueue(server.url, name=queue_name, codec=codec) as queue:
        await queue.enqueue(
            say("x").options(on_end=Task.by_name(weighed.name, ["by name"])), user_id="acme", task_id="a"
        )
        await serve(queue)
    [(task_id, word, cause)] = told
    assert (task_id, word) == ("a.on_end", "by name")
    assert cause is not None
    assert cause.result == "x"


def callback(queue: TaskQueue, cause: bytes = b"") -> bytes:
    """As it is at the end of task ``a``, whose record is the cause."""
    [made] = callbacks_of([("on_end", note(SECRET))], "acme", "a", b"n" * 8, 10_000, queue.sealer)
    return joined_follow_up(made.body, encode_value("a") + encode_value(cause))


async def test_a_callback_cannot_be_moved_or_made(sealed: TaskQueue) -> None:
    body, sealer = callback(sealed), sealed.sealer
    for task_id in ("a.on_end", "a.on_end-2", "a.on_end-2-17"):
        assert SECRET.encode() in bytes(open_task(sealer, "acme", task_id, body).args)
    for user_id, task_id in (("zoe", "a.on_end"), ("acme", "b.on_end"), ("acme", "a.on_success"), ("acme", "a")):
        with pytest.raises(BrokenSeal):
            open_task(sealer, user_id, task_id, body)
    plain, _ = parted_follow_up(body)
    with pytest.raises(BrokenSeal):  # as a task of its own
        open_task(sealer, "acme", "a.on_end", plain)


async def test_the_result_that_a_callback_is_told_cannot_be_made(server: Server, sealed: TaskQueue) -> None:
    for task_id in ("a", "b"):
        await sealed.enqueue(say(task_id), user_id="acme", task_id=task_id)
    await serve(sealed)
    own, other = (server.execute("GET", key(sealed, "result", "acme", task_id)) for task_id in ("a", "b"))
    found = cause_in(callback(sealed, own), sealed.sealer, "acme")
    assert found is not None
    assert found.result == "a"
    with pytest.raises(BrokenSeal):
        cause_in(callback(sealed, other), sealed.sealer, "acme")
    with pytest.raises(UnknownKey):
        cause_in(callback(sealed, own), None, "acme")
    handle = await sealed.enqueue(say(SECRET), user_id="acme", task_id="a.on_end")
    server.execute("SET", key(sealed, "body", "acme", "a.on_end"), callback(sealed, other))
    await serve(sealed)
    with pytest.raises(TaskFailed, match="BrokenSeal"):
        await handle.result(5)
    assert not told


# Calls that take the place of others


async def test_the_last_of_debounced_calls_has_its_arguments(coded: TaskQueue) -> None:
    handles = [await coded.enqueue(shout(word), user_id="acme", debounce=0.2) for word in ("one", "two", "three")]
    async with Worker(coded, scheduler=False):
        assert {await handle.result(10) for handle in handles} == {"THREE"}
    assert len({handle.task_id for handle in handles}) == 1


async def test_a_debounced_call_cannot_be_moved_to_another_user_or_key(server: Server, sealed: TaskQueue) -> None:
    rule = Debounce(60, key="{word}")
    for user_id, word in (("acme", "a"), ("acme", "b"), ("zoe", "a")):
        await sealed.enqueue(shout(word), user_id=user_id, task_id=word, debounce=rule)
    bodies = {
        (user_id, word): server.execute("GET", key(sealed, "body", user_id, word))
        for user_id, word in (("acme", "a"), ("acme", "b"), ("zoe", "a"))
    }
    with pytest.raises(BrokenSeal):
        open_task(sealed.sealer, "acme", "a", bodies["zoe", "a"])
    pointers = [decode_body(body).overrides.debounced.encode() for body in bodies.values()]  # type: ignore[union-attr]
    assert len({len(pointer) for pointer in pointers}) == 1
    with pytest.raises(BrokenSeal):
        open_task(sealed.sealer, "acme", "a", bodies["acme", "b"].replace(pointers[1], pointers[0]))
    with pytest.raises(BrokenSeal):
        open_task(sealed.sealer, "acme", "a", bodies["acme", "a"].replace(pointers[0], pointers[1]))
    for user_id in ("acme", "zoe"):
        await sealed.purge(user_id)


async def test_a_replaced_call_has_the_arguments_of_the_last(coded: TaskQueue) -> None:
    for word in ("one", "two"):
        handle = await coded.enqueue(say(word), user_id="acme", task_id="a", on_conflict="replace")
    await serve(coded)
    assert await handle.result(5) == "two"


async def test_a_task_whose_priority_was_changed_has_its_arguments(coded: TaskQueue) -> None:
    handles = [await coded.enqueue(say(str(n)), user_id="acme") for n in range(1, 7)]
    for priority, handle in enumerate(handles, 1):
        await handle.set_priority(priority)
    debounced = await coded.enqueue(shout("x"), user_id="acme", debounce=60)
    await debounced.set_priority(5)
    assert {each.args for each in await enqueued(coded, shout)} == {("x",)}
    await debounced.promote()
    await serve(coded)
    assert [await handle.result(5) for handle in [*handles, debounced]] == ["1", "2", "3", "4", "5", "6", "X"]


# Others


async def test_children_and_grouped_work_have_their_arguments(coded: TaskQueue) -> None:
    parent = await coded.enqueue(bear(SECRET), user_id="acme")
    grouped = [await coded.enqueue(together(word), user_id="acme") for word in ("a", "b", "c!")]
    async with Worker(coded, scheduler=False, concurrency=3):
        assert await parent.result(10) == SECRET
        assert [await handle.result(10) for handle in grouped[:2]] == ["a", "b"]
        with pytest.raises(TaskFailed) as failed:
            await grouped[2].result(10)
    assert (failed.value.type_name, failed.value.message) == ("ValueError", "c!")


async def test_one_of_a_group_that_cannot_be_opened_fails_alone(server: Server, sealed: TaskQueue) -> None:
    handles = [await sealed.enqueue(together(word), user_id="acme", task_id=word) for word in ("a", "b", "c")]
    moved = server.execute("GET", key(sealed, "body", "acme", "a"))
    server.execute("SET", key(sealed, "body", "acme", "b"), moved)
    async with Worker(sealed, scheduler=False):
        assert [await handles[at].result(10) for at in (0, 2)] == ["a", "c"]
        with pytest.raises(TaskFailed, match="BrokenSeal"):
            await handles[1].result(10)
