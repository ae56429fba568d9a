"""The load of the demo: who puts in which task, and when."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["FLOOD", "Arrival", "Load"]

FLOOD = "flood"
_FIRST, _LAST = 0.05, 0.85
"""Parts of the flood's ideal duration between which quiet users put in their tasks."""


class Arrival(NamedTuple):
    """A task of `owner`, `at` seconds after the flood."""

    at: float
    owner: str
    seconds: float


@dataclass(frozen=True)
class Load:
    """One user with `flood` tasks at once, and `users` quiet ones with `tasks` each, spread over the time that follows.

    A task takes between half and one and a half times `seconds`. `workers` processes run `concurrency` tasks each.
    """

    flood: int
    users: int
    tasks: int
    workers: int
    concurrency: int
    seconds: float
    seed: int

    @property
    def quiet_users(self) -> list[str]:
        digits = len(str(self.users))
        return [f"quiet-{number:0{digits}}" for number in range(1, self.users + 1)]

    @property
    def total(self) -> int:
        return self.flood + self.users * self.tasks

    @property
    def slots(self) -> int:
        """Tasks that run at once."""
        return self.workers * self.concurrency

    @property
    def ideal_seconds(self) -> float:
        """How long the whole load takes when no slot ever idles."""
        return self.total * self.seconds / self.slots

    def planned(self, owner: str) -> int:
        return self.flood if owner == FLOOD else self.tasks

    def flood_tasks(self) -> list[Arrival]:
        draw = random.Random(f"flood {self.seed}")
        return [Arrival(0, FLOOD, self._duration(draw)) for _ in range(self.flood)]

    def quiet_tasks(self) -> list[Arrival]:
        """In the order of their arrival."""
        return sorted(self._quiet_tasks())

    def _quiet_tasks(self) -> Iterator[Arrival]:
        draw = random.Random(f"quiet {self.seed}")
        for owner in self.quiet_users:
            for _ in range(self.tasks):
                at = draw.uniform(_FIRST, _LAST) * self.ideal_seconds
                yield Arrival(at, owner, self._duration(draw))

    def _duration(self, draw: random.Random) -> float:
        return self.seconds * draw.uniform(0.5, 1.5)
