"""`Record`: a class whose values travel field by field: a dataclass, attrs class, struct, typed dict or named tuple."""

from __future__ import annotations

import dataclasses
import sys
import typing
from collections.abc import Mapping
from typing import Any

import msgspec

__all__ = ["Member", "Record", "record_of", "resolved", "stripped"]

_WRAPPERS = {typing.Required, typing.NotRequired, typing.Final}
if sys.version_info >= (3, 13):
    _WRAPPERS.add(typing.ReadOnly)


class Member(typing.NamedTuple):
    """A field: its name where it is built, its key in a message, its annotation, and whether a value must have it."""

    name: str
    key: str
    hint: Any
    required: bool
    is_argument: bool = True


class Record(typing.NamedTuple):
    """The class, its fields, whether it travels as an array, its tag, and whether defaults may be left out, and others
    may not be there.
    """

    cls: Any
    members: tuple[Member, ...]
    is_array: bool = False
    tag: tuple[str, str | int] | None = None
    is_sparse: bool = False
    is_closed: bool = False

    def check(self, value: Mapping[str, Any]) -> None:
        """What its fields do not say. Raises `ValueError`."""
        known = {member.key for member in self.members}
        if self.tag is not None:
            name, tag = self.tag
            known.add(name)
            if value.get(name, tag) != tag:
                raise ValueError(f"Invalid value {value[name]!r} - at `$.{name}`")
        if self.is_closed and (more := value.keys() - known):
            raise ValueError(f"Object contains unknown field `{min(more)}`")

    def build(self, values: Mapping[str, Any]) -> Any:
        """A value of the class from those of its fields, by key."""
        if typing.is_typeddict(self.cls):
            return dict(values)
        given = {
            member.name: values[member.key] for member in self.members if member.is_argument and member.key in values
        }
        made = self.cls(**given)
        for member in self.members:
            if not member.is_argument and member.key in values:
                object.__setattr__(made, member.name, values[member.key])
        return made


def record_of(hint: Any) -> Record | None:
    """None for what is no such class. Raises `NameError` for annotations that cannot be resolved yet."""
    cls: Any = typing.get_origin(hint) or hint
    if not isinstance(cls, type):
        return None
    if issubclass(cls, msgspec.Struct):
        return _of_struct(cls, hint)
    if typing.is_typeddict(cls):
        return Record(cls, _members(hint, vars(cls)["__required_keys__"]), is_sparse=True)
    if dataclasses.is_dataclass(cls):
        return Record(cls, _of_dataclass(cls, hint))
    if hasattr(cls, "__attrs_attrs__"):
        return Record(cls, _of_attrs(cls, hint))
    if issubclass(cls, tuple) and hasattr(cls, "_fields"):
        names = cls._fields
        required = set(names) - set(getattr(cls, "_field_defaults", ()))
        found = {member.name: member for member in _members(hint, required)}
        members = tuple(found.get(name) or Member(name, name, Any, name in required) for name in names)
        return Record(cls, members, is_array=True)
    return None


def _of_struct(cls: type[msgspec.Struct], hint: Any) -> Record:
    hints, config = resolved(hint), cls.__struct_config__
    members = tuple(
        Member(each.name, each.encode_name, stripped(hints[each.name]), each.required)
        for each in msgspec.structs.fields(cls)
    )
    tag = (config.tag_field, config.tag) if config.tag_field is not None and config.tag is not None else None
    return Record(
        cls, members, bool(config.array_like), tag, bool(config.omit_defaults), bool(config.forbid_unknown_fields)
    )


def _of_dataclass(cls: Any, hint: Any) -> tuple[Member, ...]:
    hints = resolved(hint)
    missing = dataclasses.MISSING
    return tuple(
        Member(
            each.name,
            each.name,
            stripped(hints[each.name]),
            each.default is missing and each.default_factory is missing and each.init,
            each.init,
        )
        for each in dataclasses.fields(cls)
    )


def _of_attrs(cls: Any, hint: Any) -> tuple[Member, ...]:
    hints, nothing = resolved(hint), sys.modules["attr"].NOTHING
    return tuple(
        Member(
            each.alias if each.init else each.name,
            each.name,
            stripped(hints.get(each.name, Any)),
            each.default is nothing and each.init,
            each.init,
        )
        for each in cls.__attrs_attrs__
    )


def _members(hint: Any, required: typing.Collection[str]) -> tuple[Member, ...]:
    return tuple(Member(name, name, stripped(each), name in required) for name, each in resolved(hint).items())


def resolved(hint: Any) -> dict[str, Any]:
    """The annotations of a class, with the types that its generic parameters stand for."""
    cls = typing.get_origin(hint) or hint
    parameters = getattr(cls, "__parameters__", ())
    given = dict(zip(parameters, typing.get_args(hint), strict=False))
    return {name: _filled(each, given) for name, each in typing.get_type_hints(cls, include_extras=True).items()}


def _filled(hint: Any, given: Mapping[Any, Any]) -> Any:
    if isinstance(hint, typing.TypeVar):
        return given.get(hint, hint)
    parameters = getattr(hint, "__parameters__", ())
    if isinstance(hint, type) or not parameters:
        return hint
    return hint[tuple(given.get(each, each) for each in parameters)]


def stripped(hint: Any) -> Any:
    """Without what says something of the field, not of its type."""
    while typing.get_origin(hint) in _WRAPPERS:
        hint = typing.get_args(hint)[0]
    return hint
