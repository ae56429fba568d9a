"""A queue with partitions whose calls go wrong when a game says so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from fairque.errors import QueueUnavailable
from fairque.redis.scripts import Script
from tests.support.spread import SpreadQueue, SpreadStore

__all__ = ["Fate", "Killed", "UnsteadyQueue", "Weather"]

Fate = Literal["late", "cut", "twice"]
"""Of a call: it does not arrive yet, its reply does not, or it arrives two times."""


class Killed(BaseException):
    """Whoever made the calls is no more."""


class Weather:
    """What is between those who call and the partitions.

    Attributes:
        gone: Partitions that do not answer.
        fates: Of the next call of a script, by its name.
        late: Calls that have not arrived.
        calls_left: After so many calls who makes them is killed.
    """

    def __init__(self) -> None:
        self.gone: set[int] = set()
        self.fates: dict[str, Fate] = {}
        self.late: list[tuple[UnsteadyStore, Script, Sequence[Any]]] = []
        self.calls_left: int | None = None

    def note_call(self, partition: int) -> None:
        if self.calls_left is not None:
            if self.calls_left == 0:
                raise Killed
            self.calls_left -= 1
        if partition in self.gone:
            raise QueueUnavailable(f"partition {partition} is gone")

    async def deliver(self, pick: int) -> None:
        """One that is late."""
        store, script, args = self.late.pop(pick % len(self.late))
        if store.number not in self.gone:
            await SpreadStore._run(store, script, args)


class UnsteadyStore(SpreadStore):
    weather: Weather | None = None

    async def _run(self, script: Script, args: Sequence[Any], patience: float | None = None) -> Any:
        if self.core is None or self.weather is None:
            return await super()._run(script, args, patience)
        self.weather.note_call(self.number)
        fate = self.weather.fates.pop(script.name, None)
        if fate == "late":
            self.weather.late.append((self, script, args))
            raise QueueUnavailable("it is under way")
        answer = await super()._run(script, args, patience)
        if fate == "twice":
            answer = await super()._run(script, args, patience)
        if fate == "cut":
            raise QueueUnavailable("the reply is lost")
        return answer

    async def _insist(self, request: bytes, patience: float | None = None) -> Any:
        if self.core is not None and self.weather is not None and self.number in self.weather.gone:
            raise QueueUnavailable(f"partition {self.number} is gone")
        return await super()._insist(request, patience)


class UnsteadyQueue(SpreadQueue):
    """The clocks of its partitions do not agree."""

    def __init__(self, url: str, name: str, count: int) -> None:
        super().__init__(url, name, count, UnsteadyStore)
        self.weather = Weather()
        for core, ahead_us in zip(self.cores, (0, 700_000, -400_000, 2_000_000), strict=False):
            core.ahead_us = ahead_us

    async def open(self) -> None:
        for core in self.cores:
            await core.__aenter__()
            core.tick()
        await self.store.agree()
        for part in self.store.parts:
            await part.agree()
            part.weather = self.weather  # type: ignore[attr-defined]
