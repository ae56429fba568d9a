"""Which queue a command talks to: the options that say so, and the queue itself."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, TypeVar

import msgspec
import typer

from fairque import ConfigError, FairQueueConfig, TaskQueue
from fairque.cli.errors import CommandError
from fairque.cli.known_queues import check_is_known
from fairque.cli.output import say
from fairque.config.config import QueueConfig, RedisConfig
from fairque.config.section import FieldErrors
from fairque.counted import unanswered
from fairque.redis.missing import noting_missing

__all__ = ["AsJson", "ConfigFile", "LogJson", "QueueName", "Url", "load_config", "make_queue", "on_queue"]

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
LogJson = Annotated[bool, typer.Option("--log-json", help="Write log lines as JSON, with the fields of each.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]


def load_config(files: Sequence[str]) -> FairQueueConfig:
    """What the files say, with ``FAIRQUE_…`` variables on top. Raises `CommandError`."""
    try:
        return FairQueueConfig.load(*files)
    except ConfigError as error:
        command = " ".join(("fairque config check", *files))
        raise CommandError(str(error), f"change that; {command!r} shows all values and where they come from") from None


def make_queue(
    url: str | None,
    name: str | None,
    config: list[str] | None,
    *,
    asks: bool = True,
    partitions: int | None = None,
) -> TaskQueue:
    """The queue that the options name; what they do not say comes from the files, then from the defaults.

    `asks`: for the settings that the files name, which are refused when the queue has others. `partitions`: it must
    have so many.
    """
    loaded = load_config(config or ())
    redis, queue = loaded.redis, loaded.queue
    if url is not None and url != os.environ.get("FAIRQUE_REDIS_URL"):
        redis = _redis_at(url, redis.timeout)
    if not asks:
        queue = QueueConfig(name=queue.name)
    if partitions is not None:
        queue = msgspec.structs.replace(queue, partitions=partitions)
    if name is not None:
        queue = msgspec.structs.replace(queue, name=name)
    return TaskQueue.from_config(msgspec.structs.replace(loaded, redis=redis, queue=queue))


def _redis_at(url: str, timeout: float) -> RedisConfig:
    try:
        return RedisConfig(url=url, timeout=timeout)
    except FieldErrors as error:
        raise CommandError(
            f"--url: {'; '.join(text for _, text in error.problems)}",
            "write it like --url redis://host:6379, unix:///path/to/socket or embedded:///directory",
        ) from None


def on_queue(queue: TaskQueue, job: Callable[[TaskQueue], Awaitable[T]], *, begins: bool = False) -> T:
    """Run `job` with the open queue, and close it.

    `begins`: the job may be the first that anybody does there. Else a queue that is not there is a mistake, and raises
    `UnknownQueue`. Partitions that did not answer are named on stderr: what they have is not in what the job returns.
    """

    async def run() -> T:
        async with queue:
            if not begins:
                await check_is_known(queue)
            with noting_missing(is_brief=False) as missing:
                done = await job(queue)
            if missing.numbers:
                say(f"warning: {unanswered(missing.numbers)}: what is there is left out", "yellow")
            return done

    return asyncio.run(run())
