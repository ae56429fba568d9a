"""The fair choice in pure Python, which the scripts are held against.

It knows no Redis and has no clock of its own, every call is told the time. Whatever the scripts decide is decided here
once more, from the rules instead of from their text, and the tests compare both after each step.

The choice is start-time fair queueing (Goyal, Vin, Cheng, "Start-time Fair Queuing", SIGCOMM 1996): each user has a
tag, its virtual start time; the lowest is served, and moves up by cost / weight. While two users both have servable
work, the services S they received obey ``|S_i/w_i - S_j/w_j| <= c_i/w_i + c_j/w_j``, where c is the largest cost of
any task of that user. Groups share by the same rule, and so do the users of one group with each other.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Set
from functools import lru_cache
from types import MappingProxyType
from typing import Generic, NamedTuple, TypeVar
from urllib.parse import quote

from fairque.models import UserGroup

__all__ = ["CREDIT", "HORIZON", "MEAN_OVER", "FairChoice", "Line", "Member", "Party", "SortedSet", "encoded"]

MEAN_OVER = 32
"""Services over which the mean of a line is taken, each new one with this part."""
CREDIT = 4.0
"""Mean services that a member that was held at a cap may be owed when it comes back."""
HORIZON = 8.0
"""Mean services above the lowest tag to which a debt is cut that was not made in turn, when its cause is gone."""
LARGEST_DEBT = 2.0**20
"""Mean services above the lowest tag that late charges may bring a member to, so that tags keep their digits."""

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


@lru_cache(maxsize=65536)
def encoded(user_id: str) -> str:
    """How a user is named in Redis; ties between users are decided by this name."""
    return quote(user_id, safe="")


class Party(NamedTuple):
    """All users of a group, as one member of the line in which users without a group stand as well."""

    name: str


Member = str | Party


def _named(member: Member) -> str:
    return f"@{encoded(member.name)}" if isinstance(member, Party) else encoded(member)


class Line:
    """Members that share with each other by their weights.

    Attributes:
        clock: The virtual time, at which members enter.
        mean: Of what services took members further lately; 0 before the first.
        ready: Members that may be served now, with their tags.
        kept: The tags that members left with.
        capped: Those of `kept` that left because as much of theirs runs as may.
    """

    def __init__(self) -> None:
        self.clock = 0.0
        self.mean = 0.0
        self.capped: set[Member] = set()
        self.ready: SortedSet[Member] = SortedSet(_named)
        self.kept: dict[Member, float] = {}

    def tag(self, member: Member) -> float:
        """Its virtual start time, kept while it has nothing to serve."""
        found = self.ready.scores.get(member)
        return self.kept.get(member, 0.0) if found is None else found

    def join(self, member: Member, share: float) -> None:
        """Its first service takes it this much further. No effect on one that is ready already."""
        if member in self.ready:
            return
        own = self.kept.get(member, 0.0)
        if member in self.capped:
            # Only its cap stood between it and its share: some of what it did not get meanwhile it gets now.
            self.capped.discard(member)
            self.ready.put(member, max(own, self._lowest_tag() - CREDIT * self.mean))
        else:
            self.ready.put(member, max(own, self._entry(share)))

    def _lowest_tag(self) -> float:
        """The clock where nobody is ready."""
        lowest = self.ready.lowest()
        return self.clock if lowest is None else self.ready.scores[lowest]

    def _entry(self, share: float) -> float:
        """The clock, but not below the lowest tag, and at most half a service above it: its own or the mean.

        Less than a whole service, so that nobody is served twice before a newcomer. More than nothing, so that
        newcomers, however many there are, cannot keep the others from becoming the lowest. The mean, so that one with
        a large task, or among those with large weights, does not begin rounds behind the others.
        """
        if not self.ready:
            return self.clock
        tag = self._lowest_tag()
        return max(tag, min(self.clock, tag + (min(share, self.mean) if self.mean else share) / 2))

    def forget(self, member: Member) -> None:
        """What is kept of one that is not ready."""
        self.kept.pop(member, None)
        self.capped.discard(member)

    def leave(self, member: Member, *, is_capped: bool = False) -> None:
        """`is_capped`: it has work that may not run, because as much of it runs as may."""
        self.kept[member] = self.ready.scores[member]
        self.ready.drop(member)
        if is_capped:
            self.capped.add(member)
        if not self.ready:  # what comes next begins where this one ended, as in the paper
            self.clock = max(self.clock, self.kept[member])

    def serve(self, member: Member, cost: float, weight: float) -> None:
        tag, step = self.ready.scores[member], cost / weight
        self.clock = max(self.clock + cost / len(self.ready), tag)
        if step > 0:
            self.mean = self.mean + (step - self.mean) / MEAN_OVER if self.mean else step
        self.ready.put(member, tag + step)

    def move(self, member: Member, by: float) -> None:
        """Whether it is ready or not. It comes to no more than the largest debt above the lowest tag.

        Where nobody is ready, nobody waited for what it used: the clock comes along.
        """
        tag = self.tag(member)
        if by > 0 and self.mean:
            by = max(0.0, min(by, self._lowest_tag() + LARGEST_DEBT * self.mean - tag))
        if member in self.ready:
            self.ready.put(member, tag + by)
        else:
            self.kept[member] = tag + by
        if by > 0 and not self.ready:
            self.clock = max(self.clock, tag + by)

    def rescale(self, member: Member, factor: float) -> None:
        """Its weight changed: how far it is ahead of the lowest is worth so much more, or less, from now on."""
        ahead = self.tag(member) - self._lowest_tag()
        if ahead > 0:
            self._set_tag(member, self._lowest_tag() + ahead * factor)

    def forgive(self, member: Member) -> None:
        """What it was served out of turn is no longer held against it, beyond the horizon."""
        tag = self.tag(member)
        others = (score for other, score in self.ready.scores.items() if other != member)
        self._set_tag(member, min(tag, min(others, default=tag) + HORIZON * self.mean))

    def _set_tag(self, member: Member, tag: float) -> None:
        if member in self.ready:
            self.ready.put(member, tag)
        elif member in self.kept:
            self.kept[member] = tag


class FairChoice:
    """Whose turn it is. Knows users, groups and costs, nothing of tasks.

    Users without a group and whole groups share first, in the line that is meant where no other is named; the users of
    a group then share what it gets, in a line of their own with a clock of its own.

    Attributes:
        line: Of users without a group and of whole groups.
        reserved: Those of the ready users that are served before all others, with their tags.
        groups: The lines of groups.
        default_weight: Of users that have none of their own.
    """

    def __init__(self) -> None:
        self.reserved: SortedSet[str] = SortedSet(encoded)
        self.groups: dict[str, Line] = {}
        self.default_weight = 1.0
        self.line = Line()
        self._weights: dict[Member, float] = {}
        self._group_of: dict[str, str] = {}

    @property
    def clock(self) -> float:
        return self.line.clock

    @clock.setter
    def clock(self, clock: float) -> None:
        self.line.clock = clock

    @property
    def ready(self) -> SortedSet[Member]:
        return self.line.ready

    @property
    def kept(self) -> dict[Member, float]:
        return self.line.kept

    # Weights and groups

    def weight(self, user_id: str) -> float:
        return self._weights.get(user_id, self.default_weight)

    def set_weight(self, user_id: str, weight: float | None) -> None:
        """Holds at once: what the user is ahead of the others is counted by the new weight. None is the default."""
        before = self.weight(user_id)
        self._set(user_id, weight)
        self.line_of(user_id).rescale(user_id, before / self.weight(user_id))
        self._refresh(user_id)

    def group_weight(self, group: str) -> float:
        return self._weights.get(Party(group), 1.0)

    def group_weights(self) -> dict[str, float]:
        """Those that were set."""
        return {member.name: weight for member, weight in self._weights.items() if isinstance(member, Party)}

    def set_group_weight(self, group: str, weight: float | None) -> None:
        before = self.group_weight(group)
        self._set(Party(group), weight)
        self.line.rescale(Party(group), before / self.group_weight(group))

    def _set(self, member: Member, weight: float | None) -> None:
        if weight is None:
            self._weights.pop(member, None)
        else:
            self._weights[member] = weight

    def group(self, user_id: str) -> str | None:
        return self._group_of.get(user_id)

    def set_group(self, user_id: str, group: str | None) -> None:
        """The user leaves the line it stood in, and its tag behind, which belongs to the time of that line."""
        if group == self.group(user_id):
            return
        if self.is_ready(user_id):
            self.leave(user_id)
        self.line_of(user_id).forget(user_id)
        if group is None:
            del self._group_of[user_id]
        else:
            self._group_of[user_id] = group

    def line_of(self, user_id: str) -> Line:
        """Where the user stands."""
        group = self._group_of.get(user_id)
        return self.line if group is None else self.groups.setdefault(group, Line())

    # Who is ready

    def is_ready(self, user_id: str) -> bool:
        return user_id in self.line_of(user_id).ready

    def tag(self, user_id: str) -> float:
        """Its virtual start time in its line, kept while it has nothing to serve."""
        return self.line_of(user_id).tag(user_id)

    def join(self, user_id: str, cost: float = 1.0) -> None:
        """The user has servable work now, its first task costs this much. No effect on one that is ready already."""
        if (group := self.group(user_id)) is not None and not self.is_ready(user_id):
            self.line.join(Party(group), cost / self.group_weight(group))
        self.line_of(user_id).join(user_id, cost / self.weight(user_id))

    def leave(self, user_id: str, *, is_capped: bool = False) -> None:
        """The user has no servable work any more. It gains nothing by coming back: its tag is kept.

        `is_capped`: it has work, and as much of it runs as may.
        """
        line, group = self.line_of(user_id), self.group(user_id)
        line.leave(user_id, is_capped=is_capped)
        self.reserved.drop(user_id)
        if group is not None and not line.ready:
            self.line.leave(Party(group))

    def forgive(self, user_id: str) -> None:
        """What it was served out of turn, by a reservation or a worker of its own, ends to count against it."""
        self.line_of(user_id).forgive(user_id)
        self._refresh(user_id)

    def reserve(self, user_id: str, is_below: bool) -> None:
        """Whether a user that is ready has less than what is reserved for it."""
        if is_below:
            self.reserved.put(user_id, self.tag(user_id))
        else:
            self.reserved.drop(user_id)

    # Services

    def lowest(self, group: UserGroup = (), but: Set[str] = frozenset()) -> str | None:
        """Who is to be served next, of these users or (without any) of all, but for some.

        A reserved user goes first. Of a group its lowest goes.
        """
        if group:
            able = (user_id for user_id in group if user_id not in but and self.is_ready(user_id))
            return min(able, key=self._turn, default=None)
        return next((user_id for user_id in self._in_order() if user_id not in but), None)

    def _in_order(self) -> Iterator[str]:
        yield from self.reserved
        for member in self.line.ready:
            if isinstance(member, Party):
                yield from self._users(self.groups[member.name])
            else:
                yield member

    def _users(self, line: Line) -> Iterator[str]:
        for member in line.ready:
            assert not isinstance(member, Party), "a group in a group"
            yield member

    def _turn(self, user_id: str) -> tuple[object, ...]:
        tag, group = self.tag(user_id), self.group(user_id)
        if user_id in self.reserved:
            return 0, tag, encoded(user_id)
        if group is None:
            return 1, tag, encoded(user_id)
        return 1, self.line.tag(Party(group)), _named(Party(group)), tag, encoded(user_id)

    def serve(self, user_id: str, cost: float) -> None:
        """Charge one service, to the user and to its group."""
        if (group := self.group(user_id)) is not None:
            self.line.serve(Party(group), cost, self.group_weight(group))
        self.line_of(user_id).serve(user_id, cost, self.weight(user_id))
        self._refresh(user_id)

    def adjust(self, user_id: str, cost: float) -> None:
        """A service has cost so much more than what was charged for it, or less."""
        if (group := self.group(user_id)) is not None:
            self.line.move(Party(group), cost / self.group_weight(group))
        self.line_of(user_id).move(user_id, cost / self.weight(user_id))
        self._refresh(user_id)

    def _refresh(self, user_id: str) -> None:
        if user_id in self.reserved:
            self.reserved.put(user_id, self.tag(user_id))
