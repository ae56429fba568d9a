"""``fairque outbox``: moves what transactions of a database have put in."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Annotated

import typer

from fairque.cli.imports import load_relay
from fairque.cli.options import LogJson
from fairque.worker.logs import LogLevel, LogSettings, set_up_logging
from fairque.worker.processes import on_stop

if TYPE_CHECKING:
    from fairque.contrib.sqlalchemy import OutboxRelay

__all__ = ["command"]

logger = logging.getLogger("fairque.outbox")


def command(
    target: Annotated[
        str,
        typer.Argument(
            metavar="MODULE:NAME", help="The relay, as module:name: an OutboxRelay, or a function that returns one."
        ),
    ],
    once: Annotated[
        bool, typer.Option("--once", help="Move what is there, print how many tasks that were, end.")
    ] = False,
    log_level: Annotated[
        LogLevel, typer.Option(case_sensitive=False, metavar="LEVEL", help="debug, info, warning or error.")
    ] = LogLevel.INFO,
    log_json: LogJson = False,
) -> int:
    """Move the tasks of an outbox from its database into the queue.

    It does so until SIGTERM, SIGHUP or Ctrl-C. Any number may run, and workers may have one in their lifespans: each
    row makes one task.

    Example: fairque outbox myapp.tasks:relay

    Exit codes: 0 stopped by a signal, or all moved, 1 failed, 2 wrong usage.
    """
    relay = load_relay(target)
    set_up_logging(LogSettings(log_level, log_json))
    return asyncio.run(_move_once(relay) if once else _move(relay))


async def _move(relay: OutboxRelay) -> int:
    async with relay.queue:
        moving = asyncio.create_task(relay.run())
        with on_stop(lambda _: moving.cancel()):
            logger.info("moves the outbox of queue %r to %s", relay.queue.name, relay.queue.connector.safe_url)
            with contextlib.suppress(asyncio.CancelledError):
                await moving
    logger.info("stopped")
    return 0


async def _move_once(relay: OutboxRelay) -> int:
    async with relay.queue:
        typer.echo(await relay.drain())
    return 0
