"""The registry: the task functions of this process by name, in which workers find them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fairque.checks import check_id
from fairque.errors import DuplicateTask, InvalidInput
from fairque.tasks.function import TaskFunction, default_name

__all__ = ["function_for", "get_function", "register", "registry", "unregister"]

registry: dict[str, TaskFunction[Any, Any]] = {}


def register(function: TaskFunction[Any, Any]) -> None:
    """Raises `DuplicateTask` where the name is taken by another function."""
    check_id("task name", function.name)
    known = registry.setdefault(function.name, function)
    if known is not function:
        taken_by = f"{known.fn.__module__}.{known.fn.__qualname__}"
        raise DuplicateTask(f"the name {function.name!r} is taken by {taken_by}")


def get_function(name: str) -> TaskFunction[Any, Any] | None:
    return registry.get(name)


def unregister(name: str) -> None:
    """Forget a registered function, e.g. at the end of a test."""
    registry.pop(name, None)


def function_for(fn: Callable[..., Any]) -> TaskFunction[Any, Any]:
    """A registered function, given as a `TaskFunction` or as the plain function behind one. Raises `InvalidInput`."""
    if isinstance(fn, TaskFunction):
        return fn
    found = registry.get(default_name(fn)) if callable(fn) else None
    if found is None or found.fn is not fn:
        raise InvalidInput(f"{fn!r} is not a task: decorate it with @task")
    return found
