"""One connection to each node, which the requests of all partitions there share."""

from __future__ import annotations

import asyncio
import time
from copy import copy

from fairque.backoff import Backoff
from fairque.errors import FairqueError, QueueUnavailable, StoreError
from fairque.redis.connection import Connection
from fairque.redis.connector import Connector
from fairque.redis.home import Home
from fairque.redis.requester import LEAST_TRIES, LONGEST_PAUSE, Requester
from fairque.redis.url import Address

__all__ = ["NodeConnections", "PartitionRequester"]


class _Node:
    """The connection to one, and what came of the last try to make it."""

    def __init__(self) -> None:
        self.connecting = asyncio.Lock()
        self.connection: Connection | None = None
        self.backoff = Backoff()
        self.refusal: FairqueError | None = None
        self.connect_at = 0.0


class NodeConnections:
    """Of one kind of use, such as claims. Reconnects by itself.

    Args:
        home: Where they are bound to.
    """

    def __init__(self, home: Home) -> None:
        self._nodes: dict[Address | None, _Node] = {}
        home.add(self)

    async def to(self, address: Address | None, connector: Connector) -> Connection:
        """The one to this address, made by the connector where there is none. Raises what `Connector.connect` does."""
        node = self._nodes.setdefault(address, _Node())
        if node.refusal is not None and node.connecting.locked():  # a try after one that failed: nobody waits for it
            connector.left(address)
            raise copy(node.refusal)
        async with node.connecting:
            if node.connection is None or node.connection.error is not None:
                node.connection = await self._connect(node, address, connector)
            return node.connection

    async def _connect(self, node: _Node, address: Address | None, connector: Connector) -> Connection:
        """Until the next try is due, all who ask are told what came of the last one: they may be many."""
        if node.refusal is not None and time.monotonic() < node.connect_at:
            connector.left(address)
            raise copy(node.refusal)
        try:
            made = await connector.connect_to(address)
        except (QueueUnavailable, StoreError) as exc:
            node.refusal = exc.with_traceback(None)
            longest = min(LONGEST_PAUSE, connector.timeout / LEAST_TRIES)
            node.connect_at = time.monotonic() + node.backoff.next(longest)
            raise copy(exc) from exc.__cause__
        node.refusal = None
        node.backoff.reset()
        return Connection(made, address, connector.timeout / 2, gathers=True)

    async def close(self) -> None:
        """Waits for the requests that are under way."""
        nodes, self._nodes = self._nodes, {}
        await asyncio.gather(*(node.connection.retired() for node in nodes.values() if node.connection is not None))

    def abandon(self) -> None:
        nodes, self._nodes = self._nodes, {}
        for node in nodes.values():
            if node.connection is not None:
                node.connection.abandon()


class PartitionRequester(Requester):
    """Carries the requests of one partition, over connections that it shares."""

    def __init__(self, connector: Connector, connections: NodeConnections) -> None:
        super().__init__(connector)
        self._connections = connections

    async def _connect(self) -> Connection:
        return await self._connections.to(await self._connector.find(), self._connector)

    def _leave(self, connection: Connection) -> None:
        """That the partition has moved says nothing of the others at that node."""
        if self._connection is connection:
            self._connection = None

    async def close(self) -> None:
        """The connections are closed by whose they are."""
        self._connection = None

    def abandon(self) -> None:
        self._connection = None
        self._connecting = asyncio.Lock()
