"""What a type checker knows of dependencies. mypy checks this file; nothing runs it."""

# ruff: noqa: ARG001
from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Annotated, assert_type

from fairque import Task, task
from fairque.contrib.depends import CallArgument, Depends, Provided, replaced


class Client: ...


@asynccontextmanager
async def make_client() -> AsyncIterator[Client]:
    yield Client()


@contextmanager
def connect() -> Iterator[Client]:
    yield Client()


async def look_up(city: str = CallArgument(), client: Client = Depends(make_client)) -> int:
    return len(city)


@task
async def fetch(url: str, client: Client = Depends(make_client)) -> str:
    return url


@task
async def fetch_again(url: str, client: Annotated[Client, Depends(make_client)] = Provided) -> str:
    return url


@task
def count(city: str, db: Client = Depends(connect), width: int = 3) -> int:
    return width


@task
async def size(city: str, found: int = Depends(look_up), *, made: Client = Depends(Client)) -> int:
    return found


@task
async def wrong(url: str, client: int = Depends(make_client)) -> str:  # type: ignore[assignment]
    return url


def calls_leave_them_out() -> None:
    assert_type(fetch("a"), Task[str])
    assert_type(fetch_again("a"), Task[str])
    assert_type(count("a", width=5), Task[int])
    assert_type(size("a"), Task[int])
    fetch(1)  # type: ignore[arg-type]
    fetch_again()  # type: ignore[call-arg]


def they_are_replaced() -> None:
    with replaced(make_client, Client):
        pass
    replaced(make_client, 3)  # type: ignore[arg-type]
