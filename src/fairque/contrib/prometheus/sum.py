"""`Sum`: the metrics of several processes as those of one."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client.core import Metric as Family

from fairque.contrib.prometheus.catalogue import CATALOGUE, PROCESS
from fairque.contrib.prometheus.exposition import families_of, rendered
from fairque.contrib.prometheus.figures import Figures
from fairque.contrib.prometheus.snapshot import figures_in

__all__ = ["Sum"]


class Sum:
    """Adds up what `WorkerMetrics.snapshot` tells of processes. What one that has ended has counted stays, so that no
    counter ever falls; what it had at the moment, such as its slots, goes.
    """

    def __init__(self) -> None:
        self._ended = Figures(PROCESS)
        self._children: dict[int, Figures] = {}

    def add(self, child: int, snapshot: bytes) -> None:
        """The newest snapshot of a process, in the place of the one before.

        Args:
            child: Which one: a number that no other living process has, such as its pid.
            snapshot: Of all that it has counted since its start.

        Raises:
            InvalidInput: It is no snapshot, or one of another version.
        """
        self._children[child] = figures_in(snapshot)

    def drop(self, child: int) -> None:
        """It has ended, or is unknown."""
        if (last := self._children.pop(child, None)) is not None:
            last.rows = {name: rows for name, rows in last.rows.items() if CATALOGUE[name].kind != "gauge"}
            self._ended.add(last)

    def collect(self) -> Iterable[Family]:
        """For a registry of prometheus-client: ``REGISTRY.register(sums)``."""
        return families_of(self._total())

    def render(self) -> bytes:
        """In the text format of Prometheus."""
        return rendered(self._total())

    def _total(self) -> Figures:
        total = Figures(PROCESS)
        for figures in (self._ended, *self._children.values()):
            total.add(figures)
        return total
