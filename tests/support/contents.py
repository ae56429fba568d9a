"""All that Redis has of a queue, for tests of what can be read there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.support.servers import Server

__all__ = ["contents"]


def contents(server: Server, queue_name: str) -> bytes:
    """All that Redis has of a queue."""
    readers: dict[str, Callable[[str], Any]] = {
        "string": lambda name: server.execute("GET", name),
        "hash": lambda name: server.execute("HGETALL", name),
        "list": lambda name: server.execute("LRANGE", name, 0, -1),
        "set": lambda name: server.execute("SMEMBERS", name),
        "zset": lambda name: server.execute("ZRANGE", name, 0, -1),
        "stream": lambda name: server.execute("XRANGE", name, "-", "+"),
    }
    found = [(name, server.execute("TYPE", name)) for name in server.keys(queue_name)]
    return repr([(name, readers[_text(kind)](name)) for name, kind in found if _text(kind) in readers]).encode()


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
