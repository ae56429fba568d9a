"""``fairque dashboard``: the pages of a queue, for who sits at this machine."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from typing import Annotated

import typer

from fairque import TaskQueue
from fairque.cli.errors import FAILED, CommandError
from fairque.cli.known_queues import check_is_known
from fairque.cli.options import ConfigFile, LogJson, QueueName, Url, make_queue
from fairque.worker.logs import LogLevel, LogSettings, set_up_logging
from fairque.worker.processes import on_stop

__all__ = ["command"]

HOST = "127.0.0.1"
DEFAULT_PORT = 8321


def command(
    port: Annotated[
        int,
        typer.Option(min=0, max=65535, metavar="PORT", help="Listen on this port of 127.0.0.1; 0 takes a free one."),
    ] = DEFAULT_PORT,
    acts: Annotated[
        bool, typer.Option("--acts", help="Let it act as well: pause users, cancel and requeue tasks, run checks.")
    ] = False,
    payloads: Annotated[
        bool,
        typer.Option("--payloads", help="Show what tasks carry: results, headers, progress, messages of errors."),
    ] = False,
    url: Url = None,
    queue: QueueName = None,
    config: ConfigFile = None,
    log_json: LogJson = False,
) -> int:
    """Show a queue in a browser on this machine.

    It prints an address with a token, which lets in who has it. Nobody else is let in, and nobody from elsewhere.
    It ends with SIGTERM, SIGHUP or Ctrl-C.
    Without --acts it only reads, and what tasks carry is hidden without --payloads. Each act is logged.
    To show it to others, mount it in an app that knows who they are: fairque.contrib.dashboard.

    Example: fairque dashboard --queue emails

    Exit codes: 0 stopped by a signal, 1 failed, 2 wrong usage.
    """
    set_up_logging(LogSettings(LogLevel.INFO, log_json))
    opened = make_queue(url, queue, config)
    with _listening(port) as listener:
        asyncio.run(_serve(opened, listener, acts=acts, payloads=payloads))
    return 0


@contextlib.contextmanager
def _listening(port: int) -> Iterator[socket.socket]:
    try:
        listener = socket.create_server((HOST, port))
    except OSError as error:
        text = f"port {port} of {HOST} cannot be used: {error.strerror}"
        raise CommandError(text, "--port 0 takes a free one", FAILED) from None
    with listener:
        yield listener


async def _serve(queue: TaskQueue, listener: socket.socket, *, acts: bool, payloads: bool) -> None:
    try:
        from fairque.contrib.dashboard.server import token_server
    except ImportError:
        text = "the dashboard needs Starlette, Jinja2 and uvicorn"
        raise CommandError(text, "pip install 'fairque[dashboard]'", FAILED) from None
    port = listener.getsockname()[1]
    server, path = token_server(queue, acts=acts, payloads=payloads)
    async with queue:
        await check_is_known(queue)
        with on_stop(lambda _: setattr(server, "should_exit", True)):
            typer.echo(f"http://{HOST}:{port}{path}")
            await server.serve(sockets=[listener])
