"""`Source`: what handles need of their queue."""

from __future__ import annotations

from fairque.queue.looks import Looks
from fairque.redis.listener import Listener
from fairque.redis.store import Store

__all__ = ["Source"]


class Source:
    """Where tasks are looked at, and who tells of them."""

    __slots__ = ("listener", "looks", "store")

    def __init__(self, store: Store, listener: Listener) -> None:
        self.store = store
        self.listener = listener
        self.looks = Looks(store, store.backend.connector.home)
