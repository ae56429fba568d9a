"""`Producer`: spans of calls that put tasks in, whose contexts go with the tasks."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

from opentelemetry import context, trace
from opentelemetry.context import Context
from opentelemetry.trace import INVALID_SPAN, Link, NonRecordingSpan, Span, SpanContext, SpanKind

from fairque import CallNext, EnqueueCall, FairqueError, MessageTooLarge, Task, current_task
from fairque.contrib.opentelemetry.carrier import OF_SCHEDULE, Carrier
from fairque.contrib.opentelemetry.conventions import CREATE, MESSAGE_COUNT, MESSAGE_ID, OPERATIONS, Operation
from fairque.contrib.opentelemetry.end import error_type_of, tell_error
from fairque.contrib.opentelemetry.measures import Measures
from fairque.contrib.opentelemetry.spans import Spans, link
from fairque.queue.enqueue_call import with_headers

__all__ = ["Producer"]


class Producer:
    """
    Args:
        spans: Started here.
        carrier: Has their contexts in headers.
        measures: Told of each call.
        apart: Whether tasks of one call have a trace each.
    """

    def __init__(self, spans: Spans, carrier: Carrier, measures: Measures, *, apart: bool) -> None:
        self._spans = spans
        self._carrier = carrier
        self._measures = measures
        self._apart = apart

    async def around(self, call: EnqueueCall, call_next: CallNext) -> None:
        """A span of the call. Its tasks are put in whatever becomes of that."""
        operation = OPERATIONS[call.kind]
        with self._measured(operation, call), self._span(operation, call) as span:
            given = call.tasks
            created = self._carry(call, span)
            with self._ended(created, call):
                try:
                    await call_next()
                except MessageTooLarge:
                    if call.tasks is given:
                        raise
                    call.tasks = given
                    await call_next()
                    self._carrier.tell_too_large()

    @contextlib.contextmanager
    def _measured(self, operation: Operation, call: EnqueueCall) -> Iterator[None]:
        began, error_type = time.perf_counter(), None
        try:
            yield
        except BaseException as exc:
            error_type = error_type_of(exc)
            raise
        finally:
            seconds = time.perf_counter() - began
            self._measures.note_call(operation, call.queue_name, len(call.tasks), seconds, error_type)

    @contextlib.contextmanager
    def _span(self, operation: Operation, call: EnqueueCall) -> Iterator[Span]:
        kind = SpanKind.CLIENT if self._goes_apart(call) else SpanKind.PRODUCER
        span = self._spans.start(f"{operation.name} {call.queue_name}", kind, self._attributes(operation, call))
        token = context.attach(trace.set_span_in_context(span))
        try:
            yield span
        except BaseException as exc:
            self._tell_failed(span, exc)
            raise
        else:
            if call.kind == "task":
                span.set_attribute(MESSAGE_ID, call.ids[0])
        finally:
            context.detach(token)
            self._spans.end(span)

    def _attributes(self, operation: Operation, call: EnqueueCall) -> dict[str, Any]:
        attributes: dict[str, Any] = dict(operation.attributes(call.queue_name))
        if call.kind == "task":
            return attributes | self._spans.about_task(call.tasks[0])
        return {**attributes, MESSAGE_COUNT: len(call.tasks)}

    def _goes_apart(self, call: EnqueueCall) -> bool:
        """Then the span of the call is not what its tasks come from."""
        return self._apart and call.kind == "tasks"

    def _tell_failed(self, span: Span, error: BaseException) -> None:
        if span.is_recording():
            tell_error(span, error_type_of(error), error, self._spans.with_texts)

    # What goes with the tasks

    def _carry(self, call: EnqueueCall, span: Span) -> list[Span]:
        """Give each task its context. Returns the spans from which tasks come that have one of their own."""
        here = context.get_current()
        if call.kind == "schedules":  # not its baggage: each run is a trace of its own
            written = self._carrier.written(trace.set_span_in_context(span, Context()))
            self._give(call, {OF_SCHEDULE + name: text for name, text in written.items()})
            return []
        offered = self._carrier.written(here)
        if self._goes_apart(call) and span.get_span_context().is_valid:
            return self._carry_apart(call, span, here)
        link(span, self._customs(call))
        self._give(call, offered)
        return []

    def _customs(self, call: EnqueueCall) -> list[SpanContext]:
        """Of tasks whose trace their caller said."""
        inherited = _inherited()
        return [found for each in call.tasks if (found := self._carrier.custom(_said(each), inherited)) is not None]

    def _give(self, call: EnqueueCall, offered: Mapping[str, str]) -> None:
        if offered:
            inherited = _inherited()
            call.tasks = [self._given(each, inherited, offered) for each in call.tasks]

    def _given(self, task: Task[Any], inherited: Mapping[str, str], offered: Mapping[str, str]) -> Task[Any]:
        return with_headers(task, lambda said: self._carrier.added(said, inherited, offered))

    def _carry_apart(self, call: EnqueueCall, span: Span, here: Context) -> list[Span]:
        """Many tasks are not one trace: each has its own, whose first span is linked to that of the call."""
        beginning = trace.set_span_in_context(INVALID_SPAN, here)
        name, links, inherited = f"{CREATE.name} {call.queue_name}", [Link(span.get_span_context())], _inherited()
        created: list[Span] = []
        tasks: list[Task[Any]] = []
        for task in call.tasks:
            custom = self._carrier.custom(_said(task), inherited)
            if custom is not None:
                created.append(NonRecordingSpan(custom))
                tasks.append(task)
                continue
            attributes = {**CREATE.attributes(call.queue_name), **self._spans.about_task(task)}
            made = self._spans.start(name, SpanKind.PRODUCER, attributes, beginning, links)
            offered = self._carrier.written(trace.set_span_in_context(made, beginning))
            created.append(made)
            tasks.append(self._given(task, inherited, offered))
        call.tasks = tasks
        link(span, [each.get_span_context() for each in created])
        return created

    @contextlib.contextmanager
    def _ended(self, created: list[Span], call: EnqueueCall) -> Iterator[None]:
        try:
            yield
        except BaseException as exc:
            for span in created:
                self._tell_failed(span, exc)
            raise
        else:
            for span, task_id in zip(created, call.ids, strict=bool(created)):
                span.set_attribute(MESSAGE_ID, task_id)
        finally:
            for span in created:
                self._spans.end(span)


def _said(task: Task[Any]) -> Mapping[str, str]:
    return task.task_options.headers or {}


def _inherited() -> Mapping[str, str]:
    """The headers of the task that calls, which another middleware may have given to those that it puts in."""
    try:
        return current_task().headers
    except FairqueError:
        return {}
