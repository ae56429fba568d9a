"""Messages from the server: one pub/sub connection that many wait on."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import random
from collections.abc import Callable

import redis.exceptions
from redis.asyncio.connection import AbstractConnection

from fairque.connection import Connector, heeding_cancellation, pack
from fairque.errors import FairqueError

__all__ = ["Listener"]

logger = logging.getLogger("fairque.listener")
Callback = Callable[[bytes | None], None]


class Listener:
    """Calls back for each message of a channel, and with None after a reconnect, when messages may have been missed.

    The connection is made for the first channel. Callbacks are plain functions and must not block.
    """

    def __init__(self, connector: Connector) -> None:
        self._connector = connector
        self._callbacks: dict[bytes, list[Callback]] = {}
        self._confirmations: dict[bytes, asyncio.Future[None]] = {}
        self._connection: AbstractConnection | None = None
        self._reader: asyncio.Task[None] | None = None
        self._wanted = asyncio.Event()  # somebody subscribes: try at once

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
            await self.unsubscribe(channel, callback)
            raise self._connector.unreachable(TimeoutError("no confirmation of a subscription")) from None
        except BaseException:
            await self.unsubscribe(channel, callback)
            raise

    async def _confirmed(self, name: bytes) -> None:
        confirmation = self._confirmations.get(name)
        if confirmation is None:
            confirmation = self._confirmations[name] = asyncio.get_running_loop().create_future()
            await self._send("SUBSCRIBE", name)
        await asyncio.shield(confirmation)

    async def unsubscribe(self, channel: str, callback: Callback) -> None:
        name = channel.encode()
        if self._forget(name, callback):
            await self._send("UNSUBSCRIBE", name)

    async def close(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.cancel()
            await asyncio.wait([reader])
        self._tell_everyone()  # nobody waits for messages that will not come

    def _forget(self, name: bytes, callback: Callback) -> bool:
        callbacks = self._callbacks.get(name, [])
        if callback in callbacks:
            callbacks.remove(callback)
        if callbacks:
            return False
        self._callbacks.pop(name, None)
        return self._confirmations.pop(name, None) is not None

    async def _send(self, verb: str, *names: bytes) -> None:
        connection = self._connection
        if connection is None:  # the reader subscribes to everything when it connects
            return
        # The reader sees the same broken connection, and repairs it.
        with contextlib.suppress(redis.exceptions.RedisError, OSError):
            await heeding_cancellation(connection.send_packed_command(pack((verb, *names)), check_health=False))

    async def _run(self) -> None:
        delay = 0.05
        while True:
            try:
                await self._connect()
                delay = 0.05
                await self._read()
            except (redis.exceptions.RedisError, OSError, FairqueError) as exc:
                logger.warning("lost the connection for messages, retrying: %s", exc)
            finally:
                await self._disconnect()
            await self._pause(delay * (0.5 + random.random()))
            delay = min(2.0, delay * 2)

    async def _pause(self, seconds: float) -> None:
        """Between two tries. A new subscriber is not kept waiting."""
        self._wanted.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._wanted.wait()

    async def _connect(self) -> None:
        await self._connector.ensure_open()
        connection = self._connector.connection()
        try:
            await heeding_cancellation(connection.connect())  # type: ignore[no-untyped-call]
        except asyncio.CancelledError:
            await connection.disconnect(nowait=True)
            raise
        self._connection = connection
        if self._callbacks:
            await self._send("SUBSCRIBE", *self._callbacks)

    def _tell_everyone(self) -> None:
        """Messages may have been missed."""
        for channel in list(self._callbacks):
            self._tell(channel, None)

    def _tell(self, channel: bytes, payload: bytes | None) -> None:
        for callback in list(self._callbacks.get(channel, ())):
            callback(payload)

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.disconnect(nowait=True)

    async def _read(self) -> None:
        connection = self._connection
        assert connection is not None
        while True:
            kind, channel, payload = await connection.read_response(disable_decoding=True, timeout=math.inf)
            if kind == b"message":
                self._tell(channel, payload)
            elif kind == b"subscribe":
                self._confirm(channel)

    def _confirm(self, channel: bytes) -> None:
        """The second time it is after a reconnect: up to this moment messages may have been missed."""
        confirmation = self._confirmations.get(channel)
        if confirmation is None:
            return
        if confirmation.done():
            self._tell(channel, None)
        else:
            confirmation.set_result(None)
