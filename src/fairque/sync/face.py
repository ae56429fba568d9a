"""`Face`: what stands in for an async object. Its methods are derived from the async ones, and block."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from functools import wraps
from typing import Any, ClassVar, Concatenate, Generic, ParamSpec, TypeVar, cast

from fairque.sync.session import Session

__all__ = ["Face", "blocking", "faced", "iterating"]

P = ParamSpec("P")
T = TypeVar("T")
Inner_co = TypeVar("Inner_co", covariant=True)
_END: Any = object()


class Face(Generic[Inner_co]):
    """A subclass stands in for objects of the async class `of`.

    Args:
        session: Where the async object was made.
        inner: The async object.
    """

    faces: ClassVar[dict[type, type[Face[Any]]]] = {}

    def __init_subclass__(cls, of: type) -> None:
        Face.faces[of] = cls

    def __init__(self, session: Session, inner: Inner_co) -> None:
        self._session = session
        self._inner = inner

    def __repr__(self) -> str:
        return repr(self._inner)


def blocking(method: Callable[Concatenate[Any, P], Coroutine[Any, Any, T]]) -> Callable[Concatenate[Any, P], T]:
    """The same method, waiting for what the async one returns."""

    @wraps(method)
    def call(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> T:
        session = self._session
        return cast("T", faced(session, session.run(method, self._inner, *args, **kwargs)))

    return call


def iterating(method: Callable[Concatenate[Any, P], AsyncIterator[T]]) -> Callable[Concatenate[Any, P], Iterator[T]]:
    """The same method, waiting for each item. When the iterator goes, the async one is closed by its loop."""

    @wraps(method)
    def call(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
        session = self._session
        items = method(self._inner, *args, **kwargs)
        while (item := session.run(anext, items, _END)) is not _END:
            yield faced(session, item)

    return call


def faced(session: Session, value: Any) -> Any:
    """The value, with a face for each async object."""
    if isinstance(value, list):
        value[:] = [faced(session, each) for each in value]  # in its place: one may tell more, as `Listed` does
        return value
    face = Face.faces.get(type(value))
    return value if face is None else face(session, value)
