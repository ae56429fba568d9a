"""What a type checker knows of queues, handles and workers. mypy checks this file; nothing runs it.

A line with ``type: ignore`` must be an error: mypy complains of an ignore that ignores nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, assert_type

from fairque import (
    CallNext,
    Debounce,
    EnqueueCall,
    Enqueued,
    EnqueueMiddleware,
    Failure,
    FailureKind,
    Listed,
    Priority,
    QueueStats,
    RetryPolicy,
    RunMiddleware,
    Task,
    TaskContext,
    TaskEvent,
    TaskFailed,
    TaskHandle,
    TaskHandler,
    TaskInfo,
    TaskQueue,
    TaskState,
    Unique,
    UserInfo,
    Worker,
    current_task,
    failure_of,
    task,
)


@task
async def width(image: str) -> int:
    return len(image)


@task
def label(image: str) -> str:
    return image


# Enqueue


async def a_handle_knows_what_its_task_returns(queue: TaskQueue) -> None:
    handle = await queue.enqueue(width("a"), user_id="acme", priority=Priority.HIGH, delay=1.5, task_id="t")
    assert_type(handle, TaskHandle[int])
    assert_type(await handle.result(), int)
    assert_type(await handle.result(timeout=1), int)
    assert_type((await (await queue.enqueue(label("a"))).result(0)).upper(), str)
    assert_type(handle.created, bool)
    assert_type(await handle.promote(), bool)
    assert_type(await queue.enqueue_by_name("a.b", [1], {"n": 2}, user_id="acme"), TaskHandle[Any])
    assert_type(await queue.cancel_all("acme", name="a.b", state=TaskState.QUEUED, older_than=5), int)
    assert_type(await handle.reschedule(5.0), bool)
    assert_type(await handle.set_priority(Priority.HIGH), bool)
    assert_type((handle.user_id, handle.task_id), tuple[str, str])
    wrong: TaskHandle[str] = await queue.enqueue(width("a"))  # type: ignore[arg-type]
    await wrong.info()


async def wrong_arguments_are_errors(queue: TaskQueue) -> None:
    await queue.enqueue(width, user_id="acme")  # type: ignore[call-overload]
    await queue.enqueue("width", user_id="acme")  # type: ignore[call-overload]
    await queue.enqueue(width("a"), user_id=7)  # type: ignore[call-overload]
    await queue.enqueue(width("a"), priority="high")  # type: ignore[call-overload]
    await queue.enqueue(width("a"), delay="soon")  # type: ignore[call-overload]
    await queue.enqueue(width("a"), execute_after=5.0)  # type: ignore[call-overload]
    await queue.enqueue(width("a"), "acme")  # type: ignore[call-overload]
    await queue.set_policy("acme", weight="heavy")  # type: ignore[arg-type]


async def times_come_in_more_than_one_type(queue: TaskQueue) -> None:
    await queue.enqueue(width("a"), delay=timedelta(minutes=1), priority=3)
    await queue.enqueue(width("a"), execute_after=datetime.now(UTC))


async def batches_have_one_type_or_a_common_one(queue: TaskQueue) -> None:
    assert_type(await queue.enqueue_many([width("a"), width("b")]), list[TaskHandle[int]])
    assert_type(await queue.enqueue_many(width(str(at)) for at in range(3)), list[TaskHandle[int]])
    mixed: list[Task[object]] = [width("a"), label("b")]
    assert_type(await queue.enqueue_many(mixed), list[TaskHandle[object]])
    await queue.enqueue_many([width("a"), "b"])  # type: ignore[arg-type]


async def what_comes_from_elsewhere_has_no_type(queue: TaskQueue) -> None:
    assert_type(queue.handle("acme", "t"), TaskHandle[Any])
    assert_type(queue.handle("acme", "t", task=width), TaskHandle[int])
    assert_type(await queue.push_function_task("acme", width, ["a"], {}, priority=4), str)


# Introspection


async def information_is_typed(queue: TaskQueue, handle: TaskHandle[int]) -> None:
    assert_type(await handle.state(), TaskState)
    info = await handle.info()
    assert_type(info, TaskInfo)
    assert_type(info.run_seconds, float | None)
    if info.error is not None:
        assert_type(info.error.kind, FailureKind)
    assert_type(await queue.stats(), QueueStats)
    assert_type(await queue.users(limit=5), Listed[UserInfo])
    assert_type(await queue.user("acme"), UserInfo)
    assert_type(current_task().attempt, int)
    info.attempt = 3  # type: ignore[misc]


async def failures_are_data(handle: TaskHandle[int]) -> str | None:
    try:
        await handle.result()
    except TaskFailed as failed:
        return assert_type(failed.traceback, str)
    return None


# Workers


class Mailer(TaskHandler):
    async def process_task(self, payload: dict[str, Any]) -> str:
        return str(payload["to"])


class Blocking(TaskHandler):
    def process_task(self, payload: dict[str, Any]) -> str:  # type: ignore[override]
        return str(payload["to"])


def log(event: TaskEvent) -> None:
    assert_type(event.failure, Failure | None)


async def alert(event: TaskEvent) -> None:
    assert_type(event.run_seconds, float)


def not_a_hook(text: str) -> None:
    assert text


async def workers_take_handlers_and_hooks(queue: TaskQueue) -> None:
    async with Worker(queue, handler=Mailer(), on_success=log, on_failure=alert, assigned_users=["acme"]) as worker:
        assert_type(worker, Worker)
    Worker(queue, handler=Mailer)  # type: ignore[arg-type]
    Worker(queue, on_success=not_a_hook)  # type: ignore[arg-type]
    Worker(queue, concurrency="many")  # type: ignore[arg-type]
    Worker("redis://localhost")  # type: ignore[arg-type]
    TaskHandler()  # type: ignore[abstract]
    async with TaskQueue("redis://localhost") as opened:
        assert_type(opened, TaskQueue)


async def timed(run: TaskContext, call_next: CallNext) -> Any:
    assert_type(run.headers, Mapping[str, str])
    return await call_next()


async def tagged(call: EnqueueCall, call_next: CallNext) -> None:
    call.add_headers({"tag": "mine"})
    call.tasks = [each.options(priority=2) for each in call.tasks]
    assert_type(call.ids, list[str])
    await call_next()


class Tracing:
    async def __call__(self, _run: TaskContext, call_next: CallNext) -> Any:
        return await call_next()

    async def enqueue(self, _call: EnqueueCall, call_next: CallNext) -> None:
        await call_next()


async def not_a_middleware(run: TaskContext) -> None:
    run.progress(1)


def queues_and_workers_take_middlewares(queue: TaskQueue) -> None:
    tracing = Tracing()
    around_runs: list[RunMiddleware] = [timed, tracing]
    around_calls: list[EnqueueMiddleware] = [tagged, tracing.enqueue]
    TaskQueue(run_middleware=around_runs, enqueue_middleware=around_calls)
    Worker(queue, run_middleware=[timed, tracing])
    Worker(queue, run_middleware=[not_a_middleware])  # type: ignore[list-item]
    TaskQueue(enqueue_middleware=[timed])  # type: ignore[list-item]
    assert_type(failure_of(ValueError()), Failure)


async def options_are_typed_as_they_work(queue: TaskQueue) -> None:
    minute = timedelta(minutes=1)
    await queue.enqueue(width("a"), timeout=minute, max_retries=3, result_ttl=60, cost=2.5, limits=["crm"])
    await queue.enqueue_many([width("a")], timeout=5, max_retries=0, result_ttl=minute, delay=minute)
    width("a").options(timeout=minute, retry=RetryPolicy(base=minute, retry_on=[ValueError, "KeyError"]))
    await (await queue.enqueue(width("a"))).result(minute)
    await queue.enqueue(width("a"), headers={"request": "7f3a"})
    await queue.enqueue_many([width.options(headers={})("a")], headers={"request": "7f3a"})
    assert_type(current_task().headers, Mapping[str, str])
    current_task().headers["request"] = "mine"  # type: ignore[index]
    width("a").options(headers={"request": 5})  # type: ignore[dict-item]
    await queue.enqueue(width("a"), expires=minute, on_conflict="replace", unique=Unique("{image}", until="started"))
    await queue.enqueue(width("a"), expires=datetime.now(UTC), debounce=Debounce(1, longest=minute))
    throttled = await queue.enqueue(width("a"), throttle=5, unique=None)
    assert_type(throttled.enqueued, Enqueued | None)
    await queue.enqueue(width("a"), on_conflict="overwrite")  # type: ignore[call-overload]
    await queue.enqueue(width("a"), unique=5)  # type: ignore[call-overload]
    await queue.enqueue(width("a"), max_retries="three")  # type: ignore[call-overload]
    await queue.enqueue(width("a"), tries=3)  # type: ignore[call-overload]
    await queue.enqueue_many([width("a")], task_id="one")  # type: ignore[call-arg]
    width("a").options(timeout="long")  # type: ignore[arg-type]
    width.options(prio=1)  # type: ignore[call-arg]
