"""The shapes of types, see `Facet`."""

from __future__ import annotations

import collections.abc
import enum
import re
import types
import typing
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from functools import partial
from typing import Any
from uuid import UUID

import msgspec

from fairque.tasks.types.adapters import adapter_of
from fairque.tasks.types.facet import ANYTHING, Facet, Fields, Form, Items, One, Pairs, Row, Shape
from fairque.tasks.types.record import Record, record_of

__all__ = ["UNIONS", "bare", "is_alias", "shape_of"]

_open: ContextVar[frozenset[Any]] = ContextVar("_open", default=frozenset())
"""The aliases whose shapes are being made."""
UNIONS = (typing.Union, types.UnionType)
_DATE = r"\d{4}-\d\d-\d\d"
_TIME = r"\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)?"


def _form(pattern: str) -> Form:
    return Form(pattern=re.compile(pattern, re.ASCII))


_PLAIN: dict[Any, Shape] = {
    type(None): (Facet("null"),),
    bool: (Facet("boolean"),),
    int: (Facet("integer"),),
    float: (Facet("number"), Facet("integer")),
    str: (Facet("text"),),
    bytes: (Facet("bytes"),),
    bytearray: (Facet("bytes"),),
    memoryview: (Facet("bytes"),),
    datetime: (Facet("moment"), _form(f"{_DATE}[T ]{_TIME}")),
    date: (_form(_DATE),),
    time: (_form(_TIME),),
    timedelta: (_form(r"[+-]?P[^-:]+"),),
    UUID: (_form(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"),),
    Decimal: (_form(r"-?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?|-?(Infinity|s?NaN\d*)"),),
    msgspec.msgpack.Ext: (Facet("extension"),),
}
_LISTS = (list, set, frozenset)
_ABSTRACT = {
    collections.abc.Collection: list,
    collections.abc.Sequence: list,
    collections.abc.MutableSequence: list,
    collections.abc.Set: set,
    collections.abc.MutableSet: set,
    collections.abc.Mapping: dict,
    collections.abc.MutableMapping: dict,
}


def shape_of(hint: Any) -> Shape:
    """Raises `NameError` for what cannot be resolved yet."""
    if not is_alias(hint):
        return _shape_of(hint)
    if hint in _open.get():
        return ANYTHING  # of an alias that holds itself: nothing is told apart by what is within
    token = _open.set(_open.get() | {hint})
    try:
        return _shape_of(hint)
    finally:
        _open.reset(token)


def _shape_of(hint: Any) -> Shape:
    hint = bare(hint)
    adapter = adapter_of(hint)
    if adapter is not None:
        return adapter.shape(hint, shape_of)
    origin, args = typing.get_origin(hint) or hint, typing.get_args(hint)
    if origin is typing.Annotated:
        return shape_of(args[0])
    if origin in UNIONS:
        return tuple(facet for each in args for facet in shape_of(each))
    if origin is typing.Literal:
        return tuple(One(value=each.value if isinstance(each, enum.Enum) else each) for each in args)
    origin = _ABSTRACT.get(origin, origin)
    if origin in _LISTS:
        return (Items(made=origin, shape=shape_of(args[0]) if args else ANYTHING),)
    if origin is tuple:
        return (_shape_of_tuple(args),)
    if origin is dict:
        return (Pairs(keys=shape_of(args[0]), values=shape_of(args[1])) if args else Pairs(),)
    return _PLAIN.get(origin) or _shape_of_class(hint, origin)


def _shape_of_tuple(args: tuple[Any, ...]) -> Facet:
    if not args or args[1:] == (...,):
        return Items(made=tuple, shape=shape_of(args[0]) if args else ANYTHING)
    return Row(shapes=tuple(shape_of(each) for each in args))


def _shape_of_class(hint: Any, cls: Any) -> Shape:
    if isinstance(cls, enum.EnumType):
        values: list[enum.Enum] = list(cls)
        return tuple(One(value=each.value) for each in values)
    record = record_of(hint)
    if record is None:
        return ANYTHING
    if record.is_array:
        return (Row(shapes=tuple(shape_of(member.hint) for member in record.members)),)
    tag = {record.tag[0]} if record.tag is not None else set()
    required = tag.union(member.key for member in record.members if member.required)
    always = tag.union(member.key for member in record.members if member.is_argument and member.key[0] != "_")
    names = frozenset(tag.union(member.key for member in record.members))
    shapes = partial(_member_shapes, record)
    return (Fields(shapes, frozenset(required), frozenset(required if record.is_sparse else always), names),)


def _member_shapes(record: Record) -> Mapping[str, Shape]:
    shapes = {member.key: shape_of(member.hint) for member in record.members}
    if record.tag is not None:
        shapes[record.tag[0]] = (One(value=record.tag[1]),)
    return shapes


def is_alias(hint: Any) -> bool:
    """Whether it was made by a `type` statement."""
    return type(typing.get_origin(hint) or hint).__name__ == "TypeAliasType"


def bare(hint: Any) -> Any:
    """The type behind names for it."""
    if isinstance(hint, typing.NewType):
        return bare(hint.__supertype__)
    if is_alias(hint):
        alias, given = typing.get_origin(hint) or hint, typing.get_args(hint)
        return bare(alias.__value__[given] if given else alias.__value__)
    return type(None) if hint is None else hint
