"""What makes values of annotations: what msgspec does not do is done here.

An annotation is translated into one that msgspec takes, in which stand-ins are for what it does not know, or what it
cannot tell apart.
"""

from __future__ import annotations

import collections.abc
import enum
import typing
from typing import Any

import msgspec

from fairque.tasks.types.adapters import adapter_of
from fairque.tasks.types.foreign import ITERABLES, is_custom, is_foreign
from fairque.tasks.types.record import Record, record_of
from fairque.tasks.types.shapes import UNIONS, bare, is_alias, shape_of
from fairque.tasks.types.stand_in import StandIn, converted, stand_in
from fairque.tasks.types.union import Choice, union

__all__ = ["Unsendable", "translated"]


class Unsendable(TypeError):
    """An annotation is about a class of which no value can travel."""


def translated(hint: Any) -> Any:
    """The annotation as `decoder` takes it.

    Raises `TypeError`, with the reason, for one that cannot be used, and `NameError` for one that cannot be resolved
    yet.
    """
    try:
        return _Translation().of(hint)
    except RecursionError:
        raise TypeError(f"{_name(hint)} holds itself without end") from None


class _Translation:
    """Of one annotation. A class or an alias that holds itself meets the stand-in that was made for it."""

    def __init__(self) -> None:
        self._named: dict[Any, StandIn] = {}

    def of(self, hint: Any) -> Any:
        plain = bare(hint)
        if is_alias(hint) and is_foreign(hint):
            return self._named.get(hint) or self._alias(hint, plain)
        hint = plain
        if not is_foreign(hint):
            return hint
        adapter = adapter_of(hint)
        if adapter is not None:
            return stand_in(_name(hint), adapter.converter(hint))
        record = record_of(hint)
        if record is not None:
            return self._named.get(hint) or self._record(hint, record)
        return self._composed(hint, typing.get_origin(hint), typing.get_args(hint))

    def _composed(self, hint: Any, origin: Any, args: tuple[Any, ...]) -> Any:
        if origin is typing.Literal:
            return self._literal(hint)
        if origin in UNIONS:
            return union([Choice(_name(each), self.of(each), shape_of(each)) for each in args])
        if origin is typing.Annotated:
            return origin[(self.of(args[0]), *hint.__metadata__)]
        if origin in ITERABLES:
            return self.of(collections.abc.Collection[args[0]])  # type: ignore[valid-type]
        if args and not is_custom(origin):
            return origin[tuple(each if each is ... else self.of(each) for each in args)]
        return _without_parts(hint)

    def _alias(self, hint: Any, plain: Any) -> StandIn:
        made = self._named[hint] = stand_in(_name(hint), lambda value: converted(value, target))
        target = self.of(plain)
        return made

    def _record(self, hint: Any, record: Record) -> StandIn:
        def convert(value: Any) -> Any:
            found = converted(value, fields)
            if record.is_array:
                return record.build(dict(zip(keys, found, strict=True)))
            record.check(value)
            return record.build(found)

        made = self._named[hint] = stand_in(_name(hint), convert)
        keys = [member.key for member in record.members]
        types = [self.of(member.hint) for member in record.members]
        fields = _row(types) if record.is_array else _map(record, types)
        return made

    def _literal(self, hint: Any) -> StandIn:
        """msgspec has literals of whole numbers and texts."""
        name = _name(hint)
        values: dict[tuple[type, Any], Any] = {}
        for each in typing.get_args(hint):
            plain = each.value if isinstance(each, enum.Enum) else each
            if values.setdefault((type(plain), plain), each) is not each:
                raise TypeError(f"{name} has two values that travel as {plain!r}")

        def convert(value: Any) -> Any:
            try:
                return values[type(value), value]
            except (KeyError, TypeError):
                raise ValueError(f"Expected `{name}`, got {value!r}"[:200]) from None

        return stand_in(name, convert)


def _row(types: list[Any]) -> Any:
    return tuple.__class_getitem__(tuple(types))


def _map(record: Record, types: list[Any]) -> Any:
    fields = {
        member.key: kind if member.required else typing.NotRequired[kind]
        for member, kind in zip(record.members, types, strict=True)
    }
    return typing.TypedDict(record.cls.__name__, fields)  # type: ignore[operator]


def _without_parts(hint: Any) -> Any:
    """Raises `TypeError`, with the words of msgspec where it has some."""
    if hint is typing.NoReturn or hint is typing.Never:
        return Any
    if hint is typing.LiteralString:
        return str
    msgspec.msgpack.Decoder(hint)
    raise Unsendable(f"there is no way to send a value of type {_name(hint)}")


def _name(hint: Any) -> str:
    """For people."""
    if typing.get_origin(hint) is typing.Literal:
        values = (str(each) if isinstance(each, enum.Enum) else repr(each) for each in typing.get_args(hint))
        return f"Literal[{', '.join(values)}]"
    if isinstance(hint, type) and not typing.get_args(hint):
        return "None" if hint is type(None) else hint.__qualname__
    return str(hint).replace("typing.", "")
