"""Messages from the server: one pub/sub connection that many wait on."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Any

from redis.asyncio.connection import AbstractConnection

from fairque.backoff import Backoff
from fairque.errors import FairqueError
from fairque.redis.connection import Connection
from fairque.redis.connector import Connector
from fairque.redis.requester import pack
from fairque.redis.url import Address

__all__ = ["Listener"]

logger = logging.getLogger("fairque.listener")
Callback = Callable[[bytes | None], None]


class Listener:
    """Calls back for each message of a channel, and with None after a reconnect, when messages may have been missed.

    The connection is made for the first channel, and anew when the queue is found elsewhere. Callbacks are plain
    functions and must not block.
    """

    def __init__(self, connector: Connector) -> None:
        self._connector = connector
        self._callbacks: dict[bytes, list[Callback]] = {}
        self._confirmations: dict[bytes, asyncio.Future[None]] = {}
        self._line: _Line | None = None
        self._reader: asyncio.Task[None] | None = None
        self._wanted = asyncio.Event()  # somebody subscribes: try at once
        connector.on_move = self._follow

    async def subscribe(self, channel: str, callback: Callback) -> None:
        """Returns when messages are certain to arrive. Raises `QueueUnavailable` when the server does not confirm."""
        await self._connector.ensure_open()
        name = channel.encode()
        self._callbacks.setdefault(name, []).append(callback)
        if self._reader is None:
            self._reader = asyncio.create_task(self._run(), name="fairque-listener")
        self._wanted.set()
        try:
            async with asyncio.timeout(self._connector.timeout):
                await self._confirmed(name)
        except TimeoutError:
            self._unsubscribe(name, callback)
            raise self._connector.unreachable(TimeoutError("no confirmation of a subscription")) from None
        except BaseException:
            self._unsubscribe(name, callback)
            raise

    async def _confirmed(self, name: bytes) -> None:
        confirmation = self._confirmations.get(name)
        if confirmation is None:
            confirmation = self._confirmations[name] = asyncio.get_running_loop().create_future()
            self._send("SUBSCRIBE", name)
        await asyncio.shield(confirmation)

    async def unsubscribe(self, channel: str, callback: Callback) -> None:
        self._unsubscribe(channel.encode(), callback)

    def _unsubscribe(self, name: bytes, callback: Callback) -> None:
        if self._forget(name, callback):
            self._send("UNSUBSCRIBE", name)

    async def close(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.cancel()
            await asyncio.wait([reader])
        self._tell_everyone()  # nobody waits for messages that will not come
        self._wanted = asyncio.Event()  # the queue may be opened again, on another loop

    def _forget(self, name: bytes, callback: Callback) -> bool:
        callbacks = self._callbacks.get(name, [])
        if callback in callbacks:
            callbacks.remove(callback)
        if callbacks:
            return False
        self._callbacks.pop(name, None)
        return self._confirmations.pop(name, None) is not None

    def _send(self, verb: str, *names: bytes) -> None:
        if self._line is not None:  # else `_run` subscribes to everything when it connects
            self._line.write(pack((verb, *names)))

    def _follow(self) -> None:
        if self._line is not None and self._line.address != self._connector.address:
            self._line.close()

    async def _run(self) -> None:
        backoff = Backoff()
        while True:
            try:
                await self._listen()
                backoff.reset()
            except FairqueError as exc:
                logger.warning("cannot connect for messages, trying again: %s", exc)
            await self._pause(backoff.next())

    async def _pause(self, seconds: float) -> None:
        """Between two tries. A new subscriber is not kept waiting."""
        self._wanted.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._wanted.wait()

    async def _listen(self) -> None:
        """Until the connection ends."""
        connection, address = await self._connector.connect()
        line = self._line = _Line(connection, address, self._connector.timeout, self._on_push)
        try:
            if self._callbacks:
                self._send("SUBSCRIBE", *self._callbacks)
            await line.over.wait()
            logger.warning("lost the connection for messages: %s", line.error)
        finally:
            self._line = None
            line.close()
            await line.wait_closed()

    def _on_push(self, push: list[Any]) -> None:
        kind, channel, payload = push
        if kind == b"message":
            self._tell(channel, payload)
        elif kind == b"subscribe":
            self._confirm(channel)

    def _tell_everyone(self) -> None:
        """Messages may have been missed."""
        for channel in list(self._callbacks):
            self._tell(channel, None)

    def _tell(self, channel: bytes, payload: bytes | None) -> None:
        for callback in list(self._callbacks.get(channel, ())):
            callback(payload)

    def _confirm(self, channel: bytes) -> None:
        """The second time it is after a reconnect: up to this moment messages may have been missed."""
        confirmation = self._confirmations.get(channel)
        if confirmation is None:
            return
        if confirmation.done():
            self._tell(channel, None)
        else:
            confirmation.set_result(None)


class _Line(Connection):
    """Hands on what comes unasked."""

    def __init__(
        self,
        connection: AbstractConnection,
        address: Address | None,
        timeout: float,
        on_push: Callable[[list[Any]], None],
    ) -> None:
        self.over = asyncio.Event()
        self._on_push = on_push
        super().__init__(connection, address, timeout)

    def received(self, reply: Any) -> None:
        if isinstance(reply, Exception):  # it may not subscribe
            self.fail(reply)
        else:
            self._on_push(reply)

    def ended(self) -> None:
        self.over.set()
