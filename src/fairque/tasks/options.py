"""`TaskOptions`: what can be decided about a task, by its decorator and at each call."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from types import MappingProxyType
from typing import Any, Literal, TypeAlias, TypedDict

import msgspec

from fairque.checks import Duration, check_count, check_id, check_number, check_seconds
from fairque.errors import InvalidInput
from fairque.everybody import check_user
from fairque.limit import Limit
from fairque.models import Priority
from fairque.tasks.conditions import Debounce, Throttle, Unique, as_debounce, as_throttle, as_unique
from fairque.tasks.headers import checked_headers
from fairque.tasks.message import Overrides
from fairque.tasks.pipeline import Composable
from fairque.tasks.retry import MAX_RETRIES, RetryPolicy

__all__ = [
    "NO_OPTIONS",
    "BatchOption",
    "BatchRef",
    "Callbacks",
    "Dependency",
    "Options",
    "OptionsOfMany",
    "TaskOptions",
    "as_limit",
    "check_callbacks",
    "check_limits",
    "expiry_of",
    "soft_and_hard",
    "start_of",
]

Dependency = Any  # an id, a handle or a Task
BatchOption: TypeAlias = Any  # an id, or a Batch
Callbacks: TypeAlias = "Composable | Iterable[Composable] | None"  # a Task, or several
# A user whose tasks cost nothing would keep the lowest tag for ever. A tag is a double: what one task adds must leave
# room for what small ones add afterwards.
MIN_COST, MAX_COST = 0.001, 1_000_000
MOST_LIMITS = 2
CALLBACKS = ("on_success", "on_failure", "on_end")
MOST_CALLBACKS = 10


class OptionsOfMany(TypedDict, total=False):
    """Those of `TaskOptions` that many tasks may have in common, as callers give them."""

    user_id: str | None
    priority: Priority | int | None
    max_retries: int | None
    retry: RetryPolicy | None
    timeout: Duration | tuple[Duration, Duration] | None
    result_ttl: Duration | None
    cost: float | None
    delay: Duration | None
    delay_from: Literal["release", "enqueue"] | None
    execute_after: datetime | None
    depends_on: Iterable[Dependency] | None
    on_dependency_failure: Literal["wait", "cancel", "run"] | None
    allow_unknown: bool | None
    limits: Iterable[Limit | str] | None
    headers: Mapping[str, str] | None
    expires: Duration | datetime | None
    on_conflict: Literal["keep", "replace", "error"] | None
    unique: Unique | str | bool | None
    debounce: Debounce | Duration | None
    throttle: Throttle | Duration | None
    on_success: Callbacks
    on_failure: Callbacks
    on_end: Callbacks
    batch: BatchOption


class Options(OptionsOfMany, total=False):
    """`TaskOptions` as callers give them."""

    task_id: str | None


class BatchRef(msgspec.Struct, frozen=True):
    """A batch, whose it is where that was told, and which of its tasks adds to it, if one does."""

    batch_id: str
    user_id: str | None = None
    adder: str = ""


class TaskOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Options of a task; None leaves the decision to the function's decorator, then to the default.

    Args:
        user_id: Whose share the task is charged to.
        task_id: Idempotency key per user; None makes a random one.
        priority: 1 to 6, see `Priority`.
        max_retries: Retries after the first attempt; overrides the policy's `max`.
        retry: When to retry; without it, `max_retries` uses the default `RetryPolicy`.
        timeout: Seconds a run may take; like all spans of time, these may be a timedelta. Two, ``(soft, hard)``: after
            the first, an async function gets a `SoftTimeout`, and `current_task().soft_timed_out` is true.
        result_ttl: Seconds the result is kept; 0 keeps nothing.
        cost: What one service charges to the user, in relation to its other tasks (default 1).
        delay: Seconds before the task may start, from the moment on at which it waits for no other task.
        delay_from: ``"release"`` (default), or ``"enqueue"``: the delay of a task with dependencies begins at once.
        execute_after: The earliest moment of its start, instead of `delay`; naive datetimes are local time.
        depends_on: What it waits for: ids, handles or tasks, all of the same user. A graph with more than some 20,000
            edges is refused, because looking for cycles in it would keep Redis busy for too long.
        on_dependency_failure: What becomes of it when one of those fails: ``"wait"`` (default) until it is requeued and
            finishes, ``"cancel"``, or ``"run"`` all the same. With ``"wait"`` it is canceled when one is canceled,
            discarded or expires, as nobody can requeue that; with `allow_unknown` it waits for the next of that id.
        limits: Keys of its limits beside that of its name, at most two; see `Limit`. Texts, or a `Limit` that says with
            `shared` whose key it is; how much it allows is said by `@task` or `queue.set_limit`. An empty list: none.
        allow_unknown: Wait for ids that were never enqueued, too, which is an error otherwise.
        headers: Texts by name that travel with the task beside its arguments, 4,096 bytes at most, names included;
            `current_task().headers` has them. As with all options, what is said later replaces what was said before.
        expires: By when its first attempt must have begun: a datetime, naive ones are local time, or seconds from the
            enqueue. Else it ends as canceled, with the reason ``"expired"``.
        on_conflict: What becomes of it where a task with its `task_id` lives: ``"keep"`` (default) leaves that one as
            it is, ``"replace"`` puts this one in its place while it waits, and keeps it once it runs, ``"error"``
            raises `TaskExists`.
        unique: Add it only where no other one stands for it, else the handle is that one's: a `Unique`, its key, or
            True. No more than one of this and the following two.
        debounce: Wait until no other one has come for so many seconds, see `Debounce`. It takes no `delay`,
            `execute_after` and `depends_on`.
        throttle: Drop it where another one came less than so many seconds ago, see `Throttle`.
        on_success: Callbacks, a task or a list of some: they are put in when it has finished, and told how it ended by
            `current_task().cause`. They are of the same user; at most 10 in all, with callbacks of their own.
        on_failure: The same when it has failed for good.
        on_end: The same however it ended, canceled ones included.
        batch: The batch that counts it: an id, or a `Batch` of the same user.
    """

    user_id: str | None = None
    task_id: str | None = None
    priority: Priority | None = None
    max_retries: int | None = None
    retry: RetryPolicy | None = None
    timeout: float | tuple[float, float] | None = None
    result_ttl: float | None = None
    cost: float | None = None
    delay: float | None = None
    delay_from: Literal["release", "enqueue"] | None = None
    execute_after: datetime | None = None
    depends_on: tuple[Any, ...] = ()
    on_dependency_failure: Literal["wait", "cancel", "run"] | None = None
    allow_unknown: bool | None = None
    limits: tuple[Any, ...] | None = None
    headers: Mapping[str, str] | None = None
    expires: float | datetime | None = None
    on_conflict: Literal["keep", "replace", "error"] | None = None
    unique: Unique | None = None
    debounce: Debounce | None = None
    throttle: Throttle | None = None
    on_success: tuple[Any, ...] = ()
    on_failure: tuple[Any, ...] = ()
    on_end: tuple[Any, ...] = ()
    batch: Any = None

    def __post_init__(self) -> None:
        for check in _CHECKS:
            check(self)

    def merged(self, changes: Mapping[str, Any]) -> TaskOptions:
        """A copy with these changed. Raises `InvalidInput`."""
        if not changes.keys() <= _NAMES:
            unknown = changes.keys() - _NAMES
            raise InvalidInput(f"unknown task option {min(unknown)!r}; there are {', '.join(self.__struct_fields__)}")
        return msgspec.structs.replace(self, **changes)

    @property
    def condition(self) -> Unique | Debounce | Throttle | None:
        """Under which key it stands alone."""
        return self.unique or self.debounce or self.throttle

    def callbacks(self) -> list[tuple[str, Any]]:
        """Kind and task of each."""
        if not (self.on_success or self.on_failure or self.on_end):
            return []
        return [(kind, each) for kind in CALLBACKS for each in getattr(self, kind)]

    def overrides(self, depends_on: Sequence[str], inputs: Sequence[str], parent: str = "") -> Overrides | None:
        """What travels in the message."""
        chosen = (self.max_retries, self.retry, self.timeout, self.result_ttl)
        is_plain = not depends_on and not self.headers and self.batch is None and not parent
        if chosen == (None, None, None, None) and is_plain:
            return None
        soft, hard = soft_and_hard(self.timeout)
        return Overrides(
            max_retries=self.max_retries,
            retry=self.retry,
            timeout=hard,
            soft_timeout=soft,
            result_ttl=self.result_ttl,
            depends_on=list(depends_on),
            inputs=list(inputs),
            runs_anyway=self.on_dependency_failure == "run",
            headers=dict(self.headers or {}),
            parent=parent,
            batch=self.batch.batch_id if self.batch is not None else "",
        )


