"""`Field` of a section: what fits it, and what is said about a value that does not."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec
from msgspec import inspect

from fairque.config.duration import parse_duration

__all__ = ["Field", "Number", "Text", "Unusable", "WrongValue", "kind_of"]

Number = msgspec.Meta(extra={"unit": ""})
"""Marks a float that is no duration, as all others are."""
_SWITCH = {"yes": "true", "on": "true", "no": "false", "off": "false"}
_LONGEST_SHOWN = 40


class WrongValue(ValueError):
    """A value does not fit its field."""


class Text(str):
    """From an environment variable: its type is not known, and it is in no error, because it may be secret."""

    __slots__ = ()


class Unusable(NamedTuple):
    """Stands for a value that could not be read. An error only where no later source replaces it."""

    problem: str


class Field(NamedTuple):
    """A field of a section.

    Args:
        type: As it is annotated.
        kind: What msgspec knows about the type, apart from None.
        is_optional: None is a value of it.
        is_secret: Its value is in no error.
    """

    type: Any
    kind: inspect.Type
    is_optional: bool
    is_secret: bool

    def fit(self, value: Any) -> Any:
        """The value as a section holds it. Raises `WrongValue`."""
        if isinstance(value, Unusable):
            raise WrongValue(value.problem)
        try:
            fitting = msgspec.convert(self._meant(value), self.type, strict=not isinstance(value, Text))
            msgspec.json.encode(fitting)  # half of a surrogate pair could not be sent anywhere
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise WrongValue(self._objection(value, str(error))) from None
        return fitting

    def _meant(self, value: Any) -> Any:
        """What msgspec cannot know: durations, and what a text without a type means."""
        if isinstance(value, Mapping):
            raise ValueError  # no section is made on the way
        if isinstance(value, str) and isinstance(self.kind, inspect.FloatType):
            seconds = parse_duration(value)
            return value if seconds is None else seconds
        return self._typed(str(value)) if isinstance(value, Text) else value

    def _typed(self, text: str) -> Any:
        if not text and self.is_optional:
            return None
        if isinstance(self.kind, inspect.BoolType):
            return _SWITCH.get(text.lower(), text.lower())
        if not isinstance(self.kind, inspect.VarTupleType):
            return text
        if text.lstrip().startswith("["):  # JSON, for entries with a comma in them
            return msgspec.json.decode(text.encode(errors="surrogateescape"))
        return [part.strip() for part in text.split(",") if part.strip()]

    def _objection(self, value: Any, error: str) -> str:
        if isinstance(value, Text):
            is_list = isinstance(self.kind, inspect.VarTupleType)
            return f"expected {_description(self.kind)}{', with commas or as a JSON array' if is_list else ''}"
        if self.is_secret:
            return f"expected {_description(self.kind)}, not {kind_of(value)}"
        place = re.search(r"\$\[(\d+)\]", error)
        if place and isinstance(self.kind, inspect.VarTupleType) and isinstance(value, (list, tuple)):
            number = int(place[1])
            return f"entry {number + 1}: {_objection(self.kind.item_type, value[number])}"
        return _objection(self.kind, value)


def _objection(kind: inspect.Type, value: Any) -> str:
    is_bare = isinstance(kind, inspect.StrType) and isinstance(value, (bool, int, float))
    return f"expected {_description(kind)}, not {_shown(value)}{', put it in quotes' if is_bare else ''}"


def _description(kind: inspect.Type) -> str:
    match kind:
        case inspect.BoolType():
            return "true or false"
        case inspect.IntType():
            return f"a whole number from {kind.ge} to {kind.le}"
        case inspect.Metadata(type=inspect.FloatType(ge=least, le=most)):
            return f"a number from {least:g} to {most:.12g}"
        case inspect.FloatType(ge=least, le=most):
            return f"seconds from {least:g} to {most:.12g}, as a number or like '1h30m'"
        case inspect.LiteralType():
            return " or ".join(repr(value) for value in kind.values)
        case inspect.VarTupleType(item_type=inspect.StrType()):
            return f"a list of at most {kind.max_length} strings"
        case inspect.VarTupleType():
            return "a list of mappings"
        case inspect.StructType():
            return f"a {kind.cls.__name__}"
        case inspect.StrType(max_length=int(most)):
            return f"a string of {kind.min_length or 0} to {most} characters"
    return "a string"


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return repr(value if len(value) <= _LONGEST_SHOWN else f"{value[:_LONGEST_SHOWN]}…")
    if isinstance(value, float) or (isinstance(value, int) and abs(value) < 10**_LONGEST_SHOWN):
        return repr(value)
    return kind_of(value)


def kind_of(value: Any) -> str:
    """Without its content, which may be secret."""
    kinds: list[tuple[str, Any]] = [("a string", str), ("true or false", bool), ("a number", (int, float))]
    kinds += [("a mapping", Mapping), ("a list", (list, tuple)), ("null", type(None))]
    return next((name for name, kind in kinds if isinstance(value, kind)), f"a {type(value).__name__}")
