"""A witness of fairness: it sees who has work and who is served, and knows nothing of tags."""

from __future__ import annotations

from dataclasses import dataclass

TOLERANCE = 1e-6
"""Of the bound, for rounding."""


@dataclass
class Span:
    """A time in which two users both have servable work: how far apart their service has been, from where it began."""

    now: float = 0.0
    lowest: float = 0.0
    highest: float = 0.0

    def move(self, by: float) -> None:
        self.now += by
        self.lowest = min(self.lowest, self.now)
        self.highest = max(self.highest, self.now)

    @property
    def spread(self) -> float:
        """The largest difference over any part of the span."""
        return self.highest - self.lowest


class FairShareWitness:
    """Checks ``|S_i/w_i - S_j/w_j| <= c_i/w_i + c_j/w_j`` over every span in which i and j both have servable work.

    Args:
        weights: The users, by their weights.
    """

    def __init__(self, weights: dict[str, float]) -> None:
        self.weights = weights
        self.waiting = dict.fromkeys(weights, 0)
        self._largest = dict.fromkeys(weights, 0.0)
        self._spans: dict[tuple[str, str], Span] = {}
        self._spreads: list[tuple[str, str, float]] = []

    def enqueued(self, user_id: str, cost: float) -> None:
        """A task of this user waits to be served."""
        self._largest[user_id] = max(self._largest[user_id], cost)
        self.waiting[user_id] += 1
        if self.waiting[user_id] > 1:
            return
        for other, tasks in self.waiting.items():
            if tasks and other != user_id:
                self._spans[self._pair(user_id, other)] = Span()

    def served(self, user_id: str, cost: float) -> None:
        """A task of this user was handed to a worker."""
        by = cost / self.weights[user_id]
        for (first, second), span in self._spans.items():
            if user_id in (first, second):
                span.move(by if user_id == first else -by)
        self.waiting[user_id] -= 1
        if not self.waiting[user_id]:
            for pair in [pair for pair in self._spans if user_id in pair]:
                self._end(pair)

    def check(self) -> None:
        """Raises AssertionError for the first pair that was treated unfairly."""
        for pair in list(self._spans):
            self._end(pair)
        for first, second, spread in self._spreads:
            bound = self._share(first) + self._share(second)
            assert spread <= bound * (1 + TOLERANCE), (
                f"{first!r} and {second!r} were {spread} apart, the bound is {bound}"
            )

    def _share(self, user_id: str) -> float:
        return self._largest[user_id] / self.weights[user_id]

    def _end(self, pair: tuple[str, str]) -> None:
        self._spreads.append((*pair, self._spans.pop(pair).spread))

    def _pair(self, one: str, other: str) -> tuple[str, str]:
        return (one, other) if one < other else (other, one)
