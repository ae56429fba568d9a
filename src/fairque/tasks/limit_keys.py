"""The limit keys of one task: templates filled from its arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import date
from enum import Enum
from typing import Any
from urllib.parse import quote
from uuid import UUID

import msgspec

from fairque.errors import InvalidInput
from fairque.limit import Limit, fill
from fairque.tasks.message import LimitKey
from fairque.tasks.signature import Signature

__all__ = ["StandIn", "limit_keys"]

StandIn = Callable[[str, bool], str]
"""For a text, and whether it is of each user alone."""

_plain = msgspec.msgpack.Decoder()
_SCALARS = (str, int, float, UUID, date)


def limit_keys(
    limits: Sequence[Limit],
    name: str,
    signature: Signature | None,
    args: bytes,
    kwargs: bytes | None,
    stand_in: StandIn | None = None,
) -> list[LimitKey]:
    """Of a task of this name, whose arguments are encoded. `stand_in`: of what comes from arguments, which are not to
    be read in Redis. Raises `InvalidInput`.
    """
    values: Mapping[str, Any] = {}
    if any(limit.braces for limit in limits):
        values = signature.arguments(args, kwargs) if signature is not None else _named(args, kwargs)
    return [_filled(limit, values, name, stand_in) for limit in limits]


def _named(args: bytes, kwargs: bytes | None) -> Mapping[str, Any]:
    """Of a payload, or of a call of a function that is not known here: those that have names."""
    payload = _plain.decode(args)
    if isinstance(payload, dict):
        return payload
    return _plain.decode(kwargs) if kwargs is not None else {}


def _filled(limit: Limit, values: Mapping[str, Any], name: str, stand_in: StandIn | None) -> LimitKey:
    each_user = not limit.is_shared
    if not limit.braces and not each_user:
        return LimitKey(limit.key)
    texts = {brace: _text(brace, values, limit, name) for brace in limit.braces}
    if stand_in is not None:
        texts = {brace: stand_in(text, each_user) for brace, text in texts.items()}
    return LimitKey(fill(limit.key, texts), quote(limit.key, safe=""), each_user)


def _text(brace: str, values: Mapping[str, Any], limit: Limit, name: str) -> str:
    """A value cannot run into what follows it: the usual separator of keys is escaped."""
    value = values.get(brace)
    if isinstance(value, Enum):
        value = value.value
    if not isinstance(value, _SCALARS):
        shown = "is missing" if brace not in values else _described(value)
        raise InvalidInput(f"the limit key {limit.key!r} of task {name!r} cannot be filled: {brace!r} {shown}")
    return str(value).replace("%", "%25").replace(":", "%3A")


def _described(value: object) -> str:
    if isinstance(value, msgspec.msgpack.Ext):
        return "is the output of another task, which is not known yet"
    return "is None" if value is None else f"must be a text or a number, not a {type(value).__name__}"
