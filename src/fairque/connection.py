"""Connections from a URL: `Connector` knows where the server is, a `Wire` carries one request at a time.

redis-py's own timeouts and silent retries are wrong for a queue: here a request is sent once, within one timeout, and
its caller decides about another try.
"""

from __future__ import annotations

import asyncio
import os
import re
import ssl
from collections.abc import Awaitable, Iterable
from typing import Any, Protocol, TypeVar
from urllib.parse import unquote, urlsplit

import hiredis
import redis
import redis.asyncio
import redis.exceptions
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.retry import Retry as BlockingRetry

from fairque.checks import check_seconds
from fairque.embedded import EmbeddedServer
from fairque.errors import ConfigError, QueueUnavailable, StoreError

__all__ = [
    "DEFAULT_TIMEOUT",
    "BlockingWire",
    "Connector",
    "NoScript",
    "Wire",
    "heeding_cancellation",
    "pack",
    "resolve_url",
]

T = TypeVar("T")
DEFAULT_TIMEOUT = 5.0
DEFAULT_URL = "redis://localhost:6379"
_WAYS_OUT = (
    "Three ways out: pass a URL as in TaskQueue('redis://host:6379'), set FAIRQUE_REDIS_URL, "
    "or use TaskQueue('embedded://') (pip install 'fairque[embedded]')."
)
# Errors of a server that is there but cannot work now. Bare ones carry the code as their first word.
_UNAVAILABLE = frozenset(
    (
        "LOADING",
        "READONLY",
        "OOM",
        "MISCONF",
        "NOREPLICAS",
        "MASTERDOWN",
        "CLUSTERDOWN",
        "TRYAGAIN",
        "BUSY",
        "UNKILLABLE",
    )
)
_SCHEMES = ("redis", "rediss", "unix", "embedded")


def pack(words: Iterable[Any]) -> bytes:
    """A command as the server reads it; words are str, bytes, int or float."""
    packed: bytes = hiredis.pack_command(tuple(words))
    return packed


class NoScript(Exception):
    """The server does not know the script (restarted, or SCRIPT FLUSH)."""


def resolve_url(url: str | None) -> tuple[str, bool]:
    """The URL to use, and whether it was named by anyone."""
    named = url or os.environ.get("FAIRQUE_REDIS_URL")
    resolved = named or DEFAULT_URL
    try:
        parts = urlsplit(resolved)
    except (ValueError, TypeError, AttributeError) as exc:
        shown = re.sub("//.*@", "//***@", str(resolved))
        raise ConfigError(f"the URL {shown!r} cannot be used: {exc}") from None
    if parts.scheme not in _SCHEMES:
        raise ConfigError(f"unknown URL scheme {parts.scheme!r}; there are {', '.join(s + '://' for s in _SCHEMES)}")
    if parts.scheme == "embedded" and (parts.netloc or parts.query or parts.fragment):
        raise ConfigError(f"{resolved!r} should be embedded:// or embedded:///path/to/directory, with three slashes")
    return resolved, named is not None


class _Poolable(Protocol):
    def make_connection(self) -> Any: ...


class Connector:
    """Where the server is. Starts the embedded one when the URL says so.

    Args:
        url: See `resolve_url`.
        timeout: Seconds for connecting and for one request.
        client_name: Shown by the server's CLIENT LIST.
    """

    def __init__(
        self, url: str | None = None, *, timeout: float = DEFAULT_TIMEOUT, client_name: str = "fairque"
    ) -> None:
        self.url, self._named = resolve_url(url)
        self.timeout = check_seconds("timeout", timeout, least=0.001)
        self.client_name = client_name
        self._server: EmbeddedServer | None = None
        self._opening: asyncio.Lock | None = None
        self._pool: _Poolable | None = None
        self._closed = False

    @property
    def safe_url(self) -> str:
        """The URL without its password."""
        parts = urlsplit(self.url)
        if parts.password is None:
            return self.url
        return parts._replace(netloc=f"{parts.username or ''}:***@{parts.netloc.rpartition('@')[2]}").geturl()

    async def open(self) -> None:
        """Also after `close`."""
        self._closed = False
        await self.ensure_open()

    async def ensure_open(self) -> None:
        """Open it unless it is open. Raises `ConfigError` when it was closed, `QueueUnavailable` and `ConfigError`."""
        if self._pool is not None:
            return
        if self._opening is None:
            self._opening = asyncio.Lock()
        async with self._opening:
            if self._closed:
                raise ConfigError("the queue is closed")
            if self._pool is None:
                if self.url.startswith("embedded:"):
                    await asyncio.to_thread(self._start_server)
                self._pool = self._make_pool()

    def refuse(self) -> None:
        """No new connections: a call that comes too late must not open the queue again."""
        self._closed = True
        self._pool = None

    async def close(self) -> None:
        self.refuse()
        server, self._server = self._server, None
        if server is not None:
            await asyncio.to_thread(server.stop)

    def wire(self) -> Wire:
        return Wire(self)

    def connection(self) -> AbstractConnection:
        """A connection that is not connected yet. Call `open` first."""
        if self._pool is None:
            raise ConfigError("the queue is not open: use 'async with TaskQueue(...)' or await queue.open()")
        connection: AbstractConnection = self._pool.make_connection()
        return connection

    def blocking_connection(self) -> Any:
        """The same for a thread of its own."""
        retry = BlockingRetry(NoBackoff(), 0)
        return redis.ConnectionPool.from_url(self._server_url(), retry=retry, **self._options()).make_connection()

    def unreachable(self, error: BaseException) -> QueueUnavailable:
        text = f"Redis at {self.safe_url} is not available: {str(error) or type(error).__name__}"
        return QueueUnavailable(text if self._named else f"{text}. {_WAYS_OUT}")

    def _start_server(self) -> None:
        path = unquote(urlsplit(self.url).path)
        server = EmbeddedServer(path or None)
        server.start()
        self._server = server

    def _server_url(self) -> str:
        return self._server.url if self._server is not None else self.url

    def _make_pool(self) -> _Poolable:
        try:
            return redis.asyncio.ConnectionPool.from_url(
                self._server_url(), retry=Retry(NoBackoff(), 0), **self._options()
            )
        except (ValueError, TypeError, ssl.SSLError) as exc:
            raise ConfigError(f"the URL {self.safe_url} cannot be used: {exc}") from None

    def _options(self) -> dict[str, Any]:
        return {
            "protocol": 2,
            "socket_timeout": self.timeout,
            "socket_connect_timeout": self.timeout,
            "client_name": self.client_name,
            "driver_info": None,
        }


