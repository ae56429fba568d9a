"""Unions that msgspec does not take: which of their members a value is of."""

from __future__ import annotations

import itertools
import typing
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeAlias

from fairque.tasks.types.facet import ANY, Fields, Shape, differ, kind_of
from fairque.tasks.types.foreign import is_accepted
from fairque.tasks.types.stand_in import converted, stand_in

__all__ = ["Choice", "union"]

_Rule: TypeAlias = "Callable[[Fields, Any], bool]"
_RULES: tuple[tuple[_Rule, bool], ...] = (
    (Fields.has_what_it_needs, True),
    (Fields.has_its_marks, True),
    (Fields.has_no_more, False),  # what a newer version sends may have more
    (Fields.has_all, False),  # and what an older one sends may have less
    (Fields.fits, True),
)
"""How fields tell of which class a value is, the surest first, and which of them it must obey."""


def union(choices: list[Choice]) -> Any:
    """A type for msgspec. Raises `TypeError` for members that cannot be told apart."""
    choices = list(_joined(choices))
    for one, two in itertools.combinations(choices, 2):
        if not differ(one.shape, two.shape):
            raise TypeError(f"{one.name} and {two.name} cannot be told apart: both may travel as {_alike(one, two)}")
    if len(choices) == 1:
        return choices[0].hint
    return stand_in(" | ".join(each.name for each in choices), lambda value: _choose(choices, value))


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
            both = typing.Union.__getitem__((first.hint, each.hint))
            if Any not in (first.hint, each.hint) and is_accepted(both):
                first = Choice(f"{first.name} | {each.name}", both, first.shape + each.shape)
            else:
                choices.append(each)
        yield first


def _choose(choices: list[Choice], value: Any) -> Any:
    """The member that a value is of. Fields decide last: what is wrong with one is told by the class that it is of."""
    kind = kind_of(value)
    found = [each for each in choices if any(facet.kind in (kind, ANY) for facet in each.shape)]
    for rule, is_strict in _RULES:
        if len(found) > 1:
            left = [each for each in found if _obeys(rule, each.shape, value)]
            found = left if left or is_strict else found
    if not found:
        names = " | ".join(each.name for each in choices)
        raise ValueError(f"Expected `{names}`, got `{kind}` that is none of them")
    return converted(value, found[0].hint)


def _obeys(rule: _Rule, shape: Shape, value: Any) -> bool:
    """Whether a value fits a facet, and where that has fields, whether they are as the rule says."""
    return any(
        isinstance(value, dict) and rule(facet, value) if isinstance(facet, Fields) else facet.fits(value)
        for facet in shape
    )
