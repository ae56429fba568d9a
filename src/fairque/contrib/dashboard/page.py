"""`Page`: one kind of page, with what all of them share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

from starlette.datastructures import QueryParams
from starlette.exceptions import HTTPException

from fairque import TaskQueue
from fairque.contrib.dashboard.acts import Act
from fairque.contrib.dashboard.look import Look
from fairque.contrib.dashboard.reader import Key, Parts, Topic
from fairque.contrib.dashboard.viewer import Viewer
from fairque.contrib.dashboard.visit import Visit
from fairque.counted import unanswered
from fairque.redis.missing import noting_missing

__all__ = ["NOT_THERE", "Page", "Seen", "trouble_of"]

T = TypeVar("T")
NOT_THERE = "There is no such page, or it is not yours to see."


class Seen(NamedTuple):
    """What a look at a page read, and partitions of the queue that did not answer: what they have is not in it."""

    what: Any
    missing: tuple[int, ...]


def trouble_of(seen: Seen, viewer: Viewer) -> str:
    """What to say above the page; what a viewer of some users reads tells nothing of the server."""
    if not seen.missing:
        return ""
    which = f" ({unanswered(seen.missing)})" if viewer.is_operator else ""
    return f"Part of the queue does not answer{which}. What is there is left out."


class Page(ABC, Generic[T]):
    """One kind of page: what it is about, what it reads for that, and which parts of it change while it is open.

    What is read is shown to many, so it must not depend on who looks. What is drawn may: see `Viewer`.
    """

    name: ClassVar[str]
    """Its template is ``<name>.html``, and those of its parts are ``<name>/<part>.html``."""
    title: ClassVar[str]
    path: ClassVar[str]
    """In its address."""
    in_navigation: ClassVar[bool] = False
    parts: ClassVar[Sequence[str]] = ()
    is_for_customers: ClassVar[bool] = False
    """Whether a viewer of some users only may have it, about one of these."""
    arguments: ClassVar[Sequence[str]] = ()
    """What it is about, as named in its address. Pages for customers have the user first, and need all of them."""

    def __init__(self, queue: TaskQueue, look: Look) -> None:
        self.queue = queue
        self._look = look

    @property
    def acts(self) -> Mapping[str, Act]:
        """What can be done on this page alone, by name."""
        return {}

    def is_live(self, _about: Key) -> bool:
        """Whether it follows the queue while it is open."""
        return bool(self.parts)

    @abstractmethod
    async def read(self, *about: str) -> T:
        """What all of its viewers see, by its arguments. Raises errors of fairque."""

    async def read_own(self, *about: str) -> T:
        """What viewers of some users see: where it can be, from reads of that user alone."""
        return await self.read(*about)

    def shown(self, _seen: T, _viewer: Viewer) -> Mapping[str, Any]:
        """What its templates are given, beside what was read, as `seen`."""
        return {}

    def asked(self, about: Key) -> Mapping[str, str]:
        """What it is about, by name, for its own template."""
        return dict(zip(self.arguments, about, strict=True))

    def heading(self, *_about: str) -> str:
        """Of the page, and of the browser's tab."""
        return self.title

    def about(self, given: QueryParams | Mapping[str, str], viewer: Viewer) -> Key:
        """What is asked for. Raises `HTTPException` for what this viewer may not have, and for what is not given."""
        about = tuple(given.get(name, "") for name in self.arguments)
        needed = about if self.is_for_customers else ()
        may = viewer.is_operator or (self.is_for_customers and viewer.sees(about[0]))
        if not may or not all(needed):
            raise HTTPException(404, NOT_THERE)
        return about

    def topic(self, about: Key, visit: Visit) -> Topic:
        """What is looked at while it is open."""
        base, is_operators = visit.base, visit.viewer.is_operator
        return Topic(
            (base, self.name, *about),
            is_operators,
            lambda: self._looked(self.read if is_operators else self.read_own, about),
            lambda seen, viewer: {"trouble": trouble_of(seen, viewer), **self.drawn(seen.what, viewer, base)},
        )

    async def _looked(self, read: Callable[..., Awaitable[T]], about: Key) -> Seen:
        with noting_missing() as missing:
            what = await read(*about)
        return Seen(what, missing.numbers)

    def drawn(self, seen: T, viewer: Viewer, base: str) -> Parts:
        """The parts that change, by the ids of their elements."""
        given = {"seen": seen, "viewer": viewer, "base": base, **self.shown(seen, viewer)}
        return {part: self._look.draw(f"{self.name}/{part}.html", given) for part in self.parts}
