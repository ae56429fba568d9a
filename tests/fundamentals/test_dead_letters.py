"""10. Dead letters: what failed for good is kept, to be looked at, run again or given up."""

import asyncio
from typing import Any

import pytest

from fairque import InvalidInput, TaskFailed, TaskQueue, TaskState, UnknownTask, Worker, current_task, task
from fairque.queue.dead_letters import DeadLetters
from fairque.redis.store import Store
from fairque.settings import QueueSettings
from fairque.tasks.registry import registry
from tests.support.core import outcome
from tests.support.eventually import eventually

is_broken = True


@task
async def fail(text: str = "on purpose") -> str:
    if is_broken:
        raise ValueError(text)
    return text


@task
async def hang() -> None:
    if is_broken:
        await asyncio.Event().wait()


@task
async def echo(value: object = None) -> object:
    return value


@pytest.fixture(autouse=True)
def _registered():
    global is_broken
    is_broken = True
    registry.update({made.name: made for made in (fail, hang, echo)})


async def serve(queue: TaskQueue, **options) -> None:
    await Worker(queue, **options).run_until_idle()


async def fail_at_once(queue: TaskQueue, user_id: str, ids: list[str]) -> None:
    """By one script, so in one millisecond."""
    await queue.enqueue_many([fail().options(task_id=name) for name in ids], user_id=user_id)
    store = queue.store()
    await fail_all(store)
    await store.leave("w", [])
    await store.close()


async def fail_all(store: Store) -> None:
    """Whatever is queued."""
    claim = await store.claim("w", 1000, settings=QueueSettings(lease_ms=60_000), wait=False)
    outcomes = [outcome(of, "failed") for of in claim.deliveries]
    for of in outcomes:
        of.record = b""
    await store.settle("w", outcomes)


async def all_pages(queue: TaskQueue, user_id: str | None, limit: int) -> list[tuple[str, str]]:
    found, after = [], None
    while page := await queue.dead_letters(user_id, limit=limit, after=after):
        assert len(page) <= limit
        found += [(letter.user_id, letter.task_id) for letter in page]
        after = page[-1]
    return found


# Looking


async def test_a_letter_tells_what_failed_and_why(queue: TaskQueue):
    assert await queue.dead_letters() == []
    handle = await queue.enqueue(fail("the disk").options(task_id="t: ö"), user_id="anna: ä")
    await serve(queue)
    [letter] = await queue.dead_letters()
    assert [letter] == await queue.dead_letters("anna: ä")
    assert (letter.user_id, letter.task_id, letter.attempt) == ("anna: ä", "t: ö", 1)
    assert letter.name.endswith("fail")
    assert (letter.kind, letter.type_name, letter.message) == ("error", "ValueError", "the disk")
    assert letter.at == pytest.approx((await handle.info()).ended_at, abs=1)
    assert await queue.dead_letters("ben") == []


async def test_letters_come_in_pages_the_oldest_first(queue: TaskQueue):
    for at in range(7):
        await queue.enqueue(fail().options(task_id=str(at)), user_id="anna" if at % 2 else "ben")
        await serve(queue)
    assert [task_id for _, task_id in await all_pages(queue, None, 3)] == list("0123456")
    assert [task_id for _, task_id in await all_pages(queue, "anna", 2)] == list("135")


@pytest.mark.parametrize("limit", [1, 7, 100, 1000])
async def test_pages_are_complete_when_many_failed_in_the_same_millisecond(queue: TaskQueue, limit: int):
    ids = [f"{letter}{at}" for at in range(40) for letter in ("a", "B", "ä", "_", "é: ")]
    await fail_at_once(queue, "anna", ids)
    await fail_at_once(queue, "Ben: ö", ids[:30])
    expected = {("anna", name) for name in ids} | {("Ben: ö", name) for name in ids[:30]}
    if limit > 1:
        found = await all_pages(queue, None, limit)
        assert len(found) == len(expected)
        assert set(found) == expected
    assert [name for _, name in await all_pages(queue, "anna", limit)] == sorted(ids, key=str.encode)


async def test_a_page_goes_on_behind_a_letter_that_is_gone(queue: TaskQueue):
    await fail_at_once(queue, "anna", list("abcdef"))
    first = await queue.dead_letters("anna", limit=3)
    for letter in first:
        await queue.discard(letter)
    assert [letter.task_id for letter in await queue.dead_letters("anna", limit=3, after=first[-1])] == list("def")


async def test_letters_expire(server, queue_name: str):
    async with TaskQueue(server.url, name=queue_name, dead_letter_ttl=1) as queue:
        await queue.enqueue(fail(), user_id="anna", task_id="old")
        await serve(queue)
        assert len(await queue.dead_letters()) == 1
        await eventually(lambda: no_letters(queue))
        await queue.enqueue(fail(), user_id="anna", task_id="new")
        await serve(queue)
        assert [letter.task_id for letter in await queue.dead_letters()] == ["new"]
        assert (await queue.user("anna")).dead_letters == 1


async def no_letters(queue: TaskQueue) -> bool:
    return await queue.dead_letters() == []


async def test_a_limit_that_makes_no_sense_is_refused(queue: TaskQueue):
    for limit in (0, 1001, 1.5, None):
        with pytest.raises(InvalidInput, match="limit must be 1 to 1000"):
            await queue.dead_letters(limit=limit)
    with pytest.raises(InvalidInput, match="limit must be at least 1"):
        await queue.requeue_all(limit=0)
    with pytest.raises(ValueError, match="'nonsense'"):
        await queue.requeue_all(kind="nonsense")


# Running them again


