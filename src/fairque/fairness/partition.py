"""The fair choice of one partition, in the virtual time of a queue that has several."""

from __future__ import annotations

import math

from fairque.fairness.choice import FairChoice
from fairque.fairness.partition_choice import Chosen, Sight

__all__ = ["Partition"]


class Partition:
    """What the scripts do for `PartitionChoice`: a claim brings what its worker has seen elsewhere.

    Tags and clock of the partition are its own. A time of its own plus `offset` is one of the queue.

    Attributes:
        choice: Users of this partition.
        offset: It grows when the partition was away while its users waited: all of them are brought forward by it.
        low: The lowest tag when the last claim had been served. None: nobody was ready.
    """

    def __init__(self) -> None:
        self.choice = FairChoice()
        self.choice.line.elsewhere = 0.0
        self.offset = 0.0
        self.low: float | None = None
        self._lift_below = self._entered_at = 0.0
        self._lifted: set[str] = set()

    @property
    def time(self) -> float:
        """Of the queue, in that of the partition: the latest that a claim has told."""
        assert self.choice.line.elsewhere is not None
        return self.choice.line.elsewhere

    def sight(self) -> Sight:
        line = self.choice.line
        if self.choice.reserved:
            head: float | None = -math.inf
        else:
            low = line.lowest_tag()
            head = None if low is None else low + self.offset
        return Sight(head, self.time + self.offset, line.mean, len(line.ready), passed=line.clock + self.offset)

    def begin(self, chosen: Chosen) -> None:
        """A claim. What was missed while the partition was away is not made up for, beyond a horizon."""
        line = self.choice.line
        if self.low is not None:
            self.offset += max(0.0, chosen.floor - self.offset - self.low)
        self._entered_at = self.time
        line.elsewhere = max(self.time, chosen.latest - self.offset)
        self._lift_below = line.elsewhere if self.low is None else min(line.elsewhere, self.low)

    def next_user(self, until: float | None) -> str | None:
        """Who is served next, if it is not the turn of another partition."""
        line = self.choice.line
        if self.choice.reserved:
            return self.choice.lowest()
        while (member := line.ready.lowest()) is not None:
            tag = line.ready.scores[member]
            if tag < self._lift_below and member not in self._lifted:
                self._lift(member, tag)
            elif until is None or tag + self.offset <= until + 1e-9:
                return self.choice.lowest()
            else:
                break
        return None

    def _lift(self, member: str, tag: float) -> None:
        """It came since the last claim, at a time that has passed elsewhere: it moves to where it would have come."""
        line = self.choice.line
        self._lifted.add(member)
        line.ready.put(member, self.time + min(tag - self._entered_at, line.mean / 2))

    def serve(self, user_id: str, cost: float) -> None:
        self.choice.serve(user_id, cost)

    def end(self) -> None:
        """The claim is done."""
        self._lifted.clear()
        self.low = self.choice.line.lowest_tag()
