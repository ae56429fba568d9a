"""`Call`: a name and arguments, to be shown and compared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from fairque import BadArguments, InvalidInput
from fairque.tasks.message import NIL, Message, encode_value, is_payload
from fairque.tasks.registry import get_function
from fairque.tasks.signature import resolve

__all__ = ["Call", "call_in"]

Arguments = dict[Any, Any]  # by name, or by position


@dataclass(frozen=True)
class Call:
    """A call of a function, or what one is expected to have. `is_exact`: what is not given has its default."""

    name: str | None  # None: any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    is_exact: bool = False

    def __str__(self) -> str:
        if self.name is None and not (self.args or self.kwargs):
            return "any task"
        shown = [*map(repr, self.args), *(f"{name}={value!r}" for name, value in self.kwargs.items())]
        return f"{self.name or '…'}({', '.join(shown)})"

    def checked(self) -> Call:
        """Itself. Raises `InvalidInput` when the function takes no such arguments: nothing could ever match."""
        self._named(is_complete=False)
        return self

    def matches(self, actual: Call) -> bool:
        """Whether `actual` is this call, or has at least these arguments."""
        if self.name not in (None, actual.name):
            return False
        if self.name is None:
            return _contains(_numbered(actual), _numbered(self))
        return _contains(actual._named(is_complete=True), self._named(is_complete=self.is_exact))

    def _named(self, *, is_complete: bool) -> Arguments:
        """The arguments by the names of the parameters, by position where the function is not known here."""
        function = get_function(self.name) if self.name is not None else None
        if function is None:
            return _numbered(self)
        try:
            bound = function.signature.of_calls.bind_partial(*self.args, **self.kwargs)
        except TypeError as exc:
            raise InvalidInput(f"task {self.name!r} takes no such arguments: {exc}") from None
        if is_complete:
            bound.apply_defaults()
        return dict(bound.arguments)


def call_in(message: Message, *, is_exact: bool = False) -> Call:
    """The arguments of a message, converted to the annotations where the function is known and they fit."""
    if is_payload(message.args):
        return Call(message.name, (msgspec.msgpack.decode(_linked(message)[0]),), {}, is_exact)
    function = get_function(message.name)
    if function is not None:
        try:
            args, kwargs = function.signature.decode(message.args, message.kwargs)
            return Call(message.name, tuple(args), kwargs, is_exact)
        except BadArguments:
            pass  # outputs of other tasks are not known yet
    plain, named = _linked(message)
    return Call(
        message.name, tuple(msgspec.msgpack.decode(plain)), msgspec.msgpack.decode(named) if named else {}, is_exact
    )


def _linked(message: Message) -> tuple[bytes, bytes | None]:
    """The arguments, with words in place of the outputs of other tasks."""
    inputs = message.overrides.inputs if message.overrides is not None else []
    kwargs = None if message.kwargs == NIL else message.kwargs
    return resolve(message.args, kwargs, [encode_value(f"<output of {task_id}>") for task_id in inputs])


def _numbered(call: Call) -> Arguments:
    return {**dict(enumerate(call.args)), **call.kwargs}


def _contains(actual: Arguments, expected: Arguments) -> bool:
    return all(name in actual and _same(actual[name], value) for name, value in expected.items())


def _same(actual: Any, expected: Any) -> bool:
    """Equal, or the same on the way: a tuple is a list there, and a set is one, too."""
    if actual == expected:
        return True
    try:
        return encode_value(actual) == encode_value(expected)
    except (TypeError, ValueError, OverflowError, RecursionError):
        return False
