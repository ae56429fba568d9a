"""The fair choice in pure Python, which the scripts are held against.

It knows no Redis and has no clock of its own, every call is told the time. Whatever the scripts decide is decided here
once more, from the rules instead of from their text, and the tests compare both after each step.

The choice is start-time fair queueing (Goyal, Vin, Cheng, "Start-time Fair Queuing", SIGCOMM 1996): each user has a
tag, its virtual start time; the lowest is served, and moves up by cost / weight. While two users both have servable
work, the services S they received obey ``|S_i/w_i - S_j/w_j| <= c_i/w_i + c_j/w_j``, where c is the largest cost of
any task of that user.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Generic, TypeVar
from urllib.parse import quote

__all__ = ["EVERYONE", "FairChoice", "Group", "SortedSet", "encoded"]

M = TypeVar("M", bound=Hashable)
Group = Sequence[str]  # users served with equal right; empty: everyone
EVERYONE: tuple[Group, ...] = ((),)


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
        """In order."""
        return iter(sorted(self._scores, key=lambda member: (self._scores[member], self._key(member))))


def encoded(user_id: str) -> str:
    """How a user is named in Redis; ties between users are decided by this name."""
    return quote(user_id, safe="")


class FairChoice:
    """Whose turn it is. Knows users and costs, nothing of tasks.

    Attributes:
        clock: The virtual time, at which users enter.
        ready: Users that may be served now, with their tags.
        kept: The tags that users left with.
    """

    def __init__(self) -> None:
        self.clock = 0.0
        self.ready: SortedSet[str] = SortedSet(encoded)
        self.kept: dict[str, float] = {}
        self._weights: dict[str, float] = {}

    def weight(self, user_id: str) -> float:
        return self._weights.get(user_id, 1.0)

    def set_weight(self, user_id: str, weight: float | None) -> None:
        """Holds from the next service on; None is the default of 1."""
        if weight is None:
            self._weights.pop(user_id, None)
        else:
            self._weights[user_id] = weight

    def tag(self, user_id: str) -> float:
        """Its virtual start time, kept while it has nothing to serve."""
        found = self.ready.scores.get(user_id)
        return self.kept.get(user_id, 0.0) if found is None else found

    def join(self, user_id: str, cost: float = 1.0) -> None:
        """The user has servable work now, its first task costs this much. No effect on one that is ready already."""
        if user_id not in self.ready:
            entry = self._entry(cost / self.weight(user_id))
            self.ready.put(user_id, max(self.kept.get(user_id, 0.0), entry))

    def _entry(self, share: float) -> float:
        """The clock, but not below the lowest tag, and at most half an own task above it.

        Less than a whole task, so that nobody is served twice before a newcomer. More than nothing, so that newcomers,
        however many there are, cannot keep the others from becoming the lowest.
        """
        lowest = self.ready.lowest()
        if lowest is None:
            return self.clock
        tag = self.ready.scores[lowest]
        return max(tag, min(self.clock, tag + share / 2))

    def leave(self, user_id: str) -> None:
        """The user has no servable work any more. It gains nothing by coming back: its tag is kept."""
        self.kept[user_id] = self.ready.scores[user_id]
        self.ready.drop(user_id)

    def lowest(self, group: Group = ()) -> str | None:
        """Who is to be served next, of these users or (without any) of all."""
        if not group:
            return self.ready.lowest()
        ready = [user_id for user_id in group if user_id in self.ready]
        return min(ready, key=lambda user_id: (self.tag(user_id), encoded(user_id)), default=None)

    def serve(self, user_id: str, cost: float) -> None:
        """Charge one service."""
        tag = self.ready.scores[user_id]
        self.clock = max(self.clock + cost / len(self.ready), tag)
        self.ready.put(user_id, tag + cost / self.weight(user_id))
