"""`@task`, which makes a function a task, and the features that stand behind its options."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal, ParamSpec, TypeVar, overload

from fairque.checks import Duration
from fairque.limit import Limit
from fairque.models import Priority, Streamed
from fairque.policy import Rate
from fairque.schedule.spec import Misfire, Overlap
from fairque.tasks.collect import Collect, CollectDecorator, take_collect
from fairque.tasks.conditions import Debounce, Throttle, Unique
from fairque.tasks.cost import take_cost
from fairque.tasks.depends import attach_dependencies
from fairque.tasks.function import Attach, Decorator, RunIn, TaskFunction
from fairque.tasks.limits import take_limits
from fairque.tasks.options import BatchOption, Callbacks, Dependency
from fairque.tasks.registry import register
from fairque.tasks.retry import RetryPolicy
from fairque.tasks.schedule import take_schedule
from fairque.tasks.xcom import take_xcom

__all__ = ["task"]

P = ParamSpec("P")
R = TypeVar("R")
FEATURES: tuple[Callable[[dict[str, Any]], Attach | None], ...] = (
    take_cost,
    take_limits,
    take_xcom,
    take_schedule,
    take_collect,
)
"""Each takes its own options out of those of `@task`, checks them, and returns what it does with the function.

What none of them takes is for `TaskOptions`. A feature is its file: without it here, its options are unknown.
"""


@overload
def task(fn: Callable[P, AsyncIterator[R]], /) -> TaskFunction[P, Streamed[R]]: ...
@overload
def task(fn: Callable[P, Iterator[R]], /) -> TaskFunction[P, Streamed[R]]: ...
@overload
def task(fn: Callable[P, Awaitable[R]], /) -> TaskFunction[P, R]: ...
@overload
def task(fn: Callable[P, R], /) -> TaskFunction[P, R]: ...
@overload
def task(
    *,
    collect: Collect,
    name: str | None = None,
    run_in: Literal["loop", "thread"] | None = None,
    priority: Priority | int | None = None,
    max_retries: int | None = None,
    retry: RetryPolicy | None = None,
    timeout: Duration | tuple[Duration, Duration] | None = None,
    result_ttl: Duration | None = None,
    cost: float | Callable[..., float] | None = None,
    user_id: str | None = None,
    max_running: int | None = None,
    rate: Rate | str | None = None,
    limits: Sequence[Limit | str] = (),
) -> CollectDecorator: ...
@overload
def task(
    *,
    name: str | None = None,
    run_in: RunIn | None = None,
    priority: Priority | int | None = None,
    max_retries: int | None = None,
    retry: RetryPolicy | None = None,
    timeout: Duration | tuple[Duration, Duration] | None = None,
    result_ttl: Duration | None = None,
    cost: float | Callable[..., float] | None = None,
    cron: str | None = None,
    every: Duration | None = None,
    timezone: str = "UTC",
    jitter: Duration = 0.0,
    misfire: Misfire = "once",
    misfire_limit: int = 100,
    misfire_grace: Duration = 60.0,
    overlap: Overlap = "allow",
    user_id: str | None = None,
    task_id: str | None = None,
    delay: Duration | None = None,
    delay_from: Literal["release", "enqueue"] | None = None,
    execute_after: datetime | None = None,
    depends_on: Sequence[Dependency] = (),
    on_dependency_failure: Literal["wait", "cancel", "run"] | None = None,
    allow_unknown: bool | None = None,
    expires: Duration | datetime | None = None,
    on_conflict: Literal["keep", "replace", "error"] | None = None,
    unique: Unique | str | bool | None = None,
    debounce: Debounce | Duration | None = None,
    throttle: Throttle | Duration | None = None,
    on_success: Callbacks = (),
    on_failure: Callbacks = (),
    on_end: Callbacks = (),
    batch: BatchOption = None,
    auto_xcom: bool = False,
    enable_xcom: bool = False,
    push_key: str | None = None,
    max_running: int | None = None,
    rate: Rate | str | None = None,
    limits: Sequence[Limit | str] = (),
    headers: Mapping[str, str] | None = None,
) -> Decorator: ...
def task(
    fn: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    run_in: RunIn | None = None,
    **options: Any,
) -> Any:
    """Make a function a task, with options or bare.

    Async functions run on the worker's event loop, plain ones in threads, or with ``run_in="process"`` in a
    subprocess of the worker. What a generator yields, async or plain, is read while it runs by `TaskHandle.stream`; its
    result is a `Streamed`.

    Args:
        name: Under which workers find it; default: module and qualified name.
        run_in: ``"loop"``, ``"thread"`` or ``"process"``.
        auto_xcom: The results of its direct dependencies arrive by task name, in `current_task().inputs` and as those
            parameters of these names that the caller did not give.
        enable_xcom: Push the result as an XCom value under `push_key`, or under the function's name.
        push_key: Push the result as an XCom value under this key.
        collect: Its calls come together, see `Collect`. The body takes a list of arguments, and returns one of as many
            results, any of which may be an exception; a call has one argument.
        max_running: Most tasks of this name that run at once, of all users together. Those that must wait block nothing
            behind them.
        rate: How often tasks of this name may start, of all users together: ``"100/m"`` or a `Rate`.
        limits: Up to two more limits of its tasks, by key: ``[Limit("openai", max_running=50), "crm:{customer}"]``.
            Braces are parameters of the function. A text, or a `Limit` that says no number, only names its key.
        cost: What one service charges to the user, or a function that tells it from the arguments of a call.
        cron: Workers that know the function have it run at these times, with no arguments, for its `user_id`; see
            `TaskScheduler.add_schedule`. The schedule's id is the name of the task.
        every: Instead: an interval, as a timedelta or in seconds.
        timezone, jitter, misfire, misfire_limit, misfire_grace, overlap: Of that schedule, see
            `TaskScheduler.add_schedule`.
        options: See `TaskOptions`.

    Raises:
        DuplicateTask: The name is taken by another function.
        InvalidInput: A value breaks a rule.
    """

    features = [attach_dependencies, *(attach for take in FEATURES if (attach := take(options)) is not None)]

    def decorate(function: Callable[..., Any]) -> TaskFunction[Any, Any]:
        return register(function, name, run_in, options, features)

    return decorate if fn is None else decorate(fn)
