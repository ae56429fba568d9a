"""`token_server`: the pages for who has a token, served by uvicorn."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

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


def token_server(queue: TaskQueue, port: int, *, acts: bool, payloads: bool) -> tuple[Server, str]:
    """And the token that it lets in."""
    # Browsers tell cookies apart by hosts, not by ports.
    token = Token(acts=acts, payloads=payloads, cookie=f"fairque_token_{port}")
    config = Config(
        dashboard(queue, authorize=token),
        log_config=None,
        access_log=False,  # it would have the token
        ws="none",
        lifespan="off",
        proxy_headers=False,  # nothing stands before it, so whoever sends them made them up
        timeout_graceful_shutdown=LAST_SECONDS,
        server_header=False,
    )
    return _Server(config), token.secret
