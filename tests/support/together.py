"""All users of a test in one partition of its queue, as tests need it that drive one by hand, script by script.

What one user does to another is most where both live in the same partition; tests/isolation/test_attacks.py has the
others. Everything that is said to the queue goes the way that it goes in one with partitions, and claims are made of
the partition. Where limits over all users are, is told by their names: places of them are borrowed as workers do it.
"""

from __future__ import annotations

import asyncio
import random
import time
from typing import TYPE_CHECKING, Any, Unpack

import fairque.doctor.astray
import fairque.redis.partitions
import fairque.redis.places
import fairque.transfer.group_moves
import fairque.transfer.moving
from fairque.fairness.partition_choice import PartitionChoice, Sight
from fairque.worker.lending import Lending

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pytest

    from fairque import TaskQueue
    from fairque.redis.backend import Backend
    from fairque.redis.delivery import Answer, Claim, Heads, Outcome
    from fairque.redis.keys import Keys
    from fairque.redis.store import ClaimOptions, Store

ASKING = (
    fairque.redis.partitions,
    fairque.redis.places,
    fairque.doctor.astray,
    fairque.transfer.group_moves,
    fairque.transfer.moving,
)
"""Modules that ask for the partition of a user by its name."""
OF_PARTITION = frozenset({"append", "heads", "leave", "turn"})
"""What workers call of one partition, beside `claim` and `settle`."""
CLAIMS = 10
"""Until what a claim waits for has come."""


def partition_of_all(count: int) -> int:
    """Not the first, which tells the others what governs all users."""
    return count // 2


def live_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process alone."""
    for module in ASKING:
        monkeypatch.setattr(module, "partition_of", lambda _, count: partition_of_all(count))


def backend_of_all(backend: Backend) -> Backend:
    """Of the partition in which they live; of a queue without any, its own."""
    partitions = backend.partitions
    return partitions[partition_of_all(len(partitions))]


def part_of_all(store: Store) -> Store:
    """The same of a store."""
    return store.parts[partition_of_all(len(store.parts))]


def keys_of_all(queue: TaskQueue) -> Keys:
    """And the keys in it."""
    return backend_of_all(queue.reader.backend).keys


def store_of_all(store: Store) -> Store:
    """Calls of which workers make one of a partition are made of that one."""
    return StoreOfAll(store) if store.backend.is_partitioned else store  # type: ignore[return-value]


class StoreOfAll:
    """A store as the workers of that partition, and everybody else, have it."""

    def __init__(self, root: Store) -> None:
        self._root, self._part = root, part_of_all(root)
        self._choice = PartitionChoice(len(root.parts), random.Random())
        for number in range(len(root.parts)):
            self._choice.saw(number, Sight(None), time.monotonic())  # as a worker does that begins: nobody is there
        self._lending = Lending(root.parts)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._part if name in OF_PARTITION else self._root, name)

    async def claim(self, worker: str, want: int, **how: Unpack[ClaimOptions]) -> Claim:
        """With what there is once the places of limits have come for which tasks wait."""
        claim = await self._claim(worker, want, how)
        for _ in range(CLAIMS):
            if claim.heads is None or claim.heads.exchange_ms != 0:
                break
            await self._move_places(claim.heads)
            if (left := want - len(claim.deliveries)) <= 0:
                break
            more = await self._claim(worker, left, how)
            claim = more._replace(deliveries=claim.deliveries + more.deliveries)
        return claim

    async def settle(self, worker: str, outcomes: Sequence[Outcome]) -> list[Answer]:
        """A worker asks for more when it has reported."""
        answers = await self._part.settle(worker, outcomes)
        await self._look()
        return answers

    async def _claim(self, worker: str, want: int, how: ClaimOptions) -> Claim:
        await self._look()
        now = time.monotonic()
        chosen = self._choice.choose(now, want) or self._choice.beside(self._part.number, now, want)
        how = {**how, "latest": chosen.latest, "floor": chosen.floor, "up_to": chosen.until}
        claim = await self._part.claim(worker, want, **how)
        if claim.heads is not None:
            self._see(claim.heads)
        return claim

    async def _look(self) -> None:
        """Nobody is in any other partition."""
        self._choice.to_look(time.monotonic())
        self._see(await self._part.heads())

    def _see(self, seen: Heads) -> None:
        sight = Sight(seen.head, seen.time, seen.mean, seen.ready, seen.workers, seen.passed)
        self._choice.saw(self._part.number, sight, time.monotonic())

    async def _move_places(self, heads: Heads) -> None:
        self._lending.told(self._part.number, heads)
        while calls := list(self._lending._calls.values()):
            await asyncio.gather(*calls)
