"""What tasks of the model took lately, by name."""

from __future__ import annotations

__all__ = ["RunTimes"]

MEAN_OVER = 32
UNKNOWN_SECONDS = 0.1
ALL = ""


class RunTimes:
    """Means over the last runs, each new one with its part.

    Attributes:
        means: By name, how many runs count and their mean in seconds. Under no name: of all.
    """

    def __init__(self) -> None:
        self.means: dict[str, tuple[int, float]] = {}

    def expected(self, name: str) -> float:
        """Seconds that a task of this name will take."""
        known = self.means.get(name) or self.means.get(ALL)
        return known[1] if known else UNKNOWN_SECONDS

    def learn(self, name: str, seconds: float) -> None:
        for each in {name, ALL}:
            count, mean = self.means.get(each, (0, 0.0))
            count = min(count + 1, MEAN_OVER)
            self.means[each] = count, float(f"{mean + (seconds - mean) / count:.9g}")
