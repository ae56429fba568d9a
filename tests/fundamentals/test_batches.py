"""Batches: any number of tasks of a user that are counted together, with callbacks when all have ended."""

from __future__ import annotations

import asyncio

import pytest

from fairque import (
    BatchClosed,
    BatchProgress,
    BatchState,
    InvalidInput,
    QuotaExceeded,
    ResultTimeout,
    TaskQueue,
    TaskState,
    UnknownBatch,
    Worker,
    current_task,
    task,
)
from fairque.tasks.registry import registry
from tests.support.core import outcome
from tests.support.eventually import eventually
from tests.support.resp import RespClient
from tests.support.servers import Server, own_keys

pytestmark = pytest.mark.leaves_keys("*")
is_broken = True
told: list[tuple[str, BatchProgress | None]] = []


@task
async def work(value: int = 7) -> int:
    return value


@task
async def fragile(value: int = 7) -> int:
    if is_broken:
        raise OSError("the disk")
    return value


@task
async def note(word: str = "") -> str:
    told.append((current_task().task_id, current_task().ended_batch))
    return word


@task
async def spread(depth: int) -> int:
    batch = current_task().batch
    if depth:
        await batch.enqueue_many([spread(depth - 1)] * 2)
    return depth


@task
def spread_in_threads(depth: int) -> int:
    if depth:
        current_task().batch.enqueue(spread_in_threads(depth - 1))
        assert current_task().batch.progress().total >= 2
    return depth


@pytest.fixture(autouse=True)
def _registered() -> None:
    global is_broken
    is_broken = True
    told.clear()
    registry.update({made.name: made for made in (work, fragile, note, spread, spread_in_threads)})


async def serve(queue: TaskQueue) -> None:
    await Worker(queue, scheduler=False).run_until_idle()


def called() -> list[str]:
    return sorted(task_id for task_id, _ in told)


# The end of a batch


async def test_a_batch_calls_back_when_all_of_its_tasks_have_finished(queue: TaskQueue) -> None:
    async with queue.batch("acme", batch_id="b", on_complete=note(), on_success=note()) as batch:
        first = await batch.enqueue(work(1))
        many = await batch.enqueue_many([work(n) for n in range(1200)])
        await asyncio.sleep(0)
        progress = await batch.progress()
        assert (progress.total, progress.pending, progress.state) == (1201, 1201, BatchState.OPEN)
        assert not progress.ended
    assert (await first.state(), len(many)) == (TaskState.QUEUED, 1200)
    await serve(queue)
    assert called() == ["b.on_complete", "b.on_success"]
    progress = await batch.wait(5)
    assert (progress.total, progress.finished, progress.failed, progress.canceled) == (1201, 1201, 0, 0)
    assert progress.succeeded
    assert progress.completed_at is not None
    assert progress.created_at <= progress.completed_at
    assert told[0][1] == progress


async def test_tasks_that_end_while_it_is_open_end_no_batch(queue: TaskQueue) -> None:
    async with Worker(queue, scheduler=False), queue.batch("acme", on_complete=note()) as batch:
        for n in range(3):
            await (await batch.enqueue(work(n))).result(10)
        assert (await batch.progress()).finished == 3
        assert not told
        with pytest.raises(ResultTimeout, match="has not ended within"):
            await batch.wait(0.05)
    async with Worker(queue, scheduler=False):
        assert (await batch.wait(10)).succeeded
    await serve(queue)
    assert len(told) == 1


async def test_an_empty_batch_ends_as_it_is_closed(queue: TaskQueue) -> None:
    async with queue.batch("acme", batch_id="b", on_complete=note(), on_success=note()) as batch:
        pass
    assert (await batch.wait(0.5)).succeeded
    await batch.close()
    await serve(queue)
    assert called() == ["b.on_complete", "b.on_success"]


async def test_what_failed_and_was_requeued_makes_a_success_of_it_later(queue: TaskQueue) -> None:
    global is_broken
    async with queue.batch("acme", batch_id="b", on_complete=note(), on_success=note()) as batch:
        bad = [await batch.enqueue(fragile()) for _ in range(2)]
        await batch.enqueue(work())
    await serve(queue)
    assert called() == ["b.on_complete"]
    assert told[0][1] is not None
    assert (told[0][1].failed, told[0][1].finished) == (2, 1)
    is_broken = False
    await queue.requeue(bad[0])
    progress = await batch.progress()
    assert (progress.failed, progress.pending, progress.ended) == (1, 1, False)
    await serve(queue)
    assert called() == ["b.on_complete"]
    await queue.requeue(bad[1])
    await serve(queue)
    assert called() == ["b.on_complete", "b.on_success"]
    assert (await batch.progress()).succeeded


