"""Grouped work: ``@task(collect=Collect(100, within=0.5))``, a body that serves many calls at once."""

from __future__ import annotations

import inspect
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol, TypeVar

import msgspec

from fairque.checks import Duration, check_count, check_seconds
from fairque.errors import InvalidInput
from fairque.tasks.function import Attach, TaskFunction

__all__ = ["Collect", "CollectDecorator", "Collecting", "take_collect"]

MOST_COLLECTED = 1000
LONGEST_WAIT = 3600.0
T = TypeVar("T")
R = TypeVar("R")


class Collect(msgspec.Struct, frozen=True):
    """How calls of a function come together: ``Collect(100, within=0.5)``.

    Args:
        size: As many at most, 2 to 1,000; when so many wait they are served.
        within: Seconds after which those that wait are served, however few; more than 0, at most an hour.

    Raises:
        InvalidInput: A value breaks a rule.
    """

    size: int
    within: Duration

    def __post_init__(self) -> None:
        check_count("size", self.size, 2, MOST_COLLECTED)
        seconds = check_seconds("within", self.within, 0.001, LONGEST_WAIT)
        msgspec.structs.force_setattr(self, "within", seconds)

    @property
    def when(self) -> str:
        """As `AddedTask.when` has it."""
        assert isinstance(self.within, (int, float))
        return f"collect {self.size} {math.ceil(self.within * 1000)}"


class CollectDecorator(Protocol):
    def __call__(
        self, fn: Callable[[list[T]], Awaitable[Sequence[R | Exception]] | Sequence[R | Exception]], /
    ) -> TaskFunction[[T], R]: ...


class Collecting:
    """Makes a function one whose body is given many calls at once."""

    def __init__(self, collect: Collect) -> None:
        self._collect = collect

    def __call__(self, function: TaskFunction[Any, Any]) -> None:
        if function.run_in == "process":
            raise InvalidInput(f"{function.name!r} collects its calls: it cannot run in a process")
        if len(inspect.signature(function.fn).parameters.keys() - function.signature.hidden) != 1:
            raise InvalidInput(
                f"{function.name!r} collects its calls: it takes one parameter, the list of their arguments"
            )
        function.signature.collect = self._collect.when


def take_collect(options: dict[str, Any]) -> Attach | None:
    collect = options.pop("collect", None)
    if collect is None:
        return None
    if not isinstance(collect, Collect):
        raise InvalidInput(f"collect must be a Collect, as in Collect(100, within=0.5), not {collect!r}")
    return Collecting(collect)
