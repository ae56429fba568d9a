"""The registry: the task functions of this process by name, in which workers find them."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterable, Mapping
from types import CodeType
from typing import Any

from fairque.checks import check_id
from fairque.errors import DuplicateTask, InvalidInput
from fairque.tasks.collect import Collecting
from fairque.tasks.function import Attach, RunIn, TaskFunction
from fairque.tasks.names import default_name
from fairque.tasks.options import NO_OPTIONS

__all__ = ["function_for", "get_function", "newest", "register", "registry", "unregister"]

logger = logging.getLogger("fairque.task")
registry: dict[str, TaskFunction[Any, Any]] = {}
_loaded: dict[tuple[str, str], tuple[str, str]] = {}
"""By file and qualified name, the module and the name of the first task that was made of a function there."""
_newest: list[TaskFunction[Any, Any]] = []


def register(
    fn: Callable[..., Any],
    name: str | None,
    run_in: RunIn | None,
    options: Mapping[str, Any],
    features: Iterable[Attach] = (),
) -> TaskFunction[Any, Any]:
    """Make a function a task that workers find. Raises `InvalidInput`, and `DuplicateTask` for a name that is taken."""
    features = list(features)
    collects = any(isinstance(attach, Collecting) for attach in features)
    made: TaskFunction[Any, Any] = TaskFunction(fn, name, run_in, NO_OPTIONS.merged(options), collects)
    check_id("task name", made.name)
    for attach in features:
        attach(made)
    made.signature.check_annotations()
    known = registry.get(made.name)
    if known is not None and not _is_made_anew(known.fn, fn):
        raise DuplicateTask(_taken(known, made))
    registry[made.name] = made
    _newest[:] = [made]
    _warn_of_twins(made)
    return made


def _warn_of_twins(made: TaskFunction[Any, Any]) -> None:
    """A file that is loaded as two modules makes two tasks of each function, and a worker may know only one of them."""
    code = _code_of(made.fn)
    if code is None or made.name != default_name(made.fn):
        return
    module, name = _loaded.setdefault((code.co_filename, made.__qualname__), (made.__module__, made.name))
    if module != made.__module__ and name != made.name and name in registry:
        logger.warning(
            "%s is loaded twice, as %s and as %s, so one function is two tasks, %r and %r: start it with python -m, "
            "or give its tasks names: @task(name=…)",
            *(code.co_filename, module, made.__module__, name, made.name),
        )


def newest() -> TaskFunction[Any, Any] | None:
    """The one that was registered last: as long as that stays, there is nothing new."""
    return _newest[0] if _newest else None


def _is_made_anew(known: Callable[..., Any], fn: Callable[..., Any]) -> bool:
    """Whether it is the same function of a notebook's cell run again, or of a module that is imported again.

    One that was made twice of the same code comes from a function that makes tasks: these are two.
    """
    one, two = _code_of(known), _code_of(fn)
    if (known.__module__, known.__qualname__) != (fn.__module__, fn.__qualname__) or one is None or two is None:
        return False
    return one is not two and (fn.__module__ == "__main__" or one.co_filename == two.co_filename)


def _taken(known: TaskFunction[Any, Any], made: TaskFunction[Any, Any]) -> str:
    one, two = _code_of(known.fn), _code_of(made.fn)
    modules = f"{known.fn.__module__} and {made.fn.__module__}"
    if one and two and one.co_filename == two.co_filename and known.fn.__module__ != made.fn.__module__:
        return f"the name {made.name!r} is taken: {one.co_filename} runs under two names, as {modules}"
    return f"the name {made.name!r} is taken by {known.fn.__module__}.{known.fn.__qualname__}"


def _code_of(fn: Callable[..., Any]) -> CodeType | None:
    """Of the function behind its wrappers, which all have the code of their decorator."""
    return getattr(inspect.unwrap(getattr(fn, "__func__", fn)), "__code__", None)


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
