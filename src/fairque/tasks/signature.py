"""How the arguments of a function travel: encoded as msgpack, checked against the annotations on both sides."""

from __future__ import annotations

import collections.abc
import contextlib
import inspect
import logging
import re
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from fairque.errors import BadArguments, InvalidInput, NotEncodable
from fairque.models import Streamed
from fairque.tasks.generators import element_of, yields
from fairque.tasks.pipeline import Composable, Pipeline
from fairque.tasks.types.adapters import encode, travels_as
from fairque.tasks.types.foreign import is_accepted
from fairque.tasks.types.stand_in import decoder
from fairque.tasks.types.translation import Unsendable, translated

__all__ = ["Output", "Signature", "encode_linked", "resolve"]

logger = logging.getLogger("fairque.task")
_NIL = msgspec.Raw(b"\xc0")
_nothing = (lambda: None).__code__
MOST_KEPT = 64  # with *args there is a decoder for each number of arguments
_LINK = 1  # the msgpack extension that stands for the result of another task
_plain = msgspec.msgpack.Decoder()
_raw_map = msgspec.msgpack.Decoder(dict[str, msgspec.Raw])
Encoded = bytes | msgspec.Raw
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_UNENCODABLE = (TypeError, ValueError, OverflowError, RecursionError, UnicodeEncodeError)


