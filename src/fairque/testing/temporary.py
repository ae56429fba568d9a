"""`temporary_queue`: a queue for one test."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fairque import TaskQueue

__all__ = ["temporary_queue"]


@asynccontextmanager
async def temporary_queue(url: str | None = "embedded://", **options: Any) -> AsyncIterator[TaskQueue]:
    """An open queue under a name that nobody else has; at the end everything of it is erased.

    Args:
        url: Where it is; by default on a server of its own.
        options: See `TaskQueue`.
    """
    async with TaskQueue(url, **{"name": f"temporary-{uuid.uuid4().hex}", **options}) as queue:
        try:
            yield queue
        finally:
            store = queue.store(patience=queue.connector.timeout)
            try:
                await store.erase_all()
            finally:
                await store.close()
