"""Which annotations msgspec alone would not take, or would take for something else."""

from __future__ import annotations

import collections.abc
import enum
import typing
from collections.abc import Iterator
from typing import Any

import msgspec

from fairque.tasks.types.adapters import adapter_of
from fairque.tasks.types.facet import ANYTHING
from fairque.tasks.types.record import record_of
from fairque.tasks.types.shapes import UNIONS, bare, is_alias, shape_of
from fairque.tasks.types.stand_in import BINARY, StandIn

__all__ = ["ITERABLES", "is_accepted", "is_custom", "is_foreign"]

ITERABLES = (collections.abc.Iterable, collections.abc.Container, collections.abc.Reversible)
_NATIVE = (type(None), bool, int, float, str, *BINARY, list, dict, msgspec.msgpack.Ext)
_KNOWN = (Any, msgspec.Raw, msgspec.UnsetType)


def is_foreign(hint: Any) -> bool:
    """Whether msgspec alone would not take it, or would take it for something else."""
    return not is_accepted(hint) or any(_is_stranger(each) for each in _parts(hint, set()))


def is_accepted(hint: Any) -> bool:
    try:
        msgspec.msgpack.Decoder(hint)
    except (TypeError, RecursionError):  # the latter for an alias that holds itself
        return False
    return True


def _parts(hint: Any, seen: set[Any]) -> Iterator[Any]:
    """It, and the annotations within it, also in the fields of classes."""
    if is_alias(hint):
        if hint in seen:
            return
        seen.add(hint)
    hint = bare(hint)
    yield hint
    if adapter_of(hint) is not None or typing.get_origin(hint) is typing.Literal:
        return
    record = record_of(hint)
    if record is None:
        args = typing.get_args(hint)
        inner = args[:1] if typing.get_origin(hint) is typing.Annotated else args
    elif hint in seen:
        return
    else:
        seen.add(hint)
        inner = tuple(member.hint for member in record.members)
    for each in inner:
        if each is not ...:
            yield from _parts(each, seen)


def _is_stranger(hint: Any) -> bool:
    origin = typing.get_origin(hint)
    if origin is typing.Literal:
        return any(
            not isinstance(each, (str, int, type(None))) or isinstance(each, (bool, enum.Enum))
            for each in typing.get_args(hint)
        )
    if origin in ITERABLES:
        return bool(typing.get_args(hint))
    if adapter_of(hint) is not None:
        return True
    return origin not in UNIONS and origin is not typing.Annotated and is_custom(origin or hint)


def is_custom(kind: Any) -> bool:
    """Whether msgpack has nothing that is of a class, and msgspec makes nothing of it either."""
    if not isinstance(kind, type) or kind in _KNOWN or isinstance(kind, (enum.EnumType, StandIn)):
        return False
    if record_of(kind) is not None or shape_of(kind) != ANYTHING:
        return False
    try:
        return not any(issubclass(each, kind) for each in _NATIVE)
    except TypeError:
        return True
