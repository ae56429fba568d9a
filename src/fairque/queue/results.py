"""`results_of`: the results of many tasks."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import TypeVar

from fairque.queue.handle import TaskHandle

__all__ = ["results_of"]

R = TypeVar("R")


async def results_of(handles: Iterable[TaskHandle[R]], timeout: float | None) -> list[R]:
    """In their order, or the first error that comes."""
    waits = [asyncio.create_task(handle.result(timeout)) for handle in handles]
    try:
        return await asyncio.gather(*waits)
    finally:
        for wait in waits:
            wait.cancel()
