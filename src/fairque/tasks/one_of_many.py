"""`one_of`: the shape of one call of a function whose body is given many at once."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any, Union, get_args, get_origin

from fairque.errors import InvalidInput

__all__ = ["one_of"]


def one_of(fn: Callable[..., Any], task_name: str) -> Callable[..., Any]:
    """A stand-in with the parameter of one call: the first one. Those behind it are no business of callers."""
    parameters = list(inspect.signature(fn).parameters.values())
    hints = typing.get_type_hints(fn, include_extras=True)
    if not parameters or parameters[0].kind not in (
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
    ):
        raise InvalidInput(f"{task_name!r} collects its calls: it takes one parameter, the list of their arguments")
    name = parameters[0].name
    item = _item(hints.get(name, Any), f"the parameter {name!r}", task_name)
    result = _without_errors(_item(hints.get("return", Any), "the result", task_name))

    def one(*args: Any) -> Any:
        raise NotImplementedError

    one.__name__, one.__qualname__ = getattr(fn, "__name__", task_name), fn.__qualname__
    one.__module__ = fn.__module__
    one.__annotations__ = {name: item, "return": result}
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    one.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter(name, kind, annotation=item)], return_annotation=result
    )
    return one


def _item(hint: Any, what: str, name: str) -> Any:
    if hint is Any:
        return Any
    origin = get_origin(hint) or hint
    if origin not in (list, Sequence):
        raise InvalidInput(f"{name!r} collects its calls: {what} is a list, not {hint!r}")
    return (get_args(hint) or (Any,))[0]


def _without_errors(hint: Any) -> Any:
    """The annotation of a result, of which some may be exceptions in the list."""
    if get_origin(hint) not in (Union, types.UnionType):
        return hint
    kinds = [each for each in get_args(hint) if not (isinstance(each, type) and issubclass(each, BaseException))]
    return Union[tuple(kinds)] if kinds else Any  # noqa: UP007
