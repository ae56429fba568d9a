"""`Sources`: what files, dicts and the environment say together, and the configuration that comes of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from fairque.config.environment import read_environment
from fairque.config.field import Text, kind_of
from fairque.config.files import read_file
from fairque.config.references import filled_in, names_in
from fairque.config.section import FieldErrors, Section, sections_of
from fairque.config.source import Fields, Given, Problems, Source
from fairque.errors import ConfigError

__all__ = ["Sources"]

S = TypeVar("S", bound=Section)


class Sources:
    """Takes sources one by one. Later ones win: mappings merge, lists replace.

    Args:
        whole: The type of the configuration.
        environ: The environment variables.
    """

    def __init__(self, whole: type[Section], environ: Mapping[str, str]) -> None:
        self._kinds = sections_of(whole)
        self._environ = environ
        self._said: dict[str, list[Fields]] = {}
        self._problems = Problems()
        self._referred: set[str] = set()

    def add_file(self, file: Path, form: str | None) -> None:
        """`form` is ``"yaml"`` or ``"toml"``; None: as the suffix says."""
        try:
            data = read_file(file, form)
        except ConfigError as error:
            self._problems.append(str(error))
            return
        for name, entries in Source(self._kinds, self._problems, str(file)).read(data).items():
            self._add(name, [{field: self._filled_in(given) for field, given in fields.items()} for fields in entries])

    def add_dict(self, data: object) -> None:
        if not isinstance(data, Mapping):
            self._problems.add("", "", f"a configuration is a mapping, not {kind_of(data)}")
            return
        for name, entries in Source(self._kinds, self._problems, "").read(data).items():
            self._add(name, entries)

    def add_environment(self) -> None:
        """It comes last: it changes entries of lists, and adds the next ones."""
        found = read_environment(self._environ, self._kinds, self._referred, self._problems)
        for (name, number), fields in found.items():
            entries = self._said.setdefault(name, [])
            if number > len(entries):
                text = f"there is no {name}[{number - 1}] before it: {name} are counted from 0"
                self._problems.add(_origin_of(fields), f"{name}[{number}]", text)
                continue
            if number == len(entries):
                entries.append({})
            self._put(name, number, fields)

    def built(self, whole: type[S]) -> tuple[S, dict[str, str]]:
        """The configuration, and where each value that is given comes from, by its path.

        Raises:
            ConfigError: With everything that is wrong, a line each.
        """
        origins: dict[str, str] = {}
        sections: Fields = {}
        for name, entries in self._said.items():
            section, is_list = self._kinds[name]
            made = []
            for number, fields in enumerate(entries):
                path = f"{name}[{number}]" if is_list else name
                origins |= {f"{path}.{field}": given.origin for field, given in fields.items()}
                made.append(self._made(section, f"{path}.", fields))
            sections[name] = Given(made if is_list else made[0], _origin_of(*entries))
        config = None if self._problems else self._made(whole, "", sections)
        if config is None:
            raise ConfigError("\n".join(dict.fromkeys(self._problems)))
        return config, origins

    def _add(self, name: str, entries: list[Fields]) -> None:
        if self._kinds[name].is_list or name not in self._said:
            self._said[name] = entries
        else:
            self._put(name, 0, entries[0])

    def _put(self, name: str, number: int, fields: Fields) -> None:
        replaces = self._kinds[name].section.replaces
        void = {other for field in fields for other in replaces.get(field, ())}
        before = self._said[name][number].items()
        self._said[name][number] = {field: given for field, given in before if field not in void} | fields

    def _filled_in(self, given: Given) -> Given:
        names = names_in(given.value)
        self._referred.update(names)
        filled = filled_in(given.value, self._environ)
        shown = (f"${name}" for name in names) if isinstance(filled, Text) else ()
        return Given(filled, ", ".join((given.origin, *shown)))

    def _made(self, section: type[S], prefix: str, fields: Fields) -> S | None:
        try:
            return section(**{field: given.value for field, given in fields.items()})
        except FieldErrors as error:
            for field, text in error.problems:
                origin = fields[field].origin if field in fields else _origin_of(fields)
                self._problems.add(origin, f"{prefix}{field}", text)
        return None


def _origin_of(*entries: Fields) -> str:
    """Where the first thing that is given stands."""
    return next((given.origin for fields in entries for given in fields.values()), "")
