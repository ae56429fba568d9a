"""`Source`: what handles need of their queue."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

from fairque.queue.looks import Looks, Sight
from fairque.queue.moves import Moves
from fairque.redis.keys import Keys, encode_user
from fairque.redis.listener import Listener
from fairque.redis.store import Store

__all__ = ["Source"]


class Source:
    """Where tasks are looked at, and who tells of them."""

    __slots__ = ("_looks", "_looks_apart", "listener", "moves", "store")

    def __init__(self, store: Store, listener: Listener) -> None:
        self.store = store
        self.listener = listener
        home = store.backend.connector.home
        self.moves = Moves(listener, home)
        self._looks = Looks(store, home)
        self._looks_apart: dict[str, Looks] = {}

    def look(self, user_id: str, task_id: str) -> Coroutine[Any, Any, Sight]:
        """Where a task stands; see `Looks`."""
        if self.store.backend.is_plain:
            return self._looks.look(user_id, task_id)
        return self._look_apart(user_id, task_id)

    async def _look_apart(self, user_id: str, task_id: str) -> Sight:
        """Each partition by itself: one that does not answer keeps nobody waiting who asks another."""
        await self.store.agree(store=False)
        return await self.store.following(lambda: self._look_there(user_id, task_id))

    async def _look_there(self, user_id: str, task_id: str) -> Sight:
        keys = self.store.keys_of(encode_user(user_id))
        looks = self._looks_apart.get(keys.prefix)
        if looks is None:
            part = self.store.part_of(encode_user(user_id))
            looks = self._looks_apart[keys.prefix] = Looks(part, part.backend.connector.home)
        return await looks.look(user_id, task_id)

    async def keys_of(self, user_id: str) -> Keys:
        """Names of keys and channels of what a user has."""
        await self.store.agree(store=False)
        return self.store.keys_of(encode_user(user_id))