def _check_ids(options: TaskOptions) -> None:
    if options.user_id is not None:
        check_user("user_id", options.user_id)
    if options.task_id is not None:
        check_id("task_id", options.task_id)


def _check_priority(options: TaskOptions) -> None:
    if options.priority is None:
        return
    try:
        msgspec.structs.force_setattr(options, "priority", Priority(options.priority))
    except ValueError:
        raise InvalidInput(f"priority must be 1 to 6, not {options.priority!r}") from None


def _check_numbers(options: TaskOptions) -> None:
    for name in ("result_ttl", "delay"):
        value = getattr(options, name)
        if value is not None:
            msgspec.structs.force_setattr(options, name, check_seconds(name, value))
    if options.timeout is not None:
        msgspec.structs.force_setattr(options, "timeout", _checked_timeout(options.timeout))
    if options.cost is not None:
        msgspec.structs.force_setattr(options, "cost", check_number("cost", options.cost, MIN_COST, MAX_COST))


def _checked_timeout(given: Any) -> float | tuple[float, float]:
    if not isinstance(given, (tuple, list)):
        seconds = check_seconds("timeout", given)
        if seconds == 0:
            raise InvalidInput("timeout must be more than 0 seconds; None means no limit")
        return seconds
    if len(given) != 2:
        raise InvalidInput(f"timeout must be seconds, or a soft and a hard one, not {given!r}")
    soft, hard = check_seconds("the soft timeout", given[0]), check_seconds("the hard timeout", given[1])
    if not 0 < soft < hard:
        raise InvalidInput(f"the soft timeout must be more than 0 and less than the hard one, not {given!r}")
    return soft, hard


