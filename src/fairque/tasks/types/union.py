"""Unions that msgspec does not take: which of their members a value is of."""

from __future__ import annotations

import itertools
import operator
import typing
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeAlias

from fairque.tasks.types.facet import ALL_KINDS, ANY, DEEPEST, Fields, Shape, differ, fits, kind_of
from fairque.tasks.types.foreign import is_accepted
from fairque.tasks.types.stand_in import StandIn, converted, stand_in

__all__ = ["Choice", "union"]

_Rule: TypeAlias = "Callable[[Fields, Any], bool]"
_RULES: tuple[tuple[_Rule, bool], ...] = (
    (Fields.has_its_marks, True),
    (Fields.has_no_more, False),  # what a newer version sends may have more
    (Fields.has_all, False),  # and what an older one sends may have less
)
"""How fields tell of which class a value is that has those that it needs: the surest first, and which it must obey."""
MOST_NAMES = 256
"""Of the names that maps had, for which a union remembers its members."""


def union(choices: list[Choice]) -> Any:
    """A type for msgspec. Raises `TypeError` for members that cannot be told apart."""
    choices = list(_joined(choices))
    for one, two in itertools.combinations(choices, 2):
        if not differ(one.shape, two.shape):
            raise TypeError(f"{one.name} and {two.name} cannot be told apart: both may travel as {_alike(one, two)}")
    if len(choices) == 1:
        return choices[0].hint
    name = " | ".join(each.name for each in choices)
    return stand_in(name, _Chooser(name, choices).convert)


def _alike(one: Choice, two: Choice) -> str:
    kinds, others = ({facet.kind for facet in each.shape} for each in (one, two))
    return " and ".join(sorted(kinds & others)) or "any value"


class Choice(NamedTuple):
    """A member of a union, or several that msgspec tells apart: its name, translated, and its shape."""

    name: str
    hint: Any
    shape: Shape


def _joined(choices: list[Choice]) -> Iterator[Choice]:
    """As few as there can be: what msgspec takes together is one."""
    while choices:
        first, *rest = choices
        choices = []
        for each in rest:
            both = operator.getitem(typing.Union, (first.hint, each.hint))
            if Any not in (first.hint, each.hint) and is_accepted(both):
                first = Choice(f"{first.name} | {each.name}", both, first.shape + each.shape)
            else:
                choices.append(each)
        yield first


class _Chooser:
    """Tells of which member a value is: by its kind, by the names of its fields, and last by what they hold.

    What is wrong with a value is told by the class that its fields name.
    """

    def __init__(self, name: str, choices: list[Choice]) -> None:
        self._name = name
        self._of_kind = {
            kind: [each for each in choices if any(facet.kind in (kind, ANY) for facet in each.shape)]
            for kind in ALL_KINDS
        }
        self._of_names: dict[tuple[Any, ...], list[Choice]] = {}

    def convert(self, value: Any) -> Any:
        kind = kind_of(value)
        found = self._of_kind[kind]
        if len(found) > 1:
            found = self._narrowed(found, value)
        if not found:
            raise ValueError(f"Expected `{self._name}`, got `{kind}` that is none of them")
        hint = found[0].hint
        return hint.convert(value) if isinstance(hint, StandIn) else converted(value, hint)

    def _narrowed(self, found: list[Choice], value: Any) -> list[Choice]:
        if isinstance(value, dict):
            found = self._by_fields(found, value)
        for depth in range(1, DEEPEST + 1):  # no deeper than it takes: each level of a value is looked at in its turn
            if len(found) > 1:
                found = [each for each in found if fits(each.shape, value, depth)]
        return found

    def _by_fields(self, found: list[Choice], value: dict[Any, Any]) -> list[Choice]:
        names = tuple(value)
        known = self._of_names.get(names)
        if known is None:
            known = [each for each in found if _obeys(Fields.has_what_it_needs, each.shape, value)]
            if len(self._of_names) < MOST_NAMES:
                self._of_names[names] = known
        for rule, is_strict in _RULES:
            if len(known) > 1:
                left = [each for each in known if _obeys(rule, each.shape, value)]
                known = left if left or is_strict else known
        return known


def _obeys(rule: _Rule, shape: Shape, value: Any) -> bool:
    """Whether the fields of a value are as the rule says; what else there is in a shape is looked at later."""
    return any(not isinstance(facet, Fields) or rule(facet, value) for facet in shape if facet.kind in ("map", ANY))
