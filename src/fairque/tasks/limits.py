"""What limits the tasks of one name, as its function declares it: ``@task(max_running=…, rate=…)``."""

from __future__ import annotations

from typing import Any

from fairque.policy import TaskLimit, task_limit
from fairque.tasks.function import Attach
from fairque.tasks.registry import registry

__all__ = ["declared_limits", "take_limits"]


def take_limits(options: dict[str, Any]) -> Attach | None:
    limit = task_limit(options.pop("max_running", None), options.pop("rate", None))
    return None if limit == TaskLimit() else lambda function: function.add(limit)


def declared_limits() -> list[tuple[str, TaskLimit]]:
    """By the name of each function that is registered. One without limits says so, to end what it had declared."""
    return [(name, function.feature(TaskLimit) or TaskLimit()) for name, function in registry.items()]
