"""`Source`: what a file or a dict says about each section. Checks names and shapes; sections check their values."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

from fairque.config.field import kind_of
from fairque.config.section import Section, SectionKind, fields_of

__all__ = ["Fields", "Given", "Problems", "Source"]


class Given(NamedTuple):
    """A value, and where it stands: ``file:line``, or the name of a variable; empty for a dict."""

    value: Any
    origin: str


Fields = dict[str, Given]
"""What is given for one section."""


class Problems(list[str]):
    """What is wrong, a line each."""

    def add(self, origin: str, path: str, text: str) -> None:
        self.append(": ".join(part for part in (origin, path, text) if part))


class Source(NamedTuple):
    """Reads what a file or a dict holds.

    Args:
        kinds: Of the sections, by name.
        problems: Takes unknown names and wrong shapes.
        file: Its name; empty for a dict.
    """

    kinds: Mapping[str, SectionKind]
    problems: Problems
    file: str

    def read(self, data: Mapping[Any, Any]) -> dict[str, list[Fields]]:
        """By section; one of which there is no list has one entry. What is empty or commented out is left out."""
        known = self._known(data, "", self.kinds)
        return {name: self._entries(name, *given) for name, given in known if given.value is not None}

    def _entries(self, name: str, content: Any, origin: str) -> list[Fields]:
        section, is_list = self.kinds[name]
        if not is_list:
            return [self._section(section, name, content, origin)]
        if isinstance(content, (list, tuple)):
            return [self._section(section, f"{name}[{number}]", each, origin) for number, each in enumerate(content)]
        self.problems.add(origin, name, f"expected a list of mappings, not {kind_of(content)}")
        return []

    def _section(self, section: type[Section], path: str, content: Any, origin: str) -> Fields:
        if isinstance(content, Mapping):
            return dict(self._known(content, path, fields_of(section)))
        if content is not None:
            self.problems.add(origin, path, f"expected a mapping, not {kind_of(content)}")
        return {}

    def _known(self, data: Mapping[Any, Any], path: str, names: Collection[str]) -> Iterator[tuple[str, Given]]:
        """What has one of these names. Everything else is a problem."""
        lines = getattr(data, "lines", {})
        for key, value in data.items():
            origin = f"{self.file}:{lines[key]}" if key in lines else self.file
            if key in names:
                yield key, Given(value, origin)
            else:
                shown = key if isinstance(key, str) and key.isprintable() and key else repr(key)
                self.problems.add(origin, f"{path}.{shown}" if path else shown, f"unknown key; {_hint(key, names)}")


def _hint(key: object, names: Collection[str]) -> str:
    near = difflib.get_close_matches(str(key).lower(), names, 1)
    return f"did you mean {near[0]!r}?" if near else f"there are {', '.join(names)}"
