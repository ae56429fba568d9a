"""`Changes`: something may have happened to a task."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from typing import Self

from fairque.queue.source import Source
from fairque.queue.waiter import waiter
from fairque.redis.keys import Keys, encode_user

__all__ = ["Changes"]

FIRST_LOOK_SECONDS, LONGEST_LOOK_SECONDS = 5.0, 60.0


class Changes:
    """Waits until something is told of a task, or an outage is over; and now and then without either: a message may be
    lost, and a queue may be emptied without one.

    A class, not a generator: the end of the loop closes the generators of a program in no order, and `watch` is one.
    """

    __slots__ = (
        "_began",
        "_callbacks",
        "_changed",
        "_is_changed",
        "_keys",
        "_listener",
        "_loop",
        "_pause",
        "_source",
        "_user_id",
        "_waiter",
        "_whom",
        "record",
    )

    def __init__(self, source: Source, user_id: str, task_id: str) -> None:
        self.record = b""
        """Of the end of the task, once it was told with the message of that."""
        self._is_changed = False
        self._source, self._listener = source, source.listener
        self._user_id, self._whom = user_id, task_id
        self._began = 0.0
        self._callbacks: dict[str, Callable[[bytes | None], None]] = {}
        self._keys: Keys | None = None
        self._loop = asyncio.get_running_loop()
        self._changed: asyncio.Future[None] | None = None
        self._pause = FIRST_LOOK_SECONDS
        self._waiter = waiter.get()

    async def wait(self) -> None:
        """For whatever comes after the last one. What is looked at next is newer."""
        if not self._is_changed:
            await self._sleep()
        self._is_changed = False
        self._pause = min(2 * self._pause, LONGEST_LOOK_SECONDS)

    async def _sleep(self) -> None:
        """Until it is woken. Where the user has moved, messages come from elsewhere: what came before them is to be
        looked for.
        """
        if self._has_moved:
            await self._leave()
            await self._join()
            self._is_changed = True
            return
        changed = self._changed = self._loop.create_future()
        timer = self._loop.call_later(self._pause * random.uniform(0.75, 1), self._change)
        try:
            await changed
        finally:
            timer.cancel()

    def channels(self, keys: Keys) -> dict[str, Callable[[bytes | None], None]]:
        """What is to be heard, and who hears it."""
        return {keys.done_channel(self._user_id, self._whom): self._on_message}

    @property
    def _has_moved(self) -> bool:
        store = self._source.store
        return not store.backend.is_plain and store.keys_of(encode_user(self._user_id)) is not self._keys

    async def _join(self) -> None:
        store = self._source.store
        keys = self._keys = store.keys if store.backend.is_plain else await self._source.keys_of(self._user_id)
        self._callbacks = self.channels(keys)
        if store.backend.is_partitioned:
            await self._source.moves.join(self._user_id, keys, store.places, self._change)
        for channel, callback in self._callbacks.items():
            await self._listener.subscribe(channel, callback, self._user_id)

    async def __aenter__(self) -> Self:
        try:
            await self._join()
        except BaseException:
            await self._leave()
            raise
        if self._waiter is not None:
            self._waiter.waits += 1
            self._began = time.monotonic()
        return self

    async def __aexit__(self, *error: object) -> None:
        if self._waiter is not None:
            self._waiter.waits -= 1
            self._waiter.has_waited(self._whom, time.monotonic() - self._began)
        await self._leave()

    async def _leave(self) -> None:
        self._source.moves.leave(self._user_id, self._change)
        for channel, callback in self._callbacks.items():
            await self._listener.unsubscribe(channel, callback)

    def _on_message(self, payload: bytes | None) -> None:
        if payload is not None and payload.startswith(b"="):
            self.record = payload[1:]
        self._change()

    def _change(self) -> None:
        self._is_changed = True
        self._wake()

    def _wake(self) -> None:
        if self._changed is not None and not self._changed.done():
            self._changed.set_result(None)
