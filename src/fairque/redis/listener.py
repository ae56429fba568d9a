"""Messages from the server: one pub/sub connection that many wait on."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ResponseError

from fairque.backoff import LONGEST, Backoff
from fairque.errors import FairqueError
from fairque.redis.connection import Connection
from fairque.redis.connector import Connector
from fairque.redis.requester import pack
from fairque.redis.url import Address
from fairque.round_robin import RoundRobin

__all__ = ["Listener"]

logger = logging.getLogger("fairque.listener")
Callback = Callable[[bytes | None], None]
AT_ONCE = 500
"""Channels of one command: the server does nothing else meanwhile."""
MOST_ASKED = 2 * AT_ONCE
"""Channels that the server has not confirmed yet: the next one of another user waits behind so many."""
LOOKS = 10
"""At those who wait for a confirmation, within the timeout."""
LEAST_PAUSE = 0.25
"""Between two tries, however many subscribe."""


class _Channel:
    """Who waits for its messages, and who for the certainty that they arrive."""

    __slots__ = ("callbacks", "is_confirmed", "since", "waiters", "was_confirmed", "whose")

    def __init__(self, whose: str) -> None:
        self.whose = whose
        self.callbacks: list[Callback] = []
        self.is_confirmed = self.was_confirmed = False
        self.since = 0.0  # when the first of the waiters came, on the clock of the listener
        self.waiters: list[asyncio.Future[None]] = []

    def wait(self, now: float) -> asyncio.Future[None]:
        if not self.waiters:
            self.since = now
        confirmed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waiters.append(confirmed)
        return confirmed

    def confirm(self) -> None:
        """The second time it is after a reconnect: up to this moment messages may have been missed."""
        if self.was_confirmed:
            self.tell(None)
        self.is_confirmed = self.was_confirmed = True
        for waiter in self.waiters:
            if not waiter.done():
                waiter.set_result(None)
        self.waiters.clear()

    def refuse(self, error: Exception) -> None:
        for waiter in self.waiters:
            if not waiter.done():
                waiter.set_exception(error)
        self.waiters.clear()

    def tell(self, payload: bytes | None) -> None:
        for callback in tuple(self.callbacks):
            callback(payload)


class Listener:
    """Calls back for each message of a channel, and with None after a reconnect, when messages may have been missed.

    The connection is made for the first channel, and anew when the queue is found elsewhere, or when the server does
    not answer on it. Callbacks are plain functions and must not block.

    Args:
        connector: Of the queue.
        where: Tells, at each connection, what makes it; None: the same.
    """

    def __init__(self, connector: Connector, where: Callable[[], Connector] | None = None) -> None:
        self._connector = connector
        self._where = where or (lambda: connector)
        self._begin()
        connector.on_move = self._follow
        connector.home.add(self)

    def _begin(self) -> None:
        self._channels: dict[bytes, _Channel] = {}
        self._changed: RoundRobin[bytes] = RoundRobin()  # channels that were joined or left
        self._is_changed: set[bytes] = set()  # the same
        self._is_due = False
        self._asked = 0  # channels that the server has to confirm
        self._line: _Line | None = None
        self._reader: asyncio.Task[None] | None = None
        self._wanted = asyncio.Event()  # somebody subscribes: try at once
        self._heard = 0.0  # when a confirmation came last, on a clock that stands still while the loop does
        self._clock = self._looked = 0.0  # that clock at the last look, and when that was
        self._watch: asyncio.TimerHandle | None = None

    async def subscribe(self, channel: str, callback: Callback, whose: str = "") -> None:
        """Returns when messages are certain to arrive. Raises `QueueUnavailable` when the server does not confirm.

        Args:
            channel: Its name.
            callback: Told of each message.
            whose: The user for whom it is. Where there are many, it is the turn of each of them by and by.
        """
        await self._connector.ensure_open()
        name = channel.encode()
        joined = self._channels.get(name)
        if joined is None:
            joined = self._channels[name] = _Channel(whose)
            self._send_soon(name, whose)
        joined.callbacks.append(callback)
        self._ensure_connected()
        if joined.is_confirmed:
            return
        if self._watch is None:
            self._look_again()
        confirmed = joined.wait(self._now())
        try:
            await confirmed
        except BaseException:
            await self.unsubscribe(channel, callback)
            raise

    async def unsubscribe(self, channel: str, callback: Callback) -> None:
        name = channel.encode()
        left = self._channels.get(name)
        if left is None or callback not in left.callbacks:
            return
        left.callbacks.remove(callback)
        if not left.callbacks:
            del self._channels[name]
            self._send_soon(name, left.whose)

    async def close(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.cancel()
            await asyncio.wait([reader])
        if self._watch is not None:
            self._watch.cancel()
        channels = list(self._channels.values())
        self._begin()
        for channel in channels:  # nobody waits for messages that will not come
            channel.refuse(self._connector.unreachable(ConnectionError("the queue is closed")))
            channel.tell(None)

    def abandon(self) -> None:
        if self._line is not None:
            self._line.abandon()
        self._begin()

    def _ensure_connected(self) -> None:
        if self._reader is None:
            self._reader = asyncio.create_task(self._run(), name="fairque-listener")
        self._wanted.set()

    # What goes out

    def _send_soon(self, name: bytes, whose: str) -> None:
        """What many do at once goes out together."""
        if name not in self._is_changed:
            self._is_changed.add(name)
            self._changed.put(whose, name)
        if not self._is_due:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._send)

    def _send(self) -> None:
        """As many as may be on their way, by turns of users."""
        self._is_due = False
        if self._line is None:  # `_listen` subscribes to everything when it connects
            return
        names = self._changed.take(MOST_ASKED - self._asked)
        self._is_changed.difference_update(names)
        self._asked += len(names)
        self._line.ask("UNSUBSCRIBE", [name for name in names if name not in self._channels])
        self._line.ask("SUBSCRIBE", [name for name in names if name in self._channels])

    def _send_all(self) -> None:
        """On a new connection nothing is subscribed."""
        self._asked = 0
        self._changed, self._is_changed = RoundRobin(), set()
        for name, channel in self._channels.items():
            self._send_soon(name, channel.whose)

    def _confirmed(self) -> None:
        self._asked -= 1
        if self._asked <= MOST_ASKED // 2 and self._changed:
            self._send()

    def _look_again(self) -> None:
        loop = asyncio.get_running_loop()
        self._looked = loop.time()
        self._watch = loop.call_later(self._connector.timeout / LOOKS, self._look)

    def _now(self) -> float:
        """Where the loop stood still between two looks, only the time of one counts: nothing could be heard."""
        since = asyncio.get_running_loop().time() - self._looked
        return self._clock + min(since, self._connector.timeout / LOOKS)

    def _look(self) -> None:
        """One timer for all who wait for a confirmation. While others get theirs, to wait is no outage."""
        self._watch, self._clock = None, self._now()
        waiting = [channel for channel in self._channels.values() if channel.waiters]
        if not waiting:
            return
        before = self._clock - self._connector.timeout
        if self._heard <= before:
            for channel in waiting:
                if channel.since <= before:
                    error = TimeoutError("Timeout: no confirmation of a subscription")
                    channel.refuse(self._connector.unreachable(error))
        self._look_again()

    # The connection

    def _follow(self) -> None:
        is_elsewhere = self._line is not None and self._line.address != self._connector.address
        if self._line is not None and is_elsewhere and self._where() is self._connector:
            self._line.close()

    async def _run(self) -> None:
        backoff = Backoff()
        while True:
            try:
                if await self._listen() > LONGEST:
                    backoff.reset()
            except FairqueError as exc:
                logger.warning("cannot connect for messages, trying again: %s", exc)
            await self._pause(backoff.next())

    async def _pause(self, seconds: float) -> None:
        """Between two tries. A new subscriber is kept waiting for a part of it only, and of its time."""
        least = min(seconds, LEAST_PAUSE, self._connector.timeout / LOOKS)
        await asyncio.sleep(least)
        self._wanted.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds - least):
                await self._wanted.wait()

    async def _listen(self) -> float:
        """Until the connection ends. Returns for how many seconds it was of use: one that is cut at once is none."""
        connection, address = await self._where().connect()
        line = self._line = _Line(connection, address, self._connector.timeout / 2, self._on_push)
        try:
            self._send_all()
            began = time.monotonic()
            await line.over.wait()
            logger.warning("lost the connection for messages: %s", line.error)
            if isinstance(line.error, ResponseError):
                self._refuse(self._connector.translate(line.error))
            return time.monotonic() - began if line.was_heard else 0.0
        finally:
            self._line = None
            for channel in self._channels.values():
                channel.is_confirmed = False
            line.close()
            await line.wait_closed()

    def _refuse(self, error: Exception) -> None:
        """What the server says to a subscription will be no other in a moment."""
        for channel in self._channels.values():
            channel.refuse(error)

    def _on_push(self, push: list[Any]) -> None:
        kind, name, payload = push
        channel = self._channels.get(name)
        if kind in (b"subscribe", b"unsubscribe"):
            self._confirmed()
        if kind == b"subscribe":
            self._heard = self._now()
            if channel is not None:
                channel.confirm()
        elif kind == b"message" and channel is not None:
            channel.tell(payload)


class _Line(Connection):
    """Hands on what comes unasked. When nothing came for `timeout`, it asks the server whether it is still there, and
    gives it as long to answer.
    """

    def __init__(
        self,
        connection: AbstractConnection,
        address: Address | None,
        timeout: float,
        on_push: Callable[[list[Any]], None],
    ) -> None:
        self.over = asyncio.Event()
        self.was_heard = False
        self._on_push = on_push
        self._asked: float | None = None  # since when an answer is owed
        super().__init__(connection, address, timeout)
        self._moved = self._loop.time()
        self._look_in(timeout)

    def ask(self, verb: str, names: Iterable[bytes] = ()) -> None:
        every = list(names)
        for at in range(0, len(every), AT_ONCE):
            self._write(verb, every[at : at + AT_ONCE])

    def _write(self, verb: str, names: Sequence[bytes] = ()) -> None:
        if self.error is None:
            if self._asked is None:
                self._asked = self._loop.time()
                self._look_in(self._timeout)
            self._transport.write(pack((verb, *names)))

    def received(self, reply: Any) -> None:
        self._asked = None
        if isinstance(reply, Exception):  # it may not subscribe
            self.fail(reply)
            return
        self.was_heard = True
        if isinstance(reply, list) and len(reply) == 3:  # else the answer to a ping
            self._on_push(reply)

    def owes(self) -> float | None:
        """Silence begins with the question: messages come when they come."""
        now = self._loop.time()
        if self._asked is None:
            if (left := self._moved + self._timeout - now) > 0:
                return left
            self._write("PING")
        return max(self._moved, self._asked or now) + self._timeout - now

    def ended(self) -> None:
        self.over.set()
