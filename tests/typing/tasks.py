"""What a type checker knows of tasks. mypy checks this file; nothing runs it.

A line with ``type: ignore`` must be an error: mypy complains of an ignore that ignores nothing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import assert_type

from fairque import Task, TaskHandle, TaskQueue, task


@task
async def resize(image_id: int, width: int = 800) -> str:
    return f"{image_id} at {width}"


@task(max_retries=3, timeout=30)
async def fetch(url: str) -> bytes:
    return url.encode()


@task
def add(left: int, right: int) -> int:
    return left + right


async def calls_are_typed() -> None:
    assert_type(resize(42), Task[str])
    assert_type(resize(42, width=100), Task[str])
    assert_type(fetch("x"), Task[bytes])
    assert_type(add(1, 2), Task[int])
    resize("42")  # type: ignore[arg-type]
    resize()  # type: ignore[call-arg]
    add(1, 2, 3)  # type: ignore[call-arg]


async def options_keep_the_type() -> None:
    assert_type(resize(42).options(user_id="acme", delay=3), Task[str])
    assert_type(resize(42).options(on_success=add(1, 2), on_end=[fetch("x")]), Task[str])
    assert_type(resize(42).otherwise(add(1, 2), fetch("x")), Task[str])
    resize(42).otherwise(resize)  # type: ignore[arg-type]
    resize(42).options(on_end=7)  # type: ignore[arg-type]
    assert_type(add.options(max_retries=1)(1, 2), Task[int])


async def handles_are_typed(queue: TaskQueue) -> None:
    handle = await queue.enqueue(resize(42), user_id="acme")
    assert_type(handle, TaskHandle[str])
    assert_type(await handle.result(timeout=30), str)
    many = await queue.enqueue_many([add(1, 2), add(3, 4)], user_id="acme")
    assert_type(many, list[TaskHandle[int]])


def tasks_and_handles_are_covariant(narrow: Task[bool], handle: TaskHandle[bool]) -> tuple[Task[int], TaskHandle[int]]:
    return narrow, handle


def a_decorated_function_is_not_the_function() -> Callable[[int], Awaitable[str]]:
    return resize  # type: ignore[return-value]
