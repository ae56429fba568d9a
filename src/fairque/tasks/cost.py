"""The cost of a call, told from its arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from fairque.errors import InvalidInput

__all__ = ["told_cost"]


class _Named(Protocol):
    name: str
    __name__: str


def told_cost(
    function: _Named,
    cost_of: Callable[..., float],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    *,
    knows_all: bool,
) -> float:
    """What `cost_of` says, unchecked. Raises `InvalidInput` where it cannot say it.

    `knows_all`: there are no outputs among the arguments, which nobody knows before their tasks have run.
    """
    if not knows_all:
        text = f"the cost of {function.name!r} cannot be told from outputs of other tasks"
        raise InvalidInput(f"{text}: give it, as in {function.__name__}.options(cost=1)(…)")
    try:
        return cost_of(*args, **kwargs)
    except Exception as exc:
        raise InvalidInput(f"the cost of {function.name!r} cannot be told from its arguments: {exc!r}") from exc
