"""`Unique`, `Debounce` and `Throttle`: tasks that are put in only where no other one stands for them."""

from __future__ import annotations

import hashlib
import math
from typing import Any, Literal, NamedTuple, TypeVar

import msgspec

from fairque.checks import Duration, check_seconds
from fairque.errors import InvalidInput
from fairque.limit import Limit
from fairque.tasks.limit_keys import StandIn, limit_keys
from fairque.tasks.signature import Signature

__all__ = ["Condition", "Debounce", "Throttle", "Unique", "as_debounce", "as_throttle", "as_unique", "condition_of"]

LONGEST_WINDOW = 31 * 86_400.0
"""Seconds for which a key without a task may be taken."""
S = TypeVar("S", bound=msgspec.Struct)


class Unique(msgspec.Struct, frozen=True):
    """At most one such task of a user at a time: ``Unique("{document}")``.

    Args:
        key: Which tasks of this name stand for each other: a text in which parameters of the function in braces are
            filled from the arguments of a call. Without one, all of this name.
        until: ``"ended"`` (default): until the task has finished, failed or was canceled. ``"started"``: until its
            first attempt begins, so that what changes while it runs makes another one.
        after: Seconds for which there is no other one after it has finished or failed, at most 31 days.

    Raises `InvalidInput`.
    """

    key: str = ""
    until: Literal["started", "ended"] = "ended"
    after: Duration = 0.0

    def __post_init__(self) -> None:
        _check_key(self.key)
        if self.until not in ("started", "ended"):
            raise InvalidInput(f"until must be 'started' or 'ended', not {self.until!r}")
        msgspec.structs.force_setattr(self, "after", check_seconds("after", self.after, 0.0, LONGEST_WINDOW))
        if self.after and self.until == "started":
            raise InvalidInput("after counts from the end of a task: it goes with until='ended'")


class Debounce(msgspec.Struct, frozen=True):
    """Wait until no further call has come for some time, then run the last one: ``Debounce(2.0, longest=30)``.

    Args:
        seconds: How long there must be no further call of the same user and key.
        longest: Seconds from the first call on after which it runs whatever comes; None: there is no such end.
        key: As that of `Unique`.

    Raises `InvalidInput`.
    """

    seconds: Duration
    longest: Duration | None = None
    key: str = ""

    def __post_init__(self) -> None:
        _check_key(self.key)
        seconds = _set_window(self, self.seconds)
        if self.longest is None:
            return
        longest = check_seconds("longest", self.longest, 0.0, LONGEST_WINDOW)
        if longest < seconds:
            raise InvalidInput(f"longest must be at least the {seconds:g} seconds between two calls, not {longest:g}")
        msgspec.structs.force_setattr(self, "longest", longest)


class Throttle(msgspec.Struct, frozen=True):
    """Run the first call, and drop those that come within so many seconds after it: ``Throttle(60)``.

    Args:
        seconds: From the call that was taken on, whatever becomes of its task.
        key: As that of `Unique`.

    Raises `InvalidInput`.
    """

    seconds: Duration
    key: str = ""

    def __post_init__(self) -> None:
        _check_key(self.key)
        _set_window(self, self.seconds)


class Condition(NamedTuple):
    """As `Rules` has it. `pointer` is a hash: what is in the arguments of a call is in no key of Redis."""

    kind: str
    pointer: str
    span_ms: int = 0
    longest_ms: int = 0


def condition_of(
    rule: Unique | Debounce | Throttle,
    name: str,
    signature: Signature | None,
    args: bytes,
    kwargs: bytes | None,
    stand_in: StandIn | None = None,
) -> Condition:
    """Of a task of this name, whose arguments are encoded. Raises `InvalidInput` where they do not fill its key."""
    text = limit_keys([Limit(rule.key)], name, signature, args, kwargs, stand_in)[0].text if rule.key else ""
    kind = type(rule).__name__.lower()
    pointer = hashlib.blake2b(f"{kind} {len(name)} {name}{text}".encode(), digest_size=16).hexdigest()
    if isinstance(rule, Unique):
        return Condition("after" if rule.after else rule.until, pointer, _ms(rule.after))
    longest = rule.longest if isinstance(rule, Debounce) else None
    return Condition(kind, pointer, _ms(rule.seconds), _ms(longest or 0.0))


def as_unique(value: object) -> Unique:
    """True stands for one without a key, a text for its key."""
    if value is True:
        return Unique()
    return Unique(value) if isinstance(value, str) else _as(Unique, "unique", value)


def as_debounce(value: Any) -> Debounce:
    return value if isinstance(value, Debounce) else Debounce(value)


def as_throttle(value: Any) -> Throttle:
    return value if isinstance(value, Throttle) else Throttle(value)


def _as(kind: type[S], name: str, value: object) -> S:
    if not isinstance(value, kind):
        raise InvalidInput(f"{name} must be a {kind.__name__}, a key or True, not {value!r}")
    return value


def _check_key(key: object) -> None:
    """By the rules of limit keys; none is fine."""
    if key != "":
        Limit(key)  # type: ignore[arg-type]


def _set_window(rule: Debounce | Throttle, value: Any) -> float:
    seconds = check_seconds("seconds", value, 0.001, LONGEST_WINDOW)
    msgspec.structs.force_setattr(rule, "seconds", seconds)
    return seconds


def _ms(seconds: Any) -> int:
    whole: int = math.ceil(seconds * 1000)
    return whole
