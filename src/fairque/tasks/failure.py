"""Why an attempt failed, as data: what a body raised, and what of it can be told to others."""

from __future__ import annotations

import re
import time
import traceback as tracebacks
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import msgspec

from fairque.errors import BadArguments, Fail, Retry, Snooze, SoftTimeout
from fairque.models import FailureKind
from fairque.tasks.message import NIL, encode_value

__all__ = [
    "TIMEOUT_CLASSES",
    "Failure",
    "Raised",
    "RaisedElsewhere",
    "Reply",
    "encode_result",
    "failure_of",
    "frames_in",
    "raised_by",
    "unfit",
]

MAX_ERROR_CHARS = 16_384
TIMEOUT_CLASSES = tuple(cls.__name__ for cls in TimeoutError.__mro__)
"""What a policy of retries knows a timeout by."""
_FRAME = re.compile(r'^[ |]+File ".+", line \d+, in .+$', re.MULTILINE)
_OF_THE_WORKER = ("fairque.worker.", "fairque.tasks.depends", "anyio.", "contextlib", "uncalled_for.")


class Failure(msgspec.Struct, frozen=True):
    """Why an attempt failed, as data."""

    kind: FailureKind
    type_name: str
    message: str
    traceback: str = ""


class Raised(msgspec.Struct, frozen=True):
    """What a body raised, as data: `classes` are the names of its class and of those it comes from. `snooze`: seconds
    for which it put itself off, which is no failure.
    """

    failure: Failure
    classes: tuple[str, ...] = ()
    retry_asked: bool = False
    retry_delay: float | None = None
    is_final: bool = False
    snooze: float | None = None


class Reply(msgspec.Struct, frozen=True, array_like=True):
    """How a body ended in its subprocess."""

    value: msgspec.Raw = NIL
    raised: Raised | None = None
    charged: float = 0.0


class RaisedElsewhere(Exception):
    """A body raised in a subprocess. The exception itself stays there: it may not survive the way."""

    def __init__(self, raised: Raised) -> None:
        super().__init__(raised.failure.message)
        self.raised = raised


def unfit(error: BadArguments) -> RaisedElsewhere:
    """The end of a task: its arguments do not fit, and never will."""
    return RaisedElsewhere(Raised(Failure(FailureKind.BAD_ARGUMENTS, "BadArguments", str(error)), is_final=True))


def raised_by(error: BaseException) -> Raised:
    """Whatever it is: that its text or its traceback cannot be had changes nothing."""
    if isinstance(error, RaisedElsewhere):
        return error.raised
    if isinstance(error, SoftTimeout):
        return Raised(
            _failure(error, _traceback_of(error), FailureKind.TIMEOUT), (type(error).__name__, *TIMEOUT_CLASSES)
        )
    classes = tuple(_encodable(each.__name__) for each in type(error).__mro__)
    asked = list(_leaves(error))
    if not all(isinstance(each, (Retry, Snooze, Fail)) for each in asked):
        return Raised(_failure(error, _traceback_of(error)), classes)
    wish = next(each for kind in (Fail, Retry, Snooze) for each in asked if isinstance(each, kind))
    failure = _failure(wish, _traceback_of(error))
    if isinstance(wish, Fail):
        return Raised(failure, classes, is_final=True)
    alike = [each for each in asked if isinstance(each, (Retry, Snooze)) and isinstance(each, type(wish))]
    delays = [delay for each in alike if (delay := _delay_of(each)) is not None]
    longest = max(delays) if len(delays) == len(alike) else None
    if isinstance(wish, Snooze):
        return Raised(failure, classes, snooze=longest)
    return Raised(failure, classes, True, longest)


def failure_of(error: BaseException) -> Failure:
    """What is kept of an exception that a task raises: class name, text and traceback.

    For middlewares: the exception of a body in a subprocess stays there, and what they see stands for it.
    """
    return raised_by(error).failure


def frames_in(traceback: str) -> list[str]:
    """A line for each, as "File …, line …, in …": they are code. What stands between them may quote arguments."""
    return [found[0].strip(" |") for found in _FRAME.finditer(traceback)]


def _failure(error: BaseException, traceback: str, kind: FailureKind = FailureKind.ERROR) -> Failure:
    return Failure(kind, _encodable(type(error).__name__), _text_of(error), traceback)


def _leaves(error: BaseException) -> Iterator[BaseException]:
    """Those that a group holds, such as that of an `asyncio.TaskGroup`; else the error itself."""
    if not isinstance(error, BaseExceptionGroup):
        yield error
        return
    for each in error.exceptions:
        yield from _leaves(each)


def _delay_of(wish: Retry | Snooze) -> float | None:
    return wish.delay if wish.at is None else max(0.0, wish.at.timestamp() - time.time())


def encode_result(value: Any, what: str = "the result") -> bytes | Failure:
    try:
        return encode_value(value)
    except BaseException as exc:  # it may run code of the value's class
        return Failure(FailureKind.ERROR, type(exc).__name__, f"{what} cannot be encoded: {_text_of(exc)}")


def _traceback_of(error: BaseException) -> str:
    try:
        lines = tracebacks.format_exception(type(error), error, _from_body(error.__traceback__))
    except BaseException:
        return ""
    return _encodable("".join(lines)[-MAX_ERROR_CHARS:])


def _from_body(traceback: TracebackType | None) -> TracebackType | None:
    """Leave out the frames of the worker itself, by the names of their modules."""
    while traceback is not None and traceback.tb_next:
        if not str(traceback.tb_frame.f_globals.get("__name__")).startswith(_OF_THE_WORKER):
            break
        traceback = traceback.tb_next
    return traceback


def _text_of(error: BaseException) -> str:
    try:
        text = "; ".join([str(error), *getattr(error, "__notes__", ())])
    except BaseException as exc:
        text = f"<its text cannot be had: {type(exc).__name__}>"
    return _encodable(text[:MAX_ERROR_CHARS])


def _encodable(text: str) -> str:
    return text.encode(errors="replace").decode()
