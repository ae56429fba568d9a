"""The cost of a call, told from its arguments: ``@task(cost=function)``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fairque.errors import InvalidInput
from fairque.tasks.function import Attach, TaskFunction
from fairque.tasks.task import Task

__all__ = ["take_cost"]


def take_cost(options: dict[str, Any]) -> Attach | None:
    """A number stays with the other options: what is taken is a function."""
    cost_of = options.get("cost")
    if not callable(cost_of):
        return None
    del options["cost"]

    def attach(function: TaskFunction[Any, Any]) -> None:
        def price(made: Task[Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Task[Any]:
            if made.task_options.cost is not None:  # `.options(cost=…)` of the function
                return made
            return made.options(cost=_told(function, cost_of, made, args, kwargs))

        function.on_call += (price,)

    return attach


def _told(
    function: TaskFunction[Any, Any],
    cost_of: Callable[..., float],
    made: Task[Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> float:
    """What `cost_of` says, unchecked. Outputs among the arguments are not known before their tasks have run."""
    if made.upstream:
        text = f"the cost of {function.name!r} cannot be told from outputs of other tasks"
        raise InvalidInput(f"{text}: give it, as in {function.__name__}.options(cost=1)(…)")
    try:
        return cost_of(*args, **kwargs)
    except Exception as exc:
        raise InvalidInput(f"the cost of {function.name!r} cannot be told from its arguments: {exc!r}") from exc
