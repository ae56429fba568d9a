"""`Bulks`: what is done to all dead letters of a kind, in steps, while somebody may look how far it came."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Literal

from fairque import DeadStep, FairqueError, InvalidInput, TaskQueue
from fairque.queue.dead_letters import group_key

__all__ = ["Bulk", "Bulks"]

STEP = 100
MOST_AT_ONCE = 5
MOST_SHOWN = 10
What = Literal["requeue", "discard"]


class Bulk:
    """One of them.

    Attributes:
        what: What is done.
        group: The key of the kind.
        done: How many letters it was done to.
        kept: How many stay as they are, as the backlog of their user is full.
        left: About how many are to come; None before the first step.
        trouble: Why it ended before its time, where it did.
    """

    def __init__(self, what: What, group: str) -> None:
        self.what, self.group = what, group
        self.done = self.kept = 0
        self.left: int | None = None
        self.trouble = ""
        self.task: asyncio.Task[None] | None = None

    @property
    def has_ended(self) -> bool:
        """Whether nothing more comes of it."""
        return self.task is None or self.task.done()

    @property
    def part(self) -> float:
        """How far it is, from 0 to 1."""
        through = self.done + self.kept
        if self.left is None:
            return 0.0
        return through / (through + self.left) if through + self.left else 1.0

    async def run(self, step: Callable[[str | None], Awaitable[DeadStep]]) -> None:
        """Step by step; others work between two of them."""
        after: str | None = None
        try:
            while True:
                found = await step(after)
                self.done += found.done
                self.kept += found.kept
                self.left, after = found.left, found.after
                if after is None:
                    return
        except FairqueError as exc:
            self.trouble = str(exc)
        except asyncio.CancelledError:
            self.trouble = "it was stopped"


class Bulks:
    """Those of this process: a few at once, one for each kind. What is broken off can be begun again."""

    def __init__(self) -> None:
        self._bulks: dict[str, Bulk] = {}

    def shown(self) -> list[Bulk]:
        """Those that go on, and the last that ended."""
        return list(self._bulks.values())[-MOST_SHOWN:]

    async def requeue(self, queue: TaskQueue, group: str) -> None:
        """Begin to requeue all letters of a kind. Raises `InvalidInput`."""
        self._begin(Bulk("requeue", group), lambda after: queue.requeue_group(group, limit=STEP, after=after))

    async def discard(self, queue: TaskQueue, group: str) -> None:
        """Begin to discard all letters of a kind. Raises `InvalidInput`."""
        self._begin(Bulk("discard", group), lambda after: queue.discard_group(group, limit=STEP, after=after))

    async def stop(self, _: TaskQueue, group: str) -> None:
        """After the step that is under way. Raises `InvalidInput`."""
        bulk = self._bulks.get(group)
        if bulk is None or bulk.task is None or bulk.has_ended:
            raise InvalidInput("Nothing is done to letters of this kind at the moment.")
        bulk.task.cancel()
        await asyncio.wait([bulk.task])

    def _begin(self, bulk: Bulk, step: Callable[[str | None], Awaitable[DeadStep]]) -> None:
        group_key(bulk.group)
        going = [each for each in self._bulks.values() if not each.has_ended]
        if any(each.group == bulk.group for each in going):
            raise InvalidInput("Letters of this kind are requeued or discarded already.")
        if len(going) >= MOST_AT_ONCE:
            raise InvalidInput(f"{MOST_AT_ONCE} kinds are requeued or discarded already: wait for one of them.")
        self._bulks.pop(bulk.group, None)
        self._bulks[bulk.group] = bulk
        for ended in [key for key, each in self._bulks.items() if each.has_ended and each is not bulk][:-MOST_SHOWN]:
            del self._bulks[ended]
        bulk.task = asyncio.create_task(bulk.run(step), name=f"fairque-dashboard-{bulk.what}")
