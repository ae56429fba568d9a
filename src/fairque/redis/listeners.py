"""`Listeners`: messages of all partitions, by one connection to each node."""

from __future__ import annotations

from fairque.redis.backend import Backend
from fairque.redis.listener import Listener
from fairque.redis.url import Address

__all__ = ["Listeners"]


class Listeners:
    """A node tells who publishes how many it has told itself: so whoever waits for work listens at the node where that
    is put in. Messages reach every node, so those of a partition that has moved are heard all the same.

    Args:
        root: That of the queue. On one server it serves all; in a cluster it is at whichever node answers.
        backend: Of the queue.
    """

    def __init__(self, root: Listener, backend: Backend) -> None:
        self._root = root
        self._backend = backend
        self._by_address: dict[Address | None, Listener] = {}

    async def of(self, backend: Backend) -> Listener:
        """Raises `QueueUnavailable` when it is not known where that partition is."""
        if backend.connector is self._backend.connector:
            return self._root
        address = await backend.connector.find()
        return self._by_address.setdefault(address, Listener(backend.connector))

    async def close(self) -> None:
        for listener in self._by_address.values():
            await listener.close()
