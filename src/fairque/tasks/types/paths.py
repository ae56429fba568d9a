"""Paths travel as text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import PurePath
from typing import Any

from fairque.tasks.types.facet import Facet, Shape

__all__ = ["Paths"]


class Paths:
    """`pathlib.Path` and its kinds."""

    def takes(self, hint: Any) -> bool:
        return isinstance(hint, type) and issubclass(hint, PurePath)

    def shape(self, _hint: Any, _shape_of: Callable[[Any], Shape]) -> Shape:
        return (Facet("text"),)

    def converter(self, hint: Any) -> Callable[[Any], Any]:
        def convert(value: Any) -> Any:
            if not isinstance(value, str):
                raise TypeError(f"Expected `{hint.__name__}`, got `{type(value).__name__}`")
            return hint(value)

        return convert

    def encodes(self, kind: type) -> bool:
        return issubclass(kind, PurePath)

    def encode(self, value: Any) -> str:
        return str(value)