async def test_requeue_starts_anew_and_keeps_the_history(queue: TaskQueue):
    @task(max_retries=2)
    async def fragile() -> int:
        if is_broken:
            raise OSError(f"attempt {current_task().attempt}")
        return current_task().attempt

    global is_broken
    handle = await queue.enqueue(fragile().options(max_retries=0), user_id="anna")
    await serve(queue)
    requeued = await queue.requeue(handle)
    assert requeued.task_id == handle.task_id
    info = await handle.info()
    assert (info.state, info.attempt, len(info.errors)) == (TaskState.QUEUED, 0, 1)
    assert await queue.dead_letters() == []
    assert (await queue.user("anna")).dead_letters == 0
    await serve(queue)
    info = await handle.info()
    assert (info.state, info.attempt) == (TaskState.FAILED, 1)
    assert [error.message for error in info.errors] == ["attempt 1", "attempt 1"]
    [letter] = await queue.dead_letters("anna")
    is_broken = False
    await queue.requeue(letter)
    await serve(queue)
    assert await handle.result(20) == 1
    assert await queue.dead_letters() == []


async def test_retries_start_anew_as_well(queue: TaskQueue):
    @task(max_retries=1)
    async def fragile() -> None:
        attempts.append(current_task().attempt)
        raise OSError

    attempts: list[int] = []
    handle = await queue.enqueue(fragile(), user_id="anna")
    async with Worker(queue):
        for _ in range(2):
            with pytest.raises(TaskFailed):
                await handle.result(20)
            await queue.requeue(handle)
            await eventually(lambda: len(attempts) % 2 == 0)
        with pytest.raises(TaskFailed):
            await handle.result(20)
    assert attempts == [1, 2] * 3
    await queue.discard(handle)


async def test_only_a_dead_letter_can_be_requeued_or_discarded(queue: TaskQueue):
    waiting = await queue.enqueue(echo(), user_id="anna")
    dead = await queue.enqueue(fail(), user_id="ben")
    await serve(queue, assigned_users=["ben"])
    for wrong in (waiting, queue.handle("anna", "nothing"), queue.handle("anna", dead.task_id)):
        with pytest.raises(UnknownTask, match="user 'anna' has no dead letter"):
            await queue.requeue(wrong)
        with pytest.raises(UnknownTask, match="has no dead letter"):
            await queue.discard(wrong)
    await queue.requeue(dead)
    with pytest.raises(UnknownTask):
        await queue.requeue(dead)
    await serve(queue)


async def test_requeued_ones_wait_in_the_lane_of_their_priority_like_all_others(queue: TaskQueue):
    low = await queue.enqueue(fail(), user_id="anna", priority=1)
    high = await queue.enqueue(fail(), user_id="anna", priority=6)
    await serve(queue)
    assert await queue.requeue_all("anna") == 2
    user = await queue.user("anna")
    assert (user.critical, user.normal) == (1, 1)
    await serve(queue)
    for handle in (low, high):
        await queue.discard(handle)


async def test_a_sleeping_worker_hears_of_a_requeue(queue: TaskQueue):
    global is_broken
    handle = await queue.enqueue(fail("fine"), user_id="anna")
    async with Worker(queue, poll_interval=60):
        with pytest.raises(TaskFailed):
            await handle.result(20)
        is_broken = False
        await queue.requeue(handle)
        assert await handle.result(20) == "fine"


async def test_requeue_all_takes_what_matches_and_no_more_than_the_limit(queue: TaskQueue):
    for user in ("anna", "ben"):
        await queue.enqueue_many([fail()] * 3, user_id=user)
        await queue.enqueue_many([hang().options(timeout=0.05)] * 2, user_id=user)
    await serve(queue)
    assert len(await queue.dead_letters()) == 10
    assert await queue.requeue_all("anna", kind="timeout") == 2
    assert await queue.requeue_all("anna", kind="timeout") == 0
    assert await queue.requeue_all(task_name=hang.name) == 2
    assert await queue.requeue_all(task_name="nobody") == 0
    assert await queue.requeue_all(limit=4) == 4
    assert await queue.requeue_all() == 2
    assert (await queue.stats()).queued == 10
    global is_broken
    is_broken = False
    await serve(queue)
    assert (await queue.stats()).finished == 10


async def test_requeue_all_goes_over_many_pages(queue: TaskQueue):
    await fail_at_once(queue, "anna", [str(at) for at in range(350)])
    assert await queue.requeue_all("anna", limit=150) == 150
    assert await queue.requeue_all("anna") == 200
    assert await queue.dead_letters() == []
    assert (await queue.purge("anna")).queued == 350


async def test_requeue_all_takes_none_twice_however_soon_it_fails_again(queue: TaskQueue):
    class Swift(Store):
        """What is requeued has failed again before the answer comes."""

        async def requeue(self, *args: Any) -> list[bool]:
            answers = await super().requeue(*args)
            await fail_all(self)
            return answers

    await fail_at_once(queue, "anna", list("abc"))
    store = Swift(queue.reader.backend)
    swift = DeadLetters(store)
    assert await swift.requeue_all("anna", lambda _: True, 100) == 3
    assert (await queue.stats()).failed == 6
    await store.leave("w", [])
    await store.close()


# Giving them up


async def test_nothing_is_left_of_what_was_discarded(queue: TaskQueue, server, queue_name: str):
    handle = await queue.enqueue(fail(), user_id="anna", task_id="t")
    await serve(queue)
    await queue.discard(handle)
    left = [key for key in server.keys(queue_name) if key.endswith((":t", "dead", "dead:anna"))]
    assert left == []
    with pytest.raises(UnknownTask):
        await handle.result(0)
    with pytest.raises(UnknownTask):
        await queue.discard(handle)
