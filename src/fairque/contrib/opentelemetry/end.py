"""`End`: what a run came to, as a span and as a metric have it."""

from __future__ import annotations

from typing import NamedTuple

from opentelemetry.trace import Span, Status, StatusCode

from fairque import Failure, Snooze
from fairque.contrib.opentelemetry.conventions import ERROR_TYPE
from fairque.tasks.failure import RaisedElsewhere, failure_of, frames_in, raised_by

__all__ = ["End", "error_type_of", "tell_error", "tell_failure"]


class End(NamedTuple):
    """
    Attributes:
        outcome: ``"returned"``, ``"raised"``, ``"snoozed"``, or why the run was cut off: ``"timeout"``, ``"canceled"``,
            ``"lost"``, ``"released"``.
        error: What failed; None where nothing has.
    """

    outcome: str
    error: BaseException | None = None

    @classmethod
    def of(cls, cut_off: str, error: BaseException | None) -> End:
        """What is cut off counts as that, whatever its body makes of the cancellation."""
        if cut_off:
            return _CUT_OFF[cut_off]
        if error is None:
            return _RETURNED
        return _SNOOZED if _is_snooze(error) else cls("raised", error)


class TaskLost(Exception):
    """Another worker has the task, or it is gone."""


_RETURNED = End("returned")
_SNOOZED = End("snoozed")
_CUT_OFF = {
    "timeout": End("timeout", TimeoutError()),
    "lost": End("lost", TaskLost()),
    "canceled": End("canceled"),
    "released": End("released"),
}


def error_type_of(error: BaseException) -> str:
    """The name of its class, as in `TaskFailed.type_name`."""
    if isinstance(error, RaisedElsewhere):
        return error.raised.failure.type_name
    return type(error).__name__.encode(errors="replace").decode()


def tell_error(span: Span, error: BaseException, with_texts: bool) -> None:
    """What cut a run off was raised nowhere, so it has no frames."""
    if error.__traceback__ is None:
        _mark(span, error_type_of(error), error_type_of(error))
    else:
        tell_failure(span, failure_of(error), with_texts)


def tell_failure(span: Span, failure: Failure, with_texts: bool) -> None:
    """Its type and the frames of its traceback, which are code. Its text may quote arguments, so that has to be asked
    for.
    """
    event = {"exception.type": failure.type_name, "exception.stacktrace": "\n".join(frames_in(failure.traceback))}
    if with_texts:
        event |= {"exception.message": failure.message, "exception.stacktrace": failure.traceback}
    span.add_event("exception", event)
    _mark(span, failure.type_name, failure.message if with_texts else failure.type_name)


def _mark(span: Span, error_type: str, description: str) -> None:
    span.set_attribute(ERROR_TYPE, error_type)
    span.set_status(Status(StatusCode.ERROR, description))


def _is_snooze(error: BaseException) -> bool:
    """Also one that a task group has wrapped, or that was raised in a subprocess."""
    if isinstance(error, (RaisedElsewhere, BaseExceptionGroup)):
        return raised_by(error).snooze is not None
    return isinstance(error, Snooze)
