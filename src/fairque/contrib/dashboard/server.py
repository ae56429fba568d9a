"""`token_server`: the pages for who has a token, served by uvicorn."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator

from starlette.applications import Starlette
from starlette.routing import Mount
from uvicorn import Config, Server

from fairque.contrib.dashboard.app import dashboard
from fairque.contrib.dashboard.token import Token
from fairque.queue.queue import TaskQueue

__all__ = ["token_server"]

LAST_SECONDS = 1
"""For answers under way when it is stopped; pages that are open would be so for ever."""


class _Server(Server):
    """Of a process that takes its signals itself."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def token_server(queue: TaskQueue, *, acts: bool, payloads: bool) -> tuple[Server, str]:
    """And the path that lets in, with its token.

    The pages are below a path that nobody can guess, and their cookies are for that path: browsers tell cookies apart
    by hosts and paths, not by ports, so they would send them to whatever else listens on this machine.
    """
    token, path = Token(acts=acts, payloads=payloads), f"/{secrets.token_urlsafe(12)}"
    config = Config(
        Starlette(routes=[Mount(path, dashboard(queue, authorize=token))]),
        log_config=None,
        access_log=False,  # it would have the token
        ws="none",
        lifespan="off",
        proxy_headers=False,  # nothing stands before it, so whoever sends them made them up
        timeout_graceful_shutdown=LAST_SECONDS,
        server_header=False,
    )
    return _Server(config), f"{path}/?token={token.secret}"
