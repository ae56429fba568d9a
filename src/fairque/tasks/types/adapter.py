"""`Adapter`: what teaches fairque types that msgspec does not know. To be without one, take it out of `adapters`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from fairque.tasks.types.facet import Shape

__all__ = ["Adapter"]


class Adapter(Protocol):
    """How values of some types travel, and are made again."""

    def takes(self, hint: Any) -> bool:
        """Whether an annotation is about one of its types."""

    def shape(self, hint: Any, shape_of: Callable[[Any], Shape]) -> Shape:
        """How its values look like. `shape_of` tells it of other annotations."""

    def converter(self, hint: Any) -> Callable[[Any], Any]:
        """What makes a value from what msgpack had. That raises `ValueError` or `TypeError` for what does not fit.

        Raises `TypeError`, with the reason, for an annotation that cannot be used, and `NameError` for one that cannot
        be resolved yet.
        """

    def encodes(self, kind: type) -> bool:
        """Whether values of a class are its own."""

    def encode(self, value: Any) -> Any:
        """What travels in place of a value: it, or what msgpack can hold. Raises `TypeError` or `ValueError`."""