async def test_a_canceled_task_lets_it_end_without_success(queue: TaskQueue) -> None:
    async with queue.batch("acme", batch_id="b", on_complete=note(), on_success=note()) as batch:
        later = await batch.enqueue(work(), delay=3600)
    await later.cancel()
    await serve(queue)
    assert called() == ["b.on_complete"]
    progress = await batch.progress()
    assert (progress.canceled, progress.ended, progress.succeeded) == (1, True, False)


async def test_pipelines_and_outputs_are_counted_with_all_of_their_tasks(queue: TaskQueue) -> None:
    async with queue.batch("acme", batch_id="b", on_success=note()) as batch:
        run = await batch.enqueue(work(1) >> work(2))
        last = await batch.enqueue(work(work(3).output))
        await queue.enqueue(work(4), user_id="acme", batch="b")
        await queue.enqueue(work(5) | work(6), user_id="acme", batch=batch)
    assert (await batch.progress()).total == 7
    await serve(queue)
    assert await run.result(5) == 2
    assert await last.result(5) == 3
    assert called() == ["b.on_success"]


async def test_its_tasks_add_to_it_also_when_it_is_closed(queue: TaskQueue) -> None:
    async with queue.batch("acme", batch_id="b", on_success=note()) as batch:
        await batch.enqueue(spread(4))
        await batch.enqueue(spread_in_threads(3))
    await serve(queue)
    assert (await batch.progress()).total == 2**5 - 1 + 4
    assert called() == ["b.on_success"]
    with pytest.raises(BatchClosed, match="takes no more tasks"):
        await batch.enqueue(work())


async def test_nobody_else_adds_to_one_that_is_closed(queue: TaskQueue) -> None:
    batch = queue.batch("acme", batch_id="b", on_success=note())
    async with batch:
        await batch.enqueue(work())
    for others in (batch.enqueue(work()), queue.enqueue(work() >> work(), user_id="acme", batch="b")):
        with pytest.raises(BatchClosed):
            await others
    await serve(queue)
    assert (await batch.progress()).total == 1


async def test_a_task_of_another_batch_adds_to_none_that_is_closed(queue: TaskQueue) -> None:
    @task
    async def intrude() -> bool:
        try:
            await queue.batch("acme", batch_id="b").enqueue(work())
        except BatchClosed:
            return True
        return False

    async with queue.batch("acme", batch_id="b") as batch, queue.batch("acme", batch_id="other") as other:
        await batch.enqueue(work(), delay=3600)
        handle = await other.enqueue(intrude())
    await serve(queue)
    assert await handle.result(5)
    assert (await batch.progress()).total == 1


async def test_a_process_that_stands_for_a_task_of_one_says_so_and_adds_as_long_as_that_has_not_ended(
    queue: TaskQueue,
) -> None:
    async with queue.batch("acme", batch_id="b") as batch:
        own = await batch.enqueue(work())
        other = await queue.enqueue(work(), user_id="acme")
    for_own = queue.batch("acme", batch_id="b", adder=own.task_id)
    assert (await for_own.enqueue_many([work()] * 2))[1].created
    with pytest.raises(BatchClosed):
        await queue.batch("acme", batch_id="b", adder=other.task_id).enqueue(work())
    with pytest.raises(InvalidInput, match="adder must not be empty"):
        queue.batch("acme", batch_id="b", adder="")
    await own.cancel()
    with pytest.raises(BatchClosed):
        await for_own.enqueue(work())
    await serve(queue)
    progress = await batch.progress()
    assert (progress.total, progress.finished, progress.canceled) == (3, 2, 1)


async def test_what_takes_the_place_of_the_last_task_of_one_ends_it_and_wakes_workers_for_its_callbacks(
    queue: TaskQueue,
) -> None:
    async with queue.batch("acme", batch_id="b", on_complete=note()) as batch:
        await batch.enqueue(work(), task_id="a", delay=3600)
    async with Worker(queue, scheduler=False, poll_interval=60):
        with RespClient(queue.connector.url) as client:
            await eventually(lambda: client.execute("SCARD", f"{queue.keys.prefix}waiting"))
        await queue.enqueue(work(), user_id="acme", task_id="a", delay=3600, on_conflict="replace")
        await eventually(lambda: len(told) == 1, 5)
    progress = await batch.progress()
    assert (progress.total, progress.ended) == (0, True)


async def test_a_task_of_one_that_is_lost_can_be_replaced(queue: TaskQueue) -> None:
    async with queue.batch("acme", batch_id="b") as batch:
        await batch.enqueue(work(), task_id="a", delay=3600)
    with RespClient(queue.connector.url) as client:
        client.execute("DEL", f"{queue.keys.prefix}batch:acme:b")
    handle = await queue.enqueue(work(), user_id="acme", task_id="a", on_conflict="replace")
    await serve(queue)
    assert await handle.result(5) == 7
    with pytest.raises(UnknownBatch):
        await batch.progress()


