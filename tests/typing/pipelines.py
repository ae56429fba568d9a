"""What a type checker knows of pipelines and of outputs. mypy checks this file; nothing runs it."""

from __future__ import annotations

from functools import reduce
from operator import rshift
from typing import assert_type

from fairque import Partial, Pipeline, Task, parallel, sequential, task


@task
async def extract(url: str) -> bytes:
    return url.encode()


@task
def transform(raw: bytes, limit: int = 10) -> list[str]:
    return [raw.decode()][:limit]


@task
async def load(rows: list[str], *, table: str = "t") -> int:
    return len(rows) + len(table)


@task
async def total(counts: list[int], by_name: dict[str, int]) -> int:
    return sum(counts) + len(by_name)


def outputs_are_what_the_function_returns() -> None:
    assert_type(extract("s3://a").output, bytes)
    assert_type(load(transform(extract("s3://a").output).output), Task[int])
    assert_type(load(rows=transform(extract("s3://a").output, limit=3).output), Task[int])
    counted = load(["a"])
    assert_type(total([counted.output, 3], {"a": counted.output}), Task[int])


def partials_know_what_they_return() -> None:
    part = load.partial(table="t")
    assert_type(part, Partial[int])
    assert_type(part(["a"]), Task[int])
    assert_type(extract("s3://a") >> part.options(priority=5), Pipeline)
    assert_type([extract("a"), extract("b")] >> part, Pipeline)


def outputs_are_checked(narrow: Task[bool]) -> None:
    load([], table=narrow.output)  # type: ignore[arg-type]
    load(extract("s3://a").output)  # type: ignore[arg-type]
    load(extract("s3://a"))  # type: ignore[arg-type]
    total([narrow.output], {})
    narrow.output = True  # type: ignore[misc]


def operators_make_pipelines(a: Task[int], b: Task[str], c: Task[None]) -> None:
    assert_type(a >> b >> c, Pipeline)
    assert_type(a << b << c, Pipeline)
    assert_type(a | b, Pipeline)
    assert_type((a >> b) | (a >> c), Pipeline)
    assert_type(a >> (b | c) >> a, Pipeline)
    assert_type(reduce(rshift, [a, a, a]), Task[int])  # the stub of reduce knows no better


def lists_may_stand_on_either_side(a: Task[int], b: Task[str], c: Task[None], many: list[Task[int]]) -> None:
    assert_type(a >> [b, c], Pipeline)
    assert_type([a, b] >> c, Pipeline)
    assert_type([a, b] << c, Pipeline)
    assert_type((a, b) | c, Pipeline)
    assert_type(a | [b, c], Pipeline)
    assert_type(many >> b >> many, Pipeline)
    assert_type(a >> [b, [c, [a >> b]]], Pipeline)
    assert_type([a, (b, [c])] >> (a | b), Pipeline)


def functions_take_parts(a: Task[int], b: Task[str], many: list[Task[int]]) -> None:
    assert_type(parallel(a, b, many, a >> b), Pipeline)
    assert_type(sequential(a, [b, many], *many), Pipeline)


def other_things_are_no_parts(a: Task[int]) -> None:
    a >> "b"  # type: ignore[operator]
    a >> [1, 2]  # type: ignore[list-item]
    a >> extract  # type: ignore[operator]
    3 | a  # type: ignore[operator]
    parallel(a, None)  # type: ignore[arg-type]
    sequential("ab")  # type: ignore[arg-type]
