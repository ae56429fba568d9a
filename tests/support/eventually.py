"""Waiting for something to become true, instead of sleeping and hoping."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, overload

T = TypeVar("T")

_FIRST_PAUSE = 0.002
_LONGEST_PAUSE = 0.05


@overload
async def eventually(condition: Callable[[], Awaitable[T]], deadline: float = ...) -> T: ...
@overload
async def eventually(condition: Callable[[], T], deadline: float = ...) -> T: ...
async def eventually(condition: Callable[[], Any], deadline: float = 20.0) -> Any:
    """What `condition` returns (or awaits) as soon as that is true.

    Args:
        condition: A function or coroutine function without arguments, asked ever more slowly.
        deadline: Seconds after which an AssertionError names the condition and its last value.
    """
    ends = time.monotonic() + deadline
    pause = _FIRST_PAUSE
    while True:
        found = condition()
        value = await found if inspect.isawaitable(found) else found
        if value:
            return value
        if time.monotonic() > ends:
            raise AssertionError(f"not true within {deadline:g} s: {_describe(condition)}; last value {value!r}")
        await asyncio.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)


def _describe(condition: Callable[..., object]) -> str:
    try:
        return " ".join(inspect.getsource(condition).split())
    except (OSError, TypeError):
        return repr(condition)
