"""What limits the tasks of a function, as it declares it: ``@task(max_running=…, rate=…, limits=[…])``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgspec

from fairque.errors import InvalidInput
from fairque.limit import Limit, record_of
from fairque.tasks.function import Attach, TaskFunction
from fairque.tasks.options import as_limit, check_limits
from fairque.tasks.registry import registry

__all__ = ["declared_limits", "has_limits", "take_limits"]


class DeclaredLimits(msgspec.Struct, frozen=True):
    """By their records in Redis: what a function says of its name, and of the keys that say how much they allow."""

    by_record: dict[str, Limit]


def take_limits(options: dict[str, Any]) -> Attach | None:
    most, rate, given = options.pop("max_running", None), options.pop("rate", None), options.pop("limits", ())
    of_name = Limit("name", max_running=most, rate=rate)
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise InvalidInput(f"limits must be a list of keys and Limits, not {given!r}")
    limits = [as_limit(entry) for entry in given]
    check_limits(limits)

    def attach(function: TaskFunction[Any, Any]) -> None:
        _check_braces(function, limits)
        said = {record_of(limit.key, shared=limit.is_shared): limit for limit in limits if limit.says_how_much}
        if of_name.says_how_much:
            said[f":{function.name}"] = of_name
        _check_agreement(function, said)
        function.add(DeclaredLimits(said))
        if limits:
            bare = [Limit(limit.key, shared=limit.shared) for limit in limits]
            function.defaults = function.defaults.merged({"limits": bare})

    return attach if limits or of_name.says_how_much else None


def declared_limits() -> list[tuple[str, Limit | None]]:
    """By record. The name of a function without limits is there as well, to end what it had declared."""
    found: dict[str, Limit | None] = {f":{name}": None for name in registry}
    for _, said in _declared():
        found |= said.by_record
    return list(found.items())


def has_limits(function: TaskFunction[Any, Any]) -> bool:
    return function.feature(DeclaredLimits) is not None


def _declared() -> Iterator[tuple[str, DeclaredLimits]]:
    for name, function in registry.items():
        if (said := function.feature(DeclaredLimits)) is not None:
            yield name, said


def _check_braces(function: TaskFunction[Any, Any], limits: Sequence[Limit]) -> None:
    parameters = function.signature.of_calls.parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    for limit in limits:
        if unknown := [brace for brace in limit.braces if brace not in parameters]:
            raise InvalidInput(f"the limit key {limit.key!r}: {function.name!r} has no parameter {unknown[0]!r}")


def _check_agreement(function: TaskFunction[Any, Any], said: dict[str, Limit]) -> None:
    for name, other in _declared():
        for record in said.keys() & other.by_record.keys() if name != function.name else ():
            one, two = said[record], other.by_record[record]
            if (one.max_running, one.rate) != (two.max_running, two.rate):
                raise InvalidInput(f"{function.name!r} and {name!r} do not agree on what the limit {one.key!r} allows")
