"""The adapters that there are, and how values of any type are encoded."""

from __future__ import annotations

from typing import Any

import msgspec

from fairque.tasks.types.adapter import Adapter
from fairque.tasks.types.paths import Paths
from fairque.tasks.types.pydantic_types import PydanticTypes

__all__ = ["ADAPTERS", "adapter_of", "encode", "travels_as"]

ADAPTERS: tuple[Adapter, ...] = (Paths(), PydanticTypes())


def adapter_of(hint: Any) -> Adapter | None:
    """The adapter that knows an annotation."""
    return next((each for each in ADAPTERS if each.takes(hint)), None)


def travels_as(value: Any) -> Any:
    """What msgpack holds in place of a value that it does not know. Raises `TypeError` or `ValueError`."""
    kind = type(value)
    for adapter in ADAPTERS:
        if adapter.encodes(kind):
            return adapter.encode(value)
    raise TypeError(f"Encoding objects of type {full_name(kind)} is unsupported")


def full_name(kind: type) -> str:
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


encode = msgspec.msgpack.Encoder(enc_hook=travels_as).encode
"""As msgpack. Raises `TypeError`, `ValueError`, `OverflowError` or `RecursionError` for what it cannot hold."""
