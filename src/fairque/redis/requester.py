"""A `Requester` carries requests to wherever the queue is, any number at a time.

Each is sent once: its caller decides about another try.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterable
from copy import copy
from typing import Any

import hiredis
from redis.exceptions import MovedError, RedisError, ResponseError

from fairque.backoff import Backoff
from fairque.errors import FairqueError, QueueUnavailable, StoreError
from fairque.redis.connection import Connection
from fairque.redis.connector import Connector
from fairque.redis.url import Address

__all__ = ["LEAST_TRIES", "LONGEST_PAUSE", "BlockingRequester", "Requester", "pack"]

MOST_MOVES = 5
LONGEST_PAUSE = 1.0
"""Seconds between two tries while somebody waits for the answer."""
LEAST_TRIES = 5
"""Within the timeout: once the server is back, each call comes through."""
_RESTLESS = f"the queue moved {MOST_MOVES} times within one request"


def pack(words: Iterable[Any]) -> bytes:
    """A command as the server reads it; words are str, bytes, int or float."""
    packed: bytes = hiredis.pack_command(tuple(words))
    return packed


class _Moved(Exception):
    """The request was not executed; the connector knows where to send it by now."""


class Requester:
    """One connection to the server, which carries the requests of all who call at the same time. Reconnects by itself.

    Raises `QueueUnavailable` when there is no answer in time, `NoScript` and `StoreError` for answers that are errors.
    """

    def __init__(self, connector: Connector) -> None:
        self._connector = connector
        self._connection: Connection | None = None
        self._connecting = asyncio.Lock()
        self._backoff = Backoff()
        self._refusal: FairqueError | None = None  # of the last try to connect
        self._connect_at = 0.0
        connector.home.add(self)

    async def request(self, command: bytes, seconds: float | None = None) -> Any:
        """The reply, within `seconds`. Without them, a connection is there within the connector's timeout, and is given
        up when nothing at all comes from it for half of that: so there is time to try it on another one. What is large,
        or stands behind the requests of others, may take its time.

        A connection that is there sees to that by itself, so that the usual request pays for no other timer.
        """
        self._connector.home.enter()
        connection = self._connection
        if seconds is None and connection is not None and connection.error is None:
            with contextlib.suppress(_Moved):
                return await self._exchange(connection, command)
        await self._connector.ensure_open()
        try:
            async with asyncio.timeout(seconds or self._connector.timeout) as limit:
                return await self._pursue(command, None if seconds else limit)
        except TimeoutError:
            raise self._connector.unreachable(TimeoutError("Timeout: no answer in time")) from None

    async def _pursue(self, command: bytes, limit: asyncio.Timeout | None) -> Any:
        """Connect where that has to be done, and go where the server says that the queue has moved.

        The limit is that of connecting.
        """
        for _ in range(MOST_MOVES):
            connection = await self._connected()
            if limit is not None:
                limit.reschedule(None)
            with contextlib.suppress(_Moved):
                return await self._exchange(connection, command)
        raise self._connector.unreachable(_Moved(_RESTLESS))

    async def _connected(self) -> Connection:
        async with self._connecting:
            connection = self._connection
            if connection is None or connection.error is not None:
                connection = self._connection = await self._connect()
            return connection

    async def _connect(self) -> Connection:
        """Until the next try is due, all who ask are told what came of the last one: they may be many."""
        if self._refusal is not None and time.monotonic() < self._connect_at:
            raise copy(self._refusal)
        try:
            made, address = await self._connector.connect()
        except (QueueUnavailable, StoreError) as exc:
            self._refusal = exc.with_traceback(None)
            longest = min(LONGEST_PAUSE, self._connector.timeout / LEAST_TRIES)
            self._connect_at = time.monotonic() + self._backoff.next(longest)
            raise copy(exc) from exc.__cause__
        self._refusal = None
        self._backoff.reset()
        return Connection(made, address, self._connector.timeout / 2)

    async def _exchange(self, connection: Connection, command: bytes) -> Any:
        try:
            return await connection.request(command)
        except ResponseError as exc:
            if self._connector.is_misplaced(exc, connection.address):
                self._leave(connection)
                if isinstance(exc, MovedError):
                    raise _Moved from None
            raise self._connector.translate(exc) from None
        except (RedisError, OSError) as exc:
            self._leave(connection)
            self._connector.left(connection.address)
            raise self._connector.translate(exc) from exc

    def _leave(self, connection: Connection) -> None:
        """The requests of others that are under way on it are still answered."""
        if self._connection is connection:
            self._connection = None
        connection.retire()

    async def close(self) -> None:
        """Waits for the requests that are under way."""
        async with self._connecting:
            connection, self._connection = self._connection, None
            self._refusal = None
        if connection is not None:
            await connection.retired()

    def retire(self) -> None:
        """Nothing more is asked of it; what is under way is still answered."""
        if self._connection is not None:
            self._leave(self._connection)

    def abandon(self) -> None:
        connection, self._connection = self._connection, None
        self._connecting = asyncio.Lock()
        if connection is not None:
            connection.abandon()


class BlockingRequester:
    """The same for a thread: blocks until the reply is there. The connector must be open."""

    def __init__(self, connector: Connector) -> None:
        self._connector = connector
        self._connection: Any = None
        self._address: Address | None = None

    def request(self, command: bytes) -> Any:
        for _ in range(MOST_MOVES):
            if self._connection is None:
                self._connection, self._address = self._connector.connect_blocking()
            with contextlib.suppress(_Moved):
                return self._exchange(command)
        raise self._connector.unreachable(_Moved(_RESTLESS))

    def _exchange(self, command: bytes) -> Any:
        try:
            self._connection.send_packed_command([command], check_health=False)
            return self._connection.read_response(disable_decoding=True)
        except ResponseError as exc:
            if self._connector.is_misplaced(exc, self._address):
                self.close()
                if isinstance(exc, MovedError):
                    raise _Moved from None
            raise self._connector.translate(exc) from None
        except (RedisError, OSError) as exc:
            self.close()
            self._connector.left(self._address)
            raise self._connector.translate(exc) from exc

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.disconnect()
