"""One attack beside the quiet user, on workers that serve both."""

from __future__ import annotations

import asyncio
import os
import random
import statistics
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self

from fairque import TaskQueue
from tests.isolation.suite.attack import SERVICE_MS, SMALL, Attack, Scale
from tests.isolation.suite.led import Led
from tests.isolation.suite.log import Service, services_before, services_in
from tests.isolation.suite.quiet import Probe, Quiet

SLOTS = 8
"""Of each worker."""


LOOK_MS = 100.0
"""Of a queue with partitions: within that, a busy worker looks where somebody may have come. What is served meanwhile
is not counted: where others are served fast, that is more than any share of theirs.
"""
PATIENCE = 60.0
"""Seconds for a result where workers die."""


@dataclass(frozen=True)
class Size:
    """How large a run is: the attack, and how often the quiet user comes."""

    scale: Scale
    workers: int
    rounds: int
    rounds_alone: int
    patience: float
    partitions: int = 1
    beside: bool = False
    """All rivals live in the partition of the quiet user: it waits as in a queue without any."""

    @property
    def is_spread(self) -> bool:
        return self.partitions > 1 and not self.beside


SMALL_RUN = Size(Scale(SMALL), workers=1, rounds=2, rounds_alone=1, patience=20.0)
LARGE_RUN = Size(Scale(), workers=2, rounds=10, rounds_alone=4, patience=15.0)


class Wait(NamedTuple):
    """What one task of the quiet user waited. Services are not counted of one whose first worker died with it."""

    kth: int
    services: int
    ms: float


@dataclass
class Measured:
    """What an attack cost the quiet user."""

    attack: Attack
    scale: Scale
    is_spread: bool = False
    others: int = 0
    """Services of the attacker while the quiet user was measured."""
    alone: list[Wait] = field(default_factory=list)
    under_attack: list[Wait] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def bound(self, kth: int = 1) -> int:
        """Others in other partitions may be ahead by the slack of a claim: what that wants, twice."""
        beside = 2 * SLOTS if self.is_spread else 0
        return self.attack.rivals(self.scale).services(kth) + beside

    def within_ms(self, kth: int = 1) -> float:
        return max(self.attack.within_ms, SERVICE_MS * self.bound(kth))

    def check(self) -> None:
        slower = crowding()
        for wait in self.under_attack:
            most = self.bound(wait.kth)
            if wait.services > most:
                self.faults.append(
                    f"{wait.services} services of others before task {wait.kth} of a call, {most} at most"
                )
            if wait.ms > slower * self.within_ms(wait.kth):
                self.faults.append(f"a wait of {wait.ms:.0f} ms, {self.within_ms(wait.kth):.0f} at most")


def crowding() -> float:
    """How many times more wants to run than there are cores: the clock says as much less of the queue."""
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def typical_and_worst(figures: list[float]) -> tuple[float, float]:
    return (statistics.median(figures), max(figures)) if figures else (0.0, 0.0)


