"""`Reader`: looks at what is on open pages, once a second for all who look at the same.

A page that is open has a topic. Its first viewer starts the looks, its last one stops them. After each look the parts
of the page that are others than before go to its viewers. Who is slow gets the newest of each part, and no more.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from fairque import FairqueError, QueueUnavailable
from fairque.contrib.dashboard.viewer import Viewer

__all__ = ["Crowded", "Key", "Parts", "Reader", "Seat", "Topic"]

logger = logging.getLogger("fairque.dashboard")
Key = tuple[str, ...]
"""The name of a page, and what it is about."""
Parts = Mapping[str, str]
"""What is shown, by the ids of elements."""
LOOKS_A_SECOND = 25
"""For operators, and as many for others, who must not slow down what operators see."""
LONGEST_LOOK = 10.0
MOST_OF_ONE = 20
CUSTOMERS_PART = 0.5


class Crowded(Exception):
    """As many pages are open as may be."""


@dataclass(frozen=True)
class Topic:
    """What a page is about.

    Attributes:
        key: Pages with the same key are about the same.
        is_operators: Whether it is looked at by those who see the whole queue.
        look: Reads it.
        parts: Draws what was read, for a viewer; the same for all with the same `sight`.
    """

    key: Key
    is_operators: bool
    look: Callable[[], Awaitable[Any]]
    parts: Callable[[Any, Viewer], Parts]


class Seat:
    """One viewer of an open page."""

    def __init__(self, viewer: Viewer) -> None:
        self.viewer = viewer
        self._pending: dict[str, str] = {}
        self._is_new = asyncio.Event()

    def put(self, parts: Parts) -> None:
        self._pending.update(parts)
        if parts:
            self._is_new.set()

    async def next(self) -> dict[str, str]:
        """The newest of all parts that changed since the last call."""
        await self._is_new.wait()
        self._is_new.clear()
        parts, self._pending = self._pending, {}
        return parts


class Reader:
    """All open pages of one dashboard in this process.

    Args:
        interval: Seconds between two looks at a page. They come less often where many different pages are open: there
            are at most 50 looks a second, half of them for viewers of some users only.
        most: Pages that may be open at once; half of them for viewers of some users only, each of these 20.
    """

    def __init__(self, *, interval: float = 1.0, most: int = 500) -> None:
        self._interval = interval
        self._most = most
        self._feeds: dict[tuple[bool, Key], _Feed] = {}
        self._open: Counter[tuple[object, ...]] = Counter()
        self._of_customers = 0
        self._changed_at = 0.0

    @property
    def topics(self) -> int:
        """How many different pages are open."""
        return len(self._feeds)

    def seen(self, topic: Topic) -> Any:
        """What was read for an open page a moment ago, and since the last act; None where there is nothing of that."""
        feed = self._feeds.get((topic.is_operators, topic.key))
        return feed.seen if feed is not None and feed.looked_at > self._changed_at else None

    def forget(self) -> None:
        """Something was changed: what was read before is shown to nobody who comes now."""
        self._changed_at = time.monotonic()

    @contextmanager
    def seat(self, topic: Topic, viewer: Viewer) -> Iterator[Seat]:
        """Have what changes on a page for as long as the block. Who looks from afar has a `place` first."""
        key = (topic.is_operators, topic.key)
        feed = self._feeds.get(key)
        if feed is None:
            feed = self._feeds[key] = _Feed(topic, self._pause)
        seat = feed.join(viewer)
        try:
            yield seat
        finally:
            if feed.leave(seat):
                del self._feeds[key]

    @contextmanager
    def place(self, viewer: Viewer) -> Iterator[None]:
        """Have a page open for as long as the block. Raises `Crowded`."""
        who, is_customer = viewer.rights, not viewer.is_operator
        if self._open.total() >= self._most or (
            is_customer and (self._open[who] >= MOST_OF_ONE or self._of_customers >= self._most * CUSTOMERS_PART)
        ):
            raise Crowded
        self._open[who] += 1
        self._of_customers += is_customer
        try:
            yield
        finally:
            self._open[who] -= 1
            self._of_customers -= is_customer
            self._open += Counter()  # without those that are 0

    def _pause(self, topic: Topic) -> float:
        alike = sum(is_operators == topic.is_operators for is_operators, _ in self._feeds)
        return max(self._interval, alike / LOOKS_A_SECOND)


class _Feed:
    """The looks at one topic, for all of its viewers."""

    def __init__(self, topic: Topic, pause: Callable[[Topic], float]) -> None:
        self.seen: Any = None
        self.looked_at = 0.0
        self._topic = topic
        self._pause = pause
        self._seats: dict[Seat, None] = {}
        self._shown: dict[Hashable, Parts] = {}
        self._task = asyncio.create_task(self._run(), name=f"fairque-dashboard-{topic.key[0]}")

    def join(self, viewer: Viewer) -> Seat:
        seat = Seat(viewer)
        self._seats[seat] = None
        seat.put(self._shown.get(_sight(viewer), {}))
        return seat

    def leave(self, seat: Seat) -> bool:
        """Whether it was the last one."""
        del self._seats[seat]
        if not self._seats:
            self._task.cancel()
        return not self._seats

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            begins = loop.time()
            try:
                await self._look()
            except Exception:
                # One page must not stop for ever, and no other one with it.
                logger.exception("the page %r cannot be brought up to date", self._topic.key[0])
            await asyncio.sleep(max(0.0, begins + self._pause(self._topic) - loop.time()))

    async def _look(self) -> None:
        begins = time.monotonic()
        try:
            async with asyncio.timeout(LONGEST_LOOK):
                self.seen = await self._topic.look()
                self.looked_at = begins
        except (FairqueError, TimeoutError) as exc:
            self.seen, trouble = None, exc
            self._publish(lambda viewer: _trouble(trouble, viewer))
        else:
            self._publish(lambda viewer: {"trouble": "", **self._topic.parts(self.seen, viewer)})

    def _publish(self, draw: Callable[[Viewer], Parts]) -> None:
        """Drawn once for all who see the same."""
        drawn: dict[Hashable, Parts] = {}
        for seat in self._seats:
            sight = _sight(seat.viewer)
            if sight not in drawn:
                before, now = self._shown.get(sight, {}), draw(seat.viewer)
                self._shown[sight] = {**before, **now}
                drawn[sight] = {name: part for name, part in now.items() if before.get(name) != part}
            seat.put(drawn[sight])


def _sight(viewer: Viewer) -> Hashable:
    """What a page looks like depends on this."""
    return (viewer.is_operator, viewer.payloads, viewer.acts)


def _trouble(error: Exception, viewer: Viewer) -> Parts:
    """In words; what a viewer of some users reads tells nothing of the server."""
    if isinstance(error, QueueUnavailable | TimeoutError):
        text = "The queue does not answer. What is shown here was so a moment ago."
    else:
        text = "This cannot be brought up to date."
    return {"trouble": f"{text} ({error})" if viewer.is_operator and str(error) else text}
