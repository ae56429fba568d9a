"""Pydantic: models, its dataclasses, its own types and fields. They travel as pydantic dumps them as JSON.

Pydantic is imported when the first of its types is met, which somebody else has imported it for.
"""

from __future__ import annotations

import enum
import sys
import typing
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache, partial
from typing import Any

from fairque.tasks.types.facet import ANYTHING, Fields, Shape

__all__ = ["PydanticTypes"]

OLDEST = (2, 12)
MOST_ADAPTERS = 512
_AS_IN_JSON = {type(None), bool, int, str}


class PydanticTypes:
    """Whatever pydantic says that it can check: a field is known by its name, and by its alias where it is read."""

    def takes(self, hint: Any) -> bool:
        if typing.get_origin(hint) is typing.Annotated:
            return any(_is_of_pydantic(type(each)) for each in hint.__metadata__)
        return isinstance(hint, type) and _is_its_own(hint)

    def shape(self, hint: Any, shape_of: Callable[[Any], Shape]) -> Shape:
        if typing.get_origin(hint) is typing.Annotated:
            return _plain_shape(typing.get_args(hint)[0], shape_of)
        if getattr(hint, "__pydantic_root_model__", False):
            return _plain_shape(hint.__pydantic_fields__["root"].annotation, shape_of)
        fields = getattr(hint, "__pydantic_fields__", None)
        if fields is None or _decorators(hint).model_serializers:
            return ANYTHING
        names = frozenset(fields).union(*(_aliases(each) for each in fields.values()))
        required = frozenset(name for name, each in fields.items() if each.is_required())
        config = hint.model_config if hasattr(hint, "model_config") else hint.__pydantic_config__
        own = frozenset(name for each in _decorators(hint).field_serializers.values() for name in each.info.fields)
        always = frozenset(name for name, each in fields.items() if not (each.exclude or each.exclude_if))
        shapes = partial(_field_shapes, fields, own, shape_of)
        return (Fields(shapes, required, always, names, config.get("extra") == "allow"),)

    def converter(self, hint: Any) -> Callable[[Any], Any]:
        import pydantic
        from pydantic.errors import PydanticUndefinedAnnotation, PydanticUserError
        from pydantic_core import PydanticSerializationError, ValidationError, to_json

        if tuple(map(int, pydantic.VERSION.split(".")[:2])) < OLDEST:
            raise TypeError(f"pydantic {pydantic.VERSION} is too old, {OLDEST[0]}.{OLDEST[1]} is needed")
        try:
            adapter = pydantic.TypeAdapter(hint)
            adapter.rebuild(raise_errors=True)
        except (PydanticUndefinedAnnotation, NameError) as exc:
            raise NameError(str(exc)) from None
        except PydanticUserError as exc:
            raise TypeError(f"{exc.message}") from None
        if masked := next(_masked(hint, set()), None):
            raise TypeError(f"{masked} is masked when it is encoded: give it a `field_serializer`")

        def convert(value: Any) -> Any:
            try:
                data = to_json(value, inf_nan_mode="constants")
                return adapter.validate_json(data, by_alias=True, by_name=True)
            except PydanticSerializationError:  # bytes that are no text, where only a bound of theirs is of pydantic
                return adapter.validate_python(value)
            except ValidationError as exc:
                raise ValueError(_told(exc)) from None

        return convert

    def encodes(self, kind: type) -> bool:
        return _is_its_own(kind)

    def encode(self, value: Any) -> Any:
        from pydantic.errors import PydanticUserError
        from pydantic_core import PydanticSerializationError

        kind: Any = type(value)
        if _is_masked(kind):
            raise TypeError(f"a {kind.__name__} is masked when it is encoded")
        try:
            return _adapter(kind).dump_python(value, mode="json", by_alias=False, round_trip=True, warnings="error")
        except (PydanticSerializationError, PydanticUserError) as exc:
            raise ValueError(str(exc)) from None


@lru_cache(MOST_ADAPTERS)
def _adapter(kind: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def _is_its_own(kind: type) -> bool:
    return hasattr(kind, "__get_pydantic_core_schema__") or hasattr(kind, "__pydantic_core_schema__")


def _is_of_pydantic(kind: type) -> bool:
    """Of what pydantic writes into `Annotated`; its `PositiveInt` is written with another library's bounds."""
    library = kind.__module__.partition(".")[0]
    return library == "pydantic" or _is_its_own(kind) or (library == "annotated_types" and "pydantic" in sys.modules)


def _decorators(kind: Any) -> Any:
    return kind.__pydantic_decorators__


def _aliases(field: Any) -> set[str]:
    return {each for each in (field.alias, field.validation_alias) if isinstance(each, str)}


def _field_shapes(fields: Mapping[str, Any], own: frozenset[str], shape_of: Callable[[Any], Shape]) -> dict[str, Shape]:
    return {
        name: ANYTHING if name in own or "*" in own else _plain_shape(field.annotation, shape_of)
        for name, field in fields.items()
    }


def _plain_shape(hint: Any, shape_of: Callable[[Any], Shape]) -> Shape:
    """Of what travels the same way by itself; of all else only pydantic knows."""
    if (
        all(_is_as_in_json(each) for each in typing.get_args(hint) or (hint,))
        or typing.get_origin(hint) is typing.Literal
    ):
        return shape_of(hint)
    return ANYTHING


def _is_as_in_json(hint: Any) -> bool:
    if typing.get_origin(hint) is typing.Literal or hint in _AS_IN_JSON:
        return True
    return isinstance(hint, type) and (issubclass(hint, enum.Enum) or hasattr(hint, "__pydantic_fields__"))


def _masked(hint: Any, seen: set[Any]) -> Iterator[str]:
    """The fields whose values pydantic does not tell, wherever they are in a type."""
    if isinstance(hint, type):
        if _is_masked(hint):
            yield hint.__name__
        fields = getattr(hint, "__pydantic_fields__", None)
        if fields is None or hint in seen or _decorators(hint).model_serializers:
            return
        seen.add(hint)
        told = {name for each in _decorators(hint).field_serializers.values() for name in each.info.fields}
        for name, field in fields.items():
            if name not in told and any(True for _ in _masked(field.annotation, seen)):
                yield f"the field {name!r} of {hint.__name__}"
    for each in typing.get_args(hint):
        yield from _masked(each, seen)


def _is_masked(kind: type) -> bool:
    return any(each.__module__ == "pydantic.types" and each.__name__ == "_SecretBase" for each in kind.__mro__)


def _told(error: Any) -> str:
    """The first fault, as msgspec would say it, and how many there are."""
    faults = error.errors(include_url=False, include_context=False, include_input=False)
    first = faults[0]
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    place = "".join(f"[{each}]" if isinstance(each, int) else f".{each}" for each in first["loc"])
    return f"{first['msg']}{more}" + (f" - at `${place}`" if place else "")