def soft_and_hard(timeout: float | tuple[float, float] | None) -> tuple[float | None, float | None]:
    return timeout if isinstance(timeout, tuple) else (None, timeout)


def _check_retries(options: TaskOptions) -> None:
    if options.max_retries is not None:
        check_count("max_retries", options.max_retries, 0, MAX_RETRIES)
    if options.retry is not None and not isinstance(options.retry, RetryPolicy):
        raise InvalidInput(f"retry must be a RetryPolicy, not {options.retry!r}")


def _check_start(options: TaskOptions) -> None:
    if options.delay_from not in (None, "release", "enqueue"):
        raise InvalidInput(f"delay_from must be 'release' or 'enqueue', not {options.delay_from!r}")
    if options.delay is not None and options.execute_after is not None:
        raise InvalidInput("give either delay or execute_after, not both")
    if options.execute_after is None:
        return
    if not isinstance(options.execute_after, datetime):
        raise InvalidInput(f"execute_after must be a datetime, not {options.execute_after!r}")
    _check_moment("execute_after", options.execute_after)


def _check_moment(name: str, moment: datetime) -> None:
    try:
        moment.timestamp()
    except (ValueError, OverflowError, OSError) as exc:
        raise InvalidInput(f"{name} {moment!r} cannot be used: {exc}") from None


