"""``module:name`` on the command line, found and checked."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from fairque import TaskQueue, Worker
from fairque.cli.errors import CommandError, describe
from fairque.tasks.function import TaskFunction

if TYPE_CHECKING:
    from fairque.contrib.sqlalchemy import OutboxRelay

__all__ = ["load_module", "load_queue", "load_relay", "load_served", "load_task", "project_of"]

MOST_NAMED = 3
_NAMES = {
    "a TaskQueue": "a queue",
    "a TaskQueue or a Worker": "a queue or a worker",
    "an OutboxRelay": "the relay of an outbox",
}


def load_queue(target: str) -> TaskQueue:
    """The queue that `target` names: an instance, or what a function without arguments returns.

    The current directory is importable. Raises `CommandError`.
    """
    found: TaskQueue = _found_or_made(target, "queue", "a TaskQueue", TaskQueue)
    return found


def load_served(target: str) -> TaskQueue | Worker:
    """The queue or the worker that `target` names: an instance, or what a function without arguments returns.

    The current directory is importable. Raises `CommandError`.
    """
    found: TaskQueue | Worker = _found_or_made(target, "queue", "a TaskQueue or a Worker", TaskQueue, Worker)
    return found


def load_relay(target: str) -> OutboxRelay:
    """The relay of an outbox that `target` names, likewise. Raises `CommandError`, also where SQLAlchemy is missing."""
    try:
        from fairque.contrib.sqlalchemy import OutboxRelay
    except ImportError as error:
        raise CommandError("the outbox needs SQLAlchemy", str(error)) from None
    found: OutboxRelay = _found_or_made(target, "relay", "an OutboxRelay", OutboxRelay)
    return found


def _found_or_made(target: str, what: str, wanted: str, *kinds: type) -> Any:
    found = _find(target, what)
    if not isinstance(found, (*kinds, TaskFunction)) and callable(found):
        found = _made(found, target)
    if isinstance(found, kinds):
        return found
    raise CommandError(
        f"{target!r} is {_article(found)}, not {_NAMES[wanted]}",
        _suggestion(target, kinds) or f"name {wanted}, such as myapp.tasks:{what}, or a function that returns one",
    )


def load_task(target: str) -> TaskFunction[Any, Any]:
    """The task function that `target` names. The current directory is importable. Raises `CommandError`."""
    found = _find(target, "task")
    if not isinstance(found, TaskFunction):
        raise CommandError(
            f"{target!r} is {_article(found)}, not a task",
            _suggestion(target, TaskFunction) or "name a function with @task, such as myapp.tasks:resize",
        )
    return found


def project_of(target: str) -> list[Path]:
    """The current directory, and that of the package that `target` names, which is not imported for it."""
    here = _importable_directory()
    try:
        spec = importlib.util.find_spec(target.partition(":")[0].partition(".")[0])
    except (ImportError, ValueError):  # whoever imports it will say so
        spec = None
    if spec is None:
        return [Path(here)]
    places = [*(spec.submodule_search_locations or ()), *([spec.origin] if spec.has_location else ())]
    return [Path(here), *(each if each.is_dir() else each.parent for each in map(Path, map(str, places)))]


def load_module(name: str) -> None:
    """Import a module with tasks. The current directory is importable. Raises `CommandError`."""
    if ":" in name:
        raise CommandError(
            f"{name!r} is not a module: it names what is served, and so does --config",
            "name the module alone, such as myapp.tasks, or leave --config out and load it there: Worker.from_config",
        )
    if name.endswith(".py") or "/" in name or not name:
        raise CommandError(
            f"{name!r} is not a module", "name the module alone, such as myapp.tasks: --config has the queue"
        )
    _import(name)


def _find(target: str, what: str) -> Any:
    module_name, colon, path = target.partition(":")
    named = module_name if all(map(str.isidentifier, module_name.split("."))) else "myapp.tasks"
    shape = f"write module:name, such as {named}:{'resize' if what == 'task' else what}"
    if not (module_name and colon and path):
        raise CommandError(f"{target!r} does not name a {what}", shape)
    if module_name.endswith(".py") or "/" in module_name:
        raise CommandError(f"{module_name!r} is a file, a module is wanted", shape)
    found: Any = _import(module_name)
    for name in path.split("."):
        found = _attribute(found, name, target)
    return found


def _importable_directory() -> str:
    """The current one."""
    directory = str(Path.cwd())
    if directory not in sys.path:
        sys.path.insert(0, directory)
    return directory


def _import(name: str) -> ModuleType:
    directory = _importable_directory()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            raise CommandError(f"there is no module {error.name!r}", f"looked in {directory} and sys.path") from None
        raise _broken(name, error) from None
    except (Exception, SystemExit) as error:
        raise _broken(name, error) from None


def _broken(name: str, error: BaseException) -> CommandError:
    return CommandError(
        f"importing {name!r} failed: {describe(error)}", f'python -c "import {name}" shows the traceback'
    )


def _attribute(owner: Any, name: str, target: str) -> Any:
    try:
        return getattr(owner, name)
    except AttributeError:
        near = difflib.get_close_matches(name, dir(owner), 1)
        hint = f"did you mean {near[0]!r}?" if near else f"define {name} there, or name something else"
        raise CommandError(f"{target!r}: there is no {name!r} in {_owner(owner)}", hint) from None


def _suggestion(target: str, kind: type | tuple[type, ...]) -> str:
    """What is of the kind in a module that is imported already; '' if nothing is."""
    module = target.partition(":")[0]
    there = [name for name, value in vars(sys.modules[module]).items() if isinstance(value, kind)]
    return f"did you mean {' or '.join(f'{module}:{name}' for name in there[:MOST_NAMED])}?" if there else ""


def _owner(owner: Any) -> str:
    return str(getattr(owner, "__name__", type(owner).__name__))


def _made(factory: Any, target: str) -> Any:
    try:
        return factory()
    except Exception as error:
        raise CommandError(f"{target!r} failed: {describe(error)}", "it is called without arguments") from None


def _article(found: Any) -> str:
    if found is None:
        return "None"
    if isinstance(found, TaskFunction):
        return "a task"
    name = "queue" if isinstance(found, TaskQueue) else type(found).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"
