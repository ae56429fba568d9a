"""`results_of`: the results of many tasks."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import TypeVar

from fairque.checks import Duration, check_kind, check_list
from fairque.queue.handle import TaskHandle

__all__ = ["results_of"]

R = TypeVar("R")
AT_ONCE = 500
"""Waits that are begun in one round of the loop, which has others to run."""


async def results_of(handles: Iterable[TaskHandle[R]], timeout: Duration | None) -> list[R]:
    """In their order, or the first error that comes."""
    wanted = [check_kind("each of handles", handle, TaskHandle) for handle in check_list("handles", handles)]
    waits: list[asyncio.Task[R]] = []
    try:
        for handle in wanted:
            waits.append(asyncio.create_task(handle.result(timeout)))
            if len(waits) % AT_ONCE == 0:
                await asyncio.sleep(0)
        return await asyncio.gather(*waits)
    finally:
        for wait in waits:
            wait.cancel()
