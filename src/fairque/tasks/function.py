"""`TaskFunction`: what `@task` leaves in place of a function."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from typing import Any, Generic, Literal, ParamSpec, Protocol, TypeAlias, TypeVar, Unpack, overload

from fairque.errors import InvalidInput
from fairque.models import Streamed
from fairque.tasks.generators import yields, yields_async
from fairque.tasks.names import default_name
from fairque.tasks.one_of_many import one_of
from fairque.tasks.options import Options, TaskOptions
from fairque.tasks.partial import Partial
from fairque.tasks.signature import Signature
from fairque.tasks.task import Task, check_upstream

__all__ = ["Attach", "Decorator", "OnCall", "RunIn", "TaskFunction"]

P = ParamSpec("P")
R = TypeVar("R")
F = TypeVar("F")
RunIn = Literal["loop", "thread", "process"]
OnCall: TypeAlias = "Callable[[Task[Any], tuple[Any, ...], Mapping[str, Any]], Task[Any]]"
"""Given the task that a call made, and its arguments: the task to hand out."""


class TaskFunction(Generic[P, R]):
    """What `@task` leaves in place of a function.

    What else `@task` can do hangs on it from outside, see `Attach`: as a value that is found by its class (`feature`),
    as another `signature`, as a step of each call (`on_call`), or as another `body`.

    Attributes:
        fn: The function itself.
        body: What workers call: `fn`, or what stands around it.
        yields: Whether it is a generator, whose chunks are read by `TaskHandle.stream`.
    """

    def __init__(
        self,
        fn: Callable[P, Any],
        name: str | None,
        run_in: RunIn | None,
        defaults: TaskOptions,
        collects: bool = False,
    ) -> None:
        fn = _function_in(fn)
        self.fn: Callable[P, Any] = fn
        self.body: Callable[..., Any] = fn
        self.name = name or default_name(fn)
        self.run_in = _where(fn, run_in)
        self.yields = yields(fn)
        self.defaults = defaults
        self.collects = collects  # its body is given a list of arguments: see tasks/collect.py
        self.signature = Signature(one_of(fn, self.name) if self.collects else fn, self.name)
        self.on_call: tuple[OnCall, ...] = ()
        self._features: dict[type, Any] = {}
        self.__doc__ = fn.__doc__
        self.__name__ = getattr(fn, "__name__", self.name)
        self.__qualname__ = fn.__qualname__
        self.__module__ = fn.__module__
        self.__wrapped__ = fn

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> Task[R]:
        """A task with these arguments, outputs of other tasks among them or not.

        Raises:
            BadArguments: They do not fit. What an output will be is not known yet, and is checked by the worker.
            InvalidInput: The output of a task that keeps no result.
        """
        if not args and not kwargs:
            made: Task[R] = Task(self.name, self.signature.encode_none(), None, self.signature, self.defaults)
        else:
            encoded, encoded_kwargs, upstream = self.signature.encode(args, kwargs)
            checked = check_upstream(upstream) if upstream else ()
            made = Task(self.name, encoded, encoded_kwargs, self.signature, self.defaults, checked)
        for step in self.on_call:
            made = step(made, args, kwargs)
        return made

    def options(self, **changes: Unpack[Options]) -> TaskFunction[P, R]:
        """A copy whose tasks have other options; the registered function stays as it is."""
        copy = object.__new__(TaskFunction)
        copy.__dict__.update(self.__dict__)
        copy.defaults = self.defaults.merged(changes)
        return copy

    def partial(self, /, *args: Any, **kwargs: Any) -> Partial[R]:
        """The function with some of its arguments; the first one comes later, see `Partial`.

        Args:
            args: Those behind the first one.
            kwargs: By name.

        Raises:
            BadArguments: The function has no such parameters.
        """
        return Partial(self, args, kwargs)

    def add(self, feature: object) -> None:
        """Hang a value on the function, one of each class."""
        self._features[type(feature)] = feature

    def feature(self, kind: type[F]) -> F | None:
        """The value of this class that hangs on the function."""
        return self._features.get(kind)

    def __repr__(self) -> str:
        return f"<task function {self.name}>"


Attach: TypeAlias = "Callable[[TaskFunction[Any, Any]], None]"
"""What a feature does with a function that uses it, before the function is registered."""


class Decorator(Protocol):
    @overload
    def __call__(self, fn: Callable[P, AsyncIterator[R]], /) -> TaskFunction[P, Streamed[R]]: ...
    @overload
    def __call__(self, fn: Callable[P, Iterator[R]], /) -> TaskFunction[P, Streamed[R]]: ...
    @overload
    def __call__(self, fn: Callable[P, Awaitable[R]], /) -> TaskFunction[P, R]: ...
    @overload
    def __call__(self, fn: Callable[P, R], /) -> TaskFunction[P, R]: ...


def _function_in(fn: Any) -> Any:
    """Itself, or what a static method is about. Raises `InvalidInput` for what is no function."""
    function = fn.__func__ if isinstance(fn, staticmethod) else fn
    is_named = isinstance(getattr(function, "__qualname__", None), str)
    is_of_a_module = isinstance(getattr(function, "__module__", None), str)
    if isinstance(function, (type, TaskFunction)) or not (callable(function) and is_named and is_of_a_module):
        raise InvalidInput(f"only a function can be a task, not {fn!r}")
    try:
        inspect.signature(function)
    except (TypeError, ValueError):
        raise InvalidInput(f"only a function whose parameters are known can be a task, not {fn!r}") from None
    return function


def _where_generator(fn: Callable[..., Any], run_in: RunIn | None) -> RunIn:
    where: RunIn = "loop" if yields_async(fn) else "thread"
    if run_in not in (None, where):
        kind = "an async generator runs in the loop" if where == "loop" else "a plain generator runs in a thread"
        raise InvalidInput(f"run_in={run_in!r} of {fn.__qualname__}: {kind}")
    return where


def _where(fn: Callable[..., Any], run_in: RunIn | None) -> RunIn:
    if yields(fn):
        return _where_generator(fn, run_in)
    is_async = inspect.iscoroutinefunction(fn)
    wraps_async = inspect.iscoroutinefunction(inspect.unwrap(fn))  # what it returns is awaited wherever it runs
    if run_in is None:
        return "loop" if is_async else "thread"
    if run_in not in ("loop", "thread", "process"):
        raise InvalidInput(f"run_in must be 'loop', 'thread' or 'process', not {run_in!r}")
    if is_async != (run_in == "loop") and not (wraps_async and not is_async):
        kind = "an async function runs in the loop" if is_async else "only an async function can run in the loop"
        raise InvalidInput(f"run_in={run_in!r} of {fn.__qualname__}: {kind}")
    return run_in
