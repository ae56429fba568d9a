"""A connection that redis-py made, from the handshake on: bytes go out, and each reply is handed on as it comes.

redis-py's streams cost more than all the rest of a small request, so its transport is taken over.
"""

from __future__ import annotations

import asyncio
from typing import Any

import hiredis
from redis.asyncio.connection import AbstractConnection

from fairque.redis.url import Address

__all__ = ["Connection"]

_INCOMPLETE = object()
_CLOSE_SECONDS = 1.0
SLOW_LINK = 1 << 17  # bytes a second: one cannot see how much of a request the system has sent


class Connection(asyncio.Protocol):
    """Carries one request at a time. Subclasses may take replies for themselves, see `received`.

    Args:
        connection: Connected, with nothing under way. It is of no use to anyone else from then on.
        address: Where that is.
        timeout: Seconds in which a reply begins to come, and between two pieces of it. A long request gets more.
    """

    def __init__(self, connection: AbstractConnection, address: Address | None, timeout: float) -> None:
        self.address = address
        self.error: Exception | None = None
        """Why it is of no use any more."""
        self._timeout = timeout
        self._loop = asyncio.get_running_loop()
        self._replies = hiredis.Reader(
            replyError=connection._parser.parse_error, protocolError=ConnectionError, notEnoughData=_INCOMPLETE
        )
        self._reply: asyncio.Future[Any] | None = None
        self._moved = 0.0  # when the last bytes came, or the request was out by
        self._watch: asyncio.TimerHandle | None = None
        self._closed = self._loop.create_future()
        # A writer that is collected closes its transport, so it is kept, and redis-py does not close it either.
        self._writer, connection._writer, connection._reader = connection._writer, None, None
        assert self._writer is not None
        self._transport = self._writer.transport
        self._transport.set_protocol(self)

    def request(self, command: bytes) -> asyncio.Future[Any]:
        """To be awaited. Raises errors of redis-py; whoever stops waiting has to `close` it."""
        reply = self._reply = self._loop.create_future()
        if self.error is not None:
            reply.set_exception(self.error)
            return reply
        self._moved = self._loop.time() + len(command) / SLOW_LINK
        if self._watch is None:
            self._watch = self._loop.call_later(self._timeout, self._look)
        self._transport.write(command)
        return reply

    def write(self, command: bytes) -> None:
        """For those who take what is received."""
        self._transport.write(command)

    def close(self) -> None:
        self._end(ConnectionError("the connection is closed"))
        self._transport.abort()

    async def wait_closed(self) -> None:
        await asyncio.wait([self._closed], timeout=_CLOSE_SECONDS)

    def received(self, reply: Any) -> None:
        if self._reply is None or self._reply.done():
            self.fail(ConnectionError("a reply that nobody asked for"))
        elif isinstance(reply, Exception):
            self._reply.set_exception(reply)
        else:
            self._reply.set_result(reply)

    def ended(self) -> None:
        """It is of no use any more, see `error`."""
        if self._reply is not None and not self._reply.done():
            assert self.error is not None
            self._reply.set_exception(self.error)

    # What the transport calls

    def data_received(self, data: bytes) -> None:
        self._moved = self._loop.time()
        self._replies.feed(data)
        try:
            while self.error is None and (reply := self._replies.gets()) is not _INCOMPLETE:
                self.received(reply)
        except ConnectionError as exc:
            self.fail(exc)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(ConnectionError(f"the connection was lost: {exc}" if exc else "the server closed the connection"))
        self._closed.set_result(None)

    def _look(self) -> None:
        """One timer for all requests: it comes back when the one that is under way by then has to have moved."""
        self._watch = None
        if self._reply is None or self._reply.done():
            return
        left = self._moved + self._timeout - self._loop.time()
        if left > 0:
            self._watch = self._loop.call_later(left, self._look)
        else:
            self.fail(TimeoutError("Timeout: no answer in time"))

    def fail(self, error: Exception) -> None:
        self._end(error)
        self._transport.abort()

    def _end(self, error: Exception) -> None:
        if self.error is None:
            self.error = error
            if self._watch is not None:
                self._watch.cancel()
            self.ended()
