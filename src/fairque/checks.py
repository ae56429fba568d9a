"""Rules for the numbers and names that callers give: what breaks one is refused, by name and with its limits."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import TypeAlias, TypeGuard, TypeVar

from fairque.errors import InvalidInput, WrongType

__all__ = [
    "MAX_SECONDS",
    "Duration",
    "check_count",
    "check_id",
    "check_kind",
    "check_list",
    "check_number",
    "check_seconds",
    "check_text",
    "is_text",
]

T = TypeVar("T")

MAX_ID_BYTES = 512
MAX_TEXT = 2_000
MAX_SECONDS = 100 * 365 * 86_400
"""The longest time that anything may be told to wait, or is kept: about 100 years."""


Duration: TypeAlias = float | timedelta
"""A span of time as callers give it: in seconds, or as a timedelta. `check_seconds` makes it seconds."""


def check_number(name: str, value: object, least: float, most: float, unit: str = "") -> float:
    """The value as a plain int or float. NaN, bool and what is not a number at all are refused as well."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not least <= value <= most:
        raise InvalidInput(f"{name} must be a number from {least:g} to {most:.12g}{unit}, not {value!r}")
    return value if type(value) in (int, float) else float(value)


def check_seconds(name: str, value: object, least: float = 0.0, most: float = MAX_SECONDS) -> float:
    """A `Duration` in seconds."""
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    return check_number(name, seconds, least, most, " seconds")


def check_count(name: str, value: object, least: int, most: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise InvalidInput(f"{name} must be a whole number from {least} to {most}, not {value!r}")
    return value


def check_id(kind: str, value: object) -> str:
    """A user or task id: a str of 1 to 512 bytes in UTF-8. Any characters are fine."""
    if not isinstance(value, str):
        raise InvalidInput(f"{kind} must be a str, not {value!r}")
    try:
        size = len(value) if value.isascii() else len(value.encode())
    except UnicodeEncodeError:
        raise InvalidInput(f"{kind} {value!r} cannot be encoded as UTF-8") from None
    if not size:
        raise InvalidInput(f"{kind} must not be empty")
    if size > MAX_ID_BYTES:
        raise InvalidInput(f"{kind} has {size} bytes, the limit is {MAX_ID_BYTES}: {value[:40]!r}…")
    return value


def check_kind(name: str, value: object, *kinds: type[T]) -> T:
    if not isinstance(value, kinds):
        raise WrongType(f"{name} must be a {' or '.join(kind.__name__ for kind in kinds)}, not {value!r}")
    return value


def check_list(name: str, values: Iterable[T]) -> Iterable[T]:
    """Anything that can be gone through but text. What is in it is looked at where it is used."""
    given: object = values
    if isinstance(given, (str, bytes)) or not isinstance(given, Iterable):
        raise WrongType(f"{name} must be a list, not {given!r}")
    return values


def is_text(value: object) -> TypeGuard[str]:
    """Whether it is a str that UTF-8 can hold, as what comes from outside may not be."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_text(name: str, value: object) -> str:
    """A text for people, of at most 2,000 characters: it is kept in Redis beside what has limits of its own."""
    if not isinstance(value, str):
        raise InvalidInput(f"{name} must be a str, not {value!r}")
    if len(value) > MAX_TEXT:
        raise InvalidInput(f"{name} has {len(value)} characters, the limit is {MAX_TEXT}: {value[:40]!r}…")
    return value
