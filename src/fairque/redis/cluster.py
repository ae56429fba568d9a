"""Finds the node of a cluster that has a queue: all keys of a queue are in one slot."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from redis.crc import key_slot
from redis.exceptions import AuthenticationError, ResponseError

from fairque.redis.lookup import Lookup, Question, first, last
from fairque.redis.reason import in_words
from fairque.redis.url import Address, ServerUrl

__all__ = ["Cluster"]


class Cluster:
    """Any node knows who has which slot; those of the URL are where to begin, the others are learned.

    Args:
        url: Its hosts are nodes of the cluster.
        key: A key of the queue.
    """

    def __init__(self, url: ServerUrl, key: str) -> None:
        self._url = url
        self._slot = key_slot(key.encode())
        self._nodes = list(url.hosts)

    def lookup(self) -> Lookup:
        problems: list[str] = []
        lasting = True
        for node in self._nodes:
            self._nodes = last(self._nodes, node)  # stays there when this search is broken off
            answer = yield Question(self._url.server(node), ("CLUSTER", "SLOTS"))
            if isinstance(answer, Exception):
                problems.append(f"node {node}: {in_words(answer)}")
                lasting &= isinstance(answer, (AuthenticationError, ResponseError))
                continue
            self._learn(node, answer)
            for start, end, master, *_ in answer:
                if start <= self._slot <= end:
                    return _address(master, node)
            problems.append(f"node {node} knows nobody who has slot {self._slot}")
            lasting = False
        raise (ResponseError if lasting else ConnectionError)("; ".join(problems))

    def doubt(self) -> None:
        """Who named the address may be cut off from the others: ask somebody else next time."""
        self._nodes = last(self._nodes, self._nodes[0])

    def _learn(self, node: Address, ranges: Iterable[list[Any]]) -> None:
        found = [_address(each, node) for _, _, *nodes in ranges for each in nodes]
        self._nodes = first([*dict.fromkeys([*found, *self._url.hosts])], node)


def _address(described: list[Any], asked: Address) -> Address:
    """A node that does not know its own name is where it was asked."""
    host = (described[0] or b"?").decode()
    return Address(asked.host if host == "?" else host, described[1])
