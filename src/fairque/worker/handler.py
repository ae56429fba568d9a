"""`TaskHandler`: serves tasks that name no function."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

__all__ = ["TaskHandler"]


class TaskHandler(ABC):
    """Serves the tasks that have no function: those of ``Task.create(payload=…)``."""

    @abstractmethod
    async def process_task(self, payload: dict[str, Any]) -> Any:
        """Do the work; what it returns is the result. `current_task()` tells the user and the id."""
