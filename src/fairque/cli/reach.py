"""Which queue a command talks to: the options that say so, and the queue itself."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Annotated, TypeVar

import typer

from fairque import TaskQueue
from fairque.cli.problem import Problem

__all__ = ["AsJson", "ConfigFile", "QueueName", "Url", "make_queue", "on_queue"]

T = TypeVar("T")

Url = Annotated[
    str | None,
    typer.Option(
        "--url",
        "-u",
        envvar="FAIRQUE_REDIS_URL",
        metavar="URL",
        help="Where Redis is, such as redis://host:6379.",
    ),
]
QueueName = Annotated[
    str | None,
    typer.Option("--queue", "-q", envvar="FAIRQUE_QUEUE_NAME", metavar="NAME", help="Name of the queue."),
]
ConfigFile = Annotated[
    list[str] | None,
    typer.Option("--config", "-c", metavar="FILE", help="A configuration file. Repeatable: later ones win."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]


def make_queue(url: str | None, name: str | None, config: list[str] | None) -> TaskQueue:
    """The queue that the options name; what they do not say comes from the files, then from the defaults."""
    if config:
        raise Problem("--config is not supported yet", "give --url and --queue")
    return TaskQueue(url, name=name or "default")


def on_queue(queue: TaskQueue, job: Callable[[TaskQueue], Awaitable[T]]) -> T:
    """Run `job` with the open queue, and close it."""

    async def run() -> T:
        async with queue:
            return await job(queue)

    return asyncio.run(run())
