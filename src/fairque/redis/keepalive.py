"""Finds out that the other side of a connection is gone, without a word between the two programs."""

from __future__ import annotations

import socket
from typing import Any

__all__ = ["keep_alive"]

PROBES = 3
_IDLE = getattr(socket, "TCP_KEEPIDLE", None) or getattr(socket, "TCP_KEEPALIVE", None)  # the latter on macOS


def keep_alive(connection: Any, seconds: float) -> None:
    """Have the system end it, with an error, when the other side was silent for about so long, and a few more seconds.

    Args:
        connection: A socket, or what asyncio gives for one. One that is not of TCP is left as it is.
        seconds: At least 1 counts: the system knows whole seconds.
    """
    if connection is None or connection.family not in (socket.AF_INET, socket.AF_INET6):
        return
    pause = max(1, int(seconds / (PROBES + 1)))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    options = {_IDLE: pause, getattr(socket, "TCP_KEEPINTVL", None): pause}
    options[getattr(socket, "TCP_KEEPCNT", None)] = PROBES
    options[getattr(socket, "TCP_USER_TIMEOUT", None)] = max(1000, int(seconds * 1000))
    for option, value in options.items():
        if option is not None:
            connection.setsockopt(socket.IPPROTO_TCP, option, value)
