"""Finds the node of a cluster that has a queue: all keys of a queue are in one slot."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from redis.crc import key_slot
from redis.exceptions import AuthenticationError, ResponseError

from fairque.redis.lookup import Lookup, Question, first, last
from fairque.redis.reason import in_words
from fairque.redis.url import Address, ServerUrl

__all__ = ["Cluster", "SlotMap"]


class SlotMap:
    """Who had which slot when a node was asked last: one answer serves all partitions of a queue.

    Threads read it as well, so what it holds is replaced, never changed.

    Attributes:
        asking: Held by who asks on the event loop: what is learned spares the others their question.
    """

    def __init__(self) -> None:
        self._ranges: tuple[tuple[int, int, Address], ...] = ()
        self.asking = asyncio.Lock()

    def abandon(self) -> None:
        """Who holds the lock is on a loop that does not run any more."""
        self.asking = asyncio.Lock()

    def owner(self, slot: int) -> Address | None:
        """None: somebody is to be asked."""
        return next((owner for start, end, owner in self._ranges if start <= slot <= end), None)

    def learn(self, ranges: Iterable[tuple[int, int, Address]]) -> None:
        self._ranges = tuple(ranges)

    def forget(self, owner: Address | None) -> None:
        """It is gone, or not the right one for some slot: of all that it had somebody is to be asked."""
        self._ranges = tuple(each for each in self._ranges if each[2] != owner)


class Cluster:
    """Any node knows who has which slot; those of the URL are where to begin, the others are learned.

    Args:
        url: Its hosts are nodes of the cluster.
        key: A key of the queue.
        slots: Shared with other keys of the same cluster.
    """

    def __init__(self, url: ServerUrl, key: str, slots: SlotMap) -> None:
        self._url = url
        self._slot = key_slot(key.encode())
        self._slots = slots
        self._nodes = list(url.hosts)

    def lookup(self) -> Lookup:
        if (owner := self._slots.owner(self._slot)) is not None:
            return owner
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
            self._slots.learn((start, end, _address(master, node)) for start, end, master, *_ in answer)
            if (owner := self._slots.owner(self._slot)) is not None:
                return owner
            problems.append(f"node {node} knows nobody who has slot {self._slot}")
            lasting = False
        raise (ResponseError if lasting else ConnectionError)("; ".join(problems))

    def doubt(self) -> None:
        """Who named the address may be cut off from the others: ask somebody else next time."""
        self._nodes = last(self._nodes, self._nodes[0])
        self._slots.forget(self._slots.owner(self._slot))

    def _learn(self, node: Address, ranges: Iterable[list[Any]]) -> None:
        found = [_address(each, node) for _, _, *nodes in ranges for each in nodes]
        self._nodes = first([*dict.fromkeys([*found, *self._url.hosts])], node)


def _address(described: list[Any], asked: Address) -> Address:
    """A node that does not know its own name is where it was asked."""
    host = (described[0] or b"?").decode()
    return Address(asked.host if host == "?" else host, described[1])
