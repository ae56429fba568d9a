"""`Measures`: the metrics that the conventions have for messaging."""

from __future__ import annotations

from typing import Any

from opentelemetry import metrics

from fairque import __version__
from fairque.contrib.opentelemetry.conventions import (
    DURATION_BOUNDS,
    ERROR_TYPE,
    OPERATION_TYPE,
    OUTCOME,
    PROCESS,
    SCHEMA_URL,
    TASK_NAME,
    Operation,
)
from fairque.contrib.opentelemetry.end import End, error_type_of
from fairque.contrib.opentelemetry.guard import Guard

__all__ = ["Measures"]


class Measures:
    """No attribute of them is a user, a worker or an id: each value would be a series of its own."""

    def __init__(self, provider: metrics.MeterProvider | None) -> None:
        self._guard = Guard("a metric lacks what happened")
        meter = metrics.get_meter("fairque", __version__, provider, SCHEMA_URL)
        self._sent = meter.create_counter(
            "messaging.client.sent.messages",
            "{message}",
            "Tasks that were put in, or tried to be.",
        )
        self._consumed = meter.create_counter(
            "messaging.client.consumed.messages",
            "{message}",
            "Runs of tasks that began.",
        )
        self._operations = meter.create_histogram(
            "messaging.client.operation.duration",
            "s",
            "How long calls took that put tasks in.",
            explicit_bucket_boundaries_advisory=DURATION_BOUNDS,
        )
        self._runs = meter.create_histogram(
            "messaging.process.duration",
            "s",
            "How long runs of tasks took.",
            explicit_bucket_boundaries_advisory=DURATION_BOUNDS,
        )

    def note_call(
        self, operation: Operation, queue_name: str, messages: int, seconds: float, error: BaseException | None
    ) -> None:
        """A call that put tasks in, or tried to."""
        attributes = _of(operation, queue_name)
        if error is not None:
            attributes[ERROR_TYPE] = error_type_of(error)
        with self._guard:
            self._operations.record(seconds, {**attributes, OPERATION_TYPE: operation.type})
            if operation.sends:
                self._sent.add(messages, attributes)

    def note_delivery(self, queue_name: str, function: str) -> None:
        """`function`: its name; empty for a payload, whose name comes from whoever puts it in."""
        with self._guard:
            self._consumed.add(1, _of_runs(queue_name, function))

    def note_run(self, queue_name: str, function: str, seconds: float, end: End) -> None:
        attributes = {**_of_runs(queue_name, function), OUTCOME: end.outcome}
        if end.error is not None:
            attributes[ERROR_TYPE] = error_type_of(end.error)
        with self._guard:
            self._runs.record(seconds, attributes)


def _of_runs(queue_name: str, function: str) -> dict[str, Any]:
    attributes = _of(PROCESS, queue_name)
    if function:
        attributes[TASK_NAME] = function
    return attributes


def _of(operation: Operation, queue_name: str) -> dict[str, Any]:
    """Without its type, which the conventions have for durations of calls alone."""
    attributes = operation.attributes(queue_name)
    del attributes[OPERATION_TYPE]
    return attributes
