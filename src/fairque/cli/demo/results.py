"""What one way of serving did with the load, counted per user."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import msgspec

from fairque.cli.demo.load import FLOOD, Load

__all__ = ["DemoResults", "Sample"]


class Sample(msgspec.Struct, frozen=True, array_like=True):
    """One task that was served. Times are seconds since the epoch, all of them on this machine's clock."""

    owner: str
    arrived: float
    began: float

    @property
    def wait(self) -> float:
        return max(0.0, self.began - self.arrived)


class DemoResults:
    """Counts what arrives and what is served; `complete` is set when everything was.

    Args:
        title: Shown above its columns.
        load: What will be put in.
    """

    def __init__(self, title: str, load: Load) -> None:
        self.title = title
        owners = (FLOOD, *load.quiet_users)
        self._total = load.total
        self.arrived = dict.fromkeys(owners, 0)
        self.samples: dict[str, list[Sample]] = {owner: [] for owner in owners}
        self.served = 0
        self.complete = asyncio.Event()

    def arrive(self, owner: str, tasks: int = 1) -> None:
        self.arrived[owner] += tasks

    def serve(self, sample: Sample) -> None:
        self.samples[sample.owner].append(sample)
        self.served += 1
        if self.served == self._total:
            self.complete.set()

    def waits(self, owners: Iterable[str]) -> list[float]:
        """Seconds from enqueue to start."""
        return sorted(sample.wait for owner in owners for sample in self.samples[owner])

    def during_flood(self, owners: Iterable[str]) -> int:
        """Tasks that began before the last one of the flood did."""
        end = self._flood_end()
        return sum(sample.began <= end for owner in owners for sample in self.samples[owner])

    def share(self, owners: Iterable[str]) -> float:
        """Part of all that was served during the flood."""
        return self.during_flood(owners) / self.during_flood(self.samples)

    def flood_seconds(self) -> float:
        """From the arrival of the flood to the start of its last task."""
        return self._flood_end() - min(sample.arrived for sample in self.samples[FLOOD])

    def _flood_end(self) -> float:
        return max(sample.began for sample in self.samples[FLOOD])
