"""Who got what while several users wanted it, beside what each was entitled to."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

__all__ = ["Contention", "jains_index"]


@dataclass(slots=True)
class _Side:
    """A user. `since` is the level at which it began to wait."""

    weight: float
    waiting: int = 0
    since: float = 0.0
    received: float = 0.0
    entitled: float = 0.0
    largest: float = 0.0  # of its tasks

    @property
    def fulfilled(self) -> float:
        return min(1.0, (self.received + self.largest) / self.entitled) if self.entitled else 1.0


class Contention:
    """Watches a queue, whatever its policy.

    A service is contended when tasks of at least two users wait for it. Of its cost, each of these users is entitled to
    its weight in relation to the weights of all of them. The one that is served receives it.

    A level rises by cost / weights with each contended service, so what a user is entitled to is its weight times the
    rise while it waits: O(1) for each service, however many users wait.
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        self._weights = weights
        self._sides: dict[str, _Side] = {}
        self._level = 0.0
        self._waiting = 0
        self._weight = 0.0  # of those that wait
        self._contended = 0.0  # cost

    def wait(self, user_id: str) -> None:
        """One more task of the user waits."""
        side = self._sides.get(user_id)
        if side is None:
            side = self._sides[user_id] = _Side(self._weights.get(user_id, 1.0))
        if not side.waiting:
            side.since = self._level
            self._waiting += 1
            self._weight += side.weight
        side.waiting += 1

    def serve(self, user_id: str, cost: float) -> None:
        """One of its tasks is served, and waits no longer."""
        side = self._sides[user_id]
        if self._waiting > 1:
            self._level += cost / self._weight
            self._contended += cost
            side.received += cost
        side.largest = max(side.largest, cost)
        side.waiting -= 1
        if not side.waiting:
            side.entitled += side.weight * (self._level - side.since)
            self._waiting -= 1
            self._weight = self._weight - side.weight if self._waiting else 0.0

    def share(self, user_id: str) -> float:
        """What the user received, as a part of all contended service, 0 where there was none."""
        return self._part(self._sides[user_id].received)

    def entitlement(self, user_id: str) -> float:
        """What the user was entitled to, as a part of all contended service."""
        return self._part(self._sides[user_id].entitled)

    def _part(self, cost: float) -> float:
        return cost / self._contended if self._contended else 0.0

    def index(self) -> float:
        """Jain's index over users of what they received for what they were entitled to, where more than all is all.

        Nothing smaller than a task can be served, so each is credited with its largest one. 1 when nobody got less than
        it was entitled to, 1 / n when one of n users got everything.
        """
        return jains_index([side.fulfilled for side in self._sides.values()])


def jains_index(values: Collection[float]) -> float:
    """(Σx)² / (n Σx²): 1 when all are equal, 1 / n when one has everything. 1 where there are no values.

    Jain, Chiu, Hawe, "A quantitative measure of fairness and discrimination", DEC-TR-301, 1984.
    """
    squares = sum(value * value for value in values)
    return sum(values) ** 2 / (len(values) * squares) if squares else 1.0
