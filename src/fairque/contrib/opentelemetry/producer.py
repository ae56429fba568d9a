"""`Producer`: spans of calls that put tasks in, whose contexts go with the tasks."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from opentelemetry import context, trace
from opentelemetry.context import Context
from opentelemetry.trace import INVALID_SPAN, Link, NonRecordingSpan, Span, SpanContext, SpanKind

from fairque import CallNext, EnqueueCall, FairqueError, MessageTooLarge, Task, current_task, failure_of
from fairque.contrib.opentelemetry.carrier import OF_SCHEDULE, Carrier
from fairque.contrib.opentelemetry.conventions import CREATE, MESSAGE_COUNT, MESSAGE_ID, OPERATIONS, Operation
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
        operation, given = OPERATIONS[call.kind], call.tasks
        span = self._start(operation, call)
        token = context.attach(trace.set_span_in_context(span))
        created = self._carry(call, span)
        began = time.perf_counter()
        try:
            await self._go_on(call, given, call_next)
        except BaseException as exc:
            context.detach(token)
            self._end(call, span, created, exc)
            self._measures.note_call(operation, call.queue_name, len(given), time.perf_counter() - began, exc)
            raise
        context.detach(token)
        self._end(call, span, created, None)
        self._measures.note_call(operation, call.queue_name, len(given), time.perf_counter() - began, None)

    async def _go_on(self, call: EnqueueCall, given: list[Task[Any]], call_next: CallNext) -> None:
        try:
            await call_next()
        except MessageTooLarge:
            if call.tasks is given:
                raise
            call.tasks = given
            await call_next()
            self._carrier.tell_too_large()

    def _start(self, operation: Operation, call: EnqueueCall) -> Span:
        kind = SpanKind.CLIENT if self._goes_apart(call) else SpanKind.PRODUCER
        return self._spans.start(f"{operation.name} {call.queue_name}", kind, self._attributes(operation, call))

    def _end(self, call: EnqueueCall, span: Span, created: list[Span], error: BaseException | None) -> None:
        """Ids are known now."""
        about = [span] if call.kind == "task" else created
        with self._spans.guard:
            for each, task_id in zip(about, call.ids, strict=False):
                each.set_attribute(MESSAGE_ID, task_id)
        ended = [each for each in (*created, span) if each.is_recording()]
        failure = failure_of(error) if error is not None and ended else None  # once for all
        for each in ended:
            self._spans.end(each, failure)

    def _attributes(self, operation: Operation, call: EnqueueCall) -> dict[str, Any]:
        attributes = operation.at(call.server, call.queue_name)
        if call.kind == "task":
            return attributes | self._spans.about_task(call.tasks[0])
        return {**attributes, MESSAGE_COUNT: len(call.tasks)}

    def _goes_apart(self, call: EnqueueCall) -> bool:
        """Then the span of the call is not what its tasks come from."""
        return self._apart and call.kind == "tasks"

    # What goes with the tasks

    def _carry(self, call: EnqueueCall, span: Span) -> list[Span]:
        """Give each task its context. Returns the spans from which tasks come that have one of their own."""
        with self._spans.guard:
            if call.kind == "schedules":  # not its baggage: each run is a trace of its own
                written = self._carrier.written(trace.set_span_in_context(span, Context()))
                self._give(call, {OF_SCHEDULE + name: text for name, text in written.items()})
                return []
            if self._goes_apart(call) and span.get_span_context().is_valid:
                return self._carry_apart(call, span)
            link(span, self._customs(call))
            self._give(call, self._carrier.written(context.get_current()))
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

    def _carry_apart(self, call: EnqueueCall, span: Span) -> list[Span]:
        """Many tasks are not one trace: each has its own, whose first span is linked to that of the call."""
        beginning = trace.set_span_in_context(INVALID_SPAN)
        name, links, inherited = f"{CREATE.name} {call.queue_name}", [Link(span.get_span_context())], _inherited()
        created: list[Span] = []
        tasks: list[Task[Any]] = []
        for task in call.tasks:
            custom = self._carrier.custom(_said(task), inherited)
            if custom is not None:
                created.append(NonRecordingSpan(custom))
                tasks.append(task)
                continue
            attributes = {**CREATE.at(call.server, call.queue_name), **self._spans.about_task(task)}
            made = self._spans.start(name, SpanKind.PRODUCER, attributes, beginning, links)
            offered = self._carrier.written(trace.set_span_in_context(made, beginning))
            created.append(made)
            tasks.append(self._given(task, inherited, offered))
        call.tasks = tasks
        link(span, [each.get_span_context() for each in created])
        return created


def _said(task: Task[Any]) -> Mapping[str, str]:
    return task.task_options.headers or {}


def _inherited() -> Mapping[str, str]:
    """The headers of the task that calls, which another middleware may have given to those that it puts in."""
    try:
        return current_task().headers
    except FairqueError:
        return {}
