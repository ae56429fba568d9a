"""Dependencies of a function: ``client: Client = Depends(make_client)``, resolved by `uncalled_for` around its body.

A plain function resolves them where it runs, in its thread or its subprocess: what their factories block is that alone,
and what is open stays so until the function has ended, however little anybody waits for it.
"""

from __future__ import annotations

import inspect
import sys
import typing
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterator
from contextlib import AbstractAsyncContextManager, aclosing, closing, contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from fairque.errors import FairqueError, InvalidInput
from fairque.tasks.function import TaskFunction
from fairque.tasks.one_of_many import one_of
from fairque.tasks.signature import Signature

if TYPE_CHECKING:
    from uncalled_for import Dependency

__all__ = ["attach_dependencies", "check_dependencies", "dependencies_of"]

Values = dict[str, Any]


def attach_dependencies(function: TaskFunction[Any, Any]) -> None:
    """Put the resolution around the body of a function that has dependencies, and take them out of its signature.

    Where nobody has imported the library, no function can have any.

    Raises:
        InvalidInput: It cannot be called with them.
    """
    if sys.modules.get("uncalled_for") is None:
        return
    parameters = check_dependencies(function)
    if not parameters and not _marks(function.fn):
        return
    of_call = one_of(function.fn, function.name) if function.collects else function.fn
    function.signature = Signature(of_call, function.name, hidden=frozenset(parameters))
    function.body = _resolving(function)


def dependencies_of(fn: Callable[..., Any]) -> Iterator[tuple[str, Dependency[Any]]]:
    """All that stand behind its parameters: by the parameter of the function, also those of their factories.

    Raises:
        InvalidInput: One is declared in a way that cannot be resolved.
    """
    for name, dependency in _parameters(fn).items():
        yield name, dependency
        for inner in _behind(dependency, set()):
            yield name, inner


def check_dependencies(function: TaskFunction[Any, Any]) -> dict[str, Dependency[Any]]:
    """Its parameters that are dependencies. Raises `InvalidInput` where a worker could not resolve one."""
    from uncalled_for import Shared, get_call_argument_parameters

    fn = function.fn
    for name, dependency in dependencies_of(fn):
        if isinstance(dependency, type(Shared(dict))):
            raise InvalidInput(
                f"task {function.name!r}: the dependency {name!r} is shared by all runs: open it in the lifespan of "
                "the worker, and let a factory return it from current_task().state"
            )
        _check_factory(function, name, getattr(dependency, "factory", None))
    for asked in get_call_argument_parameters(fn):
        if asked.default is asked.empty:
            raise InvalidInput(
                f"task {function.name!r} has no parameter {asked.name!r}, but its dependencies ask for it"
            )
    parameters = _parameters(fn)
    if parameters or _marks(fn):
        _check_place(function, parameters)
    return parameters


def _check_place(function: TaskFunction[Any, Any], hidden: dict[str, Any]) -> None:
    parameters = inspect.signature(function.fn).parameters.values()
    behind = False
    for parameter in parameters:
        behind = behind or parameter.name in hidden
        if parameter.name in hidden and parameter.kind is parameter.POSITIONAL_ONLY:
            raise InvalidInput(f"task {function.name!r}: the dependency {parameter.name!r} must have a name")
        if behind and parameter.kind is parameter.VAR_POSITIONAL:
            raise InvalidInput(f"task {function.name!r}: its dependencies must stand behind *{parameter.name}")
    is_wrapper = inspect.iscoroutinefunction(inspect.unwrap(function.fn)) and function.run_in != "loop"
    if is_wrapper and not inspect.iscoroutinefunction(function.fn):
        raise InvalidInput(
            f"task {function.name!r} is a plain function around an async one, so its dependencies would be closed "
            "before that runs: make it async"
        )


def _check_factory(function: TaskFunction[Any, Any], name: str, factory: Any) -> None:
    if factory is not None and not callable(factory):
        raise InvalidInput(
            f"task {function.name!r}: the factory of the dependency {name!r} is no function: {factory!r}"
        )
    if inspect.isgeneratorfunction(factory) or inspect.isasyncgenfunction(factory):
        kind = "contextmanager" if inspect.isgeneratorfunction(factory) else "asynccontextmanager"
        raise InvalidInput(
            f"task {function.name!r}: the factory of the dependency {name!r} is a generator, {_called(factory)}: "
            f"decorate it with @{kind}"
        )
    if function.run_in != "loop" and _is_async(factory):
        raise InvalidInput(
            f"task {function.name!r} is a plain function, which runs where there is no event loop, and the factory of "
            f"its dependency {name!r} is async, {_called(factory)}: make that plain, or the task async"
        )


def _is_async(factory: Any) -> bool:
    inner = inspect.unwrap(factory) if callable(factory) else factory
    return any(inspect.iscoroutinefunction(each) or inspect.isasyncgenfunction(each) for each in (factory, inner))


def _called(factory: Any) -> str:
    return getattr(factory, "__qualname__", None) or repr(factory)


def _parameters(fn: Callable[..., Any]) -> dict[str, Dependency[Any]]:
    from uncalled_for import get_dependency_parameters

    try:
        return get_dependency_parameters(fn)
    except (TypeError, ValueError) as exc:
        raise InvalidInput(_unresolved(fn) or str(exc)) from None


