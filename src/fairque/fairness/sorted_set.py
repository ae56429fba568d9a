"""A sorted set, as Redis has them: members by their scores, those with equal scores by the bytes of their names."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Hashable, Iterator, Mapping
from types import MappingProxyType
from typing import Generic, TypeVar

__all__ = ["SortedSet"]

M = TypeVar("M", bound=Hashable)


class SortedSet(Generic[M]):
    """Members by score, those with equal scores by their bytes, as a sorted set in Redis has them.

    A change costs O(log n), the lowest O(1) amortized: outdated entries of the heap are dropped when they come up.

    Args:
        key: The name under which Redis knows a member.
    """

    def __init__(self, key: Callable[[M], str]) -> None:
        self._key = key
        self._scores: dict[M, float] = {}
        self._heap: list[tuple[float, str, M]] = []

    @property
    def scores(self) -> Mapping[M, float]:
        return MappingProxyType(self._scores)

    def __len__(self) -> int:
        return len(self._scores)

    def __contains__(self, member: M) -> bool:
        return member in self._scores

    def put(self, member: M, score: float) -> None:
        if self._scores.get(member) != score:
            self._scores[member] = score
            heapq.heappush(self._heap, (score, self._key(member), member))

    def drop(self, member: M) -> None:
        self._scores.pop(member, None)

    def lowest(self) -> M | None:
        heap = self._heap
        while heap and self._scores.get(heap[0][2]) != heap[0][0]:
            heapq.heappop(heap)
        return heap[0][2] if heap else None

    def lowest_score(self) -> float:
        """Infinite while the set is empty."""
        member = self.lowest()
        return math.inf if member is None else self._scores[member]

    def pop(self) -> tuple[M, float]:
        member = self.lowest()
        if member is None:
            raise KeyError("the set is empty")
        return member, self._scores.pop(member)

    def up_to(self, score: float, limit: int) -> list[M]:
        """The lowest members, at most `limit`, with at most this score."""
        found: list[tuple[M, float]] = []
        while len(found) < limit and (member := self.lowest()) is not None and self._scores[member] <= score:
            found.append(self.pop())
        for member, old in found:
            self.put(member, old)
        return [member for member, _ in found]

    def __iter__(self) -> Iterator[M]:
        """In order. The first one is found without sorting."""
        if (first := self.lowest()) is not None:
            yield first
            yield from sorted(self._scores, key=lambda member: (self._scores[member], self._key(member)))[1:]
