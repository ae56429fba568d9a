"""`PartitionChoice`: which partition a worker with free slots claims from. Without Redis, and without a clock.

Virtual times of all partitions mean the same: what a user had for its weight. So the partition to serve is the one
whose next user stands lowest. A worker looks at a few partitions that are known to have work, takes the lowest of
them, and stops where the next of them stands: what a claim finds is fair to the users of the others as well.
"""

from __future__ import annotations

import random
from collections.abc import Container
from typing import NamedTuple

from fairque.fairness.line import HORIZON

__all__ = ["Chosen", "PartitionChoice", "Sight"]

LOOKS = 4
"""Partitions with work among which a claim chooses."""
OTHERS = 1
"""Partitions without known work that are looked at beside them: in turn, so that each is looked at."""
TRUCE, LONGEST_TRUCE = 0.25, 5.0
"""Seconds for which a partition that did not answer is left alone; doubled each time, up to the second."""


class Sight(NamedTuple):
    """What a partition tells of itself with each look and each claim, in virtual times of the queue."""

    head: float | None
    """Where its next user stands: the lowest tag. None: nobody is ready."""
    served: float = 0.0
    """The highest tag at which it has served somebody."""
    mean: float = 0.0
    """How far a service takes a tag, lately."""
    ready: int = 0
    """Users and groups that may be served now."""


class Chosen(NamedTuple):
    partition: int
    until: float | None
    """Serve users whose tag is at most this, then stop. None: no other partition is known to have work."""
    latest: float
    """The virtual time of the queue, as far as is known: a partition that stood empty starts from there."""
    floor: float
    """A partition whose users were not served for long, as it was away, goes on from there at least."""


class PartitionChoice:
    """What one worker knows of the partitions of a queue.

    Args:
        count: Partitions, named by their numbers.
        random: Draws those that are looked at.
    """

    def __init__(self, count: int, random: random.Random) -> None:
        self._random = random
        self._sights: list[Sight] = [Sight(None)] * count
        self._working: list[int] = []  # known to have work
        self._places: dict[int, int] = {}  # where each of them stands in that list
        self._turns = random.sample(range(count), count)  # in which the others are looked at
        self._turn = 0
        self._looked_at: list[int] = []
        self._found: list[int] = []
        self._truces: dict[int, tuple[float, float]] = {}  # until when, and how long
        self._latest = 0.0
        self._mean = 0.0

    def saw(self, partition: int, sight: Sight, now: float) -> None:  # noqa: ARG002
        """A look or a claim was answered. `now`: seconds, monotonic."""
        self._truces.pop(partition, None)
        self._sights[partition] = sight
        self._latest = max(self._latest, sight.served)
        if sight.head is None:
            self._drop(partition)
        else:
            self._add(partition)

    def failed(self, partition: int, now: float) -> None:
        """It did not answer: it is left out until a truce is over, then looked at again."""
        _, last = self._truces.get(partition, (0.0, TRUCE / 2))
        truce = min(LONGEST_TRUCE, last * 2)
        self._truces[partition] = now + truce, truce
        self._drop(partition)

    def to_look(self, now: float) -> list[int]:
        """Partitions that are to be looked at before the next `choose`."""
        self._looked_at = self._random.sample(self._working, min(LOOKS, len(self._working)))
        return self._looked_at + self._others(now)

    def choose(self, now: float, want: int = 1, but: Container[int] = ()) -> Chosen | None:  # noqa: ARG002
        """Where to claim so many tasks. None: no partition is known to have work, other than some."""
        looked_at = (at for at in self._working if at in self._looked_at or at in self._found)
        known = sorted((self._head(at), at) for at in looked_at if at not in but)
        if not known:
            return None
        partition = known[0][1]
        until = known[1][0] + self._slack(want) if len(known) > 1 else None
        mean = max(self._sights[at].mean for _, at in known)
        return Chosen(partition, until, self._latest, self._latest - HORIZON * mean)

    def beside(self, partition: int, now: float, want: int = 1) -> Chosen:  # noqa: ARG002
        """How far a claim goes in a partition that was not chosen: no further than where the others stand."""
        others = [at for at in self._working if at != partition]
        until = min(map(self._head, others)) + self._slack(want) if others else None
        mean = max((self._sights[at].mean for at in self._working), default=0.0)
        return Chosen(partition, until, self._latest, self._latest - HORIZON * mean)

    def knows_work(self, partition: int) -> bool:
        """Whether somebody was ready there when it told last."""
        return partition in self._places

    def has_turn(self, partition: int, chosen: Chosen) -> bool:
        """Whether such a claim there may find somebody, by what is known."""
        head = self._sights[partition].head
        return head is None or chosen.until is None or head <= chosen.until

    def _head(self, partition: int) -> float:
        head = self._sights[partition].head
        assert head is not None
        return head

    def _slack(self, want: int) -> float:
        """How far virtual time moves by so many services of the whole queue; at least by one of a user."""
        rate = sum(sight.ready / sight.mean for sight in self._sights if sight.head is not None and sight.mean > 0)
        least = max((self._sights[at].mean for at in self._working), default=0.0)
        return max(least, want / rate if rate > 0 else 0.0)

    def _others(self, now: float) -> list[int]:
        found: list[int] = []
        for _ in self._turns:
            if len(found) == OTHERS:
                break
            self._turn = (self._turn + 1) % len(self._turns)
            other = self._turns[self._turn]
            if other not in self._places and self._truces.get(other, (0.0, 0.0))[0] <= now:
                found.append(other)
        self._found = found
        return found

    def _add(self, partition: int) -> None:
        if partition not in self._places:
            self._places[partition] = len(self._working)
            self._working.append(partition)

    def _drop(self, partition: int) -> None:
        place = self._places.pop(partition, None)
        if place is None:
            return
        last = self._working.pop()
        if last != partition:
            self._working[place] = last
            self._places[last] = place