def _check_expiry(options: TaskOptions) -> None:
    expires, after = options.expires, options.execute_after
    if expires is None:
        return
    if isinstance(expires, datetime):
        _check_moment("expires", expires)
        if after is not None and expires.timestamp() <= after.timestamp():
            raise InvalidInput(f"it would never run: it expires at {expires}, and may start after {after}")
        return
    seconds = check_seconds("expires", expires)
    msgspec.structs.force_setattr(options, "expires", seconds)
    if seconds <= (options.delay or 0.0):
        raise InvalidInput(f"it would never run: it expires in {seconds:g} s, with a delay of {options.delay or 0:g} s")


def _check_conflict(options: TaskOptions) -> None:
    if options.on_conflict not in (None, "keep", "replace", "error"):
        raise InvalidInput(f"on_conflict must be 'keep', 'replace' or 'error', not {options.on_conflict!r}")


def _check_condition(options: TaskOptions) -> None:
    given = {"unique": as_unique, "debounce": as_debounce, "throttle": as_throttle}
    said = [name for name in given if getattr(options, name) is not None]
    for name in said:
        msgspec.structs.force_setattr(options, name, given[name](getattr(options, name)))
    if len(said) > 1:
        raise InvalidInput(f"a task has one of {', '.join(said)}, not {len(said)} of them")
    if options.debounce is None:
        return
    expires, seconds = options.expires, check_seconds("seconds", options.debounce.seconds)
    if expires is not None and not isinstance(expires, datetime) and expires <= seconds:
        raise InvalidInput(f"it would never run: it expires in {expires:g} s, and is debounced for {seconds:g} s")
    for name in ("delay", "execute_after", "depends_on"):
        if getattr(options, name):
            raise InvalidInput(f"debounce says when it starts: give no {name}")


def _check_dependencies(options: TaskOptions) -> None:
    if options.on_dependency_failure not in (None, "wait", "cancel", "run"):
        raise InvalidInput(
            f"on_dependency_failure must be 'wait', 'cancel' or 'run', not {options.on_dependency_failure!r}"
        )
    given: Any = options.depends_on
    if type(given) is tuple:
        return
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise InvalidInput(f"depends_on must be a list of ids, handles or tasks, not {given!r}")
    msgspec.structs.force_setattr(options, "depends_on", tuple(given))


def _check_limits(options: TaskOptions) -> None:
    given: Any = options.limits
    if given is None:
        return
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise InvalidInput(f"limits must be a list of keys, not {given!r}")
    limits = tuple(as_limit(entry) for entry in given)
    check_limits(limits)
    for limit in limits:
        if limit.says_how_much:
            raise InvalidInput(f"how much {limit.key!r} allows is said by @task or queue.set_limit: give its key alone")
    msgspec.structs.force_setattr(options, "limits", limits)


def _check_headers(options: TaskOptions) -> None:
    if options.headers is not None:
        msgspec.structs.force_setattr(options, "headers", MappingProxyType(checked_headers(options.headers)))


def _check_callbacks(options: TaskOptions) -> None:
    if not (options.on_success or options.on_failure or options.on_end):
        return
    chosen = check_callbacks({kind: getattr(options, kind) for kind in CALLBACKS})
    for kind, callbacks in chosen.items():
        msgspec.structs.force_setattr(options, kind, callbacks)


def check_callbacks(given: Mapping[str, Any]) -> dict[str, tuple[Any, ...]]:
    """By kind, one task or several. Raises `InvalidInput`."""
    chosen = {kind: _as_tuple(callbacks) for kind, callbacks in given.items()}
    for kind, callbacks in chosen.items():
        for callback in callbacks:
            _check_callback(kind, callback)
    number = sum(1 + _number_of_callbacks(each.task_options) for callbacks in chosen.values() for each in callbacks)
    if number > MOST_CALLBACKS:
        raise InvalidInput(f"there are at most {MOST_CALLBACKS} callbacks, with those of callbacks, not {number}")
    return chosen


