"""Middlewares: functions around a run, or around a call that puts tasks in. Each calls the next, and the last the thing
itself.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar

from fairque.errors import FairqueError, InvalidInput, WrongType

__all__ = ["CallNext", "Once", "RunMiddleware", "chained", "checked_middleware"]

M = TypeVar("M", bound=Callable[..., Awaitable[Any]])


class CallNext(Protocol):
    """What a middleware awaits to go on, without arguments: the next middleware, or at last the thing itself."""

    def __call__(self) -> Awaitable[Any]: ...


class RunMiddleware(Protocol):
    """An async function around each run of a task: ``async def timed(run, call_next): …``.

    `run` is the `TaskContext` of the task, which `current_task()` gives as well. What ``await call_next()`` returns is
    the value of the body, and what the middleware returns is the result of the task; what the body raises, it raises.
    """

    def __call__(self, run: Any, call_next: CallNext, /) -> Awaitable[Any]: ...


def checked_middleware(name: str, given: Sequence[M]) -> tuple[M, ...]:
    """Raises `WrongType` for what is no list, and `InvalidInput` for what cannot be called with two arguments."""
    listed: object = given
    if isinstance(listed, str) or not isinstance(listed, Sequence):
        raise WrongType(f"{name} must be a list, not {given!r}")
    for each in given:
        if not _takes_two(each):
            raise InvalidInput(f"{name} has {each!r}: a middleware is an async function of two arguments")
    return tuple(given)


def _takes_two(given: object) -> bool:
    if not callable(given) or isinstance(given, type):
        return False
    try:
        inspect.signature(given).bind(None, None)
    except (TypeError, ValueError):
        return False
    return True


def chained(middleware: tuple[Callable[[Any, CallNext], Awaitable[Any]], ...], about: Any, last: CallNext) -> CallNext:
    """The first of them around the second, and so on, around `last`; `about` is what all of them are given."""
    for each in reversed(middleware):
        last = partial(each, about, last)
    return last


class Once:
    """Behind the last middleware, where a second call would do harm: it raises `FairqueError` with this text."""

    def __init__(self, last: CallNext, text: str) -> None:
        self._last = last
        self._text = text
        self._was_called = False

    def __call__(self) -> Awaitable[Any]:
        if self._was_called:
            raise FairqueError(self._text)
        self._was_called = True
        return self._last()
