"""`@task` and `@xcom_task`, which make functions tasks."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any, Literal, ParamSpec, Protocol, TypeVar, overload

from fairque.checks import check_count
from fairque.errors import InvalidInput
from fairque.models import Priority
from fairque.policy import MOST_TASKS, Rate, as_rate
from fairque.schedule.timetable import declared_spec
from fairque.tasks.function import RunIn, TaskFunction, default_name
from fairque.tasks.options import NO_OPTIONS, Dependency
from fairque.tasks.registry import register
from fairque.tasks.retry import RetryPolicy
from fairque.tasks.xcom_options import NO_XCOM, XComOptions

__all__ = ["task", "xcom_task"]

P = ParamSpec("P")
R = TypeVar("R")


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
    made: TaskFunction[Any, Any] = TaskFunction(
        function, name or default_name(function), run_in, NO_OPTIONS.merged(options), xcom
    )
    register(made)
    return made