async def test_a_task_that_is_in_none_has_no_batch(queue: TaskQueue) -> None:
    seen = []

    @task
    async def look() -> None:
        seen.append((current_task().batch, current_task().ended_batch))

    await queue.enqueue(look(), user_id="acme")
    await serve(queue)
    assert seen == [(None, None)]


async def test_a_task_that_lives_already_is_not_counted(queue: TaskQueue) -> None:
    await queue.enqueue(work(), user_id="acme", task_id="own")
    async with queue.batch("acme") as batch:
        assert not (await batch.enqueue(work(), task_id="own")).created
        assert (await batch.enqueue(work(), task_id="other")).created
        assert not (await batch.enqueue(work(), task_id="other")).created
    assert (await batch.progress()).total == 1


async def test_an_outcome_that_is_told_twice_counts_once(queue: TaskQueue) -> None:
    async with queue.batch("acme", batch_id="b", on_complete=note()) as batch:
        await batch.enqueue(work())
    store = queue.store()
    [taken] = (await store.claim("ghost", 1)).deliveries
    for _ in range(2):
        assert await store.settle("ghost", [outcome(taken, "finished")]) == [True]
    await store.leave("ghost", [()])
    await store.close()
    assert (await batch.progress()).finished == 1
    await serve(queue)
    assert called() == ["b.on_complete"]


# Opening


async def test_one_that_is_open_is_joined_and_one_that_is_over_is_not(queue: TaskQueue) -> None:
    async with queue.batch("acme", batch_id="b", on_complete=note()) as first:
        second = await queue.batch("acme", batch_id="b").open()
        await second.enqueue(work())
        await first.enqueue(work())
    with pytest.raises(BatchClosed, match="is over"):
        await queue.batch("acme", batch_id="b").open()
    assert (await queue.batch("acme", batch_id="b").progress()).total == 2
    await serve(queue)
    assert called() == ["b.on_complete"]


async def test_a_batch_belongs_to_its_user(queue: TaskQueue) -> None:
    async with queue.batch("acme", batch_id="b") as batch:
        with pytest.raises(InvalidInput, match="belongs to user 'acme', not to 'zoe'"):
            await queue.enqueue(work(), user_id="zoe", batch=batch)
        with pytest.raises(BatchClosed, match="'b' of user 'zoe'"):
            await queue.enqueue(work(), user_id="zoe", batch="b")
        with pytest.raises(UnknownBatch):
            await queue.batch("zoe", batch_id="b").progress()
        with pytest.raises(UnknownBatch):
            await queue.batch("zoe", batch_id="b").cancel()
        with pytest.raises(UnknownBatch):
            await queue.batch("zoe", batch_id="b").close()
    assert (await queue.stats()).queued == 0


async def test_what_cannot_be_a_batch_is_refused(queue: TaskQueue) -> None:
    for how, text in (
        ({"on_complete": note}, "on_complete takes tasks"),
        ({"on_success": [note()] * 11}, "at most 10 callbacks"),
        ({"ttl": 0}, "ttl must be a number from 1"),
        ({"batch_id": ""}, "batch_id must not be empty"),
    ):
        with pytest.raises(InvalidInput, match=text):
            queue.batch("acme", **how)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="batch must be an id or a Batch, not 7"):
        work().options(batch=7)
    with pytest.raises(BatchClosed):
        await queue.enqueue(work(), user_id="acme", batch="never opened")
    with pytest.raises(InvalidInput, match="which counts no callbacks"):
        work().options(on_end=note().options(batch="b"))


async def test_its_callbacks_count_for_the_bytes_of_the_user(queue: TaskQueue) -> None:
    await queue.set_policy("acme", max_bytes=3000)
    with pytest.raises(QuotaExceeded):
        await queue.batch("acme", on_complete=note("x" * 4000)).open()
    async with queue.batch("acme", on_complete=note("x" * 1000), on_success=note("x" * 1000)):
        used = (await queue.user("acme")).bytes
        assert used is not None
        assert used > 2000
    await serve(queue)
    assert len(told) == 2


# Cancel, purge, abandoned


async def test_cancel_ends_all_of_its_tasks_in_steps(queue: TaskQueue) -> None:
    started = asyncio.Event()

    @task
    async def sleep() -> None:
        started.set()
        await asyncio.sleep(60)

    async with queue.batch("acme", batch_id="b", on_complete=note(), on_success=note()) as batch:
        await batch.enqueue(sleep(), priority=6)
        await batch.enqueue_many([work()] * 1000)
        await batch.enqueue_many([work()] * 100, delay=3600)
        async with Worker(queue, scheduler=False, concurrency=1):
            await started.wait()
            canceled = await batch.cancel("no need")
            progress = await batch.wait(10)
    assert canceled >= progress.canceled > 1000
    assert progress.finished == 1101 - progress.canceled, "what the slot took up, or had done, meanwhile"
    assert (progress.state, progress.succeeded) == (BatchState.CANCELED, False)
    await serve(queue)
    assert called() == ["b.on_complete"]
    with pytest.raises(BatchClosed):
        await batch.enqueue(work())