def _unresolved(fn: Callable[..., Any]) -> str:
    """Why its annotations say nothing: a name in them is imported for type checkers only, or defined below."""
    try:
        typing.get_type_hints(fn, include_extras=True)
    except Exception as exc:
        return f"the annotations of {_called(fn)} cannot be resolved, which its dependencies need: {exc}"
    return ""


def _marks(fn: Callable[..., Any]) -> bool:
    """Whether dependencies stand beside parameters that callers give, as ``Annotated[str, Traced()]``."""
    from uncalled_for import get_annotation_dependencies

    return bool(get_annotation_dependencies(fn))


def _behind(dependency: Dependency[Any], seen: set[int]) -> Iterator[Dependency[Any]]:
    from uncalled_for import Dependency

    if id(dependency) in seen:
        return
    seen.add(id(dependency))
    factory = getattr(dependency, "factory", None)
    bindings = getattr(dependency, "bindings", {})
    own = {} if factory is None else _parameters(factory)
    inner = [*bindings.values(), *(each for name, each in own.items() if name not in bindings)]
    for each in inner:
        if isinstance(each, Dependency):
            yield each
            yield from _behind(each, seen)


# Around the body


def _resolving(function: TaskFunction[Any, Any]) -> Callable[..., Any]:
    if function.yields:
        return _around_async_generator(function) if function.run_in == "loop" else _around_generator(function)
    return _around_coroutine(function) if function.run_in == "loop" else _around_plain(function)


def _around_coroutine(function: TaskFunction[Any, Any]) -> Callable[..., Coroutine[Any, Any, Any]]:
    fn, given = function.fn, _giver(function)

    async def resolving(*args: Any, **kwargs: Any) -> Any:
        async with given(args, kwargs) as found:
            return await fn(*args, **kwargs, **found)

    return resolving


def _around_async_generator(function: TaskFunction[Any, Any]) -> Callable[..., AsyncGenerator[Any, None]]:
    fn, given = function.fn, _giver(function)

    async def resolving(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, None]:
        async with given(args, kwargs) as found, aclosing(fn(*args, **kwargs, **found)) as chunks:
            async for chunk in chunks:
                yield chunk

    return resolving


def _around_plain(function: TaskFunction[Any, Any]) -> Callable[..., Any]:
    fn, given = function.fn, _giver(function)

    def resolving(*args: Any, **kwargs: Any) -> Any:
        with _at_once(given(args, kwargs)) as found:
            return fn(*args, **kwargs, **found)

    return resolving


def _around_generator(function: TaskFunction[Any, Any]) -> Callable[..., Generator[Any, None, None]]:
    fn, given = function.fn, _giver(function)

    def resolving(*args: Any, **kwargs: Any) -> Generator[Any, None, None]:
        with _at_once(given(args, kwargs)) as found, closing(fn(*args, **kwargs, **found)) as chunks:
            yield from chunks

    return resolving


def _giver(function: TaskFunction[Any, Any]) -> Callable[[tuple[Any, ...], Values], Given]:
    from uncalled_for import resolved_dependencies

    fn, where = function.fn, f"of task {function.name!r}"
    positional = [p.name for p in function.signature.of_calls.parameters.values() if p.kind <= p.POSITIONAL_OR_KEYWORD]

    def given(args: tuple[Any, ...], kwargs: Values) -> Given:
        of_call = {**dict(zip(positional, args, strict=False)), **kwargs}  # a factory may ask for one of them
        return Given(resolved_dependencies(fn, of_call), where)

    return given


class Given:
    """The dependencies of one run by parameter, closed at the end of ``async with``.

    None of them swallows what the body raises: a task that failed would count as finished.
    """

    __slots__ = ("_resolved", "_where")

    def __init__(self, resolved: AbstractAsyncContextManager[Values, bool | None], where: str) -> None:
        self._resolved = resolved
        self._where = where

    async def __aenter__(self) -> Values:
        from uncalled_for import FailedDependency

        found = await self._resolved.__aenter__()
        for each in found.values():
            if isinstance(each, FailedDependency):
                error = _named(each.error, f"in the dependency {each.parameter!r} {self._where}")
                await self.__aexit__(type(error), error, error.__traceback__)
                raise error
        return found

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> Literal[False]:
        await self._resolved.__aexit__(kind, error, traceback)
        return False


def _named(error: Exception, where: str) -> Exception:
    """Itself, so that a policy of retries knows it by its class."""
    if where not in getattr(error, "__notes__", ()):
        error.add_note(where)
    return error


@contextmanager
def _at_once(given: Given) -> Iterator[Values]:
    """The same without an event loop: plain factories wait for nothing."""
    found = _finished(given.__aenter__())
    try:
        yield found
    except BaseException as exc:
        _finished(given.__aexit__(type(exc), exc, exc.__traceback__))
        raise
    _finished(given.__aexit__(None, None, None))


def _finished(steps: Any) -> Any:
    try:
        steps.send(None)
        steps.throw(FairqueError("a plain function has no event loop, so its dependencies cannot wait for anything"))
    except StopIteration as end:
        return end.value
    steps.close()
    raise FairqueError("a plain function has no event loop: a dependency goes on waiting")
