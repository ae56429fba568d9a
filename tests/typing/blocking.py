"""What a type checker knows of the blocking face. mypy checks this file; nothing runs it.

A line with ``type: ignore`` must be an error: mypy complains of an ignore that ignores nothing.
"""

from __future__ import annotations

from typing import Any, assert_type

from fairque import (
    BatchProgress,
    Cancellation,
    DeadLetter,
    Listed,
    PipelineState,
    Priority,
    QueueStats,
    TaskInfo,
    TaskState,
    UserInfo,
    task,
)
from fairque.sync import Batch, PipelineHandle, TaskHandle, TaskQueue, XComManager


@task
async def width(image: str) -> int:
    return len(image)


@task
def label(image: str) -> str:
    return image


def a_queue_takes_what_the_async_one_takes() -> None:
    with TaskQueue("redis://localhost", name="photos", timeout=2) as opened:
        assert_type(opened, TaskQueue)
        assert_type(opened.name, str)
    assert_type(TaskQueue().open(), TaskQueue)
    TaskQueue(5)  # type: ignore[arg-type]
    TaskQueue(colour="red")  # type: ignore[call-arg]


def a_handle_knows_what_its_task_returns(queue: TaskQueue) -> None:
    handle = queue.enqueue(width("a"), user_id="acme", priority=Priority.HIGH, delay=1.5, task_id="t")
    assert_type(handle, TaskHandle[int])
    assert_type(handle.result(), int)
    assert_type(handle.result(timeout=1), int)
    assert_type((handle.user_id, handle.task_id, handle.created), tuple[str, str, bool])
    assert_type(queue.enqueue_many([label("a")], user_id="acme"), list[TaskHandle[str]])
    assert_type(queue.push_function_task("acme", width, ["a"]), str)
    assert_type(queue.handle("acme", "t"), TaskHandle[Any])
    assert_type(queue.results([queue.handle("acme", "t")]), list[Any])
    queue.enqueue(width, user_id="acme")  # type: ignore[call-overload]
    queue.enqueue(width("a"), delay="soon")  # type: ignore[call-overload]
    queue.enqueue_many([width("a")], delay="soon")  # type: ignore[arg-type]
    wrong: TaskHandle[str] = queue.enqueue(width("a"))  # type: ignore[arg-type]
    wrong.info()


def a_batch_gives_handles(queue: TaskQueue) -> None:
    with queue.batch("acme", on_complete=label("a")) as batch:
        assert_type(batch, Batch)
        assert_type(batch.enqueue(width("a")), TaskHandle[int])
        assert_type(batch.enqueue(width("a") >> label("b")), PipelineHandle)
        assert_type(batch.enqueue_many([label("a")], delay=3), list[TaskHandle[str]])
    assert_type(batch.wait(5), BatchProgress)
    assert_type(batch.cancel("no need"), int)
    queue.batch("acme", on_complete=label)  # type: ignore[arg-type]


def a_pipeline_has_a_handle_of_its_own(queue: TaskQueue) -> None:
    run = queue.enqueue(width("a") >> label("b"), user_id="acme")
    assert_type(run, PipelineHandle)
    assert_type(run["width"], TaskHandle[Any])
    assert_type(run.tasks, dict[str, TaskHandle[Any]])
    assert_type(run.state(), PipelineState)
    assert_type(run.cancel(), dict[str, Cancellation])


def information_is_typed(queue: TaskQueue, handle: TaskHandle[int]) -> None:
    assert_type(handle.state(), TaskState)
    assert_type(handle.info(), TaskInfo)
    assert_type(handle.cancel("why"), Cancellation)
    for info in handle.watch():
        assert_type(info, TaskInfo)
    assert_type(queue.stats(), QueueStats)
    assert_type(queue.users(limit=5), Listed[UserInfo])
    assert_type(queue.user("acme"), UserInfo)
    queue.users("acme")  # type: ignore[call-arg, arg-type]
    queue.user(7)  # type: ignore[arg-type]


def dead_letters_and_handles_can_be_requeued(queue: TaskQueue, handle: TaskHandle[int]) -> None:
    [letter] = queue.dead_letters("acme", limit=1)
    assert_type(letter, DeadLetter)
    assert_type(queue.requeue(letter), TaskHandle[Any])
    assert_type(queue.requeue(handle), TaskHandle[Any])
    queue.discard(handle)
    queue.discard("t")  # type: ignore[arg-type]


def shared_values_have_the_type_that_is_asked_for(queue: TaskQueue) -> None:
    values = queue.xcom("acme")
    assert_type(values, XComManager)
    assert_type(values.pull("total", type=int), int)
    assert_type(values.pull("total", None, type=int), int | None)
    assert_type(values.keys(), list[str])
    values.push(7, "total")  # type: ignore[arg-type]


def a_worker_takes_what_workers_take(queue: TaskQueue) -> None:
    with queue.worker(concurrency=4, assigned_users=["acme"]) as nothing:
        assert_type(nothing, None)
    queue.worker(concurrency="many")  # type: ignore[arg-type]
    queue.worker(colour="red")  # type: ignore[call-arg]