class Cast:
    """The processes of the suite: workers and an attacker. Use it as ``with Cast(…) as cast``.

    Args:
        url: Of the server.
        directory: For what they write.
        workers: How many there may be. Those that die are two at the least.
    """

    def __init__(self, url: str, directory: Path, workers: int) -> None:
        self._url = url
        self._logs = [directory / f"services-{n}" for n in range(max(2, workers))]
        self._errors = directory / "errors"
        self._stack = ExitStack()
        self._workers: list[Led] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        self._workers.clear()

    async def play(self, attack: Attack, queue_name: str, size: Size) -> Measured:
        measured = Measured(attack, size.scale, size.is_spread)
        try:
            await self._play(measured, queue_name, size)
        except (AssertionError, TimeoutError) as exc:
            measured.faults.append(f"{type(exc).__name__}: {exc}")
            self.__exit__()  # who knows what state they are in: the next attack has others
        return measured

    def _worker(self, log: Path) -> Led:
        return self._stack.enter_context(Led("tests.isolation.suite.worker", self._errors, self._url, str(log)))

    async def _supervise(self, kills_each: float | None, **details: Any) -> None:
        """Replace those that died, and kill one where none has died for so long."""
        died = time.monotonic()
        while True:
            await asyncio.sleep(0.02)
            for at, worker in enumerate(self._workers):
                if worker.has_ended:
                    self._workers[at] = self._worker(self._logs[at])
                    with suppress(AssertionError):  # a task has killed it before it could answer
                        await self._workers[at].ask("serve", **details)
                    died = time.monotonic()
            if kills_each is not None and time.monotonic() - died > kills_each:
                random.choice(self._workers).kill()

    def _start(self, workers: int) -> None:
        self._workers += map(self._worker, self._logs[:workers])
        self._attacker = self._stack.enter_context(Led("tests.isolation.suite.attacker", self._errors, self._url))

    async def _play(self, measured: Measured, queue_name: str, size: Size) -> None:
        attack = measured.attack
        if attack.lease is not None and size.workers < len(self._logs):
            self.__exit__()
            self._start(len(self._logs))
        if not self._workers:
            self._start(size.workers)
        for log in self._logs:
            log.write_bytes(b"")
        given = {"lease": attack.lease, "partitions": size.partitions}
        serve = {"queue": queue_name, "concurrency": SLOTS, **given}
        async with TaskQueue(self._url, name=queue_name, timeout=30.0, **given) as queue:
            patience = size.patience if attack.lease is None else PATIENCE
            alone = Quiet(queue, attack.same_name, patience)
            under_attack = Quiet(queue, attack.same_name, patience)
            await asyncio.gather(*(worker.ask("serve", **serve) for worker in self._workers))
            await alone.go_on(size.rounds_alone)
            helper = asyncio.create_task(self._supervise(attack.kills_each, **serve)) if attack.lease else None
            try:
                put_in = await self._attack(attack, queue_name, size, under_attack)
            finally:
                if helper is not None:
                    helper.cancel()
            measured.faults += alone.faults + under_attack.faults
            if attack.lease is not None:
                self.__exit__()  # some may have died just now
            await asyncio.gather(*(worker.ask("leave") for worker in self._workers))
            if attack.counts_all:
                measured.faults += await _losses(queue, put_in + len(alone.probes) + len(under_attack.probes))
        logs = [services_in(log) for log in self._logs]
        unseen_ms = LOOK_MS * crowding() if size.is_spread else 0.0
        measured.alone = waits_of(alone.probes, logs, unseen_ms)
        measured.under_attack = waits_of(under_attack.probes, logs, unseen_ms)
        measured.others = services_meanwhile(under_attack.probes, logs)
        measured.check()

    async def _attack(self, attack: Attack, queue_name: str, size: Size, quiet: Quiet) -> int:
        details = {"slug": attack.slug, "queue": queue_name, "share": size.scale.share, "lease": attack.lease}
        begun = await self._attacker.ask("attack", 300.0, slots=SLOTS * len(self._workers), **details)
        if begun["moment"] is not None:
            await asyncio.sleep(begun["moment"] - 0.05 - time.time())
            await quiet.at(begun["moment"] + 0.001)
        await quiet.go_on(size.rounds)
        return int((await self._attacker.ask("stop"))["put_in"])


async def _losses(queue: TaskQueue, put_in: int) -> list[str]:
    """Where all tasks are that were put in, by the totals of the queue."""
    stats = await queue.stats()
    waiting = stats.queued + stats.scheduled + stats.deferred
    ended = stats.finished + stats.failed + stats.canceled
    found = waiting + stats.started + ended
    if found == put_in:
        return []
    return [f"{put_in} tasks were put in, and {found} are there: {waiting} wait, {stats.started} run, {ended} ended"]


def waits_of(probes: list[Probe], logs: list[list[Service]], unseen_ms: float = 0.0) -> list[Wait]:
    """Of those that were served; for each, the first time. `unseen_ms`: for how long nobody need know of one."""
    served = {(each.user_id, each.task_id): each for log in reversed(logs) for each in reversed(log)}
    return [
        Wait(probe.kth, _services_before(of, probe, logs, unseen_ms), of.handed_ms - probe.since_ms)
        for probe in probes
        if (of := served.get(("quiet", probe.task_id))) is not None
    ]


def _services_before(of: Service, probe: Probe, logs: list[list[Service]], unseen_ms: float) -> int:
    return services_before(of, (probe.due_ms or of.queued_ms) + unseen_ms, logs) if of.attempt == 1 else 0


def services_meanwhile(probes: list[Probe], logs: list[list[Service]]) -> int:
    ids = {probe.task_id for probe in probes}
    since = min(probe.since_ms for probe in probes)
    until = max((each.handed_ms for log in logs for each in log if each.task_id in ids), default=since)
    return sum(since <= each.handed_ms <= until and each.task_id not in ids for log in logs for each in log)
