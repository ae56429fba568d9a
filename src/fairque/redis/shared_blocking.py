"""One connection to each node for a thread, which its requests to all partitions there share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from redis.exceptions import RedisError, ResponseError

from fairque.redis.connector import Connector
from fairque.redis.requester import BlockingRequester
from fairque.redis.url import Address

__all__ = ["BlockingConnections"]


class BlockingConnections:
    """Of one thread. Reconnects by itself."""

    def __init__(self) -> None:
        self._by_address: dict[Address | None, Any] = {}
        self._requesters: dict[Connector, BlockingRequester] = {}

    def requester(self, connector: Connector) -> BlockingRequester:
        """Carries requests to where the connector leads."""
        if connector not in self._requesters:
            self._requesters[connector] = _SharingRequester(connector, self._by_address)
        return self._requesters[connector]

    def ask_together(self, asked: Sequence[tuple[Connector, bytes]]) -> list[Any]:
        """The replies to requests in one message, errors among them: fewer where the connection breaks.

        None at all, and nothing is sent, where there is no connection yet, or where not all lead to the same node.
        """
        addresses = {connector.find_blocking() for connector, _ in asked}
        if len(addresses) != 1 or (connection := self._by_address.pop(address := addresses.pop(), None)) is None:
            return []
        replies: list[Any] = []
        try:
            connection.send_packed_command([command for _, command in asked], check_health=False)
            replies.extend(_reply_of(connection) for _ in asked)  # those before a failure stay
        except (RedisError, OSError):
            connection.disconnect()
        else:
            self._by_address[address] = connection
        return replies

    def close(self) -> None:
        by_address, self._by_address = self._by_address, {}
        self._requesters.clear()
        for connection in by_address.values():
            connection.disconnect()


class _SharingRequester(BlockingRequester):
    def __init__(self, connector: Connector, by_address: dict[Address | None, Any]) -> None:
        super().__init__(connector)
        self._by_address = by_address

    def request(self, command: bytes) -> Any:
        address = self._connector.find_blocking()
        self._connection, self._address = self._by_address.pop(address, None), address
        try:
            return super().request(command)
        finally:
            connection, self._connection = self._connection, None
            if connection is not None and self._by_address.setdefault(self._address, connection) is not connection:
                connection.disconnect()  # it was led to a node to which there is one


def _reply_of(connection: Any) -> Any:
    try:
        return connection.read_response(disable_decoding=True)
    except ResponseError as exc:
        return exc
