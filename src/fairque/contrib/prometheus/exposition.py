"""Figures in the text format of Prometheus."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.core import Metric as Family
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.utils import floatToGoString

from fairque.contrib.prometheus.catalogue import Metric
from fairque.contrib.prometheus.figures import Figures, Labels, Row

__all__ = ["CONTENT_TYPE", "families_of", "rendered"]

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
"""Of the pages that `render` returns: the text format of Prometheus."""


class _Families:
    """What prometheus-client takes for a collector."""

    def __init__(self, families: Iterable[Family]) -> None:
        self._families = families

    def collect(self) -> Iterable[Family]:
        return self._families


def rendered(figures: Figures) -> bytes:
    """Texts of labels are escaped; a metric without a value has no sample."""
    return generate_latest(_Families(families_of(figures)))


def families_of(figures: Figures) -> Iterator[Family]:
    for metric in figures.metrics:
        yield _family(metric, figures.rows[metric.name])


def _family(metric: Metric, rows: dict[Labels, Row]) -> Family:
    if metric.kind == "histogram":
        histogram = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
        bounds = [*map(floatToGoString, metric.buckets), "+Inf"]
        for labels, (*counts, total) in rows.items():
            histogram.add_metric(labels, list(zip(bounds, accumulate(counts), strict=True)), total)
        return histogram
    kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    family = kind(metric.name, metric.help, labels=metric.labels)
    for labels, (value,) in rows.items():
        family.add_metric(labels, value)
    return family
