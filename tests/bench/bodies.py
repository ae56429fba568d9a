"""What the tasks of the bench do, and the tally by which a process knows how far it is.

The same functions run under every contender; an adapter only adds what its library wants around them.
"""

import asyncio
from collections.abc import AsyncIterator
from time import perf_counter


class Tally:
    """Counts the tasks of this process: when the first one began and when the last one expected ended."""

    def __init__(self) -> None:
        self.expect(0)

    def expect(self, tasks: int) -> None:
        self.tasks = tasks
        self.count = 0
        self.first = self.last = 0.0
        self.waits: list[tuple[float, float]] = []
        self.done = asyncio.Event()

    def hit(self) -> None:
        self.count += 1
        if self.count == self.tasks:
            self.last = perf_counter()
            self.done.set()

    @property
    def seconds(self) -> float:
        return self.last - self.first


tally = Tally()


async def noop(n: int) -> int:
    """Nothing."""
    if not tally.first:
        tally.first = perf_counter()
    tally.hit()
    return n


async def nap(n: int) -> int:
    """Ten milliseconds of waiting."""
    if not tally.first:
        tally.first = perf_counter()
    await asyncio.sleep(0.01)
    tally.hit()
    return n


async def stamp(sent: float) -> None:
    """Notes when it was sent and how long it took to start, on the clock that processes share."""
    tally.waits.append((sent, perf_counter() - sent))
    tally.hit()


async def text(s: str) -> None:  # noqa: ARG001
    """Carries an argument of some size."""
    tally.hit()


async def ticks(pause: float, chunks: int) -> AsyncIterator[float]:
    """Yields when it does so, on the clock that processes share."""
    for _ in range(chunks):
        if pause:
            await asyncio.sleep(pause)
        yield perf_counter()


BODIES = {f.__name__: f for f in (noop, nap, stamp, text)}
