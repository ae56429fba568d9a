"""`Policy`: what a user, or everybody, may do at once, how often, and with which share."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar
from urllib.parse import quote, unquote

import msgspec

from fairque.checks import Duration, check_count, check_id, check_number, check_seconds
from fairque.errors import InvalidInput

__all__ = [
    "Breaker",
    "Policy",
    "PolicyChange",
    "Rate",
    "as_breaker",
    "as_rate",
    "changes_of",
    "group_in",
    "legible",
    "merged",
    "next_start_us",
    "packed_group",
    "packed_rate",
    "policy_in",
    "rate_of",
    "stored_in",
    "tat_after_start_us",
]

T = TypeVar("T")

LEAST_WEIGHT, MOST_WEIGHT = 1e-6, 1e6
LEAST_SHARE = 1e-6
MOST_TASKS = 1_000_000_000
MOST_BYTES = 2**50
MOST_SEGMENTS = 4
"""Groups in groups."""
DAY = 86_400.0
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": DAY}
_RATE = re.compile(r"(\d+(?:\.\d+)?)\s*/\s*(\d+(?:\.\d+)?)?\s*([smhd])")
_BREAKER = re.compile(r"(\d{1,9})/(\d+(?:\.\d+)?)([smhd]?)/(\d+(?:\.\d+)?)([smhd]?)")


class Rate(msgspec.Struct, frozen=True):
    """How often tasks may start: ``Rate(100, per=60)`` is a hundred a minute, evenly spread.

    In any span of t seconds at most ``burst + t * count / per`` start (the generic cell rate algorithm, GCRA, of ITU-T
    I.371). A user that has to wait comes back on a whole millisecond, so rates of hundreds a second want a burst of 2
    or more to be reached.

    Args:
        count: Starts per period.
        per: Seconds of the period, or a timedelta, at most a day.
        burst: How many may start at once after a pause.
    """

    count: float
    per: float = 1.0
    burst: int = 1

    if TYPE_CHECKING:

        def __init__(self, count: float, per: Duration = 1.0, burst: int = 1) -> None: ...

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "per", check_seconds("the per of a rate", self.per, 0.001, DAY))
        check_number("the count of a rate", self.count, self.per / DAY, self.per * 1_000_000)
        check_count("the burst of a rate", self.burst, 1, 1_000_000)

    @property
    def interval_us(self) -> int:
        """Microseconds between two starts, rounded up."""
        return math.ceil(self.per * 1_000_000 / self.count)

    def __str__(self) -> str:
        unit = next((unit for unit, seconds in _UNITS.items() if seconds == self.per), f"{self.per:g}s")
        burst = f" burst {self.burst}" if self.burst > 1 else ""
        return f"{self.count:g}/{unit}{burst}"


class Breaker(msgspec.Struct, frozen=True):
    """Parks a user whose tasks keep failing: opens after so many failures within a window.

    After the cooldown one task at a time is let through; one that succeeds closes it, one that fails opens it again.

    Args:
        failures: Attempts that failed or timed out.
        window: Seconds within which they count together, or a timedelta; at most a day.
        cooldown: For so long the user is parked, likewise.
    """

    failures: int = 5
    window: float = 60.0
    cooldown: float = 30.0

    if TYPE_CHECKING:

        def __init__(self, failures: int = 5, window: Duration = 60.0, cooldown: Duration = 30.0) -> None: ...

    def __post_init__(self) -> None:
        check_count("the failures of a breaker", self.failures, 1, 1_000_000)
        for name in ("window", "cooldown"):
            seconds = check_seconds(f"the {name} of a breaker", getattr(self, name), 0.001, DAY)
            msgspec.structs.force_setattr(self, name, seconds)

    def __str__(self) -> str:
        return f"{self.failures}/{self.window:g}s/{self.cooldown:g}s"


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """What governs a user. None: no limit, or (in what one sets) what the default of `EVERYBODY` says.

    Args:
        weight: Share in relation to other users, or to those of its group (default 1).
        max_running: Most tasks that run at once, on all workers together.
        max_share: The part of the slots of all workers that its tasks may take at once, above 0 and up to 1; one slot
            at least. Where `max_running` is less, that holds.
        min_running: Slots that it gets first when it has work.
        rate: How often its tasks may start.
        max_queued: Most tasks that wait, for whatever: their turn, their time, others.
        overflow: What happens to a task that is too many: it is refused with `QueueFull` (``"reject"``, the default),
            or the first ones in line are canceled (``"drop_oldest"``).
        max_bytes: Most bytes in Redis, of its bodies, results, errors, chunks, XCom values and schedules. More is
            refused with `QuotaExceeded`.
        paused: Nothing starts, and nothing is lost: True, or until when. That of `EVERYBODY` holds for all, whatever
            their own says.
        group: Shares first with other groups and users without one, then inside. ``"acme/europe"`` is a group in
            another one; there may be up to four.
        breaker: Parks it while its tasks keep failing.
    """

    weight: float | None = None
    max_running: int | None = None
    max_share: float | None = None
    min_running: int | None = None
    rate: Rate | None = None
    max_queued: int | None = None
    overflow: Literal["reject", "drop_oldest"] | None = None
    max_bytes: int | None = None
    paused: bool | datetime | None = None
    group: str | None = None
    breaker: Breaker | None = None


def next_start_us(tat_us: float, interval_us: float, burst: float) -> float:
    """GCRA: the microsecond from which on the next task may start.

    `tat_us` is its theoretical arrival time: when it would start if all starts were evenly spread. Starts may run ahead
    of that by the burst.
    """
    return tat_us - (burst - 1) * interval_us


def tat_after_start_us(now_us: int, tat_us: int, interval_us: int) -> int:
    """GCRA: the theoretical arrival time of the task after one that starts now."""
    return max(now_us, tat_us) + interval_us


def as_rate(value: Rate | str) -> Rate:
    """``"100/m"``, ``"5/s"``, ``"10/30s"``; a burst is given as ``"100/m burst 20"``."""
    if isinstance(value, Rate):
        return value
    if isinstance(value, str):
        text, _, burst = value.partition("burst")
        found = _RATE.fullmatch(text.strip())
        if found and (not burst or burst.strip().isdecimal()):
            count, number, unit = found.groups()
            return Rate(float(count), per=float(number or 1) * _UNITS[unit], burst=int(burst or 1))
    raise InvalidInput(f"a rate is Rate(100, per=60), or '100/m' with s, m, h or d, not {value!r}")


def as_breaker(value: Breaker | str) -> Breaker:
    """``"5/60s/30s"``: after five failures within 60 s, 30 s of rest. The units are s (also without one), m, h, d."""
    if isinstance(value, Breaker):
        return value
    if isinstance(value, str) and (found := _BREAKER.fullmatch(value.strip())):
        failures, window, unit, cooldown, other = found.groups()
        return Breaker(
            int(failures), window=float(window) * _UNITS[unit or "s"], cooldown=float(cooldown) * _UNITS[other or "s"]
        )
    raise InvalidInput(f"breaker must be a Breaker(5, window=60, cooldown=30), or '5/60s/30s', not {value!r}")


def packed_rate(rate: Rate) -> dict[str, Any]:
    return {"rate_us": rate.interval_us, "rate_burst": rate.burst, "rate_count": rate.count, "rate_per": rate.per}


def packed_group(group: str) -> str:
    """The path of a group as it lies in Redis: each segment percent-encoded. Raises `InvalidInput`."""
    segments = check_id("group", group).split("/")
    if len(segments) > MOST_SEGMENTS or not all(segments):
        raise InvalidInput(
            f"group must be a name, or a path of up to {MOST_SEGMENTS} names as in 'acme/europe', not {group!r}"
        )
    return "/".join(quote(segment, safe="") for segment in segments)


def group_in(packed: str) -> str:
    return "/".join(map(unquote, packed.split("/")))


def changes_of(given: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """What the script sets, and what it forgets. Raises `InvalidInput`."""
    changes: dict[str, Any] = {}
    forgotten: list[str] = []
    for field, value in given.items():
        if field not in _PACKERS:
            raise InvalidInput(f"a policy has no {field!r}; there are {', '.join(_PACKERS)}")
        if value is None or (field == "paused" and value is False):
            forgotten += _STORED[field]
        else:
            changes |= _PACKERS[field](value)
    return changes, forgotten


def stored_in(packed: bytes) -> dict[str, Any]:
    """The fields in Redis, as `changes_of` writes them."""
    return msgspec.msgpack.decode(packed, type=dict[str, Any]) if packed else {}


class PolicyChange(NamedTuple):
    """What becomes another in a policy, by its fields in Redis. Of `forget` ``*`` is all of it."""

    changes: Mapping[str, Any]
    forget: Sequence[str] = ()

    def applied_to(self, packed: bytes) -> bytes:
        """As the script `policy` does it; b"" where nothing is left."""
        kept = {} if "*" in self.forget else stored_in(packed)
        fields = {name: value for name, value in kept.items() if name not in self.forget} | dict(self.changes)
        return msgspec.msgpack.encode(fields) if fields else b""


def policy_in(packed: bytes) -> Policy:
    """As it lies in Redis."""
    found = stored_in(packed)
    until = found.get("paused")
    return Policy(
        weight=found.get("weight"),
        max_running=found.get("max_running"),
        max_share=found.get("max_share"),
        min_running=found.get("min_running"),
        rate=Rate(found["rate_count"], found["rate_per"], found["rate_burst"]) if "rate_us" in found else None,
        max_queued=found.get("max_queued"),
        overflow=found.get("mode"),
        max_bytes=found.get("max_bytes"),
        paused=until if until in (None, True) else datetime.fromtimestamp(until / 1000, UTC),
        group=group_in(found["group"]) if "group" in found else None,
        breaker=_breaker_in(found) if "breaker_failures" in found else None,
    )


def legible(packed: bytes | None, read: Callable[[bytes], T]) -> T | None:
    """What is read of a policy among those of others; None where it is none, of which a check of the queue tells."""
    try:
        return read(packed) if packed is not None else None
    except (msgspec.MsgspecError, AttributeError, KeyError, OverflowError, TypeError, ValueError):
        return None


def merged(own: Policy, default: Policy) -> Policy:
    """What governs a user: its own policy, and the default where that says nothing. Of two pauses the longer one."""
    found = {
        field: value if (value := getattr(own, field)) is not None else getattr(default, field)
        for field in Policy.__struct_fields__
    }
    return Policy(**{**found, "paused": _longer(own.paused, default.paused)})


def _longer(one: bool | datetime | None, other: bool | datetime | None) -> bool | datetime | None:
    if isinstance(one, datetime) and isinstance(other, datetime):
        return max(one, other)
    return True if True in (one, other) else one or other


def rate_of(interval_us: int, burst: int) -> Rate:
    """In the unit in which it is a whole number, if there is one: the microseconds between two starts are rounded."""
    for per in _UNITS.values():
        count = per * 1_000_000 / interval_us
        if count >= 1 and abs(count - round(count)) < 1e-3 * count:
            return Rate(round(count), per=per, burst=burst)
    return Rate(1, per=interval_us / 1_000_000, burst=burst)


def _breaker_in(found: Mapping[str, Any]) -> Breaker:
    return Breaker(
        found["breaker_failures"], window=found["breaker_window"] / 1000, cooldown=found["breaker_cooldown"] / 1000
    )


def _weight(value: Any) -> dict[str, Any]:
    return {"weight": float(check_number("weight", value, LEAST_WEIGHT, MOST_WEIGHT))}


def _overflow(value: Any) -> dict[str, Any]:
    if value not in ("reject", "drop_oldest"):
        raise InvalidInput(f"overflow must be 'reject' or 'drop_oldest', not {value!r}")
    return {"mode": value}


def _paused(value: Any) -> dict[str, Any]:
    if value is True:
        return {"paused": True}
    if isinstance(value, timedelta):
        value = datetime.now(UTC) + value
    if not isinstance(value, datetime):
        raise InvalidInput(f"paused must be True, False, or a datetime until when, not {value!r}")
    try:
        return {"paused": math.ceil(value.timestamp() * 1000)}
    except (ValueError, OverflowError, OSError) as exc:
        raise InvalidInput(f"paused until {value!r} cannot be used: {exc}") from None


def _breaker(value: Any) -> dict[str, Any]:
    value = as_breaker(value)
    return {
        "breaker_failures": value.failures,
        "breaker_window": math.ceil(check_seconds("window", value.window) * 1000),
        "breaker_cooldown": math.ceil(check_seconds("cooldown", value.cooldown) * 1000),
    }


_PACKERS: Mapping[str, Any] = {
    "weight": _weight,
    "max_running": lambda value: {"max_running": check_count("max_running", value, 1, MOST_TASKS)},
    "max_share": lambda value: {"max_share": float(check_number("max_share", value, LEAST_SHARE, 1))},
    "min_running": lambda value: {"min_running": check_count("min_running", value, 1, MOST_TASKS)},
    "rate": lambda value: packed_rate(as_rate(value)),
    "max_queued": lambda value: {"max_queued": check_count("max_queued", value, 0, MOST_TASKS)},
    "overflow": _overflow,
    "max_bytes": lambda value: {"max_bytes": check_count("max_bytes", value, 1, MOST_BYTES)},
    "paused": _paused,
    "group": lambda value: {"group": packed_group(value)},
    "breaker": _breaker,
}
_STORED: Mapping[str, list[str]] = {field: [field] for field in _PACKERS} | {
    "rate": ["rate_us", "rate_burst", "rate_count", "rate_per"],
    "overflow": ["mode"],
    "breaker": ["breaker_failures", "breaker_window", "breaker_cooldown"],
}
