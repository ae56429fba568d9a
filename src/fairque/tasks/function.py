"""`TaskFunction`: what `@task` leaves in place of a function."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, Literal, ParamSpec, TypeVar

from fairque.errors import InvalidInput
from fairque.policy import Rate
from fairque.schedule.spec import Spec
from fairque.tasks.cost import told_cost
from fairque.tasks.options import TaskOptions
from fairque.tasks.signature import Signature
from fairque.tasks.task import Task, check_upstream
from fairque.tasks.xcom_options import NO_XCOM, XComOptions

__all__ = ["RunIn", "TaskFunction", "default_name"]

P = ParamSpec("P")
R = TypeVar("R")
RunIn = Literal["loop", "thread", "process"]


class TaskFunction(Generic[P, R]):
    """What `@task` leaves in place of a function."""

    def __init__(
        self, fn: Callable[P, Any], name: str, run_in: RunIn | None, defaults: TaskOptions, xcom: XComOptions = NO_XCOM
    ) -> None:
        self.fn = fn
        self.name = name
        self.run_in = _where(fn, run_in)
        self.defaults = defaults
        self.xcom = xcom
        self.max_running: int | None = None
        self.rate: Rate | None = None
        self.cost_of: Callable[..., float] | None = None
        self.schedule: Spec | None = None
        self.signature = Signature(fn, name, given=frozenset(xcom.pull_keys), lenient=xcom.auto)
        self.__doc__ = fn.__doc__
        self.__name__ = getattr(fn, "__name__", name)
        self.__qualname__ = getattr(fn, "__qualname__", name)
        self.__module__ = fn.__module__
        self.__wrapped__ = fn

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Task[R]:
        """A task with these arguments, outputs of other tasks among them or not.

        Raises:
            BadArguments: They do not fit. What an output will be is not known yet, and is checked by the worker.
            InvalidInput: The output of a task that keeps no result.
        """
        if not args and not kwargs:
            made: Task[R] = Task(self.name, self.signature.encode_none(), None, self.signature, self.defaults)
        else:
            encoded, encoded_kwargs, upstream = self.signature.encode(args, kwargs)
            kept = check_upstream(upstream) if upstream else ()
            made = Task(self.name, encoded, encoded_kwargs, self.signature, self.defaults, kept)
        if self.cost_of is None:
            return made
        return made.options(cost=told_cost(self, self.cost_of, args, kwargs, knows_all=not made.upstream))

    def options(self, **changes: Any) -> TaskFunction[P, R]:
        """A copy whose tasks have other options; the registered function stays as it is."""
        copy = object.__new__(TaskFunction)
        copy.__dict__.update(self.__dict__)
        copy.defaults = self.defaults.merged(changes)
        if "cost" in changes:
            copy.cost_of = None
        return copy

    def __repr__(self) -> str:
        return f"<task {self.name}>"


def default_name(fn: Callable[..., Any]) -> str:
    """Module and qualified name. A script is known by the name under which others would import it."""
    module = fn.__module__
    if module in ("__main__", "__mp_main__"):
        main = sys.modules[module]
        spec = getattr(main, "__spec__", None)
        file = getattr(main, "__file__", None)
        if spec is not None:
            module = spec.name.removesuffix(".__main__")
        elif file:
            module = Path(file).stem
    return f"{module}.{fn.__qualname__}"


def _where(fn: Callable[..., Any], run_in: RunIn | None) -> RunIn:
    if inspect.isasyncgenfunction(fn) or inspect.isgeneratorfunction(fn):
        raise InvalidInput(f"{fn.__qualname__} is a generator: a task returns its result, it yields none")
    is_async = inspect.iscoroutinefunction(fn)
    if run_in is None:
        return "loop" if is_async else "thread"
    if run_in not in ("loop", "thread", "process"):
        raise InvalidInput(f"run_in must be 'loop', 'thread' or 'process', not {run_in!r}")
    if is_async != (run_in == "loop"):
        kind = "an async function runs in the loop" if is_async else "only an async function can run in the loop"
        raise InvalidInput(f"run_in={run_in!r} of {fn.__qualname__}: {kind}")
    return run_in
