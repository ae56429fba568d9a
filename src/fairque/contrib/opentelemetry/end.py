"""`End`: what a run came to, as a span and as a metric have it."""

from __future__ import annotations

import asyncio
from typing import NamedTuple

from opentelemetry.trace import Span, Status, StatusCode

from fairque import Failure, Snooze
from fairque.contrib.opentelemetry.conventions import ERROR_TYPE, OUTCOME
from fairque.tasks.failure import RaisedElsewhere, failure_of, frames_in, raised_by

__all__ = ["FINISHED", "End", "error_type_of", "tell_error", "tell_failure"]


class End(NamedTuple):
    """
    Attributes:
        outcome: ``"returned"``, ``"raised"``, ``"snoozed"``, or why the run was cut off: ``"timeout"``, ``"canceled"``,
            ``"lost"``, ``"released"``.
        error_type: Of a failure; None where nothing has failed.
        error: What the body raised, where that is what ended it.
    """

    outcome: str
    error_type: str | None = None
    error: BaseException | None = None

    @classmethod
    def of(cls, cut_off: str, error: BaseException | None) -> End:
        """What is cut off counts as that, whatever its body makes of the cancellation."""
        if cut_off:
            return _CUT_OFF[cut_off]
        if error is None:
            return FINISHED
        if _is_snooze(error):
            return _SNOOZED
        return cls("raised", error_type_of(error), error)

    def tell(self, span: Span, with_texts: bool) -> None:
        """Nothing where the body has ended the span, which would be a warning for each."""
        if not span.is_recording():
            return
        span.set_attribute(OUTCOME, self.outcome)
        if self.error_type is not None:
            tell_error(span, self.error_type, self.error, with_texts)


FINISHED = End("returned")
_SNOOZED = End("snoozed")
_CUT_OFF = {
    "timeout": End("timeout", TimeoutError.__name__),
    "lost": End("lost", "TaskLost"),
    "canceled": End("canceled"),
    "released": End("released"),
}


def error_type_of(error: BaseException) -> str:
    """The name of its class, as in `TaskFailed.type_name`."""
    return error.raised.failure.type_name if isinstance(error, RaisedElsewhere) else type(error).__name__


def tell_error(span: Span, error_type: str, error: BaseException | None, with_texts: bool) -> None:
    """Its type and the frames of its traceback, which are code. Its text may quote arguments, so that has to be asked
    for.
    """
    span.set_attribute(ERROR_TYPE, error_type)
    if error is None or isinstance(error, asyncio.CancelledError):
        span.set_status(Status(StatusCode.ERROR, error_type))
        return
    tell_failure(span, failure_of(error), with_texts)


def tell_failure(span: Span, failure: Failure, with_texts: bool) -> None:
    """The same of a failure that is data."""
    span.set_attribute(ERROR_TYPE, failure.type_name)
    event = {"exception.type": failure.type_name, "exception.stacktrace": "\n".join(frames_in(failure.traceback))}
    if with_texts:
        event |= {"exception.message": failure.message, "exception.stacktrace": failure.traceback}
    span.add_event("exception", event)
    span.set_status(Status(StatusCode.ERROR, failure.message if with_texts else failure.type_name))


def _is_snooze(error: BaseException) -> bool:
    """Also one that a task group has wrapped, or that was raised in a subprocess."""
    if isinstance(error, (RaisedElsewhere, BaseExceptionGroup)):
        return raised_by(error).snooze is not None
    return isinstance(error, Snooze)
