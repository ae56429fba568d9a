"""Stand-ins: classes that msgspec knows nothing of, so that it asks us to convert what it has read in their place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

__all__ = ["BINARY", "StandIn", "converted", "decoder", "stand_in"]

BINARY = (bytes, bytearray, memoryview)


def decoder(hint: Any) -> msgspec.msgpack.Decoder[Any]:
    """Of an annotation that was translated, or of a container of such."""
    return msgspec.msgpack.Decoder(hint, dec_hook=_convert)


def converted(value: Any, hint: Any) -> Any:
    """What msgpack had, of an annotation that was translated. Raises `ValueError`."""
    try:
        return msgspec.convert(value, hint, builtin_types=BINARY, dec_hook=_convert)
    except msgspec.ValidationError as exc:
        raise ValueError(str(exc)) from None  # to which msgspec adds the place; to an error of its own it does not


class StandIn(type):
    """The class of stand-ins. Whatever one was converted to is taken for a value of it."""

    convert: Callable[[Any], Any]

    def __instancecheck__(cls, _: object) -> bool:
        return True


def stand_in(name: str, convert: Callable[[Any], Any]) -> StandIn:
    return StandIn(name, (), {"convert": staticmethod(convert)})


def _convert(kind: Any, value: Any) -> Any:
    return kind.convert(value) if isinstance(kind, StandIn) else value
