"""What a function hands on and is given through XCom: ``@xcom_task``, and what `@task` has of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from fairque.checks import Duration, check_id, check_seconds
from fairque.errors import InvalidInput
from fairque.tasks.depends import attach_dependencies
from fairque.tasks.function import Attach, Decorator, RunIn, TaskFunction
from fairque.tasks.registry import register
from fairque.tasks.signature import Signature

__all__ = ["LONGEST_TTL", "MOST_NAMES", "SHORTEST_TTL", "XComOptions", "take_xcom", "xcom_of", "xcom_task"]

SHORTEST_TTL = 0.001
LONGEST_TTL = 10 * 366 * 86_400.0
MOST_NAMES = 100


class XComOptions(msgspec.Struct, frozen=True, kw_only=True):
    """See `xcom_task`."""

    push_key: str | None = None
    pull_keys: dict[str, str] = {}
    pull_defaults: dict[str, Any] = {}
    ttl_seconds: float = 3600.0
    namespace: str = "default"
    auto: bool = False

    @classmethod
    def of(cls, pull_keys: Mapping[str, str] | Sequence[str] = (), **options: Any) -> XComOptions:
        """Pull keys as a mapping of parameters to keys, or as a list of names that are both."""
        if isinstance(pull_keys, str) or not isinstance(pull_keys, (Mapping, Sequence)):
            raise InvalidInput(f"pull_keys must map parameters to keys, or list them, not {pull_keys!r}")
        by_parameter = dict(pull_keys) if isinstance(pull_keys, Mapping) else {key: key for key in pull_keys}
        return cls(pull_keys=by_parameter, **options)

    def __post_init__(self) -> None:
        unknown = set(self.pull_defaults) - set(self.pull_keys)
        if unknown:
            raise InvalidInput(f"pull_defaults has {min(unknown)!r}, which pull_keys has not")
        if len(self.pull_keys) > MOST_NAMES:
            raise InvalidInput(f"pull_keys has {len(self.pull_keys)} entries, the limit is {MOST_NAMES}")
        seconds = check_seconds("ttl_seconds", self.ttl_seconds, SHORTEST_TTL, LONGEST_TTL)
        msgspec.structs.force_setattr(self, "ttl_seconds", seconds)
        check_id("namespace", self.namespace)
        if self.push_key is not None:
            check_id("push_key", self.push_key)
        for key in self.pull_keys.values():
            check_id("an entry of pull_keys", key)

    @property
    def reads(self) -> bool:
        """Something has to be fetched before the function runs."""
        return self.auto or bool(self.pull_keys)


NO_XCOM = XComOptions()


def xcom_task(
    push_key: str | None = None,
    *,
    pull_keys: Mapping[str, str] | Sequence[str] = (),
    pull_defaults: Mapping[str, Any] | None = None,
    ttl_seconds: Duration = 3600.0,
    namespace: str = "default",
    auto_xcom: bool = False,
    name: str | None = None,
    run_in: RunIn | None = None,
    **options: Any,
) -> Decorator:
    """Make a function a task whose result others find under a key, and whose parameters come from such values.

    Args:
        push_key: The result is pushed under this key, in the same step that ends the task.
        pull_keys: Keys by parameter, or a list of names that are both. The values arrive as these parameters.
        pull_defaults: By parameter, for keys without a value; without a default the task fails with ``bad-arguments``.
        ttl_seconds: How long the pushed value is kept, in seconds or as a timedelta.
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

    def decorate(fn: Callable[..., Any]) -> Any:
        return register(fn, name, run_in, options, [attach_dependencies, lambda function: _attach(function, xcom)])

    return decorate


def take_xcom(options: dict[str, Any]) -> Attach | None:
    auto, enabled, key = (options.pop(name, None) for name in ("auto_xcom", "enable_xcom", "push_key"))

    def attach(function: TaskFunction[Any, Any]) -> None:
        push_key = key or (function.__name__ if enabled else None)
        _attach(function, XComOptions(push_key=push_key, auto=bool(auto)))

    return attach if auto or enabled or key else None


def xcom_of(function: TaskFunction[Any, Any] | None) -> XComOptions:
    """None: of the tasks for a handler."""
    return (function.feature(XComOptions) if function is not None else None) or NO_XCOM


def _attach(function: TaskFunction[Any, Any], xcom: XComOptions) -> None:
    if function.collects:
        raise InvalidInput(f"{function.name!r} collects its calls: XCom is for tasks that run one by one")
    function.add(xcom)
    pulled, hidden = frozenset(xcom.pull_keys), function.signature.hidden
    function.signature = Signature(function.fn, function.name, pulled, lenient=xcom.auto, hidden=hidden)
