"""What a type checker knows of tasks that wait for others and hand data on. mypy checks this file; nothing runs it."""

from __future__ import annotations

from typing import Any, assert_type

from fairque import (
    Batch,
    BatchProgress,
    BatchState,
    Cause,
    Pipeline,
    PipelineHandle,
    PipelineState,
    Task,
    TaskFunction,
    TaskHandle,
    TaskQueue,
    XComManager,
    current_task,
    parallel,
    task,
    xcom_task,
)


@task
async def extract(url: str) -> bytes:
    return url.encode()


@task(depends_on=["before"], on_dependency_failure="run", allow_unknown=True, auto_xcom=True)
def transform(raw: bytes) -> list[str]:
    return [raw.decode()]


@xcom_task("rows")
async def push(n: int) -> list[int]:
    return [n]


@xcom_task(
    push_key="total",
    pull_keys={"rows": "rows"},
    pull_defaults={"rows": []},
    ttl_seconds=60,
    namespace="sales",
    depends_on=["before"],
    auto_xcom=True,
)
def pull(name: str, *, rows: list[int] | None = None) -> float:
    return len(name) + sum(rows or [])


# Batches


async def a_batch_gives_handles(queue: TaskQueue) -> None:
    async with queue.batch("acme", on_success=extract("a"), on_complete=[extract("b")], ttl=60) as batch:
        assert_type(batch, Batch)
        assert_type(await batch.enqueue(extract("a"), delay=3), TaskHandle[bytes])
        assert_type(await batch.enqueue(extract("a") >> extract("b")), PipelineHandle)
        assert_type(await batch.enqueue_many([transform(b"a")]), list[TaskHandle[list[str]]])
    assert_type(await batch.wait(), BatchProgress)
    assert_type(await batch.progress(), BatchProgress)
    assert_type((await batch.progress()).state, BatchState)
    assert_type(current_task().cause, Cause | None)
    assert_type(current_task().ended_batch, BatchProgress | None)


# Children


async def a_child_has_the_type_of_its_task() -> None:
    assert_type(await current_task().enqueue(extract("a"), key="a", delay=3), TaskHandle[bytes])
    assert_type(current_task().enqueue_from_thread(extract("a"), cancel_with_parent=True), str)
    assert_type(await current_task().enqueue(extract("a") >> extract("b"), key="a"), PipelineHandle)
    assert_type(current_task().enqueue_from_thread(extract("a") >> extract("b")), str)
    await current_task().enqueue(extract("a") >> extract("b"), delay=3)  # type: ignore[call-overload]
    await current_task().enqueue(extract)  # type: ignore[call-overload]
    await current_task().enqueue(extract("a"), delay="soon")  # type: ignore[call-overload]


# What enqueue returns


async def a_pipeline_becomes_a_pipeline_handle(queue: TaskQueue, pipeline: Pipeline) -> None:
    run = await queue.enqueue(pipeline, user_id="acme")
    assert_type(run, PipelineHandle)
    assert_type(await queue.enqueue(extract("a") >> extract("b")), PipelineHandle)
    assert_type(await queue.enqueue(parallel(extract("a"))), PipelineHandle)
    assert_type(run["extract"], TaskHandle[Any])
    assert_type(run.tasks, dict[str, TaskHandle[Any]])
    assert_type(await run.state(), PipelineState)
    run[0]  # type: ignore[index]


async def a_task_with_outputs_becomes_a_task_handle(queue: TaskQueue) -> None:
    handle = await queue.enqueue(transform(extract("a").output), user_id="acme", priority=3)
    assert_type(handle, TaskHandle[list[str]])
    assert_type(await handle.result(timeout=3), list[str])


async def a_pipeline_takes_a_user_and_nothing_else(queue: TaskQueue, pipeline: Pipeline) -> None:
    await queue.enqueue(pipeline, priority=3)  # type: ignore[call-overload]
    await queue.enqueue(pipeline, task_id="x")  # type: ignore[call-overload]
    await queue.enqueue([extract("a")])  # type: ignore[call-overload]
    await queue.enqueue(extract)  # type: ignore[call-overload]


# What is waited for


async def ids_handles_and_tasks_can_be_waited_for(queue: TaskQueue, handle: TaskHandle[int]) -> None:
    after = await queue.enqueue(extract("a"), depends_on=["id", handle, extract("b")])
    assert_type(after, TaskHandle[bytes])
    assert_type(extract("a").options(depends_on=[handle]), Task[bytes])
    task(on_dependency_failure="explode")  # type: ignore[call-overload]


# XCom


def xcom_tasks_are_tasks() -> TaskFunction[[int], list[int]]:
    assert_type(push(1), Task[list[int]])
    assert_type(push(1).output, list[int])
    assert_type(pull("a"), Task[float])
    assert_type(pull("a", rows=push(1).output), Task[float])
    push("1")  # type: ignore[arg-type]
    pull(1)  # type: ignore[arg-type]
    pull("a", rows=push(1))  # type: ignore[arg-type]
    xcom_task(3)  # type: ignore[arg-type]
    xcom_task(ttl_seconds="long")  # type: ignore[arg-type]
    return push


async def values_have_the_type_that_is_asked_for(queue: TaskQueue) -> None:
    values = queue.xcom("acme", namespace="sales")
    assert_type(values, XComManager)
    assert_type(await values.pull("total", type=float), float)
    assert_type(await values.pull("total", None, type=float), float | None)
    assert_type(await values.keys(), list[str])
