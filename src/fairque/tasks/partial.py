"""`Partial`: a task function with some of its arguments, the rest of which comes later."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar, Unpack, cast

from fairque.errors import BadArguments, WrongType
from fairque.tasks.options import Options
from fairque.tasks.pipeline import Composable, Unfinished
from fairque.tasks.signature import Signature
from fairque.tasks.task import Task

__all__ = ["Partial"]

R_co = TypeVar("R_co", covariant=True)


class Function(Protocol):
    """A task function, as far as it matters here."""

    name: str
    signature: Signature

    def __call__(self, /, *args: Any, **kwargs: Any) -> Task[Any]: ...
    def options(self, **changes: Unpack[Options]) -> Any: ...


class Partial(Unfinished, Generic[R_co]):
    """What `TaskFunction.partial` makes: ``resize.partial(width=3)``.

    Called with the rest of the arguments, it is a task: ``resize.partial(width=3)("logo")``. In a pipeline it stands
    behind something, whose result becomes its first argument: ``fetch("logo") >> resize.partial(width=3)``. Behind
    several tasks, that is the list of their results, in their order.
    """

    __slots__ = ("_args", "_function", "_kwargs")

    def __init__(self, function: Function, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        try:
            function.signature.of_calls.bind_partial(None, *args, **kwargs)
        except TypeError as exc:
            raise BadArguments(f"task {function.name!r} takes no such arguments behind a first one: {exc}") from None
        self._function = function
        self._args = args
        self._kwargs = dict(kwargs)

    def __call__(self, /, *args: Any, **kwargs: Any) -> Task[R_co]:
        """A task: these arguments, then those that it has, and all that have names. Raises what the function raises."""
        made = self._function(*args, *self._args, **{**self._kwargs, **kwargs})
        return cast("Task[R_co]", made)

    def options(self, **changes: Unpack[Options]) -> Partial[R_co]:
        """A copy whose tasks have other options; see `TaskOptions`."""
        return Partial(self._function.options(**changes), self._args, self._kwargs)

    def after(self, earlier: Sequence[Composable]) -> Task[R_co]:
        """With the output of what comes before it, or the list of their outputs."""
        for node in earlier:
            if not isinstance(node, Task):
                raise WrongType(f"{self!r} takes the output of a task, not of {type(node).__name__}")
        outputs = [node.output for node in earlier if isinstance(node, Task)]
        return self(outputs[0] if len(outputs) == 1 else outputs)

    def __repr__(self) -> str:
        return f"<partial of {self._function.name}>"
