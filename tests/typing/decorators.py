"""What a type checker knows of the decorator. mypy checks this file; nothing runs it.

A line with ``type: ignore`` must be an error: mypy complains of an ignore that ignores nothing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar, assert_type

from fairque import Collect, Priority, RetryPolicy, Task, TaskFunction, task

T = TypeVar("T")


@dataclass
class Point:
    x: int
    y: int


# Bare and with options, async and plain


@task
async def bare_async(point: Point) -> Point:
    return point


@task
def bare_plain(point: Point) -> Point:
    return point


@task()
async def empty_async(point: Point) -> Point:
    return point


@task(name="x", priority=Priority.HIGH, max_retries=3, retry=RetryPolicy(), timeout=30, result_ttl=0, cost=2)
async def options_async(point: Point) -> Point:
    return point


@task(run_in="process", user_id="acme", task_id="only-one", priority=5)
def options_plain(point: Point) -> Point:
    return point


def all_of_them_are_functions_that_build_tasks(point: Point) -> None:
    assert_type(bare_async(point), Task[Point])
    assert_type(bare_plain(point), Task[Point])
    assert_type(empty_async(point), Task[Point])
    assert_type(options_async(point), Task[Point])
    assert_type(options_plain(point), Task[Point])
    for wrong in (1, "x"):
        bare_async(wrong)  # type: ignore[arg-type]
        bare_plain(wrong)  # type: ignore[arg-type]
        empty_async(wrong)  # type: ignore[arg-type]
        options_async(wrong)  # type: ignore[arg-type]
        options_plain(wrong)  # type: ignore[arg-type]


# Parameters of all kinds


@task
async def parameters(first: int, /, second: str = "", *rest: bytes, only: bool, **named: float) -> None: ...


@task
def nothing() -> None: ...


@task
async def maybe(value: int | None = None) -> list[dict[str, int]] | None:
    return [{"a": value}] if value else None


def every_parameter_is_checked() -> None:
    assert_type(parameters(1, "", b"", b"", only=True, a=1.0, b=2.0), Task[None])
    parameters("1", only=True)  # type: ignore[arg-type]
    parameters(1, 2, only=True)  # type: ignore[arg-type]
    parameters(1, "", "", only=True)  # type: ignore[arg-type]
    parameters(1)  # type: ignore[call-arg]
    parameters(first=1, only=True)  # type: ignore[call-arg]
    parameters(1, only="yes")  # type: ignore[arg-type]
    parameters(1, only=True, a="x")  # type: ignore[arg-type]
    assert_type(nothing(), Task[None])
    nothing(1)  # type: ignore[call-arg]
    assert_type(maybe(), Task[list[dict[str, int]] | None])
    maybe("x")  # type: ignore[arg-type]


class Tools:
    @staticmethod
    @task
    async def double(n: int) -> int:
        return 2 * n


def static_methods_are_checked_as_well() -> None:
    assert_type(Tools.double(1), Task[int])
    Tools().double("1")  # type: ignore[arg-type]


# The function behind it


async def the_function_is_checked_like_itself(point: Point) -> None:
    await bare_async.fn(point)
    bare_plain.fn(point)
    bare_async.fn(1)  # type: ignore[arg-type]
    bare_plain.fn()  # type: ignore[call-arg]


def a_task_function_has_parameters_and_a_result() -> TaskFunction[[Point], Point]:
    options_plain.options(priority=1)(1)  # type: ignore[arg-type]
    return bare_async.options(priority=1)


def a_task_function_returns_a_task() -> Callable[[Point], Task[Point]]:
    return bare_plain


def a_task_is_not_awaited(point: Point) -> Awaitable[Point]:
    return bare_async(point)  # type: ignore[return-value]


# Collected


@task(collect=Collect(100, within=0.5))
async def embed(texts: list[str]) -> list[float | Exception]:
    return [float(len(text)) for text in texts]


@task(collect=Collect(100, within=timedelta(seconds=1)), run_in="thread")
def sizes(points: list[Point]) -> list[int | Exception]:
    return [point.x for point in points]


def a_call_has_one_of_the_arguments(point: Point) -> None:
    assert_type(embed("a"), Task[float])
    assert_type(sizes(point), Task[int])
    embed(["a"])  # type: ignore[arg-type]


# Options


def wrong_options_are_errors() -> None:
    task(timeout="long")  # type: ignore[call-overload]
    task(priority="high")  # type: ignore[call-overload]
    task(run_in="fiber")  # type: ignore[call-overload]
    task(prio=1)  # type: ignore[call-overload]
    task(retry=3)  # type: ignore[call-overload]
    task(42)  # type: ignore[call-overload]


def options_of_a_task_keep_its_type(made: Task[T]) -> Task[T]:
    later = made.options(delay=timedelta(seconds=3), user_id="acme")
    assert_type(later, Task[T])
    return later.options(execute_after=datetime.now(UTC), delay=None)


def payloads_have_no_type() -> None:
    assert_type(Task.create(payload={"a": 1}, user_id="acme"), Task[Any])
    Task.create({"a": 1})  # type: ignore[call-arg]
    Task.create(payload=[1])  # type: ignore[arg-type]
