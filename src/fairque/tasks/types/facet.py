"""What values of a type look like as msgpack, and whether values of two types can be told apart by that.

A shape is a tuple of facets: a value of the type fits one of them. Two types can be told apart when no value fits a
facet of each.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Any, TypeAlias

__all__ = [
    "ALL_KINDS",
    "ANY",
    "ANYTHING",
    "DEEPEST",
    "Facet",
    "Fields",
    "Form",
    "Items",
    "One",
    "Pairs",
    "Row",
    "Shape",
    "differ",
    "fits",
    "kind_of",
]

KINDS = {
    type(None): "null",
    bool: "boolean",
    int: "integer",
    float: "number",
    str: "text",
    bytes: "bytes",
    datetime: "moment",
    list: "array",
    dict: "map",
}
"""The kinds of values that msgpack has, by what they are decoded to."""
OTHER_KIND = "extension"
ALL_KINDS = (*KINDS.values(), OTHER_KIND)
ANY = "anything"
DEEPEST = 4
"""Steps into values and types: a value that holds others of its kind is looked at again at each of its levels."""


def kind_of(value: object) -> str:
    return KINDS.get(type(value), OTHER_KIND)


@dataclass(frozen=True)
class Facet:
    """Any value of a kind, or any value at all."""

    kind: str

    def fits(self, value: object, _depth: int = DEEPEST) -> bool:
        return self.kind in (ANY, kind_of(value))

    def differs(self, _other: Facet, _depth: int) -> bool:
        """From another one of the same kind."""
        return False


Shape: TypeAlias = tuple[Facet, ...]
ANYTHING: Shape = (Facet(ANY),)


@dataclass(frozen=True)
class One(Facet):
    """One value: of a literal, or of an enum."""

    kind: str = field(init=False)
    value: Any = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "kind", kind_of(self.value))

    def fits(self, value: object, _depth: int = DEEPEST) -> bool:
        return type(value) is type(self.value) and value == self.value

    def differs(self, other: Facet, _depth: int) -> bool:
        return not other.fits(self.value)


@dataclass(frozen=True)
class Form(Facet):
    """Texts of one form, such as dates. No text is of two of the forms that are used here."""

    kind: str = field(init=False, default="text")
    pattern: re.Pattern[str] = re.compile("")

    def fits(self, value: object, _depth: int = DEEPEST) -> bool:
        return isinstance(value, str) and self.pattern.fullmatch(value) is not None

    def differs(self, other: Facet, _depth: int) -> bool:
        if isinstance(other, One):
            return not self.fits(other.value)
        return isinstance(other, Form) and other.pattern != self.pattern


@dataclass(frozen=True)
class Items(Facet):
    """Any number of values of one type. One without any is the same value whatever the type."""

    kind: str = field(init=False, default="array")
    made: Any = list
    shape: Shape = ANYTHING

    def fits(self, value: object, depth: int = DEEPEST) -> bool:
        return isinstance(value, list) and all(fits(self.shape, each, depth) for each in value)

    def differs(self, other: Facet, depth: int) -> bool:
        return isinstance(other, Items) and self.made is other.made and differ(self.shape, other.shape, depth)


@dataclass(frozen=True)
class Row(Facet):
    """So many values, each of its type."""

    kind: str = field(init=False, default="array")
    shapes: tuple[Shape, ...] = ()

    def fits(self, value: object, depth: int = DEEPEST) -> bool:
        return (
            isinstance(value, list)
            and len(value) == len(self.shapes)
            and all(fits(shape, each, depth) for shape, each in zip(self.shapes, value, strict=True))
        )

    def differs(self, other: Facet, depth: int) -> bool:
        if not isinstance(other, Row):
            return False
        if len(self.shapes) != len(other.shapes):
            return True
        return any(differ(one, two, depth) for one, two in zip(self.shapes, other.shapes, strict=True))


@dataclass(frozen=True)
class Pairs(Facet):
    """Keys and values, each of one type."""

    kind: str = field(init=False, default="map")
    made: Any = dict
    keys: Shape = ANYTHING
    values: Shape = ANYTHING

    def fits(self, value: object, depth: int = DEEPEST) -> bool:
        return isinstance(value, dict) and all(
            fits(self.keys, key, depth) and fits(self.values, each, depth) for key, each in value.items()
        )

    def differs(self, other: Facet, depth: int) -> bool:
        if not isinstance(other, Pairs) or self.made is not other.made:
            return False
        return differ(self.keys, other.keys, depth) or differ(self.values, other.values, depth)


@dataclass(frozen=True)
class Fields(Facet):
    """A map with the fields of a class.

    Attributes:
        shapes: Tells the shape of each field when it is asked: a class may hold others of its own.
        required: Those that a value must have.
        always: Those that are encoded of each value, also where it has what they are by default.
        names: All of them.
        more: Whether there may be others.
    """

    kind: str = field(init=False, default="map")
    shapes: Callable[[], Mapping[str, Shape]] = dict
    required: frozenset[str] = frozenset()
    always: frozenset[str] = frozenset()
    names: frozenset[str] = frozenset()
    more: bool = False

    @cached_property
    def _shapes(self) -> Mapping[str, Shape]:
        return self.shapes()

    def has_what_it_needs(self, value: object) -> bool:
        return isinstance(value, dict) and self.required <= value.keys()

    @cached_property
    def _marks(self) -> tuple[str, ...]:
        """The fields in which only certain values are right."""
        return tuple(name for name in self.required if all(isinstance(facet, One) for facet in self._shapes[name]))

    def has_its_marks(self, value: Mapping[str, Any]) -> bool:
        return all(name in value and fits(self._shapes[name], value[name]) for name in self._marks)

    def has_no_more(self, value: Mapping[str, Any]) -> bool:
        return self.more or value.keys() <= self.names

    def has_all(self, value: Mapping[str, Any]) -> bool:
        return self.always <= value.keys()

    def fits(self, value: object, depth: int = DEEPEST) -> bool:
        if not isinstance(value, dict) or not self.required <= value.keys():
            return False
        return all(fits(self._shapes[name], value[name], depth) for name in self.required)

    def differs(self, other: Facet, depth: int) -> bool:
        if not isinstance(other, Fields):
            return False
        if (self.always - other.names and not other.more) or (other.always - self.names and not self.more):
            return True
        return any(differ(self._shapes[name], other._shapes[name], depth) for name in self.required & other.required)


def fits(shape: Shape, value: object, depth: int = DEEPEST) -> bool:
    """Whether a value may be of a shape, as far as one looks."""
    return depth == 0 or any(facet.fits(value, depth - 1) for facet in shape)


def differ(one: Shape, two: Shape, depth: int = DEEPEST) -> bool:
    """Whether no value fits both. Types that hold each other are followed a few steps, and then taken for the same."""
    return depth > 0 and all(_differ(a, b, depth - 1) for a in one for b in two)


def _differ(one: Facet, two: Facet, depth: int) -> bool:
    if ANY in (one.kind, two.kind):
        return False
    if one.kind != two.kind:
        return True
    return one.differs(two, depth) or two.differs(one, depth)
