"""Generators as tasks: which functions yield, and what."""

from __future__ import annotations

import collections.abc
import inspect
import typing
from collections.abc import Callable
from typing import Any

__all__ = ["element_of", "yields", "yields_async"]

_ITERATED = (
    collections.abc.AsyncGenerator,
    collections.abc.AsyncIterable,
    collections.abc.AsyncIterator,
    collections.abc.Generator,
    collections.abc.Iterable,
    collections.abc.Iterator,
)


def yields(fn: Callable[..., Any]) -> bool:
    """Whether it is a generator function, or a plain wrapper around one."""
    if inspect.iscoroutinefunction(fn):
        return False
    return yields_async(fn) or inspect.isgeneratorfunction(inspect.unwrap(fn))


def yields_async(fn: Callable[..., Any]) -> bool:
    return inspect.isasyncgenfunction(inspect.unwrap(fn)) and not inspect.iscoroutinefunction(fn)


def element_of(hint: Any) -> Any:
    """What is yielded, by the annotation of the result: `str` of ``AsyncIterator[str]``. Any where it does not say."""
    args = typing.get_args(hint)
    return args[0] if args and typing.get_origin(hint) in _ITERATED else Any
