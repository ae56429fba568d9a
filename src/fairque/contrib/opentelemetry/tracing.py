"""`Tracing`: what is given to queues and workers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from opentelemetry.metrics import MeterProvider
from opentelemetry.propagators.textmap import TextMapPropagator
from opentelemetry.trace import TracerProvider

from fairque import CallNext, EnqueueCall, FiredTask, TaskEvent
from fairque.contrib.opentelemetry.carrier import Carrier
from fairque.contrib.opentelemetry.consumer import Consumer
from fairque.contrib.opentelemetry.firing import Firings
from fairque.contrib.opentelemetry.measures import Measures
from fairque.contrib.opentelemetry.producer import Producer
from fairque.contrib.opentelemetry.spans import Spans

__all__ = ["Tracing"]


class Tracing:
    """Spans and metrics of what is put in and of what runs: ``TaskQueue("redis://…", **Tracing().doors)``.

    Nothing of it can fail a call or a task: what cannot be written, read or started is left out, with one line in the
    log.

    Args:
        tracer_provider: Where spans go; None: to the provider of the process, also one that is set later.
        meter_provider: The same for metrics.
        propagator: How a context is written into headers; None: that of the process, by default ``traceparent``,
            ``tracestate`` and ``baggage`` of the W3C.
        user_id: Whether spans have the ids of users, as ``fairque.user.id``. Metrics never have.
        error_texts: Whether spans have the texts of errors, which may quote arguments. Types and frames they have.
        create_spans: Whether each task of an `enqueue_many` has a trace of its own, which begins with a span that is
            linked to the call; else all of them are part of the trace of the call.
    """

    def __init__(
        self,
        *,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
        propagator: TextMapPropagator | None = None,
        user_id: bool = False,
        error_texts: bool = False,
        create_spans: bool = True,
    ) -> None:
        spans = Spans(tracer_provider, with_users=user_id, with_texts=error_texts)
        carrier, measures = Carrier(propagator), Measures(meter_provider)
        self._producer = Producer(spans, carrier, measures, apart=create_spans)
        self._consumer = Consumer(spans, carrier, measures)
        self._firings = Firings(spans, carrier)

    @property
    def doors(self) -> dict[str, Any]:
        """The options of a `TaskQueue`, where it has no other middlewares."""
        return {
            "enqueue_middleware": [self.around_enqueue],
            "run_middleware": [self.around_run],
            "firing_headers": self.of_firing,
        }

    @property
    def hooks(self) -> dict[str, Any]:
        """The options of a `Worker`, where it has no `on_failure` of its own."""
        return {"on_failure": self.of_failure}

    async def around_enqueue(self, call: EnqueueCall, call_next: CallNext) -> None:
        """An enqueue middleware; the last one of several, so that its headers take the room that others leave."""
        await self._producer.around(call, call_next)

    async def around_run(self, run: Any, call_next: CallNext) -> Any:
        """A run middleware; the first one of several, so that what the others do is within the span."""
        return await self._consumer.around(run, call_next)

    def of_failure(self, event: TaskEvent) -> None:
        """A hook of a worker, `on_failure`: a span also where a task fails that never ran, as no worker knows it, its
        arguments do not fit, or it cannot be read.
        """
        self._consumer.note_failure(event)

    def of_firing(self, made: FiredTask) -> Mapping[str, str]:
        """The `firing_headers` of a queue: a run of a schedule is a trace of its own, linked to where the schedule was
        made.
        """
        return self._firings.headers(made)