class Signature:
    """The parameters of a function as types that msgspec converts to.

    Args:
        fn: The function.
        name: Of the task, for errors.
        given: Parameters that the worker fills in, which a caller may leave out.
        lenient: The worker may fill in others, too: callers may leave out what they want.
        hidden: Parameters that no caller can give. Those behind them are given by name.

    Attributes:
        of_calls: The parameters without those that are hidden.
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        name: str,
        given: frozenset[str] = frozenset(),
        lenient: bool = False,
        hidden: frozenset[str] = frozenset(),
    ) -> None:
        self.name = name
        self.collect = ""
        """Of a function whose calls come together: when they are served, as `AddedTask.when` has it."""
        self.hidden = hidden
        self.of_calls = self._strict = _without(inspect.signature(fn), hidden)
        self._signature = _with_optional(self._strict, None if lenient else given)
        self._fn = fn
        self._types: dict[str, Any] | None = None
        self._decoders: dict[int, msgspec.msgpack.Decoder[Any]] = {}
        self._named: dict[str, msgspec.msgpack.Decoder[Any]] = {}
        self._result: msgspec.msgpack.Decoder[Any] | None = None
        self._chunks: msgspec.msgpack.Decoder[Any] | None = None
        self._yields = yields(fn)
        parameters = self._signature.parameters.values()
        self._positional = [p.name for p in parameters if p.kind in _POSITIONAL]
        self._required = {p.name for p in parameters if p.kind in _POSITIONAL + _NAMED and p.default is p.empty}
        self._nameable = {p.name for p in parameters if p.kind in _NAMED}
        self._leading = sum(name in self._required for name in self._positional)
        self._keyword_only = any(p.kind is p.KEYWORD_ONLY and p.default is p.empty for p in parameters)
        self._var_positional = next((p.name for p in parameters if p.kind is p.VAR_POSITIONAL), None)
        self._var_named = next((p.name for p in parameters if p.kind is p.VAR_KEYWORD), None)

    def check_annotations(self) -> None:
        """Those that can be resolved by now; a class may stand below its function. Raises `InvalidInput`."""
        try:
            hints = typing.get_type_hints(self._fn, include_extras=True)
        except (NameError, TypeError, AttributeError):
            return
        with contextlib.suppress(NameError):
            self._types = self._all_translated(hints)

    def encode_none(self) -> bytes:
        if self._required:
            self._bind(self._signature, (), {})
        return b"\x90"

    def encode(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[bytes, bytes | None, tuple[Composable, ...]]:
        """The arguments, and the tasks whose outputs are among them: then only the shape of the call is checked.

        Raises `BadArguments` for what does not fit or cannot be encoded.
        """
        self._check_shape(args, kwargs)
        try:
            encoded = encode(args)
            named = encode(kwargs) if kwargs else None
        except _UNENCODABLE:
            return self._encode_linked(args, kwargs)
        self.decode(encoded, named)
        return encoded, named, ()

    def _encode_linked(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[bytes, bytes | None, tuple[Composable, ...]]:
        try:
            [encoded, named], upstream = encode_linked(args, kwargs)
        except _UNENCODABLE as exc:
            place = self._unencodable(args, kwargs)
            raise NotEncodable(f"the arguments of task {self.name!r} cannot be encoded: {exc}{place}") from None
        return encoded, named if kwargs else None, upstream

    def _unencodable(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
        """Which of the arguments, for the end of an error."""
        for name, value in [*((self._name_at(at), value) for at, value in enumerate(args)), *kwargs.items()]:
            try:
                encode_linked(value)
            except _UNENCODABLE:
                return f" - at `{name}`"
        return ""

    def decode(self, args: Encoded, kwargs: Encoded | None) -> tuple[Any, dict[str, Any]]:
        """The arguments, converted to the annotations. Raises `BadArguments`."""
        try:
            positional = self._decoder_for(args).decode(args)
        except Exception as exc:  # a class among the annotations may raise anything when it is built
            raise BadArguments(f"the arguments of task {self.name!r} do not fit: {self._placed(exc)}") from None
        named: dict[str, Any] = {}
        if kwargs is None or kwargs == _NIL:
            return positional, named
        name = None
        try:
            for name, raw in _raw_map.decode(kwargs).items():
                named[name] = self._named_decoder(name).decode(raw)
        except Exception as exc:
            text, place = _parted(str(exc))
            raise BadArguments(f"the arguments of task {self.name!r} do not fit: {text} - at `{name}{place}`") from None
        return positional, named

    def _placed(self, error: Exception) -> str:
        """The text of an error in positional arguments, with the name of the parameter instead of its number."""
        text, place = _parted(str(error))
        number = re.match(r"\[(\d+)\]", place)
        if number is None:
            return text + (f" - at `{place}`" if place else "")
        return f"{text} - at `{self._name_at(int(number[1]))}{place[number.end() :]}`"

    def _name_at(self, at: int) -> str:
        """Of the parameter that takes this positional argument."""
        if at < len(self._positional):
            return self._positional[at]
        return f"{self._var_positional}[{at - len(self._positional)}]"

    def arguments(self, args: Encoded, kwargs: Encoded | None) -> dict[str, Any]:
        """The arguments of a call by name, as they travel, and the defaults of the others that have one.

        An output of another task is a `msgspec.msgpack.Ext`.
        """
        named = {} if kwargs is None or kwargs == _NIL else _plain.decode(kwargs)
        bound = self._strict.bind_partial(*_plain.decode(args), **named)
        bound.apply_defaults()
        return {**bound.arguments.pop(self._var_named or "", {}), **bound.arguments}

    def check_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Whether this very function, which may be newer than the message, takes such a call. Raises `BadArguments`."""
        if self._strict is self._signature:
            self._check_shape(args, kwargs)
        else:
            self._bind(self._strict, args, kwargs)

    def accepted(self, inputs: Mapping[str, Any], count: int, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Those of the inputs that are parameters and were not passed, converted to the annotations."""
        passed = {*self._positional[:count], *kwargs}
        chosen = {name: value for name, value in inputs.items() if name in self._nameable and name not in passed}
        if not chosen:
            return {}
        return self.decode(b"\x90", encode(chosen))[1]

    def result_decoder(self) -> msgspec.msgpack.Decoder[Any]:
        if self._result is None:
            self._result = decoder(Streamed if self._yields else self._hints().get("return", Any))
        return self._result

    def chunk_decoder(self) -> msgspec.msgpack.Decoder[Any]:
        """Of an array of what a generator yields. Raises `InvalidInput` for a function that yields nothing."""
        if not self._yields:
            raise InvalidInput(f"task {self.name!r} is no generator: it yields nothing that could be read")
        if self._chunks is None:
            self._chunks = decoder(list.__class_getitem__(self._hints().get("return", Any)))
        return self._chunks

    def _all_translated(self, hints: Mapping[str, Any]) -> dict[str, Any]:
        return {name: self._translated(name, hint) for name, hint in hints.items() if name not in self.hidden}

    def _translated(self, name: str, hint: Any) -> Any:
        """As decoders take it. Raises `InvalidInput`, and `NameError` for one that cannot be resolved yet."""
        if name == "return":
            hint, what = self._returned(hint), "what it yields" if self._yields else "its result"
        else:
            what = f"the parameter {name!r}"
        try:
            return translated(hint)
        except TypeError as exc:
            if isinstance(exc, Unsendable) and self._can_be_left_out(name) and is_accepted(hint):
                return hint
            raise InvalidInput(f"task {self.name!r}: the annotation of {what} cannot be used: {exc}") from None

    def _returned(self, hint: Any) -> Any:
        """What comes of the result of a plain wrapper around an async function, and each of what a generator yields."""
        if self._yields:
            return element_of(hint)
        args = typing.get_args(hint)
        is_awaitable = typing.get_origin(hint) in (collections.abc.Awaitable, collections.abc.Coroutine)
        return args[-1] if args and is_awaitable and not inspect.iscoroutinefunction(self._fn) else hint

    def _can_be_left_out(self, name: str) -> bool:
        parameter = self._signature.parameters.get(name)
        return parameter is not None and parameter.default is not parameter.empty

    def _check_shape(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        count = len(args)
        fits = self._leading <= count and (count <= len(self._positional) or self._var_positional)
        if kwargs or self._keyword_only or not fits:
            self._bind(self._signature, args, kwargs)

    def _bind(self, signature: inspect.Signature, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        for name in self.hidden and self.hidden.intersection(kwargs):  # it may have **kwargs, which would take it
            raise BadArguments(f"the arguments of task {self.name!r} do not fit: {name!r} is given by its worker")
        try:
            signature.bind(*args, **kwargs)
        except TypeError as exc:
            raise BadArguments(f"the arguments of task {self.name!r} do not fit: {exc}") from None

    def _decoder_for(self, args: Encoded) -> msgspec.msgpack.Decoder[Any]:
        count = _array_length(args)
        found = self._decoders.get(count)
        if found is None:
            hints = self._hints()
            types = [hints.get(name, Any) for name in self._positional[:count]]
            rest = hints.get(self._var_positional, Any) if self._var_positional else Any
            types += [rest] * (count - len(types))
            found = decoder(tuple.__class_getitem__(tuple(types)) if types else tuple[()])
            if count <= MOST_KEPT:
                self._decoders[count] = found
        return found

    def _named_decoder(self, name: str) -> msgspec.msgpack.Decoder[Any]:
        found = self._named.get(name)
        if found is None:
            hints = self._hints()
            known = name in self._signature.parameters
            hint = hints.get(name, Any) if known else hints.get(self._var_named or "", Any)
            found = decoder(hint)
            if known:  # names that callers made up are not kept
                self._named[name] = found
        return found

    def _hints(self) -> dict[str, Any]:
        # Late, so that a function may name classes defined below it.
        if self._types is None:
            try:
                hints = typing.get_type_hints(self._fn, include_extras=True)
            except (NameError, TypeError, AttributeError):
                hints = dict(self._resolvable())
            self._types = self._all_translated(hints)
        return self._types

    def _resolvable(self) -> Iterator[tuple[str, Any]]:
        """One by one: what is imported for type checkers only is not converted, and leaves the others alone."""
        for name, annotation in _annotations(self._fn).items():
            if name in self.hidden:
                continue
            alone = types.FunctionType(_nothing, getattr(self._fn, "__globals__", {}))
            alone.__annotations__ = {name: annotation}
            try:
                yield from typing.get_type_hints(alone, include_extras=True).items()
            except (NameError, TypeError, AttributeError) as exc:
                logger.warning("task %r: arguments are not converted to the annotation of %r: %s", self.name, name, exc)


def _without(signature: inspect.Signature, hidden: frozenset[str]) -> inspect.Signature:
    """The signature without these parameters; those behind them are given by name, as type checkers want it as well."""
    if not hidden:
        return signature
    parameters: list[inspect.Parameter] = []
    is_behind = False
    for parameter in signature.parameters.values():
        if parameter.name in hidden:
            is_behind = True
        elif is_behind and parameter.kind is parameter.POSITIONAL_OR_KEYWORD:
            parameters.append(parameter.replace(kind=parameter.KEYWORD_ONLY))
        else:
            parameters.append(parameter)
    return signature.replace(parameters=parameters)


def _with_optional(signature: inspect.Signature, names: frozenset[str] | None) -> inspect.Signature:
    """The signature with these parameters optional, or all of them."""
    if names is not None and not names:
        return signature
    optional = [p.name for p in signature.parameters.values() if names is None or p.name in names]
    parameters, seen = [], False
    for parameter in signature.parameters.values():
        # What follows an optional positional parameter has to be optional, too.
        is_open = parameter.name in optional or (seen and parameter.kind in _POSITIONAL)
        if is_open and parameter.kind in (*_POSITIONAL, *_NAMED) and parameter.default is parameter.empty:
            seen = seen or parameter.kind in _POSITIONAL
            parameters.append(parameter.replace(default=None))
        else:
            parameters.append(parameter)
    return signature.replace(parameters=parameters)


def _annotations(fn: Callable[..., Any]) -> dict[str, Any]:
    if sys.version_info >= (3, 14):
        import annotationlib

        return annotationlib.get_annotations(fn, format=annotationlib.Format.FORWARDREF)
    return inspect.get_annotations(fn)


def _array_length(data: Encoded) -> int:
    view = memoryview(data)
    if not view:
        return 0
    first = view[0]
    if first & 0xF0 == 0x90:
        return first & 0x0F
    return int.from_bytes(view[1:3] if first == 0xDC else view[1:5]) if first in (0xDC, 0xDD) else 0


def _parted(text: str) -> tuple[str, str]:
    """What msgspec says, and where: a place in a value that we convert comes before that of the value itself."""
    text, *places = re.split(r" - at `\$([^`]*)`", text)
    return text, "".join(reversed(places[::2]))


class Output:
    """Stands for the result of a task among the arguments of another one. All it can do is to be passed on."""

    __slots__ = ("task",)

    def __init__(self, task: Composable) -> None:
        self.task = task

    def __repr__(self) -> str:
        return f"<output of {self.task!r}>"

    def __str__(self) -> str:
        raise self._unknown()

    def __bool__(self) -> bool:
        raise self._unknown()

    def _unknown(self) -> InvalidInput:
        return InvalidInput(f"{self!r} is known when the task has run: pass it on as an argument, as it is")


class _Links:
    """Numbers the tasks whose outputs are met while a call is encoded."""

    def __init__(self) -> None:
        self.numbers: dict[Composable, int] = {}
        self.met = 0

    def encode(self, value: Any) -> Any:
        node = value.task if isinstance(value, Output) else value
        if isinstance(node, Pipeline):
            raise TypeError("a pipeline has no output, only its tasks have")
        if not isinstance(node, Composable):
            return travels_as(value)
        self.met += 1
        return msgspec.msgpack.Ext(_LINK, b"%d" % self.numbers.setdefault(node, len(self.numbers)))

    def check(self, encoded: Sequence[bytes]) -> None:
        """A worker must find what was met here, nothing else, and where it can be replaced by any value."""
        found: list[int] = []

        def hook(code: int, _: memoryview) -> list[int]:
            found.append(code)
            return found  # a list, so that it cannot be a key

        decoder = msgspec.msgpack.Decoder(ext_hook=hook)
        try:
            for data in encoded:
                decoder.decode(data)
        except msgspec.DecodeError as exc:
            raise ValueError(f"the output of a task cannot be part of a key ({exc})") from None
        if found.count(_LINK) != self.met:
            raise ValueError(f"the msgpack extension {_LINK} is taken: it stands for the output of a task")


def encode_linked(*values: Any) -> tuple[list[bytes], tuple[Composable, ...]]:
    """Encode values with outputs of tasks anywhere inside, and give those tasks in the order of their numbers.

    Raises `TypeError`, `ValueError`, `OverflowError` or `RecursionError` for what cannot be encoded.
    """
    links = _Links()
    encoder = msgspec.msgpack.Encoder(enc_hook=links.encode)
    encoded = [encoder.encode(value) for value in values]
    if links.met:
        links.check(encoded)
    return encoded, tuple(links.numbers)


def resolve(args: Encoded, kwargs: Encoded | None, values: Sequence[Encoded]) -> tuple[bytes, bytes | None]:
    """Put results where the outputs of tasks stand: `values`, encoded, by the numbers from `encode_linked`.

    What comes back is like the arguments of any other call, or like any other payload. Raises `BadArguments`.
    """
    by_number = {b"%d" % number: msgspec.Raw(value) for number, value in enumerate(values)}

    def hook(code: int, data: memoryview) -> Any:
        return by_number[bytes(data)] if code == _LINK else msgspec.msgpack.Ext(code, bytes(data))

    decoder = msgspec.msgpack.Decoder(ext_hook=hook)
    try:
        resolved = encode(decoder.decode(args))
        if kwargs is None or kwargs == _NIL:
            return resolved, None
        return resolved, encode(decoder.decode(kwargs))
    except KeyError as exc:
        raise BadArguments(f"the arguments need the result number {exc} of {len(values)}") from None
    except (*_UNENCODABLE, msgspec.MsgspecError) as exc:
        raise BadArguments(f"the results of other tasks cannot be put among the arguments: {exc}") from None
