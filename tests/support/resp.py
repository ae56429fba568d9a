"""The Redis protocol, as little of it as the harness needs: it must not depend on the client under test."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType
    from typing import Self

PUSH = b">"
_BLOBS = b"$!="
_COUNTS = {b"*": 1, b"~": 1, b">": 1, b"%": 2, b"|": 2}
"""Types that hold others, and how many of them per counted element."""


class RedisError(Exception):
    """The server answered with an error."""


def reply_end(data: bytes | bytearray, start: int = 0) -> int | None:
    """Where the reply (RESP2 or RESP3) or the command that begins at `start` ends; None while some of it is missing."""
    line_end = data.find(b"\r\n", start)
    if line_end < 0:
        return None
    kind, end = bytes(data[start : start + 1]), line_end + 2
    if kind in _BLOBS:
        size = int(data[start + 1 : line_end])
        end += size + 2 if size >= 0 else 0
        return end if end <= len(data) else None
    if kind in _COUNTS:
        for _ in range(_COUNTS[kind] * int(data[start + 1 : line_end])):
            after = reply_end(data, end)
            if after is None:
                return None
            end = after
    # An attribute stands before the reply it belongs to.
    return reply_end(data, end) if kind == b"|" else end


def encode(*arguments: str | bytes | int) -> bytes:
    parts = [a if isinstance(a, bytes) else str(a).encode() for a in arguments]
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%b\r\n" % (len(p), p) for p in parts)


def _connect_unix(path: str, timeout: float) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(timeout)
        connection.connect(path)
    except OSError:
        connection.close()
        raise
    return connection


class RespClient:
    """A blocking connection for the harness itself: one command after another, replies as bytes, int, list or None."""

    def __init__(self, url: str, timeout: float = 10.0) -> None:
        parts = urlsplit(url)
        if parts.scheme == "unix":
            self._socket = _connect_unix(unquote(parts.path), timeout)
        else:
            self._socket = socket.create_connection((parts.hostname or "localhost", parts.port or 6379), timeout)
        self._replies = self._socket.makefile("rb")
        if parts.password:
            self.execute("AUTH", *filter(None, [parts.username]), unquote(parts.password))
        if parts.scheme != "unix" and parts.path.strip("/"):
            self.execute("SELECT", parts.path.strip("/"))

    def execute(self, *arguments: str | bytes | int) -> Any:
        return self.pipeline([arguments])[0]

    def pipeline(self, commands: Sequence[Sequence[str | bytes | int]]) -> list[Any]:
        """The replies to all of them. Raises the first error only after it read every reply."""
        self._socket.sendall(b"".join(encode(*command) for command in commands))
        replies = [self._read() for _ in commands]
        for reply in replies:
            if isinstance(reply, RedisError):
                raise reply
        return replies

    def receive(self) -> Any:
        """The next message of a subscription."""
        return self._read()

    def close(self) -> None:
        self._replies.close()
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _read(self) -> Any:
        line = self._replies.readline()
        if not line.endswith(b"\r\n"):
            raise ConnectionError("the server closed the connection")
        kind, rest = line[:1], line[1:-2]
        if kind == b"-":
            return RedisError(rest.decode())
        if kind == b":":
            return int(rest)
        if kind == b"+":
            return rest
        size = int(rest)
        if size < 0:
            return None
        return self._replies.read(size + 2)[:-2] if kind == b"$" else [self._read() for _ in range(size)]
