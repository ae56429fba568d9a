"""`Limit`: how many tasks of a key run at once, and how often they start."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from urllib.parse import quote, unquote

import msgspec

from fairque.checks import check_count, check_id
from fairque.errors import InvalidInput
from fairque.policy import MOST_TASKS, Rate, as_rate, rate_of

__all__ = ["LONGEST_KEY", "Limit", "LimitInfo", "fill", "key_in", "limit_in", "record_of"]

LONGEST_KEY = 200
"""Bytes of a limit key, in UTF-8."""
_BRACES = re.compile(r"\{([^{}]*)\}")


class Limit(msgspec.Struct, frozen=True, dict=True):
    """What limits the tasks that have a key: ``Limit("openai", max_running=50, rate="500/m")``.

    A task has the key of its name, and up to two more, by ``@task(limits=[…])``. It starts when each of them has room.
    Without `max_running` and `rate` it only names a key: what that allows is said elsewhere, or not limited.

    Args:
        key: A text of at most 200 bytes. Parameters of the function in braces (``"crm:{customer}"``) are filled from
            the arguments of a call, which makes it a key of its own for each value.
        max_running: Most that run at once, on all workers together.
        rate: How often they may start: ``"500/m"`` or a `Rate`.
        shared: All users count together, else each user for itself. Default: keys without braces are shared, keys with
            braces are of each user.

    Raises:
        InvalidInput: A value breaks a rule.
    """

    key: str
    max_running: int | None = None
    rate: Rate | str | None = None
    shared: bool | None = None

    def __post_init__(self) -> None:
        _check_key(self.key)
        _braces_in(self.key)
        if self.max_running is not None:
            check_count("max_running", self.max_running, 1, MOST_TASKS)
        if self.rate is not None:
            msgspec.structs.force_setattr(self, "rate", as_rate(self.rate))
        if self.shared not in (None, True, False):
            raise InvalidInput(f"shared must be True or False, not {self.shared!r}")

    @cached_property
    def braces(self) -> tuple[str, ...]:
        """The names in braces."""
        return _braces_in(self.key)

    @property
    def is_shared(self) -> bool:
        """Whether all users count together."""
        return self.shared if self.shared is not None else not self.braces

    @property
    def says_how_much(self) -> bool:
        """Whether it does more than name a key."""
        return self.max_running is not None or self.rate is not None


class LimitInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A limit that is set in a queue.

    Attributes:
        key: Its key, or its template with braces.
        user_id: Whose, where it was set for one user; else None.
        shared: False: of each user for itself, though there are no braces in it.
        max_running: Most that run at once; None: any number.
        rate: How often they may start; None: as often as can be.
        declared: The code of a worker says so; else it was set by hand.
        running: How many run and count for it; None of a template, which stands for many keys.
        paused: Nothing of it is started, see `TaskQueue.pause_task`.
    """

    key: str
    user_id: str | None = None
    shared: bool = True
    max_running: int | None = None
    rate: Rate | None = None
    declared: bool = False
    running: int | None = None
    paused: bool = False


def _check_key(key: object) -> str:
    """Raises `InvalidInput`."""
    text = check_id("a limit key", key)
    if (size := len(text.encode())) > LONGEST_KEY:
        raise InvalidInput(f"the limit key {text[:40]!r}… has {size} bytes, the limit is {LONGEST_KEY}")
    return text


def _braces_in(key: str) -> tuple[str, ...]:
    """The names in the braces of a key. Raises `InvalidInput`."""
    names = _BRACES.findall(key)
    if re.search(r"[{}]", _BRACES.sub("", key)) or not all(name.isidentifier() for name in names):
        raise InvalidInput(f"braces of a limit key name a parameter, as in 'crm:{{customer}}', not as in {key!r}")
    return tuple(names)


def fill(key: str, values: Mapping[str, str]) -> str:
    """A key without braces. Raises `InvalidInput` where it is too long."""
    return _check_key(_BRACES.sub(lambda found: values[found[1]], key))


def record_of(key: str, user_id: str | None = None, shared: bool | None = None) -> str:
    """The name in Redis of what is set for a key: ``<u>:<key>``, or ``<u>=<template>`` of what stands for many keys."""
    user = quote(user_id, safe="") if user_id is not None else ""
    if _has_braces(key) or (shared is False and user_id is None):
        return f"{user}={quote(key, safe='')}"
    return f"{user}:{key}"


def key_in(name: str) -> str:
    """The text of a key, from its name in Redis: ``<u>:<key>`` or ``<u>=<template>:<key>``."""
    return name.partition(":")[2]


def limit_in(record: bytes, row: Sequence[bytes | int | None]) -> LimitInfo:
    """As it lies in Redis: who says so, most, us between two starts, burst, how many run, whether it is paused."""
    by, most, interval_us, burst, running, paused = row
    name = record.decode()
    user, _, rest = name.partition(":") if "=" not in name.partition(":")[0] else name.partition("=")
    is_template = name[len(user)] == "="
    key = unquote(rest) if is_template else rest
    return LimitInfo(
        key=key,
        user_id=unquote(user) or None,
        shared=not is_template or _has_braces(key),
        max_running=int(most) if most is not None else None,
        rate=rate_of(int(interval_us), int(burst or 1)) if interval_us is not None else None,
        declared=by == b"code",
        running=None if is_template else int(running or 0),
        paused=bool(paused),
    )


def _has_braces(key: str) -> bool:
    try:
        return bool(_braces_in(key))
    except InvalidInput:  # of a task whose name is like that
        return False
