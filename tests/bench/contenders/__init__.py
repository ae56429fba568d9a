"""One library each, behind the same small interface."""

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

DISTRIBUTIONS = {"taskiq": "taskiq-redis", "raw": "redis"}
LABELS = {"raw": "redis-py alone"}


class Contender(Protocol):
    """A client of one library. Tasks are named as in `bodies`, and each takes one argument."""

    def __init__(self, url: str) -> None: ...

    async def open(self) -> None: ...

    async def enqueue(self, task: str, argument: Any, user: str) -> None:
        """One awaited enqueue."""
        ...

    async def enqueue_many(self, task: str, arguments: Sequence[Any], users: Sequence[str]) -> None:
        """The quickest way the library has; users are dealt out in turn."""
        ...

    async def call(self, task: str, argument: Any, user: str) -> Any:
        """One awaited enqueue, then its result. Of some."""
        ...

    def work(self, concurrency: int) -> AbstractAsyncContextManager[None]:
        """A worker on this loop, while the context lasts."""
        ...


def load(name: str, url: str) -> Contender:
    return importlib.import_module(f"contenders.{name}").Client(url)


def version(name: str) -> str | None:
    """The version installed, or None."""
    if importlib.util.find_spec("redis" if name == "raw" else name) is None:
        return None
    try:
        return importlib.metadata.version(DISTRIBUTIONS.get(name, name))
    except importlib.metadata.PackageNotFoundError:
        return "unversioned"
