"""The registry: the task functions of this process by name, in which workers find them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from fairque.checks import check_id
from fairque.errors import DuplicateTask, InvalidInput
from fairque.tasks.function import Attach, RunIn, TaskFunction, default_name
from fairque.tasks.options import NO_OPTIONS

__all__ = ["function_for", "get_function", "register", "registry", "unregister"]

registry: dict[str, TaskFunction[Any, Any]] = {}


def register(
    fn: Callable[..., Any],
    name: str | None,
    run_in: RunIn | None,
    options: Mapping[str, Any],
    features: Iterable[Attach] = (),
) -> TaskFunction[Any, Any]:
    """Make a function a task that workers find. Raises `InvalidInput`, and `DuplicateTask` for a name that is taken."""
    made: TaskFunction[Any, Any] = TaskFunction(fn, name, run_in, NO_OPTIONS.merged(options))
    check_id("task name", made.name)
    for attach in features:
        attach(made)
    known = registry.setdefault(made.name, made)
    if known is not made:
        raise DuplicateTask(f"the name {made.name!r} is taken by {known.fn.__module__}.{known.fn.__qualname__}")
    return made


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