def _as_tuple(given: Any) -> tuple[Any, ...]:
    if given is None:
        return ()
    return (given,) if isinstance(given, Composable) or not isinstance(given, Iterable) else tuple(given)


def _check_callback(kind: str, callback: Any) -> None:
    its = getattr(callback, "task_options", None)
    if not isinstance(callback, Composable) or its is None:
        hint = ": call it first, to get a task" if callable(callback) else ""
        raise InvalidInput(f"{kind} takes tasks, not {callback!r}{hint}")
    if getattr(callback, "upstream", ()):
        raise InvalidInput(f"{kind} {callback!r} has outputs of others as arguments: see current_task().cause in it")
    if its.task_id is not None:
        raise InvalidInput(f"{kind} {callback!r} has a task_id: that of a callback is made from its task's")
    if its.depends_on:
        raise InvalidInput(f"{kind} {callback!r} has depends_on: a callback waits for the end of its task alone")
    for name in ("expires", "on_conflict", "unique", "debounce", "throttle"):
        if getattr(its, name) is not None:
            raise InvalidInput(f"{kind} {callback!r} has {name}: a callback is put in whatever else there is")
    if its.batch is not None:
        raise InvalidInput(f"{kind} {callback!r} is in a batch, which counts no callbacks")


def _number_of_callbacks(options: TaskOptions) -> int:
    callbacks = options.callbacks()
    return len(callbacks) + sum(_number_of_callbacks(each.task_options) for _, each in callbacks)


def _check_batch(options: TaskOptions) -> None:
    given = options.batch
    if given is None or isinstance(given, BatchRef):
        return
    batch_id = given if isinstance(given, str) else getattr(given, "batch_id", None)
    if batch_id is None:
        raise InvalidInput(f"batch must be an id or a Batch, not {given!r}")
    ref = BatchRef(check_id("batch", batch_id), getattr(given, "user_id", None), getattr(given, "adder", None) or "")
    msgspec.structs.force_setattr(options, "batch", ref)


def as_limit(entry: object) -> Limit:
    if isinstance(entry, str):
        return Limit(entry)
    if not isinstance(entry, Limit):
        raise InvalidInput(f"an entry of limits is a key or a Limit, not {entry!r}")
    return entry


def check_limits(limits: Sequence[Limit]) -> None:
    """Raises `InvalidInput`."""
    if len(limits) > MOST_LIMITS:
        raise InvalidInput(f"a task has at most {MOST_LIMITS} limits beside that of its name, not {len(limits)}")
    if len({(limit.key, limit.is_shared) for limit in limits}) < len(limits):
        raise InvalidInput(f"limits has the key {limits[0].key!r} twice")


def start_of(options: TaskOptions) -> str:
    """When it may start, as `AddedTask.when` has it."""
    if options.delay:
        return f"{'now' if options.delay_from == 'enqueue' else ''}+{math.ceil(options.delay * 1000)}"
    if options.execute_after is not None:
        return _ms_of(options.execute_after)
    return ""


def expiry_of(options: TaskOptions) -> str:
    """By when it must have begun, as `Rules.expires` has it."""
    if options.expires is None:
        return ""
    if isinstance(options.expires, datetime):
        return _ms_of(options.expires)
    return f"+{math.ceil(options.expires * 1000)}"


def _ms_of(moment: datetime) -> str:
    return str(max(0, math.ceil(moment.timestamp() * 1000)))


_CHECKS = (
    _check_dependencies,
    _check_ids,
    _check_priority,
    _check_numbers,
    _check_retries,
    _check_start,
    _check_expiry,
    _check_conflict,
    _check_condition,
    _check_limits,
    _check_headers,
    _check_callbacks,
    _check_batch,
)
_NAMES = frozenset(TaskOptions.__struct_fields__)
NO_OPTIONS = TaskOptions()
