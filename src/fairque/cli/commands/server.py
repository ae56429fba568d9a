"""``fairque server``: the embedded server, in the foreground."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer

from fairque.cli.errors import FAILED, CommandError
from fairque.cli.output import print_json_line
from fairque.embedded.server import EmbeddedServer
from fairque.worker.processes import on_stop

__all__ = ["command"]

DEFAULT_PORT = 6379
_LOOK_SECONDS = 1.0


def command(
    directory: Annotated[
        Path | None, typer.Option("--dir", metavar="DIR", help="Keep the data there, and listen on a socket only.")
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=65535,
            metavar="PORT",
            help="Listen on this port of 127.0.0.1; 0 takes a free one. Default: 6379.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print where it is as a line of JSON.")] = False,
) -> int:
    """Run a server for this machine, and print its URL.

    It is a Valkey or Redis, and ends with SIGTERM, SIGHUP or Ctrl-C.
    Without --dir, it keeps everything in memory and listens on a port.
    With --dir, it keeps an append-only file there, and ends when nobody uses it any more.
    It has no password, and is made for development and tests.

    Example: fairque server --dir ./data

    Exit codes: 0 stopped by a signal, 1 failed, 2 wrong usage.
    """
    with _make(directory, port) as server:
        asyncio.run(_serve(server, _facts(server, directory), as_json))
    return 0


def _make(directory: Path | None, port: int | None) -> EmbeddedServer:
    if directory is not None:
        if port is not None:
            raise CommandError("a server with --dir listens on a socket only", "leave out --port, or --dir")
        return EmbeddedServer(directory)
    if port == 0:
        return EmbeddedServer(tcp=True)
    chosen = DEFAULT_PORT if port is None else port
    _check_port(chosen)
    return EmbeddedServer(port=chosen)


def _check_port(port: int) -> None:
    """For a plain answer; the server itself says it in its log."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise CommandError(
                f"port {port} of 127.0.0.1 cannot be used: {error.strerror}", "--port 0 takes a free one", FAILED
            ) from None


def _facts(server: EmbeddedServer, directory: Path | None) -> dict[str, Any]:
    is_shared = directory is not None
    return {
        "url": f"embedded://{quote(str(server.directory))}" if is_shared else server.tcp_url,
        "socket": server.url,
        "pid": server.pid,
        "directory": str(server.directory),
        "persistent": is_shared,
    }


async def _serve(server: EmbeddedServer, facts: dict[str, Any], as_json: bool) -> None:
    """Until a signal, or until the server is gone."""
    stopped = asyncio.Event()
    with on_stop(lambda _: stopped.set()):
        _tell(facts, as_json)  # who knows the URL may send a signal
        while not await _is_set(stopped, _LOOK_SECONDS):
            if server.pid is None:
                raise CommandError("the server has ended", f"its log may say why: {str(server.log)!r}", FAILED)


async def _is_set(event: asyncio.Event, seconds: float) -> bool:
    """At the latest after so long."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
    return event.is_set()


def _tell(facts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json_line(facts)
        return
    typer.echo(facts["url"])
    if facts["persistent"]:
        note = f"Data are kept in {facts['directory']!r}, other clients use {facts['socket']}"
    else:
        note = "Everything is in memory, and gone when the server stops"
    typer.echo(f"{note}. Ctrl-C stops it.", err=True)
