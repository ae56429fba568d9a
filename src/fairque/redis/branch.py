"""Where the partitions of a queue are, in a cluster."""

from __future__ import annotations

from fairque.redis.connector import Connector
from fairque.redis.url import Address

__all__ = ["Branch"]


class Branch(Connector):
    """Finds the node of its own slot, and follows that; open and closed with the queue.

    Args:
        root: The connector of the queue.
        key: A key of the partition.
    """

    def __init__(self, root: Connector, key: str) -> None:
        super().__init__(root.url, timeout=root.timeout, client_name=root.client_name, key=key, slots=root.slots)
        self._root = root
        self.home = root.home

    @property
    def is_open(self) -> bool:
        return self._root.is_open

    @property
    def is_closed(self) -> bool:
        return self._root.is_closed

    async def ensure_open(self) -> None:
        await self._root.ensure_open()

    async def _find(self) -> Address | None:
        if self._address is None:
            async with self.slots.asking:
                return await super()._find()
        return self._address
