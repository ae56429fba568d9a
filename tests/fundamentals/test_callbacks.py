"""Callbacks: tasks that are put in at the end of another one, once for each life of it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from fairque import (
    Cause,
    Fail,
    FailureKind,
    InvalidInput,
    MessageTooLarge,
    QuotaExceeded,
    Task,
    TaskCanceled,
    TaskFailed,
    TaskHandle,
    TaskQueue,
    TaskScheduler,
    TaskState,
    UnknownTask,
    Worker,
    current_task,
    task,
)
from fairque.tasks.registry import registry
from tests.support.core import outcome
from tests.support.eventually import eventually

pytestmark = pytest.mark.leaves_keys("*")
is_broken = True
told: list[tuple[str, str, Cause | None]] = []


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
    told.append((current_task().task_id, word, current_task().cause))
    return word


@task
def note_in_a_thread(word: str = "") -> str:
    told.append((current_task().task_id, word, current_task().cause))
    return word


@task(run_in="process", name="tests.cause-in-a-process")
def tell_cause() -> str:
    cause = current_task().cause
    return f"{cause.task_id} {cause.state}" if cause is not None else ""


@pytest.fixture(autouse=True)
def _registered() -> None:
    global is_broken
    is_broken = True
    told.clear()
    registry.update({made.name: made for made in (work, fragile, note, note_in_a_thread, tell_cause)})


async def serve(queue: TaskQueue) -> None:
    await Worker(queue, scheduler=False).run_until_idle()


def words() -> list[str]:
    return sorted(word for _, word, _ in told)


def with_all(made: Task[int]) -> Task[int]:
    return made.options(on_success=note("success"), on_failure=note("failure"), on_end=note("end"))


# Which are called


async def test_what_finishes_calls_back_for_success_and_for_its_end(queue: TaskQueue) -> None:
    handle = await queue.enqueue(with_all(work(3)), user_id="acme", task_id="a")
    await serve(queue)
    assert await handle.result(5) == 3
    assert words() == ["end", "success"]
    [cause] = [cause for task_id, _, cause in told if task_id == "a.on_success"]
    assert cause is not None
    assert (cause.task_id, cause.name, cause.state, cause.attempt) == ("a", work.name, TaskState.FINISHED, 1)
    assert cause.result == 3
    assert cause.failure is None
    assert cause.reason == ""
    assert 0 < cause.started_at <= cause.ended_at


async def test_what_fails_for_good_calls_back_with_its_failure(queue: TaskQueue) -> None:
    await queue.enqueue(with_all(fragile().options(max_retries=1, retry=None)), user_id="acme", task_id="a")
    async with Worker(queue, scheduler=False):
        await eventually(lambda: len(told) == 2)
    assert words() == ["end", "failure"]
    [cause] = [cause for task_id, _, cause in told if task_id == "a.on_failure"]
    assert cause is not None
    assert cause.failure is not None
    assert cause.attempt == 2, "a retry is no end"
    assert (cause.state, cause.failure.kind, cause.failure.type_name) == (
        TaskState.FAILED,
        FailureKind.ERROR,
        "OSError",
    )
    assert cause.failure.message == "the disk"
    assert "raise OSError" in cause.failure.traceback
    assert cause.result is None


async def test_what_is_canceled_calls_back_for_its_end_wherever_it_was(queue: TaskQueue) -> None:
    later = await queue.enqueue(with_all(work()).options(delay=3600), user_id="acme", task_id="later")
    after = await queue.enqueue(with_all(work()).options(depends_on=[later]), user_id="acme", task_id="after")
    await later.cancel("no need")
    await serve(queue)
    assert sorted((task_id, word) for task_id, word, _ in told) == [("after.on_end", "end"), ("later.on_end", "end")]
    reasons = {cause.task_id: cause.reason for _, _, cause in told if cause is not None}
    assert reasons == {"later": "no need", "after": "dependency later canceled"}
    with pytest.raises(TaskCanceled):
        await after.result(5)


async def test_a_running_task_that_is_canceled_calls_back_for_its_end(queue: TaskQueue) -> None:
    @task
    async def sleep() -> int:
        await asyncio.sleep(60)
        return 0

    async with Worker(queue, scheduler=False):
        handle = await queue.enqueue(with_all(sleep()), user_id="acme", task_id="a")
        await eventually(lambda: is_started(queue))
        await handle.cancel()
        await eventually(lambda: bool(told))
    assert words() == ["end"]


async def is_started(queue: TaskQueue) -> bool:
    return (await queue.stats()).started == 1


async def test_what_would_wait_for_something_canceled_calls_back_at_once(queue: TaskQueue) -> None:
    gone = await queue.enqueue(work(), user_id="acme", delay=3600)
    await gone.cancel()
    await queue.enqueue(with_all(work()).options(depends_on=[gone]), user_id="acme")
    await serve(queue)
    assert words() == ["end"]


async def test_what_a_full_backlog_drops_calls_back_past_the_quota(queue: TaskQueue) -> None:
    await queue.set_policy("acme", max_queued=2, overflow="drop_oldest")
    for n in range(3):
        await queue.enqueue(work().options(on_end=note(str(n))), user_id="acme", task_id=f"t{n}")
    assert (await queue.user("acme")).queued == 3, "two of its own, and the callback"
    await serve(queue)
    assert words() == ["0", "1", "2"]


async def test_an_id_that_is_dropped_and_put_in_again_by_one_call_calls_back(queue: TaskQueue) -> None:
    await queue.set_policy("acme", max_queued=2, overflow="drop_oldest")
    await queue.enqueue(work().options(on_end=note("first")), user_id="acme", task_id="a")
    await queue.enqueue(work(), user_id="acme", task_id="b")
    await queue.enqueue_many([work().options(task_id=name, on_end=note(name)) for name in "ca"], user_id="acme")
    await serve(queue)
    assert "first" in words()


async def test_a_policy_holds_callbacks_back_as_any_task_but_refuses_none(queue: TaskQueue) -> None:
    await queue.enqueue(with_all(work()), user_id="acme")
    await queue.set_policy("acme", max_queued=0)
    await serve(queue)
    assert words() == ["end", "success"]


async def test_callbacks_count_for_the_bytes_of_their_user_and_are_never_refused_later(queue: TaskQueue) -> None:
    await queue.set_policy("acme", max_bytes=3000)
    with pytest.raises(QuotaExceeded):
        await queue.enqueue(work().options(on_end=note("x" * 4000)), user_id="acme")
    assert (await queue.user("acme")).bytes == 0
    await queue.enqueue(work().options(on_end=note("x" * 2500)), user_id="acme")
    used = (await queue.user("acme")).bytes
    assert used is not None
    assert used > 2500
    await serve(queue)
    assert len(told) == 1
    left = (await queue.user("acme")).bytes
    assert left is not None
    assert left < 3000


# Lives


async def test_each_life_calls_back_once(queue: TaskQueue) -> None:
    global is_broken
    handle = await queue.enqueue(with_all(fragile()), user_id="acme", task_id="a")
    await serve(queue)
    assert sorted(task_id for task_id, _, _ in told) == ["a.on_end", "a.on_failure"]
    await queue.requeue(handle)
    await serve(queue)
    is_broken = False
    await queue.requeue(handle)
    await serve(queue)
    assert sorted(task_id for task_id, _, _ in told) == sorted(
        ["a.on_end", "a.on_failure", "a.on_end-2", "a.on_failure-2", "a.on_end-3", "a.on_success-3"]
    )
    assert await handle.result(5) == 7


async def test_what_failed_is_told_also_when_it_was_requeued_before_the_callback_ran(queue: TaskQueue) -> None:
    handle = await queue.enqueue(fragile().otherwise(note("failure").options(delay=0.3)), user_id="acme", task_id="a")
    await serve_until_it_fails(queue, handle)
    await queue.requeue(handle)
    await handle.cancel("enough")
    await eventually(lambda: is_served(queue))
    [(_, _, cause)] = told
    assert cause is not None
    assert cause.failure is not None
    assert cause.failure.message == "the disk"


async def serve_until_it_fails(queue: TaskQueue, handle: TaskHandle[int]) -> None:
    async with Worker(queue, scheduler=False):
        with pytest.raises(TaskFailed):
            await handle.result(10)


async def is_served(queue: TaskQueue) -> bool:
    await serve(queue)
    return bool(told)


async def test_an_ended_task_that_is_discarded_or_purged_calls_nobody_back(queue: TaskQueue) -> None:
    handle = await queue.enqueue(fragile().options(on_end=note("end")), user_id="acme")
    await serve(queue)
    await queue.discard(handle)
    await queue.enqueue(work().options(on_end=note("purged"), delay=3600), user_id="acme")
    await queue.purge("acme")
    await serve(queue)
    assert words() == ["end"]


async def test_a_running_task_that_is_purged_calls_nobody_back(queue: TaskQueue) -> None:
    started = asyncio.Event()

    @task
    async def sleep() -> None:
        started.set()
        await asyncio.sleep(60)

    async with Worker(queue, scheduler=False):
        await queue.enqueue(sleep().options(on_end=note("end")), user_id="acme")
        await started.wait()
        assert (await queue.purge("acme")).complete
    assert words() == []
    assert (await queue.user("acme")).queued == 0


async def test_a_running_task_that_is_canceled_and_then_purged_calls_nobody_back(queue: TaskQueue) -> None:
    handle = await queue.enqueue(work().options(on_end=note("end")), user_id="acme")
    store = queue.store()
    [taken] = (await store.claim("ghost", 1)).deliveries
    await handle.cancel()
    await store.purge_step("acme", 100)
    assert await store.settle("ghost", [outcome(taken, "finished")]) == [True]
    await store.leave("ghost", [()])
    await store.close()
    await serve(queue)
    assert words() == []


async def test_what_is_put_back_or_tried_again_calls_nobody_back(queue: TaskQueue) -> None:
    await queue.enqueue(work().options(on_end=note("end")), user_id="acme", task_id="a")
    store = queue.store()
    for kind in ("released", "retry"):
        [taken] = (await store.claim("ghost", 1)).deliveries
        assert await store.settle("ghost", [outcome(taken, kind)]) == [True]
    assert (await queue.stats()).queued == 1
    await store.leave("ghost", [()])
    await store.close()
    await serve(queue)
    assert words() == ["end"]


async def test_an_outcome_that_is_told_twice_calls_back_once(queue: TaskQueue) -> None:
    await queue.enqueue(work().options(on_end=note("end")), user_id="acme", task_id="a")
    store = queue.store()
    [taken] = (await store.claim("ghost", 1)).deliveries
    assert await store.settle("ghost", [outcome(taken, "finished")]) == [True]
    assert await store.settle("ghost", [outcome(taken, "finished")]) == [True]
    await store.leave("ghost", [()])
    await store.close()
    assert (await queue.stats()).queued == 1
    await serve(queue)
    assert words() == ["end"]


# What they are


async def test_otherwise_is_for_failures_and_keeps_the_type_of_its_task(queue: TaskQueue) -> None:
    made = fragile().otherwise(note("one"), note("two")).otherwise(note("three"))
    await queue.enqueue(made, user_id="acme", task_id="a")
    await serve(queue)
    assert sorted((task_id, word) for task_id, word, _ in told) == [
        ("a.on_failure", "one"),
        ("a.on_failure-2", "two"),
        ("a.on_failure-3", "three"),
    ]


async def test_a_callback_may_have_callbacks(queue: TaskQueue) -> None:
    made = work().options(on_success=fragile().otherwise(note("of the callback")))
    await queue.enqueue(made, user_id="acme", task_id="a")
    await serve(queue)
    [(task_id, _, cause)] = told
    assert task_id == "a.on_success.on_failure"
    assert cause is not None
    assert cause.task_id == "a.on_success"


async def test_callbacks_have_their_own_options(queue: TaskQueue) -> None:
    made = work().options(on_success=note("later").options(delay=3600, priority=6, result_ttl=60))
    await queue.enqueue(made, user_id="acme", task_id="a")
    await serve(queue)
    info = await queue.handle("acme", "a.on_success").info()
    assert (info.state, info.priority, info.parent) == (TaskState.SCHEDULED, 6, "a")


async def test_callbacks_run_in_threads_and_subprocesses(queue: TaskQueue) -> None:
    await queue.enqueue(work().options(on_end=[note_in_a_thread("thread"), tell_cause()]), user_id="acme", task_id="a")
    await serve(queue)
    [(_, _, cause)] = told
    assert cause is not None
    assert cause.task_id == "a"
    assert await queue.handle("acme", "a.on_end-2").result(5) == "a finished"


async def test_what_is_no_callback_has_no_cause(queue: TaskQueue) -> None:
    await queue.enqueue(note("alone"), user_id="acme")
    await serve(queue)
    assert told[0][2] is None


async def test_an_id_that_is_taken_is_left_alone(queue: TaskQueue) -> None:
    await queue.enqueue(note("own").options(delay=3600), user_id="acme", task_id="a.on_end")
    await queue.enqueue(work().options(on_end=note("end")), user_id="acme", task_id="a")
    await serve(queue)
    [(task_id, word, _)] = told
    assert word == "end"
    assert task_id.startswith("a.on_end-")
    assert await queue.handle("acme", "a.on_end").state() is TaskState.SCHEDULED


async def test_others_may_wait_for_a_callback_before_it_is_there(queue: TaskQueue) -> None:
    waiting = await queue.enqueue(
        note("after").options(depends_on=["a.on_end"], allow_unknown=True), user_id="acme", task_id="w"
    )
    await queue.enqueue(work().options(on_end=note("end")), user_id="acme", task_id="a")
    await serve(queue)
    assert await waiting.result(5) == "after"


async def test_the_tasks_of_a_pipeline_and_of_many_have_callbacks(queue: TaskQueue) -> None:
    run = await queue.enqueue(
        work(1).options(on_success=note("first")) >> fragile().otherwise(note("last")), user_id="acme"
    )
    await queue.enqueue_many([work(n).options(on_end=note(f"many {n}")) for n in range(3)], user_id="acme")
    await serve(queue)
    assert words() == ["first", "last", "many 0", "many 1", "many 2"]
    with pytest.raises(TaskFailed):
        await run["fragile"].result(5)


async def test_a_result_that_is_too_large_for_a_message_with_the_callback_is_not_told(
    server: Any, queue_name: str
) -> None:
    async with TaskQueue(server.url, name=queue_name, max_message_bytes=20_000) as queue:
        made = write(15_000).options(on_success=note("x" * 10_000))
        await queue.enqueue(made, user_id="acme", task_id="a")
        await serve(queue)
    [(_, word, cause)] = told
    assert len(word) == 10_000
    assert cause is not None
    assert (cause.state, cause.is_kept) == (TaskState.FINISHED, False)


@task
async def write(size: int) -> str:
    return "y" * size


# Of schedules


async def test_each_task_of_a_schedule_calls_back(queue: TaskQueue) -> None:
    scheduler = TaskScheduler(queue)
    made = fragile().otherwise(note("failure").options(on_success=note("after"))).options(on_end=note("end"))
    await scheduler.add_schedule(task=made, user_id="acme", schedule_id="s", every=3600)
    first = await scheduler.run_now("s")
    assert await scheduler.fire_due(2.5 * 3600) == 2
    await serve(queue)
    assert words() == ["after"] * 3 + ["end"] * 3 + ["failure"] * 3
    [cause] = [cause for task_id, _, cause in told if task_id == f"{first}.on_failure"]
    assert cause is not None
    assert (cause.task_id, cause.state) == (first, TaskState.FAILED)


async def test_a_task_that_its_schedule_cancels_calls_back(queue: TaskQueue) -> None:
    scheduler = TaskScheduler(queue)
    made = work().options(on_end=note("end"))
    await scheduler.add_schedule(
        task=made, user_id="acme", schedule_id="s", every=3600, overlap="cancel_running", max_runs=2
    )
    assert await scheduler.fire_due(2.5 * 3600) == 2
    await serve(queue)
    assert sorted(cause.state for _, _, cause in told if cause is not None) == [TaskState.CANCELED, TaskState.FINISHED]


async def test_callbacks_of_a_schedule_are_changed_with_its_task(queue: TaskQueue) -> None:
    scheduler = TaskScheduler(queue)
    for word in ("old", "new"):
        await scheduler.add_schedule(
            task=work().options(on_end=note(word)), user_id="acme", schedule_id="s", every=3600
        )
    await scheduler.run_now("s")
    await scheduler.update_schedule("s", task=work())
    await scheduler.run_now("s")
    await serve(queue)
    assert words() == ["new"]


async def test_a_declared_schedule_has_the_callbacks_of_its_function(queue: TaskQueue) -> None:
    @task(name="tests.declared", every=3600, user_id="acme", on_success=note("declared"))
    async def declared() -> None: ...

    async with Worker(queue):
        await eventually(lambda: is_declared(queue))
        await TaskScheduler(queue).run_now("tests.declared")
        await eventually(lambda: bool(told))
    assert words() == ["declared"]
    await TaskScheduler(queue).remove_schedule("tests.declared")


async def is_declared(queue: TaskQueue) -> bool:
    return bool(await TaskScheduler(queue).list_schedules("acme"))


async def test_callbacks_of_a_schedule_count_for_the_bytes_of_their_user(queue: TaskQueue) -> None:
    scheduler = TaskScheduler(queue)
    made = work().options(on_end=note("x" * 1000))
    await scheduler.add_schedule(task=made, user_id="acme", schedule_id="before", every=3600)
    await queue.set_policy("acme", max_bytes=4000)
    await serve(queue)  # claims count what is there
    before = (await queue.user("acme")).bytes
    assert before is not None
    assert before > 1000
    await scheduler.add_schedule(task=made, user_id="acme", schedule_id="s", every=3600)
    two = (await queue.user("acme")).bytes
    assert two is not None
    assert two > before + 1000
    with pytest.raises(QuotaExceeded):
        await scheduler.update_schedule("s", task=work().options(on_end=note("x" * 4000)))
    await scheduler.run_now("s")
    with pytest.raises(InvalidInput, match="full"):
        await scheduler.run_now("s")
    await serve(queue)
    assert len(told) == 1
    for name in ("before", "s"):
        await scheduler.remove_schedule(name)
    left = (await queue.user("acme")).bytes
    assert left is not None
    assert left < 1500, "the results of what ran"


async def test_callbacks_of_a_schedule_that_cannot_be_are_refused(queue: TaskQueue) -> None:
    scheduler = TaskScheduler(queue)
    large = [note("x" * 60_000)] * 5
    for made, name, error, text in (
        (work().options(on_end=note().options(user_id="zoe")), "s", InvalidInput, "is of another user"),
        (work().options(on_end=note()), "s" * 450, InvalidInput, "leaves no room for the ids"),
        (work().options(on_end=large), "s", MessageTooLarge, "the callbacks of schedule 's' have 3"),
        (work().options(batch="b"), "s", InvalidInput, "cannot have batch: a batch ends once"),
    ):
        with pytest.raises(error, match=text):
            await scheduler.add_schedule(task=made, user_id="acme", schedule_id=name, every=60)
    assert await scheduler.list_schedules() == []


# What is refused


async def test_what_cannot_be_a_callback_is_refused(queue: TaskQueue) -> None:
    for wrong, text in (
        (note, "call it first"),
        (7, "on_end takes tasks, not 7"),
        ("note", "takes tasks"),
        (work() >> work(), "takes tasks"),
        (note().options(task_id="mine"), "has a task_id"),
        (note().options(depends_on=["a"]), "has depends_on"),
        ([note()] * 11, "at most 10 callbacks"),
        (work().options(on_end=[note()] * 10), "at most 10 callbacks, with those of callbacks, not 11"),
    ):
        with pytest.raises(InvalidInput, match=text):
            work().options(on_end=wrong)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="is of another user"):
        await queue.enqueue(work().options(on_end=note().options(user_id="zoe")), user_id="acme")
    with pytest.raises(InvalidInput, match="leaves no room for the ids"):
        await queue.enqueue(work().options(on_end=note()), user_id="acme", task_id="x" * 500)
    with pytest.raises(UnknownTask):
        await queue.handle("acme", "x").state()


async def test_the_decorator_takes_callbacks(queue: TaskQueue) -> None:
    @task(on_failure=note("of all"))
    async def give_up() -> None:
        raise Fail("no")

    await queue.enqueue(give_up(), user_id="acme")
    await serve(queue)
    assert words() == ["of all"]
