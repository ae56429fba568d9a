"""What a type checker knows of the state of a worker. mypy checks this file; nothing runs it.

A line with ``type: ignore`` must be an error: mypy complains of an ignore that ignores nothing.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypedDict, assert_type

from fairque import TaskContext, TaskQueue, Worker, current_task
from fairque.sync import TaskQueue as BlockingQueue


class Pool:
    size = 3


class Shared(TypedDict):
    pool: Pool


@asynccontextmanager
async def resources() -> AsyncIterator[Pool]:
    yield Pool()


@asynccontextmanager
async def shared() -> AsyncIterator[Shared]:
    yield {"pool": Pool()}


async def a_worker_knows_what_its_lifespan_yields(queue: TaskQueue) -> None:
    assert_type(Worker(queue, lifespan=resources), Worker[Pool])
    assert_type(Worker(queue, lifespan=resources).state, Pool)
    assert_type(Worker(queue, lifespan=shared).state, Shared)
    assert_type(Worker(queue), Worker[Any])
    async with Worker(queue, lifespan=resources, concurrency=3) as worker:
        assert_type(worker, Worker[Pool])
    Worker(queue, lifespan=Pool)  # type: ignore[arg-type]
    Worker(queue, lifespan=resources())  # type: ignore[arg-type]


def a_worker_is_a_worker_whatever_its_state(worker: Worker[Pool]) -> Worker:
    return worker


def a_task_says_which_state_it_wants() -> None:
    assert_type(current_task(), TaskContext[Any])
    assert_type(current_task(Pool), TaskContext[Pool])
    assert_type(current_task(Pool).state.size, int)
    assert_type(current_task(Shared).state["pool"], Pool)
    print(current_task(Pool).state.colour)  # type: ignore[attr-defined]
    current_task(Pool())  # type: ignore[call-overload]


def blocking_queues_take_it_as_well(queue: BlockingQueue) -> None:
    queue.worker(lifespan=resources)
    queue.worker(lifespan=3)  # type: ignore[arg-type]
