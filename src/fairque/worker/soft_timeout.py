"""`telling`: an async body that is told by an exception, once, that its soft timeout has passed."""

from __future__ import annotations

import asyncio
import time
import types
from collections.abc import Awaitable, Callable, Generator
from functools import partial
from typing import Any

from fairque.errors import SoftTimeout
from fairque.worker.running_task import RunningTask

__all__ = ["telling"]


@types.coroutine
def telling(body: Awaitable[Any], run: RunningTask) -> Generator[Any, Any, Any]:
    """The value of the body, which is run step by step: asyncio throws nothing into a task but a cancellation, so that
    is asked for when the time has come, and what arrives in the body in its place is a `SoftTimeout`.

    A real cancellation arrives as such, also when both come at once.
    """
    task = asyncio.current_task()
    assert task is not None
    is_told = False

    def tell() -> None:
        nonlocal is_told
        if not run.canceled:
            is_told = True
            task.cancel()

    timer = task.get_loop().call_later(max(0.0, run.soft_ends - time.monotonic()), tell)
    steps: Any = body.__await__()
    step: Callable[[], Any] = partial(steps.send, None)
    try:
        while True:
            try:
                awaited = step()
            except StopIteration as end:
                return end.value
            try:
                step = partial(steps.send, (yield awaited))
            except GeneratorExit:
                steps.close()
                raise
            except BaseException as exc:
                thrown = exc
                if is_told and isinstance(exc, asyncio.CancelledError) and not run.canceled:
                    is_told = False
                    task.uncancel()
                    thrown = SoftTimeout()
                step = partial(steps.throw, thrown)
    finally:
        timer.cancel()
