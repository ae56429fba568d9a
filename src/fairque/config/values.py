"""`Section`: a frozen part of the configuration, whose values fit the types and limits of its fields."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any, ClassVar

import msgspec
from msgspec import inspect

from fairque.errors import ConfigError

__all__ = [
    "FieldErrors",
    "Number",
    "Section",
    "WrongValue",
    "fields_of",
    "from_text",
    "parse_duration",
    "shown_duration",
]

_UNITS = {"w": 604_800.0, "d": 86_400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_NUMBER = r"[0-9]{1,15}(?:\.[0-9]{1,15})?"
_DURATION = re.compile(r"\s*".join(f"(?:({_NUMBER}){unit})?" for unit in _UNITS))
_WHOLE = re.compile(r"[+-]?[0-9]{1,18}")
_SWITCH = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
_LONGEST_SHOWN = 40

Number = msgspec.Meta(extra={"unit": ""})
"""Marks a float that is no duration, as all others are."""


class WrongValue(Exception):
    """A value does not fit its field."""


class FieldErrors(ConfigError):
    """What is wrong with the fields of a section.

    Attributes:
        problems: Pairs of a field and what is wrong with it.
    """

    def __init__(self, section: str, problems: list[tuple[str, str]]) -> None:
        super().__init__("\n".join(f"{section}: {field}: {text}" for field, text in problems))
        self.problems = problems


class Section(msgspec.Struct, frozen=True, kw_only=True):
    """Checks itself when it is made, and never shows its secrets. Raises `ConfigError` with all that is wrong."""

    secrets: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        problems: list[tuple[str, str]] = []
        for name, kind in fields_of(type(self)).items():
            try:
                value = _converted(kind, getattr(self, name), is_secret=name in self.secrets)
                msgspec.structs.force_setattr(self, name, value)
            except WrongValue as wrong:
                problems.append((name, str(wrong)))
        problems += self.broken_rules() if not problems else ()
        if problems:
            raise FieldErrors(type(self).__name__, problems)

    def broken_rules(self) -> Iterator[tuple[str, str]]:
        """Pairs of a field and the rule that it breaks, beyond types and limits."""
        return iter(())

    def shown(self, field: str) -> Any:
        """The value, without what is secret in it."""
        value = getattr(self, field)
        return "***" if value is not None and field in self.secrets else value

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [(name, self.shown(name)) for name in self.__struct_fields__]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.__rich_repr__())})"


@cache
def fields_of(section: type[Section]) -> dict[str, inspect.Type]:
    """The types of the fields, by name."""
    info = inspect.type_info(section)
    assert isinstance(info, inspect.StructType)
    return {field.name: field.type for field in info.fields}


# Durations


def parse_duration(text: str) -> float | None:
    """Seconds in a text like ``30``, ``1.5s``, ``1h30m`` or ``7d``; None where it is something else."""
    text = text.strip()
    if re.fullmatch(_NUMBER, text):
        return float(text)
    found = _DURATION.fullmatch(text)
    if found is None or not any(found.groups()):
        return None
    return sum(float(count) * seconds for count, seconds in zip(found.groups(), _UNITS.values(), strict=True) if count)


def shown_duration(seconds: float) -> str:
    """As `parse_duration` reads it."""
    if seconds != int(seconds) or not seconds:
        return f"{seconds:g}s"
    parts, rest = "", int(seconds)
    for unit in ("d", "h", "m", "s"):
        count, rest = divmod(rest, int(_UNITS[unit]))
        parts += f"{count}{unit}" if count else ""
    return parts


# Converting


def from_text(kind: inspect.Type, text: str) -> Any:
    """What a text means that is not typed by its source, such as an environment variable. Raises `WrongValue`."""
    if isinstance(kind, inspect.UnionType):
        return from_text(_without_none(kind), text) if text else None
    if isinstance(kind, inspect.BoolType) and text.lower() in _SWITCH:
        return _SWITCH[text.lower()]
    if isinstance(kind, inspect.IntType) and _WHOLE.fullmatch(text):
        return int(text)
    if isinstance(kind, inspect.Metadata) and re.fullmatch(_NUMBER, text):
        return float(text)
    if isinstance(kind, inspect.FloatType) and parse_duration(text) is not None:
        return parse_duration(text)
    if isinstance(kind, inspect.VarTupleType):
        return _list_in(kind, text)
    if isinstance(kind, inspect.StrType) or (isinstance(kind, inspect.LiteralType) and text in kind.values):
        return text
    raise WrongValue(f"expected {_description(kind)}")


def _list_in(kind: inspect.VarTupleType, text: str) -> Any:
    """Separated by commas, or a JSON array where an entry has a comma in it."""
    if not text.lstrip().startswith("["):
        return tuple(part.strip() for part in text.split(",") if part.strip())
    try:
        return msgspec.json.decode(text.encode(errors="surrogateescape"), type=tuple[str, ...])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise WrongValue(f"expected {_description(kind)}, with commas between them, or as a JSON array") from None


def _converted(kind: inspect.Type, value: Any, *, is_secret: bool = False) -> Any:
    if isinstance(kind, inspect.UnionType):
        if value is None:
            return None
        kind = _without_none(kind)
    convert = _CONVERTERS[type(kind)]
    try:
        return convert(kind, value)
    except (TypeError, ValueError, OverflowError):
        shown = _kind_of(value) if is_secret else _shown(value)
        is_bare = isinstance(kind, inspect.StrType) and isinstance(value, (bool, int, float))
        hint = ", put it in quotes" if is_bare else ""
        raise WrongValue(f"expected {_description(kind)}, not {shown}{hint}") from None


def _string(kind: inspect.StrType, value: Any) -> str:
    if not isinstance(value, str) or not (kind.min_length or 0) <= len(value) <= (kind.max_length or len(value)):
        raise TypeError
    value.encode()  # half of a surrogate pair could not be sent anywhere
    return value


def _switch(_: inspect.BoolType, value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


def _whole(kind: inspect.IntType, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not _is_within(kind, value):
        raise TypeError
    return value


def _seconds(kind: inspect.FloatType, value: Any) -> float:
    seconds = parse_duration(value) if isinstance(value, str) else value
    if not isinstance(seconds, (int, float)) or isinstance(seconds, bool) or not _is_within(kind, seconds):
        raise TypeError
    return float(seconds)


def _number(kind: inspect.Metadata, value: Any) -> float:
    assert isinstance(kind.type, inspect.FloatType)
    if isinstance(value, str):
        raise TypeError
    return _seconds(kind.type, value)


def _choice(kind: inspect.LiteralType, value: Any) -> Any:
    if not isinstance(value, str) or value not in kind.values:
        raise TypeError
    return value


def _list(kind: inspect.VarTupleType, value: Any) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)) or (kind.max_length is not None and len(value) > kind.max_length):
        raise TypeError
    entries = []
    for number, entry in enumerate(value, 1):
        try:
            entries.append(_converted(kind.item_type, entry))
        except WrongValue as wrong:
            raise WrongValue(f"entry {number}: {wrong}") from None
    return tuple(entries)


def _section(kind: inspect.StructType, value: Any) -> Any:
    if not isinstance(value, kind.cls):
        raise TypeError
    return value


_CONVERTERS: Mapping[type[inspect.Type], Callable[[Any, Any], Any]] = {
    inspect.StrType: _string,
    inspect.BoolType: _switch,
    inspect.IntType: _whole,
    inspect.FloatType: _seconds,
    inspect.Metadata: _number,
    inspect.LiteralType: _choice,
    inspect.VarTupleType: _list,
    inspect.StructType: _section,
}


def _is_within(kind: inspect.IntType | inspect.FloatType, value: float) -> bool:
    return (kind.ge is None or kind.ge <= value) and (kind.le is None or value <= kind.le)


def _without_none(kind: inspect.UnionType) -> inspect.Type:
    [wanted] = [each for each in kind.types if not isinstance(each, inspect.NoneType)]
    return wanted


# Describing


def _description(kind: inspect.Type) -> str:
    if isinstance(kind, inspect.UnionType):
        return _description(_without_none(kind))
    if isinstance(kind, inspect.BoolType):
        return "true or false"
    if isinstance(kind, inspect.IntType):
        return f"a whole number{_limits(kind)}"
    if isinstance(kind, inspect.Metadata) and isinstance(kind.type, inspect.FloatType):
        return f"a number{_limits(kind.type)}"
    if isinstance(kind, inspect.FloatType):
        return f"seconds{_limits(kind)}, as a number or like '1h30m'"
    if isinstance(kind, inspect.LiteralType):
        return " or ".join(repr(value) for value in kind.values)
    if isinstance(kind, inspect.VarTupleType):
        most = "" if kind.max_length is None else f"at most {kind.max_length} "
        return f"a list of {most}{'strings' if isinstance(kind.item_type, inspect.StrType) else 'mappings'}"
    if isinstance(kind, inspect.StrType) and kind.max_length is not None:
        return f"a string of {kind.min_length or 0} to {kind.max_length} characters"
    return f"a {kind.cls.__name__}" if isinstance(kind, inspect.StructType) else "a string"


def _limits(kind: inspect.IntType | inspect.FloatType) -> str:
    if kind.le is None:
        return f" of at least {kind.ge:g}" if kind.ge is not None else ""
    return f" from {kind.ge:g} to {kind.le:.12g}"


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return repr(value if len(value) <= _LONGEST_SHOWN else f"{value[:_LONGEST_SHOWN]}…")
    if isinstance(value, float) or (isinstance(value, int) and abs(value) < 10**_LONGEST_SHOWN):
        return repr(value)
    return _kind_of(value)


def _kind_of(value: Any) -> str:
    if value is None:
        return "null"
    names = {str: "a string", bool: "true or false", int: "a number", float: "a number", dict: "a mapping"}
    names |= {list: "a list", tuple: "a list"}
    return next((name for kind, name in names.items() if isinstance(value, kind)), f"a {type(value).__name__}")
