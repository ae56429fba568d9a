"""`RunTimes`: how long the tasks ran that ended in a worker, until that is told with a renewal."""

from __future__ import annotations

from fairque.redis.arguments import EndedRuns

__all__ = ["MOST_NAMES", "RunTimes"]

MOST_NAMES = 100


class RunTimes:
    """Noted on the loop, taken by the thread that renews. What a renewal that failed took is not told again.

    Args:
        most_names: Of payloads whose times are kept until the next renewal; of further names none are, as users
            choose those. 0: of nothing.
    """

    def __init__(self, most_names: int) -> None:
        self._most_names = most_names
        self._noted: dict[str, list[float]] = {}
        self._payloads = 0

    def __len__(self) -> int:
        return len(self._noted)

    def note(self, name: str, run_ms: float, *, is_payload: bool = False) -> None:
        times = self._noted.get(name)
        if times is not None:
            times[0] += 1
            times[1] += run_ms
        elif self._most_names > (self._payloads if is_payload else 0):
            self._payloads += is_payload
            self._noted[name] = [1, run_ms]

    def take(self) -> list[EndedRuns]:
        """What was noted since it was last called."""
        noted, self._noted, self._payloads = self._noted, {}, 0
        return [EndedRuns(name, int(runs), run_ms / runs / 1000) for name, (runs, run_ms) in list(noted.items())]
