"""`Firings`: each task that a schedule makes begins a trace, linked to where the schedule was made."""

from __future__ import annotations

from collections.abc import Mapping

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, SpanKind

from fairque import FiredTask
from fairque.contrib.opentelemetry.carrier import OF_SCHEDULE, Carrier
from fairque.contrib.opentelemetry.conventions import FIRE, MESSAGE_ID, SCHEDULE_ID
from fairque.contrib.opentelemetry.spans import Spans

__all__ = ["Firings"]


class Firings:
    """
    Args:
        spans: Started here.
        carrier: Has their contexts in headers.
    """

    def __init__(self, spans: Spans, carrier: Carrier) -> None:
        self._spans = spans
        self._carrier = carrier

    def headers(self, made: FiredTask) -> Mapping[str, str]:
        """With the context of a span of the firing, of which all attempts of the task are children. A trace that was
        given by hand to the task of the schedule stays.
        """
        if self._carrier.span_in(made.headers) is not None:
            return made.headers
        origin = self._carrier.span_in(made.headers, OF_SCHEDULE)
        attributes = {
            **FIRE.at(made.server, made.queue_name),
            MESSAGE_ID: made.task_id,
            SCHEDULE_ID: made.firing.schedule_id,
            **self._spans.about(made.name, made.user_id),
        }
        links = [Link(origin)] if origin is not None else []
        span = self._spans.start(f"{FIRE.name} {made.queue_name}", SpanKind.PRODUCER, attributes, Context(), links)
        offered = self._carrier.written(trace.set_span_in_context(span, Context()))
        self._spans.end(span)
        if not offered:
            return made.headers
        kept = {name: text for name, text in made.headers.items() if not name.startswith(OF_SCHEDULE)}
        return self._carrier.added(kept, {}, offered)
