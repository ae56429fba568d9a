"""A connection that redis-py made, from the handshake on: requests go out, and each reply is handed on as it comes.

redis-py's streams cost more than all the rest of a small request, so its transport is taken over.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

import hiredis
from redis.asyncio.connection import AbstractConnection

from fairque.redis.home import cut_in_forks
from fairque.redis.keepalive import keep_alive
from fairque.redis.url import Address

__all__ = ["Connection"]

_INCOMPLETE = object()
_CLOSE_SECONDS = 1.0
_LATE_SECONDS = 0.05
"""What a loop that was blocked is given to read what has come meanwhile."""
MOST_GATHERED = 1 << 16
SLOW_LINK = 1 << 17  # bytes a second: one cannot see how much of a request the system has sent


class Connection(asyncio.Protocol):
    """Carries any number of requests at a time; the server answers them in their order.

    It fails when the server owes an answer and says nothing at all for `timeout`. To stand behind the requests of
    others is no silence. Subclasses may take replies for themselves, see `received` and `owes`.

    Args:
        connection: Connected, with nothing under way. It is of no use to anyone else from then on.
        address: Where that is.
        timeout: Seconds in which a reply begins to come, and between two pieces of it. A long request gets more.
        gathers: Whether what is asked in one turn of the loop goes out together, which saves calls of the system, the
            larger part of a small request; who asks alone waits for the next turn.
    """

    def __init__(
        self, connection: AbstractConnection, address: Address | None, timeout: float, *, gathers: bool = False
    ) -> None:
        self.address = address
        self.error: Exception | None = None
        """Why it is of no use any more."""
        self._timeout = timeout
        self._loop = asyncio.get_running_loop()
        self._replies = hiredis.Reader(
            replyError=connection._parser.parse_error, protocolError=ConnectionError, notEnoughData=_INCOMPLETE
        )
        self._unanswered: deque[tuple[asyncio.Future[Any], int]] = deque()  # with the lengths of the requests
        self._unsent: dict[asyncio.Future[Any], bytes] = {}  # in order; the system takes no more for now
        self._gathers = gathers
        self._gathered: list[bytes] = []
        self._gathered_bytes = 0
        self._is_full = False
        self._moved = 0.0  # when something came last, or was asked for after nothing was
        self._watch: asyncio.TimerHandle | None = None
        self._is_late = False
        self._is_retired = False
        self._over = self._loop.create_future()
        self._closed = self._loop.create_future()
        # A writer that is collected closes its transport, so it is kept, and redis-py does not close it either.
        self._writer, connection._writer, connection._reader = connection._writer, None, None
        assert self._writer is not None
        self._transport = self._writer.transport
        self._socket = self._transport.get_extra_info("socket")
        keep_alive(self._socket, timeout)
        cut_in_forks(self)
        self._transport.set_protocol(self)

    def request(self, command: bytes) -> asyncio.Future[Any]:
        """To be awaited. Raises errors of redis-py. The reply to who stops waiting is thrown away."""
        reply: asyncio.Future[Any] = self._loop.create_future()
        if self.error is not None:
            reply.set_exception(self.error)
        elif self._is_full:
            self._unsent[reply] = command
            reply.add_done_callback(self._forget)
        else:
            self._send(reply, command)
        return reply

    def _send(self, reply: asyncio.Future[Any], command: bytes) -> None:
        if not self._unanswered:
            self._moved = self._loop.time()
        self._unanswered.append((reply, len(command)))
        if self._watch is None:
            self._look_in(self._timeout)
        if not self._gathers:
            self._transport.write(command)
            return
        if not self._gathered:
            self._loop.call_soon(self._write_gathered)
        self._gathered.append(command)
        self._gathered_bytes += len(command)
        if self._gathered_bytes > MOST_GATHERED:
            self._write_gathered()

    def _write_gathered(self) -> None:
        gathered, self._gathered, self._gathered_bytes = self._gathered, [], 0
        if gathered and self.error is None:
            self._transport.write(b"".join(gathered))

    def _forget(self, reply: asyncio.Future[Any]) -> None:
        self._unsent.pop(reply, None)

    def close(self) -> None:
        self.fail(ConnectionError("the connection is closed"))

    def retire(self) -> None:
        """Close it once all has been answered; nothing more is to be asked of it."""
        self._is_retired = True
        if not self._unanswered:
            self.close()

    async def retired(self) -> None:
        """The same, and wait for that."""
        self.retire()
        await asyncio.wait([self._over])
        await self.wait_closed()

    async def wait_closed(self) -> None:
        await asyncio.wait([self._closed], timeout=_CLOSE_SECONDS)

    def abandon(self) -> None:
        """It belongs to another process, or to a loop that does not run: what it needs of that one is left alone."""
        self.error = self.error or ConnectionError("the connection is of another process or event loop")

    def fileno(self) -> int:
        return -1 if self._socket is None else int(self._socket.fileno())

    def received(self, reply: Any) -> None:
        if not self._unanswered:
            self.fail(ConnectionError("a reply that nobody asked for"))
            return
        future, _ = self._unanswered.popleft()
        if not future.done():
            if isinstance(reply, Exception):
                future.set_exception(reply)
            else:
                future.set_result(reply)
        if self._is_retired and not self._unanswered:
            self.close()

    def owes(self) -> float | None:
        """Seconds for which the server may be silent from now on; None: nothing is owed."""
        if not self._unanswered:
            return None
        return self._moved + self._unanswered[0][1] / SLOW_LINK + self._timeout - self._loop.time()

    def ended(self) -> None:
        """It is of no use any more, see `error`."""
        assert self.error is not None
        for future in [*(future for future, _ in self._unanswered), *self._unsent]:
            if not future.done():
                future.set_exception(self.error)
        self._unanswered.clear()
        self._unsent.clear()

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

    def pause_writing(self) -> None:
        """What nobody reads yet stays with its callers, and goes with those who give up."""
        self._is_full = True

    def resume_writing(self) -> None:
        self._is_full = False
        while self._unsent and not self._is_full:
            reply = next(iter(self._unsent))
            command = self._unsent.pop(reply)
            if not reply.done():
                self._send(reply, command)

    def _look(self) -> None:
        """One timer for all requests: it comes back when the first of those under way has to have moved."""
        self._watch = None
        left = self.owes()
        if left is None:
            self._is_late = False
        elif left > 0 or not self._is_late:
            self._is_late = left <= 0
            self._look_in(left if left > 0 else _LATE_SECONDS)
        else:
            self.fail(TimeoutError("Timeout: no answer in time"))

    def _look_in(self, seconds: float) -> None:
        if self._watch is not None:
            self._watch.cancel()
        self._watch = self._loop.call_later(seconds, self._look)

    def fail(self, error: Exception) -> None:
        self._end(error)
        self._transport.abort()

    def _end(self, error: Exception) -> None:
        if self.error is None:
            self.error = error
            if self._watch is not None:
                self._watch.cancel()
            self._over.set_result(None)
            self.ended()
