"""`Waiter`: a running task that waits for the end of another one. It keeps its slot meanwhile."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Protocol

__all__ = ["Waiter", "waiter"]


class Waiter(Protocol):
    """`waits` is for how many it waits at this moment."""

    waits: int

    def has_waited(self, whom: str, seconds: float) -> None:
        """For a task, or ``batch:`` and the id of a batch."""


waiter: ContextVar[Waiter | None] = ContextVar("fairque_waiter", default=None)
"""The task that runs here, where a worker runs one."""
