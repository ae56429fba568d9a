"""`Record`: a class whose values travel field by field: a dataclass, attrs class, struct, typed dict or named tuple."""

from __future__ import annotations

import dataclasses
import inspect
import sys
import typing
from collections.abc import Iterator, Mapping
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
        if dataclasses.is_dataclass(self.cls):
            return _dataclass_of(self.cls, values)
        arguments = {each.name: values[each.key] for each in self.members if each.is_argument and each.key in values}
        made = self.cls(**arguments)
        for each in self.members:
            if not each.is_argument and each.key in values:
                object.__setattr__(made, each.name, values[each.key])
        return made


def _dataclass_of(cls: Any, values: Mapping[str, Any]) -> Any:
    """As msgspec makes those that it knows: without `__init__`, which may be any function, but with `__post_init__`."""
    made = object.__new__(cls)
    for each in dataclasses.fields(cls):
        if each.name in values:
            object.__setattr__(made, each.name, values[each.name])
        elif each.default_factory is not dataclasses.MISSING:
            object.__setattr__(made, each.name, each.default_factory())
        elif each.default is not dataclasses.MISSING:
            object.__setattr__(made, each.name, each.default)
    if hasattr(made, "__post_init__"):
        made.__post_init__()
    return made


def record_of(hint: Any) -> Record | None:
    """None for what is no such class.

    Raises `NameError` for annotations that cannot be resolved yet, and `TypeError` for a class that cannot be built.
    """
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
    if any(isinstance(each, dataclasses.InitVar) for each in hints.values()):
        raise TypeError(f"the dataclass {cls.__qualname__} has an InitVar, which does not travel")
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
    """The annotations of a class, with the types that its generic parameters, and those of its bases, stand for."""
    cls = typing.get_origin(hint) or hint
    given = dict(_parameters(hint, {}))
    owners = {name: base for base in reversed(cls.__mro__) for name in inspect.get_annotations(base)}
    hints = typing.get_type_hints(cls, include_extras=True)
    return {name: _filled(each, given.get(owners.get(name), {})) for name, each in hints.items()}


def _parameters(hint: Any, above: Mapping[Any, Any]) -> Iterator[tuple[Any, Mapping[Any, Any]]]:
    """For a class and each of its generic bases, what its parameters stand for."""
    cls = typing.get_origin(hint) or hint
    names = getattr(cls, "__parameters__", ())
    own = {name: _filled(each, above) for name, each in zip(names, typing.get_args(hint), strict=False)}
    yield cls, own
    for base in cls.__dict__.get("__orig_bases__", ()):
        if typing.get_origin(base) not in (None, typing.Generic, typing.Protocol):
            yield from _parameters(base, own)


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
