"""From the tree of a configuration to its sections, with everything that is wrong, and the origin of every value."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any, TypeVar

from msgspec import inspect

from fairque.config.sources import Node, Problems
from fairque.config.values import FieldErrors, Section, WrongValue, fields_of, from_text

__all__ = ["Builder", "sections_of"]

S = TypeVar("S", bound=Section)


def sections_of(whole: type[Section]) -> tuple[dict[str, type[Section]], dict[str, type[Section]]]:
    """The types of its single sections, and of those of which there is a list."""
    single: dict[str, type[Section]] = {}
    several: dict[str, type[Section]] = {}
    for name, kind in fields_of(whole).items():
        if isinstance(kind, inspect.StructType) and issubclass(kind.cls, Section):
            single[name] = kind.cls
        elif isinstance(kind, inspect.VarTupleType) and isinstance(kind.item_type, inspect.StructType):
            assert issubclass(kind.item_type.cls, Section)
            several[name] = kind.item_type.cls
    return single, several


class Builder:
    """Builds sections. `origins` knows afterwards where each value that was given came from, by its path."""

    def __init__(self, problems: Problems) -> None:
        self._problems = problems
        self.origins: dict[str, str] = {}

    def whole(self, kind: type[S], tree: Node) -> S | None:
        """None where something is wrong."""
        single, several = sections_of(kind)
        known = fields_of(kind)
        values: dict[str, Any] = {}
        for name, node in tree.content.items():
            if name not in known:
                self._report_unknown(name, node, "", known)
            elif node.content is None:
                continue  # an empty section, or one with everything commented out
            elif name in single:
                values[name] = self._section(single[name], node, name)
            else:
                values[name] = self._list(several[name], node, name)
        if self._problems.lines:
            return None
        return self._made(kind, values, tree, "")

    def _list(self, kind: type[S], node: Node, path: str) -> tuple[S | None, ...] | None:
        if not isinstance(node.content, list):
            self._problems.add(node.origin, path, f"expected a list of mappings, not {_kind(node)}")
            return None
        return tuple(self._section(kind, entry, f"{path}[{number}]") for number, entry in enumerate(node.content))

    def _section(self, kind: type[S], node: Node, path: str) -> S | None:
        fields = fields_of(kind)
        if node.content is None:
            return kind()
        if not isinstance(node.content, dict):
            self._problems.add(node.origin, path, f"expected a mapping, not {_kind(node)}")
            return None
        values: dict[str, Any] = {}
        for name, child in node.content.items():
            if name not in fields:
                self._report_unknown(name, child, path, fields)
            elif child.form != "broken":
                self._read(fields[name], child, f"{path}.{name}", name, values)
        return self._made(kind, values, node, f"{path}.")

    def _read(self, kind: inspect.Type, node: Node, path: str, name: str, values: dict[str, Any]) -> None:
        self.origins[path] = node.origin
        try:
            values[name] = from_text(kind, node.content) if node.form == "text" else node.plain()
        except WrongValue as wrong:
            self._problems.add(node.origin, path, str(wrong))

    def _made(self, kind: type[S], values: dict[str, Any], node: Node, prefix: str) -> S | None:
        try:
            return kind(**values)
        except FieldErrors as error:
            for field, text in error.problems:
                origin = node.content[field].origin if field in node.content else node.origin
                self._problems.add(origin, f"{prefix}{field}", text)
        return None

    def _report_unknown(self, name: str, node: Node, path: str, known: Iterable[str]) -> None:
        shown = name if name.isprintable() and name else repr(name)
        near = difflib.get_close_matches(name.lower(), known, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
        self._problems.add(node.origin, f"{path}.{shown}" if path else shown, f"unknown key; {hint}")


def _kind(node: Node) -> str:
    """Without its content, which may be a URL with a password in it."""
    names: dict[type, str] = {dict: "a mapping", list: "a list", str: "a string"}
    return names.get(type(node.content), "a plain value")
