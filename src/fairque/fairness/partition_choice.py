"""`PartitionChoice`: which partition a worker with free slots claims from. Without Redis, and without a clock.

Virtual times of all partitions mean the same: what a user had for its weight. So the partition to serve is the one
whose next user stands lowest. A worker looks at a few partitions, takes the lowest of them, and stops where another one
has its turn: what a claim finds is fair to the users of the others as well.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable
from typing import NamedTuple

from fairque.fairness.line import CREDIT

__all__ = ["Chosen", "PartitionChoice", "Sight"]

LAGGING, DRAWN = 2, 2
"""Partitions with work that are looked at before a claim: those that were furthest behind, and some at random."""
OTHERS = 20.0
"""Looks a second that each other partition gets, from all workers together."""
FRESH = 0.005
"""Seconds for which what was seen need not be looked at again."""
SLACK, MOST_SLACK = 2.0, 8.0
"""Services of the whole queue, for each that is wanted, by which a claim may be ahead of other partitions: where many
have work, so many that it brings half of what is wanted, up to the second."""
TRUCE, LONGEST_TRUCE = 0.25, 5.0
"""Seconds for which a partition that did not answer is left alone; doubled each time, up to the second."""


def _is_never(partition: int) -> bool:  # noqa: ARG001
    return False


class Sight(NamedTuple):
    """What a partition tells of itself with each look and each claim, in virtual times of the queue."""

    head: float | None
    """Where its next user stands: the lowest tag. None: nobody is ready. Minus infinity: somebody goes before all."""
    time: float = 0.0
    """The virtual time of the queue as it is known there."""
    mean: float = 0.0
    """How far a service takes a tag, lately."""
    ready: int = 0
    """Users and groups that may be served now."""
    workers: int = 1
    """Workers that serve it."""
    passed: float = 0.0
    """How far its own virtual time has gone, by what was served there."""


class Chosen(NamedTuple):
    """Where to claim."""

    partition: int
    until: float | None
    """Serve users whose tag is at most this, then stop. None: no other partition is known to have work."""
    latest: float
    """The virtual time of the queue, as far as is known: who came since the last claim starts from there."""
    floor: float
    """A partition whose users were not served for long, as it was away, goes on from there at least."""


class PartitionChoice:
    """What one worker knows of the partitions of a queue.

    A partition whose next user is not ahead of the virtual time is *due*: whoever was seen there last, one of its users
    is among the next of the queue. Partitions that are not due are looked at in turn, as somebody may have come.

    Args:
        count: Partitions, named by their numbers.
        random: Draws those that are looked at.
    """

    def __init__(self, count: int, random: random.Random) -> None:
        self._random = random
        self._heads = [math.inf] * count  # infinite: no work is known
        self._passed = 0.0  # of all partitions: how far own virtual times have gone
        self._busy = 0  # how many have work
        self._lags = [-math.inf] * count  # how far each was behind the virtual time when it was seen
        self._means = [0.0] * count
        self._ready = [0] * count
        self._rates = [0.0] * count  # services by which virtual time moves by one; infinite: not known yet
        self._seen_at = [-math.inf] * count
        self._time = 0.0
        self._workers = [1] * count
        self._turns = random.sample(range(count), count)  # in which those that are not due are looked at
        self._turn = 0
        self._turned_at: float | None = None
        self._asked: dict[int, None] = {}
        self._told: dict[int, None] = {}
        self._truces: dict[int, tuple[float, float]] = {}  # until when, and how long

    def saw(self, partition: int, sight: Sight, now: float) -> None:
        """A look or a claim was answered. `now`: seconds, monotonic."""
        self._truces.pop(partition, None)
        self._time = max(self._time, sight.time)
        self._workers[partition] = sight.workers
        self._seen_at[partition] = now
        self._note(partition, sight)
        self._passed = max(self._passed, sight.passed)
        if sight.head is None and min(self._heads) == math.inf and min(self._seen_at) > -math.inf:
            # Nobody waits anywhere: nobody is owed anything, and who was served alone owes nobody.
            self._time = max(self._time, self._passed)

    @property
    def workers(self) -> int:
        """How many serve the queue, as its partitions told last."""
        return max(self._workers)

    def told(self, partition: int) -> None:
        """A message says that it has work: it is looked at next."""
        self._told[partition] = None
        self._seen_at[partition] = -math.inf

    def failed(self, partition: int, now: float) -> None:
        """It did not answer: it is left out until a truce is over, then looked at again."""
        _, last = self._truces.get(partition, (0.0, TRUCE / 2))
        truce = min(LONGEST_TRUCE, last * 2)
        self._truces[partition] = now + truce, truce
        self._seen_at[partition] = now
        self._note(partition, Sight(None))

    def to_look(self, now: float) -> list[int]:
        """Partitions that are to be looked at before the next `choose`. The first time all."""
        self._asked = {}
        if self._turned_at is None:
            self._turned_at = now
            self._asked = dict.fromkeys(self._turns)
        else:
            self._asked = dict.fromkeys([*self._candidates(), *self._told, *self._others(now)])
        self._told.clear()
        return [at for at in self._asked if now - self._seen_at[at] >= FRESH]

    def choose(self, now: float, want: int = 1, is_busy: Callable[[int], bool] = _is_never) -> Chosen | None:
        """Where to claim so many tasks. None: no partition is known to have work, other than those that are busy."""
        head, partition = min(((self._heads[at], at) for at in self._asked if not is_busy(at)), default=(math.inf, 0))
        if head > self._time + self.slack(want) + self._usual_mean():
            due = [at for at in self._due() if at not in self._asked and not is_busy(at)]
            if due:  # nobody has a turn where it was looked; the claim itself looks elsewhere
                return self.beside(self._random.choice(due), now, want)
        if head == math.inf:
            return None
        self._time = max(self._time, head)  # only here: what a claim serves beyond it is no measure for others
        return self._chosen(partition, self._next_elsewhere(partition), want, head)

    def beside(self, partition: int, now: float, want: int = 1) -> Chosen:  # noqa: ARG002
        """How far a claim goes in a partition that was not chosen: no further than where the others stand by now."""
        others = min((head for at, head in enumerate(self._heads) if at != partition), default=math.inf)
        return self._chosen(partition, max(others, self._time), want)

    def _chosen(self, partition: int, elsewhere: float, want: int, head: float = -math.inf) -> Chosen:
        until = None if elsewhere == math.inf else max(head, elsewhere + self.slack(want))
        return Chosen(partition, until, self._time, self._time - CREDIT * max(self._means))

    def knows_work(self, partition: int) -> bool:
        """Whether somebody was ready there when it told last."""
        return self._heads[partition] < math.inf

    def has_turn(self, partition: int, chosen: Chosen) -> bool:
        """Whether such a claim there may find somebody, by what is known."""
        return not self.knows_work(partition) or chosen.until is None or self._heads[partition] <= chosen.until

    def _candidates(self) -> list[int]:
        """Those due that were furthest behind, and some of the others. Where few are due, those that are next."""
        due = self._due()
        if len(due) <= LAGGING + DRAWN:
            nearest = heapq.nsmallest(LAGGING + DRAWN, range(len(self._heads)), key=self._heads.__getitem__)
            return [at for at in nearest if self._heads[at] < math.inf]
        lagging = heapq.nlargest(LAGGING, due, key=self._lags.__getitem__)
        return [*lagging, *self._random.sample([at for at in due if at not in lagging], DRAWN)]

    def _due(self) -> list[int]:
        return [at for at, head in enumerate(self._heads) if head <= self._time]

    def _others(self, now: float) -> list[int]:
        """Some of those that are not due: all workers together look at each so many times a second."""
        count, since = len(self._turns), now - (self._turned_at or 0.0)
        most = min(count, max(1, round(since * count * OTHERS / max(self._workers))))
        self._turned_at = now
        found: list[int] = []
        for _ in range(count):
            self._turn = (self._turn + 1) % count
            at = self._turns[self._turn]
            if self._heads[at] > self._time and not self._is_left_alone(at, now):
                found.append(at)
                if len(found) == most:
                    break
        return found

    def _is_left_alone(self, partition: int, now: float) -> bool:
        return partition in self._truces and now < self._truces[partition][0]

    def _next_elsewhere(self, partition: int) -> float:
        """When another partition has its turn: by what was just seen of it; of others that are due, now."""
        asked = (self._heads[at] for at in self._asked if at != partition and self._heads[at] > -math.inf)
        unasked = min((head for at, head in enumerate(self._heads) if at not in self._asked), default=math.inf)
        return min([max(unasked, self._time), *asked])

    def _usual_mean(self) -> float:
        """How far a service takes a tag: the harmonic mean over all users, in which heavy ones count little."""
        rate = sum(self._rates)
        return sum(self._ready) / rate if rate > 0 else 0.0

    def slack(self, want: int) -> float:
        """How far virtual time moves by so many services of the whole queue."""
        rate, spread = sum(self._rates), min(MOST_SLACK, max(SLACK, self._busy / 2))
        return spread * want / rate if rate > 0 else 0.0

    def _note(self, partition: int, sight: Sight) -> None:
        self._busy += (sight.head is not None) - self.knows_work(partition)
        self._heads[partition] = math.inf if sight.head is None else sight.head
        self._means[partition] = sight.mean
        self._ready[partition] = 0 if sight.head is None else sight.ready
        self._rates[partition] = _rate(sight)
        self._lags[partition] = self._time - self._heads[partition]


def _rate(sight: Sight) -> float:
    if sight.head is None:
        return 0.0
    return sight.ready / sight.mean if sight.mean > 0 else math.inf
