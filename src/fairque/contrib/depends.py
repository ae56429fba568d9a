"""Dependencies of tasks: clients, sessions and whatever else a task needs and no caller gives.

::

    @asynccontextmanager
    async def make_client() -> AsyncIterator[AsyncClient]:
        async with AsyncClient() as client:
            yield client


    @task
    async def fetch(url: str, client: AsyncClient = Depends(make_client)) -> str:
        return (await client.get(url)).text


    await queue.enqueue(fetch("https://example.com"), user_id="acme")

The resolution is that of the library `uncalled_for`, whose names these are; a function that already uses it there is
resolved by workers as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from fairque import InvalidInput
from fairque.tasks.registry import registry

try:
    from uncalled_for import CallArgument, Depends, Provided
except ModuleNotFoundError as exc:
    raise ImportError(f"fairque.contrib.depends needs {exc.name}: pip install 'fairque[depends]'") from exc

from fairque.tasks.depends import check_dependencies, dependencies_of

__all__ = ["CallArgument", "Depends", "Provided", "replaced"]


@contextmanager
def replaced(factory: Callable[..., Any], replacement: Callable[..., Any]) -> Iterator[None]:
    """For tests: until it is left, all tasks of this process take `replacement` where they depend on `factory`.

    That holds for factories of factories as well. What a replacement depends on is resolved as for any factory; what
    the replaced one depends on is not. Subprocesses, which import their functions anew, see nothing of it.

    Args:
        factory: What stands in ``Depends(…)`` of tasks that are defined by now.
        replacement: Called in its place: ``lambda: FakeClient()``.

    Raises:
        InvalidInput: No task depends on `factory`, or one of those that do could not resolve the replacement.
    """
    functions = list(registry.values())
    changed: list[Any] = [
        dependency
        for function in functions
        for _, dependency in dependencies_of(function.fn)
        if getattr(dependency, "factory", None) == factory
    ]
    if not changed:
        raise InvalidInput(f"no task of this process depends on {factory!r}")
    try:
        for dependency in changed:
            dependency.factory = replacement
        for function in functions:
            check_dependencies(function)
        yield
    finally:
        for dependency in changed:
            dependency.factory = factory
