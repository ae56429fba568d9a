"""`Figures`: the values of metrics, by metric and labels."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from typing import TypeAlias

from fairque.contrib.prometheus.catalogue import CATALOGUE, Metric

__all__ = ["Figures", "Labels", "Row"]

Labels: TypeAlias = tuple[str, ...]
Row: TypeAlias = list[float]
"""The one value; of a histogram how many are in each bucket, in the last one that has no bound, and their sum."""


class Figures:
    """Values of some metrics. Written by one thread; others may read at any time.

    Args:
        metrics: Which ones.
    """

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self.metrics = tuple(metrics)
        self.rows: dict[str, dict[Labels, Row]] = {metric.name: {} for metric in self.metrics}

    def increase(self, name: str, labels: Labels, by: float = 1.0) -> None:
        self._row(name, labels)[0] += by

    def set(self, name: str, labels: Labels, value: float) -> None:
        self._row(name, labels)[0] = value

    def observe(self, name: str, labels: Labels, value: float) -> None:
        row = self._row(name, labels)
        row[bisect_left(CATALOGUE[name].buckets, value)] += 1
        row[-1] += value

    def add(self, other: Figures) -> None:
        """Value by value; what only one of them has, both have afterwards."""
        for name, rows in other.rows.items():
            for labels, row in list(rows.items()):  # at once: another thread may add some meanwhile
                mine = self._row(name, labels)
                mine[:] = [one + two for one, two in zip(mine, row, strict=True)]

    def _row(self, name: str, labels: Labels) -> Row:
        rows = self.rows[name]
        row = rows.get(labels)
        if row is None:
            buckets = CATALOGUE[name].buckets
            row = rows.setdefault(labels, [0.0] * (len(buckets) + 2 if buckets else 1))
        return row
