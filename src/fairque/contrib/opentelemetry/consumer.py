"""`Consumer`: a span of each run of a task, which its body finds as the current one."""

from __future__ import annotations

import time
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

from opentelemetry import context, trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanKind

from fairque import CallNext, Failure, FailureKind, Streamed, TaskEvent
from fairque.contrib.opentelemetry.carrier import OF_SCHEDULE, Carrier
from fairque.contrib.opentelemetry.conventions import (
    ATTEMPT,
    AWAITED,
    CHUNKS,
    CLIENT_ID,
    MESSAGE_COUNT,
    MESSAGE_ID,
    OUTCOME,
    PROCESS,
    SCHEDULE_ID,
    SNOOZED,
    WAIT_FOR,
    WAIT_SECONDS,
    WAITED,
)
from fairque.contrib.opentelemetry.end import End
from fairque.contrib.opentelemetry.measures import Measures
from fairque.contrib.opentelemetry.spans import Spans
from fairque.contrib.opentelemetry.subprocess import attached, written
from fairque.tasks.registry import get_function
from fairque.worker.group import Group
from fairque.worker.running_task import RunningTask

__all__ = ["Consumer"]


class Consumer:
    """
    Args:
        spans: Started here.
        carrier: Finds in headers where tasks come from.
        measures: Told of each run.
    """

    def __init__(self, spans: Spans, carrier: Carrier, measures: Measures) -> None:
        self._spans = spans
        self._carrier = carrier
        self._measures = measures
        self._first_of: WeakKeyDictionary[Group[RunningTask], Span] = WeakKeyDictionary()

    async def around(self, run: RunningTask, call_next: CallNext) -> Any:
        """A span of the run. The run goes on whatever becomes of that."""
        function = run.function.name if run.function is not None else ""
        self._measures.note_delivery(run.queue_name, function)
        parent = self._carrier.read(run.headers)
        span = self._start(run, parent)
        within = trace.set_span_in_context(span, parent)
        self._tell_subprocess(run, within)
        token = context.attach(within)
        began = time.perf_counter()
        try:
            value = await call_next()
        except BaseException as exc:
            context.detach(token)
            end = End.of(run.cut_off, exc)
            self._end(span, end, None)
            self._measures.note_run(run.queue_name, function, time.perf_counter() - began, end)
            del end  # it has the error, which has this frame
            raise
        context.detach(token)
        end = End.of(run.cut_off, None)
        self._end(span, end, value)
        self._measures.note_run(run.queue_name, function, time.perf_counter() - began, end)
        return value

    def _end(self, span: Span, end: End, value: Any) -> None:
        with self._spans.guard:
            if span.is_recording():
                span.set_attribute(OUTCOME, end.outcome)
                if isinstance(value, Streamed):
                    span.set_attribute(CHUNKS, value.chunks)
        self._spans.end(span, end.error)

    def note_failure(self, event: TaskEvent) -> None:
        """A span of an attempt that came to no run, where that is what the failure tells."""
        if event.failure is None or not _never_ran(event.failure, event.name):
            return
        parent = self._carrier.read(event.headers)
        attributes = {
            **PROCESS.attributes(event.queue_name),
            MESSAGE_ID: event.task_id,
            ATTEMPT: event.attempt,
            OUTCOME: "not run",
            **self._spans.about(event.name, event.user_id),
        }
        span = self._spans.start(f"{PROCESS.name} {event.queue_name}", SpanKind.CONSUMER, attributes, parent)
        self._spans.end(span, event.failure)

    def _tell_subprocess(self, run: RunningTask, within: Context) -> None:
        if run.function is not None and run.function.run_in == "process":
            with self._spans.guard:
                run.enter_in_subprocess(attached, written(within))

    def _start(self, run: RunningTask, parent: Context) -> Span:
        links = self._links(run)
        span = self._spans.start(
            f"{PROCESS.name} {run.queue_name}", SpanKind.CONSUMER, self._attributes(run), parent, links
        )
        with self._spans.guard:
            if span.is_recording():
                span.add_event(WAITED, {WAIT_SECONDS: run.wait_seconds})
                run.on_wait = partial(self._note_wait, span)
            if run.group is not None:
                self._join(run.group, span, parent)
        return span

    def _note_wait(self, span: Span, whom: str, seconds: float) -> None:
        """What a body has left behind may wait beyond its run."""
        with self._spans.guard:
            if span.is_recording():
                span.add_event(AWAITED, {WAIT_SECONDS: seconds, WAIT_FOR: whom})

    def _attributes(self, run: RunningTask) -> dict[str, Any]:
        attributes: dict[str, Any] = {
            **PROCESS.at(run.server, run.queue_name),
            MESSAGE_ID: run.task_id,
            CLIENT_ID: run.worker_id,
            ATTEMPT: run.attempt,
            **self._spans.about(run.name, run.user_id),
        }
        if run.snoozed:
            attributes[SNOOZED] = run.snoozed
        if run.schedule is not None:
            attributes[SCHEDULE_ID] = run.schedule.schedule_id
        return attributes

    def _links(self, run: RunningTask) -> list[Link]:
        """To where its schedule was made, or that of the task whose callback it is: no scheduler has put that into a
        trace.
        """
        made = self._carrier.span_in(run.headers, OF_SCHEDULE)
        return [Link(made)] if made is not None else []

    def _join(self, group: Group[RunningTask], span: Span, parent: Context) -> None:
        """One body serves them all, within the span of the first: that is linked to where each of them comes from, and
        those of the others are linked to it.
        """
        first = self._first_of.get(group)
        if first is None:
            self._first_of[group] = span
            span.set_attribute(MESSAGE_COUNT, group.size)
            return
        span.add_link(first.get_span_context())
        origin = trace.get_current_span(parent).get_span_context()
        if origin.is_valid and first.is_recording():
            first.add_link(origin)


def _never_ran(failure: Failure, name: str) -> bool:
    """Arguments for a subprocess are read there, within a run."""
    if failure.kind is FailureKind.BAD_ARGUMENTS:
        function = get_function(name)
        return function is None or function.run_in != "process"
    return failure.kind in (FailureKind.UNKNOWN_TASK, FailureKind.BAD_MESSAGE, FailureKind.LOST)