async def test_a_block_that_raises_cancels_its_batch(queue: TaskQueue) -> None:
    batch, handles = queue.batch("acme", on_success=note()), []

    async def add_and_fail() -> None:
        async with batch:
            handles.append(await batch.enqueue(work()))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await add_and_fail()
    [handle] = handles
    assert await handle.state() is TaskState.CANCELED
    assert (await batch.progress()).state is BatchState.CANCELED


async def test_one_that_has_ended_cannot_be_canceled(queue: TaskQueue) -> None:
    async with queue.batch("acme", on_success=note()) as batch:
        await batch.enqueue(work())
    await serve(queue)
    assert await batch.cancel() == 0
    assert (await batch.progress()).succeeded


async def test_one_that_nobody_closes_is_abandoned(server: Server, queue_name: str) -> None:
    async with TaskQueue(server.url, name=queue_name, lease=0.3) as queue:
        batch = await queue.batch("acme", batch_id="b", ttl=1, on_complete=note(), on_success=note()).open()
        await batch.enqueue(work())
        other = await queue.batch("zoe", batch_id="empty", ttl=1, on_complete=note()).open()
        async with Worker(queue, scheduler=False, poll_interval=0.1):
            assert (await batch.wait(20)).state is BatchState.ABANDONED
            assert (await other.wait(20)).state is BatchState.ABANDONED
            await eventually(lambda: len(told) == 2)
        assert called() == ["b.on_complete", "empty.on_complete"]
        progress = await batch.progress()
        assert (progress.finished, progress.ended, progress.succeeded) == (1, True, False)
        with pytest.raises(BatchClosed):
            await batch.enqueue(work())


async def test_the_many_batches_of_one_user_do_not_delay_the_end_of_anothers(server: Server, queue_name: str) -> None:
    async with TaskQueue(server.url, name=queue_name, lease=0.3) as queue:
        for n in range(300):
            await queue.batch("flood", batch_id=str(n), ttl=1).open()
        quiet = await queue.batch("zoe", ttl=1).open()
        async with Worker(queue, scheduler=False, poll_interval=0.1):
            await quiet.wait(20)
            left = [n for n in range(300) if not (await queue.batch("flood", batch_id=str(n)).progress()).ended]
        assert len(left) > 200


async def test_purge_leaves_nothing_of_batches(queue: TaskQueue, server: Server, queue_name: str) -> None:
    batch = await queue.batch("acme", batch_id="open", on_complete=note()).open()
    await batch.enqueue_many([work()] * 10)
    async with queue.batch("acme", batch_id="closed", on_complete=note()) as closed:
        await closed.enqueue(work(), delay=3600)
    async with queue.batch("acme", batch_id="ended") as ended:
        pass
    assert (await ended.progress()).ended
    await queue.purge("acme")
    assert not [key for key in server.keys(queue_name) if own_keys(queue_name, key).startswith(("batch", "ends"))]
    await serve(queue)
    assert told == []


async def test_a_lost_set_of_its_tasks_is_mended(queue: TaskQueue) -> None:
    async with queue.batch("acme", batch_id="b", on_success=note()) as batch:
        await batch.enqueue_many([work()] * 3)
    with RespClient(queue.connector.url) as client:
        client.execute("DEL", f"{queue.keys.prefix}batch-tasks:acme:b")
    assert not (await queue.check()).sound
    assert (await queue.check(repair=True)).sound
    await serve(queue)
    assert (await batch.progress()).succeeded
    assert called() == ["b.on_success"]


async def test_an_end_that_a_repair_counts_wakes_workers_for_what_comes_of_it(queue: TaskQueue) -> None:
    batch = await queue.batch("acme", batch_id="b", on_complete=note()).open()
    with RespClient(queue.connector.url) as client:
        client.execute("SADD", f"{queue.keys.prefix}batch-tasks:acme:b", "gone")
        client.execute("HSET", f"{queue.keys.prefix}batch:acme:b", "total", 1)
        await batch.close()
        async with Worker(queue, scheduler=False, poll_interval=60):
            await eventually(lambda: client.execute("SCARD", f"{queue.keys.prefix}waiting"))
            assert (await queue.check(repair=True)).sound
            await eventually(lambda: len(told) == 1, 5)
