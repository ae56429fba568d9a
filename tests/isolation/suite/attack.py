"""`Attack`: what one tenant tries, and what it may cost another; `Attacker`: the hands with which it does so."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any

from fairque import Task, TaskHandle, TaskQueue
from tests.isolation.suite.bounds import ONE_RIVAL, Rivals
from tests.support.resp import RedisError, RespClient

ATTACKER = "attacker"
"""Before `quiet` in the order of bytes, which decides between equal tags."""
SMALL = 0.02
"""The share of the full size in the ordinary run of the tests."""
WITHIN_MS = 1_000.0
"""What the quiet user's wait may be on the clock where an attack does not say otherwise."""
SERVICE_MS = 2.5
"""What a service takes where many must come first: workers that serve 400 a second do."""


@dataclass(frozen=True)
class Scale:
    """How large all is: 1 is the full size."""

    share: float = 1.0

    def many(self, number: int, least: int = 20) -> int:
        return max(min(least, number), round(number * self.share))


@dataclass(frozen=True)
class Attack:
    """One entry of the suite.

    Args:
        name: As the table has it.
        means: The calls it is made of.
        run: Does it, until the attacker is told to stop.
        rivals: What it may cost, in services.
        within_ms: What it may cost on the clock, where few services must come first.
        counts_all: Whether each task that was put in must be somewhere in the end: not for those that purge or fire.
        same_name: The quiet user's tasks have the limited name of the attacker's.
        lease: Of the queue, in seconds, where workers die, and are replaced.
        kills_each: Seconds after which one of the workers is killed.
        is_sample: Played in small by the ordinary tests.
    """

    name: str
    means: str
    run: Callable[[Attacker], Awaitable[None]]
    rivals: Callable[[Scale], Rivals]
    within_ms: float
    counts_all: bool
    same_name: bool
    lease: float | None
    kills_each: float | None
    is_sample: bool

    @property
    def slug(self) -> str:
        return self.name.replace(" ", "-").replace(",", "")


ATTACKS: dict[str, Attack] = {}


def attack(
    name: str,
    means: str,
    rivals: Rivals | Callable[[Scale], Rivals] = ONE_RIVAL,
    *,
    within_ms: float = WITHIN_MS,
    counts_all: bool = True,
    same_name: bool = False,
    lease: float | None = None,
    kills_each: float | None = None,
    is_sample: bool = True,
) -> Callable[[Callable[[Attacker], Awaitable[None]]], Callable[[Attacker], Awaitable[None]]]:
    """Adds a function to the suite."""

    def add(run: Callable[[Attacker], Awaitable[None]]) -> Callable[[Attacker], Awaitable[None]]:
        of_scale = rivals if callable(rivals) else lambda _: rivals
        made = Attack(name, means, run, of_scale, within_ms, counts_all, same_name, lease, kills_each, is_sample)
        assert made.slug not in ATTACKS, f"two attacks are called {name}"
        ATTACKS[made.slug] = made
        return run

    return add


class Attacker:
    """What an attack has at hand.

    Args:
        queue: Open.
        scale: How large it is to be.
        slots: Of all workers.
    """

    def __init__(self, queue: TaskQueue, scale: Scale, slots: int) -> None:
        self.queue = queue
        self.scale = scale
        self.slots = slots
        self.put_in = 0
        """Tasks that the queue said it has."""
        self.moment: float | None = None
        self._begun = asyncio.Event()
        self._stopped = asyncio.Event()

    def many(self, number: int, least: int = 20) -> int:
        return self.scale.many(number, least)

    async def put(self, tasks: Iterable[Task[Any]], user_id: str = ATTACKER, **options: Any) -> list[TaskHandle[Any]]:
        handles = await self.queue.enqueue_many(tasks, user_id=user_id, **options)
        self.put_in += sum(handle.created for handle in handles)
        return handles

    async def put_one(self, task: Task[Any], user_id: str = ATTACKER, **options: Any) -> TaskHandle[Any]:
        handle = await self.queue.enqueue(task, user_id=user_id, **options)
        self.put_in += handle.created
        return handle

    # Damage, which no call of the API does

    def key(self, name: str) -> str:
        """Of the attacker: of a queue with partitions, where it lives."""
        return f"{self.queue.reader.keys_of(ATTACKER).prefix}{name}"

    def execute(self, *arguments: str | bytes) -> Any:
        with RespClient(self.queue.connector.url) as client, contextlib.suppress(RedisError):
            return client.execute(*arguments)

    def delete(self, glob: str) -> None:
        if found := self._named(glob):
            self.execute("UNLINK", *found)

    def replace(self, glob: str, name: str) -> None:
        """By strings that say nothing; the keys that are there, and the one of this name."""
        for key in {*self._named(glob), *([self.key(name)] if name else [])}:
            self.execute("SET", key, "junk")

    def _named(self, glob: str) -> list[str]:
        found = self.execute("SCAN", "0", "MATCH", re.sub(r"[{}\[\]]", "?", self.key(glob)), "COUNT", "10000")
        return [key.decode() for key in found[1]] if found else []

    def begin(self, moment: float | None = None) -> None:
        """It is in full swing, or will be at this moment (seconds since the epoch)."""
        self.moment = moment
        self._begun.set()

    async def begun(self) -> float | None:
        await self._begun.wait()
        return self.moment

    async def again(self, pause: float = 0.0) -> AsyncIterator[int]:
        """Once more and once more, until the attack is to end. The first time has begun it."""
        times = 0
        while not self._stopped.is_set():
            yield times
            times += 1
            self.begin(self.moment)
            await asyncio.sleep(pause)

    @property
    def is_stopped(self) -> bool:
        return self._stopped.is_set()

    async def until_stopped(self) -> None:
        """Nothing more to do: what was put in does the rest."""
        self.begin(self.moment)
        await self._stopped.wait()

    def stop(self) -> None:
        self._stopped.set()

    async def backlog_of(self, make: Callable[[int], Task[Any]], least: int, **options: Any) -> None:
        """Always so many or more wait."""
        async for _ in self.again(0.01):
            known = await self.queue.user(ATTACKER)
            if known.queued + known.scheduled < least:
                await self.put((make(n) for n in range(least)), **options)
