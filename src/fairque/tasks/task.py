"""`@task`, the tasks it builds, and the registry in which workers find the functions.

``resize(42)`` builds a `Task`, it calls nothing: ``resize.fn(42)`` does. The arguments are encoded at once, so a value
that does not fit the annotations fails on the caller's line, and a later change of a list changes no task.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Generic, Literal, ParamSpec, Protocol, TypeVar, cast, overload

import msgspec

from fairque.checks import check_count, check_id
from fairque.errors import BadArguments, DuplicateTask, InvalidInput
from fairque.models import Priority
from fairque.policy import MOST_TASKS, Rate, as_rate
from fairque.schedule.spec import Spec
from fairque.schedule.timetable import declared_spec
from fairque.tasks.cost import told_cost
from fairque.tasks.message import NIL, Message
from fairque.tasks.options import NO_OPTIONS, Dependency, TaskOptions
from fairque.tasks.pipeline import Composable
from fairque.tasks.retry import RetryPolicy
from fairque.tasks.signature import Output, Signature, encode_linked
from fairque.tasks.xcom_options import NO_XCOM, XComOptions

__all__ = [
    "RunIn",
    "Task",
    "TaskFunction",
    "get_function",
    "registry",
    "task",
    "unregister",
    "xcom_task",
]

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
RunIn = Literal["loop", "thread", "process"]

registry: dict[str, TaskFunction[Any, Any]] = {}


class Task(Composable, Generic[R_co]):
    """A call of a function, or a payload for a `TaskHandler`, ready to be enqueued. Immutable.

    The same task may be enqueued many times; each time is a task of its own, unless a `task_id` is set.

    Tasks are put in order with ``>>``, ``<<`` and ``|``, see `Pipeline`, or by passing the `output` of one to another.

    Attributes:
        upstream: The tasks whose outputs are arguments of this one.
    """

    __slots__ = ("args", "function", "kwargs", "name", "task_options", "upstream")

    def __init__(
        self,
        name: str,
        args: bytes,
        kwargs: bytes | None,
        function: TaskFunction[Any, Any] | None,
        task_options: TaskOptions,
        upstream: tuple[Task[Any], ...] = (),
    ) -> None:
        self.name = name
        self.args = args
        self.kwargs = kwargs
        self.function = function
        self.task_options = task_options
        self.upstream = upstream

    @staticmethod
    def create(*, payload: Mapping[str, Any] | None = None, name: str = "", **options: Any) -> Task[Any]:
        """A task without a function, served by the `TaskHandler` of a worker.

        Args:
            payload: What the handler is given; anything that msgpack can hold, and outputs of other tasks.
            name: Shown in logs and listings.
            options: See `TaskOptions`.
        """
        try:
            [args], upstream = encode_linked(dict(payload or {}))
        except (TypeError, ValueError, OverflowError, RecursionError) as exc:
            raise BadArguments(f"the payload cannot be encoded: {exc}") from None
        return Task(name, args, None, None, NO_OPTIONS.merged(options), _kept(upstream))

    @property
    def output(self) -> R_co:
        """The result, as an argument of another task, which then runs after this one: ``load(extract().output)``.

        For type checkers it is the value itself. While tasks are put together it only stands for the value, alone or
        in lists, tuples and dicts, and can do nothing but be passed on.
        """
        return cast(R_co, Output(self))

    def options(self, **changes: Any) -> Task[R_co]:
        """A copy with other options; see `TaskOptions`."""
        changed = self.task_options.merged(changes)
        return Task(self.name, self.args, self.kwargs, self.function, changed, self.upstream)

    @property
    def _fixed_name(self) -> str | None:
        return self.task_options.task_id

    @property
    def _short_name(self) -> str:
        return self.name.rpartition(".")[2] or self.name or "task"

    def message(self, depends_on: Sequence[str] = (), inputs: Sequence[str] = ()) -> Message:
        """What is sent to Redis."""
        kwargs = msgspec.Raw(self.kwargs) if self.kwargs is not None else NIL
        return Message(self.name, msgspec.Raw(self.args), kwargs, self.task_options.overrides(depends_on, inputs))

    def __repr__(self) -> str:
        set_options = {
            name: value
            for name in TaskOptions.__struct_fields__
            if (value := getattr(self.task_options, name)) != getattr(NO_OPTIONS, name)
        }
        shown = ", ".join(f"{name}={value!r}" for name, value in set_options.items())
        return f"<Task {self.name}{' ' if shown else ''}{shown}>"


class TaskFunction(Generic[P, R]):
    """What `@task` leaves in place of a function."""

    def __init__(
        self, fn: Callable[P, Any], name: str, run_in: RunIn, defaults: TaskOptions, xcom: XComOptions = NO_XCOM
    ) -> None:
        self.fn = fn
        self.name = name
        self.run_in = run_in
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
            made: Task[R] = Task(self.name, self.signature.encode_none(), None, self, self.defaults)
        else:
            encoded, encoded_kwargs, upstream = self.signature.encode(args, kwargs)
            kept = _kept(upstream) if upstream else ()
            made = Task(self.name, encoded, encoded_kwargs, self, self.defaults, kept)
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


def _kept(upstream: tuple[Composable, ...]) -> tuple[Task[Any], ...]:
    tasks = tuple(node for node in upstream if isinstance(node, Task))
    for each in tasks:
        if each.task_options.result_ttl == 0:
            raise InvalidInput(f"the output of {each.name!r} cannot be an argument: it keeps no result (result_ttl=0)")
    return tasks


class _Decorator(Protocol):
    @overload
    def __call__(self, fn: Callable[P, Awaitable[R]], /) -> TaskFunction[P, R]: ...
    @overload
    def __call__(self, fn: Callable[P, R], /) -> TaskFunction[P, R]: ...


@overload
def task(fn: Callable[P, Awaitable[R]], /) -> TaskFunction[P, R]: ...
@overload
def task(fn: Callable[P, R], /) -> TaskFunction[P, R]: ...
@overload
def task(
    *,
    name: str | None = None,
    run_in: RunIn | None = None,
    priority: Priority | int | None = None,
    max_retries: int | None = None,
    retry: RetryPolicy | None = None,
    timeout: float | None = None,
    result_ttl: float | None = None,
    cost: float | Callable[..., float] | None = None,
    cron: str | None = None,
    every: timedelta | float | None = None,
    timezone: str = "UTC",
    user_id: str | None = None,
    task_id: str | None = None,
    depends_on: Sequence[Dependency] = (),
    on_dependency_failure: Literal["wait", "cancel", "run"] | None = None,
    allow_unknown: bool | None = None,
    auto_xcom: bool = False,
    enable_xcom: bool = False,
    push_key: str | None = None,
    max_running: int | None = None,
    rate: Rate | str | None = None,
) -> _Decorator: ...
def task(
    fn: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    run_in: RunIn | None = None,
    auto_xcom: bool = False,
    enable_xcom: bool = False,
    push_key: str | None = None,
    max_running: int | None = None,
    rate: Rate | str | None = None,
    cost: float | Callable[..., float] | None = None,
    cron: str | None = None,
    every: timedelta | float | None = None,
    timezone: str = "UTC",
    **options: Any,
) -> Any:
    """Make a function a task, with options or bare.

    Async functions run on the worker's event loop, plain ones in threads, or with ``run_in="process"`` in a
    subprocess of the worker (the arguments and the result are then pickled between the two on the same machine).

    Args:
        name: Under which workers find it; default: module and qualified name.
        run_in: ``"loop"``, ``"thread"`` or ``"process"``.
        auto_xcom: The results of its direct dependencies arrive by task name, in `current_task().inputs` and as those
            parameters of these names that the caller did not give.
        enable_xcom: Push the result as an XCom value under `push_key`, or under the function's name.
        push_key: Push the result as an XCom value under this key.
        max_running: Most tasks of this name that run at once, of all users together. Those that must wait block nothing
            behind them.
        rate: How often tasks of this name may start, of all users together: ``"100/m"`` or a `Rate`.
        cost: What one service charges to the user, or a function that tells it from the arguments of a call.
        cron: Workers that know the function have it run at these times, with no arguments, for its `user_id`; see
            `TaskScheduler.add_schedule`. The schedule's id is the name of the task.
        every: Instead: an interval, as a timedelta or in seconds.
        timezone: What `cron` is about.
        options: See `TaskOptions`.

    Raises:
        DuplicateTask: The name is taken by another function.
        InvalidInput: A value breaks a rule.
    """

    def decorate(function: Callable[..., Any]) -> TaskFunction[Any, Any]:
        key = push_key or (getattr(function, "__name__", None) if enable_xcom else None)
        xcom = XComOptions(push_key=key, auto=auto_xcom) if key or auto_xcom else NO_XCOM
        priced = options if cost is None or callable(cost) else {**options, "cost": cost}
        made = _decorated(function, name, run_in, priced, xcom)
        made.max_running, made.rate = max_running, allowed
        made.cost_of = cost if callable(cost) else None
        made.schedule = spec
        if spec is not None:
            made()  # it is run without arguments: one that needs some is wrong here and now
        return made

    if max_running is not None:
        check_count("max_running", max_running, 1, MOST_TASKS)
    allowed = as_rate(rate) if rate is not None else None
    spec = declared_spec(cron, every, timezone, options.get("user_id")) if (cron, every) != (None, None) else None
    return decorate if fn is None else decorate(fn)


def xcom_task(
    push_key: str | None = None,
    *,
    pull_keys: Mapping[str, str] | Sequence[str] = (),
    pull_defaults: Mapping[str, Any] | None = None,
    ttl_seconds: float = 3600.0,
    namespace: str = "default",
    auto_xcom: bool = False,
    name: str | None = None,
    run_in: RunIn | None = None,
    **options: Any,
) -> _Decorator:
    """Make a function a task whose result others find under a key, and whose parameters come from such values.

    Args:
        push_key: The result is pushed under this key, in the same step that ends the task.
        pull_keys: Keys by parameter, or a list of names that are both. The values arrive as these parameters.
        pull_defaults: By parameter, for keys without a value; without a default the task fails with ``bad-arguments``.
        ttl_seconds: How long the pushed value is kept.
        namespace: Of what is pushed and pulled, and of `current_task().xcom`.
        auto_xcom: See `task`.
        name: See `task`.
        run_in: See `task`.
        options: See `TaskOptions`.
    """
    if callable(push_key):
        raise InvalidInput(f"@xcom_task takes the key of the result, as in @xcom_task({push_key.__name__!r})")
    xcom = XComOptions.of(
        pull_keys,
        push_key=push_key,
        pull_defaults=dict(pull_defaults or {}),
        ttl_seconds=ttl_seconds,
        namespace=namespace,
        auto=auto_xcom,
    )

    def decorate(function: Callable[..., Any]) -> Any:
        return _decorated(function, name, run_in, options, xcom)

    return decorate


def _decorated(
    function: Callable[..., Any], name: str | None, run_in: RunIn | None, options: Mapping[str, Any], xcom: XComOptions
) -> TaskFunction[Any, Any]:
    if isinstance(function, (type, TaskFunction)) or not hasattr(function, "__qualname__"):
        raise InvalidInput(f"only a function can be a task, not {function!r}")
    return _register(function, name or _default_name(function), run_in, NO_OPTIONS.merged(options), xcom)


def _default_name(fn: Callable[..., Any]) -> str:
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


def _register(
    fn: Callable[..., Any], name: str, run_in: RunIn | None, defaults: TaskOptions, xcom: XComOptions
) -> TaskFunction[Any, Any]:
    check_id("task name", name)
    made: TaskFunction[Any, Any] = TaskFunction(fn, name, _where(fn, run_in), defaults, xcom)
    known = registry.setdefault(name, made)
    if known is not made:
        raise DuplicateTask(f"the name {name!r} is taken by {known.fn.__module__}.{known.fn.__qualname__}")
    return made


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


def get_function(name: str) -> TaskFunction[Any, Any] | None:
    return registry.get(name)


def unregister(name: str) -> None:
    """Forget a registered function, e.g. at the end of a test."""
    registry.pop(name, None)


def task_of(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Task[Any]:
    """A task for a registered function, given as a `TaskFunction` or as the plain function behind one."""
    if isinstance(fn, TaskFunction):
        return fn(*args, **kwargs)
    found = registry.get(_default_name(fn)) if callable(fn) else None
    if found is None or found.fn is not fn:
        raise InvalidInput(f"{fn!r} is not a task: decorate it with @task")
    return found(*args, **kwargs)