def _translate(error: redis.exceptions.ResponseError, connector: Connector) -> Exception:
    code = getattr(error, "status_code", None) or str(error).partition(" ")[0]
    if isinstance(error, redis.exceptions.NoScriptError):
        return NoScript()
    if code in _UNAVAILABLE:
        return connector.unreachable(error)
    return StoreError(f"Redis at {connector.safe_url}: {error}")


async def heeding_cancellation(awaitable: Awaitable[T]) -> T:
    """For what redis-py does with `asyncio.wait_for`, which before Python 3.12 may swallow a cancellation."""
    task = asyncio.current_task()
    before = task.cancelling() if task is not None else 0
    value = await awaitable
    if task is not None and task.cancelling() > before:
        raise asyncio.CancelledError
    return value


class Wire:
    """One connection to the server, one request at a time; it reconnects by itself.

    Raises `QueueUnavailable` when there is no answer in time, `NoScript` and `StoreError` for answers that are errors.
    """

    def __init__(self, connector: Connector) -> None:
        self._connector = connector
        self._connection: AbstractConnection | None = None
        self._lock = asyncio.Lock()

    async def request(self, command: bytes, seconds: float | None = None) -> Any:
        """The reply, within `seconds` (default: the connector's timeout).

        A connection that is there and free answers or fails within that time by itself, so that the usual request pays
        for no other timer.
        """
        if seconds is None and self._connection is not None and not self._lock.locked():
            async with self._lock:
                return await self._exchange(command)
        await self._connector.ensure_open()
        try:
            async with asyncio.timeout(seconds or self._connector.timeout), self._lock:
                return await self._exchange(command)
        except TimeoutError:
            raise self._connector.unreachable(TimeoutError("Timeout: no answer in time")) from None

    async def _exchange(self, command: bytes) -> Any:
        if self._connection is None:
            self._connection = self._connector.connection()
        connection = self._connection
        try:
            await heeding_cancellation(connection.send_packed_command(command, check_health=False))
            return await connection.read_response(disable_decoding=True)
        except redis.exceptions.AuthenticationError as exc:
            raise StoreError(f"Redis at {self._connector.safe_url}: {exc}") from None
        except redis.exceptions.ResponseError as exc:
            raise _translate(exc, self._connector) from None
        except (redis.exceptions.RedisError, OSError) as exc:
            await self._drop()
            raise self._connector.unreachable(exc) from exc
        except asyncio.CancelledError:  # in the middle of a reply
            await self._drop()
            raise

    async def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.disconnect(nowait=True)

    async def close(self) -> None:
        """Waits for the request that is under way."""
        async with self._lock:
            connection, self._connection = self._connection, None
            if connection is not None:
                await connection.disconnect()


class BlockingWire:
    """The same for a thread: blocks until the reply is there."""

    def __init__(self, connector: Connector) -> None:
        self._connector = connector
        self._connection = connector.blocking_connection()

    def request(self, command: bytes) -> Any:
        try:
            self._connection.send_packed_command([command], check_health=False)
            return self._connection.read_response(disable_decoding=True)
        except redis.exceptions.AuthenticationError as exc:
            raise StoreError(f"Redis at {self._connector.safe_url}: {exc}") from None
        except redis.exceptions.ResponseError as exc:
            raise _translate(exc, self._connector) from None
        except (redis.exceptions.RedisError, OSError) as exc:
            self._connection.disconnect()
            raise self._connector.unreachable(exc) from exc

    def close(self) -> None:
        self._connection.disconnect()
