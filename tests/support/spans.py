"""What a test sees of spans and metrics."""

from __future__ import annotations

from typing import Any

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanContext

from fairque.contrib.opentelemetry import Tracing
from tests.support.eventually import eventually

__all__ = ["Recorded", "is_child", "is_linked"]


class Recorded:
    """The spans and metrics of one test, beside whatever the process has."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self.tracers = TracerProvider()
        self.tracers.add_span_processor(SimpleSpanProcessor(self._exporter))
        self._reader = InMemoryMetricReader()
        self.meters = MeterProvider([self._reader])

    def tracing(self, **options: Any) -> Tracing:
        return Tracing(tracer_provider=self.tracers, meter_provider=self.meters, **options)

    @property
    def tracer(self) -> Any:
        return self.tracers.get_tracer("test")

    def spans(self, *operations: str) -> list[ReadableSpan]:
        """Those that have ended, in that order; of these operations, where some are named."""
        ended = list(self._exporter.get_finished_spans())
        return [each for each in ended if not operations or (each.name.split()[0] in operations)]

    async def wait_for(self, many: int, *operations: str) -> list[ReadableSpan]:
        """The outcome of a task may be read before its span has ended."""
        await eventually(lambda: len(self.spans(*operations)) >= many)
        found = self.spans(*operations)
        assert len(found) == many, [each.name for each in found]
        return found

    def points(self, name: str) -> list[tuple[dict[str, Any], Any]]:
        """Attributes and data of each series of a metric."""
        data: Any = self._reader.get_metrics_data()
        return [
            (dict(point.attributes), point)
            for resource in (data.resource_metrics if data is not None else [])
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
            for point in metric.data.data_points
        ]

    def close(self) -> None:
        self.tracers.shutdown()
        self.meters.shutdown()


def is_child(span: ReadableSpan, of: ReadableSpan) -> bool:
    return span.parent is not None and _is_same(span.parent, of.context) and _is_same_trace(span.context, of.context)


def is_linked(span: ReadableSpan, to: ReadableSpan) -> bool:
    return any(_is_same(each.context, to.context) for each in span.links)


def _is_same(one: SpanContext, other: SpanContext) -> bool:
    """Also where one of them comes from headers."""
    return one.span_id == other.span_id and _is_same_trace(one, other)


def _is_same_trace(one: SpanContext, other: SpanContext) -> bool:
    return one.trace_id == other.trace_id
