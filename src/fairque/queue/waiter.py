"""`Waiter`: a running task that waits for the end of another one. It keeps its slot meanwhile."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Protocol

__all__ = ["Waiter", "waiter"]


class Waiter(Protocol):
    """`waits` is for how many it waits at this moment."""

    waits: int


waiter: ContextVar[Waiter | None] = ContextVar("fairque_waiter", default=None)
"""The task that runs here, where a worker runs one."""
