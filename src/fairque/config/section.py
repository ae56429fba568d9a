"""`Section`: a frozen part of the configuration, whose values fit their fields."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from functools import cache
from typing import Any, ClassVar, NamedTuple, get_type_hints

import msgspec
from msgspec import inspect

from fairque.config.field import Field, WrongValue
from fairque.errors import ConfigError, InvalidInput

__all__ = ["FieldErrors", "Section", "SectionKind", "fields_of", "sections_of"]


class FieldErrors(ConfigError):
    """What is wrong with the fields of a section.

    Attributes:
        problems: Pairs of a field and what is wrong with it.
    """

    def __init__(self, section: str, problems: list[tuple[str, str]]) -> None:
        super().__init__("\n".join(f"{section}: {field}: {text}" for field, text in problems))
        self.problems = problems


class Section(msgspec.Struct, frozen=True, kw_only=True):
    """Checks itself when it is made, and never shows its secrets. Raises `ConfigError` with all that is wrong."""

    secrets: ClassVar[frozenset[str]] = frozenset()
    checks: ClassVar[Mapping[str, Callable[[Any], object]]] = {}
    """For fields whose values have a rule beyond their type: each raises `InvalidInput` for one that breaks it."""

    replaces: ClassVar[Mapping[str, Collection[str]]] = {}
    """For fields that, given by a later source, make others void that an earlier one gives."""

    def __post_init__(self) -> None:
        problems: list[tuple[str, str]] = []
        for name, field in fields_of(type(self)).items():
            try:
                value = field.fit(getattr(self, name))
                msgspec.structs.force_setattr(self, name, value)
                if value is not None and name in self.checks:
                    self.checks[name](value)
            except (WrongValue, InvalidInput) as wrong:
                problems.append((name, str(wrong)))
        problems += self.contradictions() if not problems else ()
        if problems:
            raise FieldErrors(type(self).__name__, problems)

    def contradictions(self) -> Iterator[tuple[str, str]]:
        """Pairs of a field and why it does not go with the others."""
        return iter(())

    def given(self) -> dict[str, Any]:
        """What differs from the defaults."""
        fields = zip(self.__struct_fields__, self.__struct_defaults__, strict=True)
        return {name: value for name, default in fields if (value := getattr(self, name)) != default}

    def shown(self, field: str) -> Any:
        """The value, without what is secret in it."""
        value = getattr(self, field)
        return "***" if value is not None and field in self.secrets else value

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [(name, self.shown(name)) for name in self.__struct_fields__]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.__rich_repr__())})"


@cache
def fields_of(section: type[Section]) -> dict[str, Field]:
    """By name."""
    info = inspect.type_info(section)
    assert isinstance(info, inspect.StructType)
    types = get_type_hints(section, include_extras=True)
    return {field.name: _field(types[field.name], field.type, field.name in section.secrets) for field in info.fields}


def _field(annotated: Any, kind: inspect.Type, is_secret: bool) -> Field:
    kinds = kind.types if isinstance(kind, inspect.UnionType) else (kind,)
    [own] = [each for each in kinds if not isinstance(each, inspect.NoneType)]
    return Field(annotated, own, len(kinds) > 1, is_secret or isinstance(own, inspect.StructType))


class SectionKind(NamedTuple):
    """A section of a configuration, or a list of them."""

    section: type[Section]
    is_list: bool


def sections_of(whole: type[Section]) -> dict[str, SectionKind]:
    """By name."""
    kinds = {name: field.kind for name, field in fields_of(whole).items()}
    types: dict[str, Any] = {name: getattr(kind, "item_type", kind) for name, kind in kinds.items()}
    return {name: SectionKind(types[name].cls, types[name] is not kind) for name, kind in kinds.items()}
