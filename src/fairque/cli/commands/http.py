"""``fairque http``: answers autoscalers and monitors for a queue, whether workers run or not."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from typing import Annotated

import typer

from fairque import TaskQueue
from fairque.cli.answering import HTTP_HOST, answering
from fairque.cli.errors import CommandError
from fairque.cli.options import ConfigFile, LogJson, Url, make_queue
from fairque.contrib.http import demand
from fairque.worker.logs import LogLevel, LogSettings, set_up_logging
from fairque.worker.processes import on_stop

__all__ = ["command"]

logger = logging.getLogger("fairque.http")


def command(
    listen: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Where to listen; 0.0.0.0 is for other machines, port 0 any free.")
    ] = "127.0.0.1:8080",
    http_host: Annotated[list[str] | None, HTTP_HOST] = None,
    url: Url = None,
    queue: Annotated[
        list[str] | None,
        typer.Option("--queue", "-q", metavar="NAME", help="Name of the queue. Repeatable: ?queue=NAME asks for one."),
    ] = None,
    top_users: Annotated[
        int,
        typer.Option(min=0, max=100, metavar="N", help="Users that metrics name: the N that got the most lately (0)."),
    ] = 0,
    config: ConfigFile = None,
    log_level: Annotated[
        LogLevel, typer.Option(case_sensitive=False, metavar="LEVEL", help="debug, info, warning or error.")
    ] = LogLevel.INFO,
    log_json: LogJson = False,
) -> int:
    """Answer autoscalers and monitors of a queue by HTTP.

    It does so until SIGTERM, SIGHUP or Ctrl-C.

    /demand?target_wait=30 is JSON: its "slots_needed" is how many tasks should be able to run at once.
    /metrics are those of the queue, for Prometheus. They need the extra "prometheus".
    /livez says that the process lives, /readyz that Redis answers.

    One is enough for a queue, and it needs no worker: it answers as well where all were scaled to zero.
    Whoever reaches it can ask: there is no password, and nothing can be changed.
    It is asked by an address, as localhost, by the name of its machine, or by those of --http-host.

    Example: fairque http --listen 0.0.0.0:8080

    Exit codes: 0 stopped by a signal, 1 failed, 2 wrong usage.
    """
    names: list[str | None] = [*dict.fromkeys(queue or ())] or [None]
    queues = [make_queue(url, name, config, asks=False) for name in names]
    for each in queues:
        if each.connector.is_private:
            raise CommandError(
                "embedded:// is a server for one process alone, nothing could be there but what this one puts in",
                "use embedded:///some/directory, which processes of this machine share, or redis://",
            )
    set_up_logging(LogSettings(log_level, log_json))
    asyncio.run(_answer(queues, listen, http_host or (), top_users))
    return 0


async def _answer(queues: Sequence[TaskQueue], listen: str, hosts: Sequence[str], top_users: int) -> None:
    stopped = asyncio.Event()
    async with contextlib.AsyncExitStack() as stack:
        for queue in queues:
            await stack.enter_async_context(queue)
        with on_stop(lambda _: stopped.set()):
            async with answering(demand(*queues, top_users=top_users), listen, hosts):
                for queue in queues:
                    logger.info("answers for queue %r at %s", queue.name, queue.connector.safe_url)
                await stopped.wait()
    logger.info("stopped")
