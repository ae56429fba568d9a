"""One line of the fair choice: members that share with each other by their weights."""

from __future__ import annotations

from fairque.fairness.sorted_set import SortedSet

__all__ = ["CREDIT", "HORIZON", "LARGEST_DEBT", "MEAN_OVER", "Line"]

MEAN_OVER = 32
"""Services over which the mean of a line is taken, each new one with this part."""
CREDIT = 4.0
"""Mean services that a member that was held at a cap may be owed when it comes back."""
HORIZON = 8.0
"""Mean services above the lowest tag to which a debt is cut that was not made in turn, when its cause is gone."""
LARGEST_DEBT = 2.0**20
"""Mean services above the lowest tag that late charges may bring a member to, so that tags keep their digits."""


class Line:
    """Members by their names in Redis: users, and groups, which stand for all of their users.

    Where `low` is given, it is the lowest tag that counts for the member, None where there is none: the lowest of all
    who are ready, or of those whom the same workers serve.

    Attributes:
        clock: The virtual time, at which members enter.
        mean: Of what services took members further lately; 0 before the first.
        ready: Members that may be served now, with their tags.
        kept: The tags that members left with, as long as they matter: until the lowest has passed them.
        capped: The tags of those that left because as much of theirs runs as may.
        weights: By which tags were counted, where that is not 1.
        passed: The highest that the lowest tag has been since `look_again`.
        elsewhere: Of the first line of a partition: the virtual time of the queue, as the last claim told it.
    """

    def __init__(self) -> None:
        self.clock = 0.0
        self.mean = 0.0
        self.ready: SortedSet[str] = SortedSet(str)
        self.kept: dict[str, float] = {}
        self.capped: dict[str, float] = {}
        self.weights: dict[str, float] = {}
        self.passed = 0.0
        self.elsewhere: float | None = None

    def tag(self, member: str) -> float | None:
        """Its virtual start time, kept while it has nothing to serve. None: it stands nowhere."""
        for where in (self.ready.scores, self.capped, self.kept):
            if member in where:
                return where[member]
        return None

    def lowest_tag(self) -> float | None:
        return self.ready.lowest_score() if self.ready else None

    def low(self) -> float:
        """The lowest tag of all, the clock where nobody is ready."""
        return self.ready.lowest_score() if self.ready else self.clock

    def look_again(self) -> None:
        self.passed = self.low()

    def _note_low(self) -> None:
        self.passed = max(self.passed, self.low())

    def join(self, member: str, share: float, low: float | None) -> None:
        """Its first service takes it this much further. No effect on one that is ready already."""
        if member in self.ready:
            return
        if self.elsewhere is not None:  # those of other partitions wait as well
            low = self.elsewhere if low is None else min(low, self.elsewhere)
        kept = self.kept.pop(member, None)
        if member in self.capped:
            # Only its cap stood between it and its share: some of what it did not get meanwhile it gets now.
            kept = self.capped.pop(member)
            entry = (self.clock if low is None else low) - CREDIT * self.mean
        else:
            entry = self._entry(share, low)
        self.ready.put(member, entry if kept is None else max(kept, entry))
        self._note_low()

    def _entry(self, share: float, low: float | None) -> float:
        """The clock, but not below the lowest tag, and at most half a service above it: its own or the mean.

        Less than a whole service, so that nobody is served twice before a newcomer. More than nothing, so that
        newcomers, however many there are, cannot keep the others from becoming the lowest. The mean, so that one with
        a large task, or among those with large weights, does not begin rounds behind the others.
        """
        if low is None:
            return self.clock
        return max(low, min(self.clock, low + (min(share, self.mean) if self.mean else share) / 2))

    def forget(self, member: str) -> None:
        """Whatever is kept of one that is not ready."""
        self.kept.pop(member, None)
        self.capped.pop(member, None)
        self.weights.pop(member, None)

    def uncap(self, member: str) -> None:
        """It has nothing any more that its cap keeps from running."""
        if member in self.capped:
            self.kept[member] = self.capped.pop(member)

    def leave(self, member: str, *, is_capped: bool = False) -> None:
        """`is_capped`: it has work that may not run, because as much of it runs as may."""
        tag = self.ready.scores[member]
        self.ready.drop(member)
        (self.capped if is_capped else self.kept)[member] = tag
        if not self.ready:  # what comes next begins where this one ended, as in the paper
            self.clock = max(self.clock, tag)
        self._note_low()

    def serve(self, member: str, cost: float, weight: float) -> None:
        tag, step = self.ready.scores[member], cost / weight
        self.clock = max(self.clock + cost / len(self.ready), tag)
        if step > 0:
            self.mean = self.mean + (step - self.mean) / MEAN_OVER if self.mean else step
        self.ready.put(member, tag + step)
        self._note_low()

    def move(self, member: str, by: float) -> None:
        """Whether it is ready or not. It comes to no more than the largest debt above the lowest tag.

        Where nobody is ready, nobody waited for what it used: the clock comes along. One that stands nowhere
        stands at the lowest; what it is given back there is of no consequence.
        """
        tag = self.tag(member)
        if tag is None and by <= 0:
            return
        if tag is None:
            tag = self.low()
        if by > 0 and self.mean:
            by = max(0.0, min(by, self.low() + LARGEST_DEBT * self.mean - tag))
        self._set(member, tag + by)
        if by > 0 and not self.ready:
            self.clock = max(self.clock, tag + by)
            self._note_low()

    def weigh(self, member: str, weight: float) -> None:
        """By this weight from now on: how far it is ahead of the lowest is worth so much more, or less."""
        before = self.weights.pop(member, 1.0)
        if weight != 1.0:
            self.weights[member] = weight
        tag, low = self.tag(member), self.low()
        if tag is not None and tag > low:
            self._set(member, low + (tag - low) * (before / weight))

    def forgive(self, member: str) -> None:
        """What it was served out of turn is no longer held against it, beyond the horizon."""
        tag = self.tag(member)
        low = min((score for other, score in self.ready.scores.items() if other != member), default=None)
        if tag is not None and low is not None:
            self._set(member, min(tag, low + HORIZON * self.mean))

    def owe_no_more(self, member: str, low: float) -> None:
        """Nobody served it: as one that was held at a cap it comes back, owed so much and no more."""
        self.ready.put(member, max(self.ready.scores[member], low - CREDIT * self.mean))
        self._note_low()

    def _set(self, member: str, tag: float) -> None:
        if member in self.ready:
            self.ready.put(member, tag)
        elif member in self.capped:
            self.capped[member] = tag
        else:
            self.kept[member] = tag
        self._note_low()
