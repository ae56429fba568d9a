"""`Demand`: how many slots it takes, for autoscaling."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any, NamedTuple

import msgspec

from fairque.checks import Duration, check_seconds
from fairque.metrics import Metrics
from fairque.models import QueueStats
from fairque.queue.held_back import HeldBack, Startable, held_back_in
from fairque.redis.missing import noting_missing
from fairque.redis.store import Store

__all__ = ["COOLDOWN", "MOST_LOOKED_AT", "Demand", "Load", "check_spans", "load_in", "look_at_demand", "look_at_load"]

MOST_LOOKED_AT = 500
COOLDOWN = 300.0


class Demand(msgspec.Struct, frozen=True, kw_only=True):
    """What waits and what runs, in work instead of tasks. Times are in seconds.

    `run_seconds` is the mean time that tasks took lately; where nothing was measured yet, what those that run are
    thought to take. `work_seconds` is what waits times that, and `running_seconds` what is left of the tasks that run.
    `wait_seconds` is what the last in line waits for with the slots that there are (None without any), `slots_needed`
    how many it takes so that what runs goes on and what waits starts within `target_wait`.

    `slots_needed` is 0 only where nothing runs, and nothing may start or is due within `cooldown`. What a pause, a
    policy or a limit holds back for longer than `target_wait` needs no slot. It counts in `backlog`, in `work_seconds`
    and in `wait_seconds`. Tasks of a worker that died count among those that wait.

    `missing` are partitions that did not answer: what they have asks for no slot here.
    """

    backlog: int
    running: int
    slots: int
    run_seconds: float
    work_seconds: float
    running_seconds: float
    wait_seconds: float | None
    target_wait: float
    cooldown: float
    slots_needed: int
    missing: tuple[int, ...] = ()


class _Running(NamedTuple):
    """`mean`: of its name, None where nothing is known of it: none has ended, or of too many names."""

    age: float
    lives: bool
    mean: float | None

    @property
    def left(self) -> float:
        """In seconds: of one that has run for longer than others of its name as much again as it has run."""
        return self.mean - self.age if self.mean is not None and self.mean > self.age else self.age

    def slots(self, target_wait: float) -> float:
        """The part of a slot that it takes until `target_wait` is over: nobody knows when a new kind of task ends."""
        return 1.0 if self.mean is None else min(1.0, self.left / target_wait)


class Load(NamedTuple):
    """What a queue has to do, as it was at one moment; what that demands depends on who asks."""

    stats: QueueStats
    running: Sequence[_Running]
    next_ms: Sequence[float]
    """From that moment on: when time alone makes something of it, or a claim has to do something first."""
    held_back: HeldBack

    def demand(self, target_wait: float, cooldown: float) -> Demand:
        """Of seconds that were checked."""
        stats = self.stats
        run = _run_seconds(stats.metrics, self.running)
        per_slot = _starts_of_a_slot(run, target_wait)
        startable = self.held_back.startable(target_wait, per_slot)
        is_due = any(ms <= cooldown * 1000 for ms in self.next_ms) or bool(self.held_back.startable(cooldown, per_slot))
        return _demand(stats, self.running, run, startable, target_wait, cooldown, is_due=is_due)


def check_spans(target_wait: Duration, cooldown: Duration) -> tuple[float, float]:
    """In seconds. Raises `InvalidInput`."""
    return check_seconds("target_wait", target_wait, least=0.001), check_seconds("cooldown", cooldown)


async def look_at_load(store: Store) -> Load:
    """Looks at the totals, and at 500 of the tasks that run, which stand for the others."""
    with noting_missing() as missing:
        stats, found = await asyncio.gather(store.stats(), store.demand(MOST_LOOKED_AT))
    return load_in(msgspec.structs.replace(stats, missing=missing.numbers), found)


def load_in(stats: QueueStats, found: Sequence[Any]) -> Load:
    """From what the script found."""
    now_ms, moments, running, means, *waiting = found
    next_ms = [float(ms) - now_ms for ms in moments if ms]
    return Load(stats, _running_in(running, means), next_ms, held_back_in(now_ms, *waiting))


async def look_at_demand(store: Store, target_wait: Duration, cooldown: Duration = COOLDOWN) -> Demand:
    spans = check_spans(target_wait, cooldown)
    return (await look_at_load(store)).demand(*spans)


def _running_in(running: Sequence[Any], means: Sequence[bytes]) -> list[_Running]:
    mean_of = {name: float(mean) for name, mean in zip(means[::2], means[1::2], strict=True) if mean}
    rows = zip(running[::3], running[1::3], running[2::3], strict=True)
    return [_Running(age_ms / 1000, bool(lives), mean_of.get(name)) for name, age_ms, lives in rows]


def _demand(
    stats: QueueStats,
    looked_at: Sequence[_Running],
    run: float,
    startable: Startable,
    target_wait: float,
    cooldown: float,
    *,
    is_due: bool,
) -> Demand:
    slots = stats.slots
    alive = [task for task in looked_at if task.lives]
    scale = max(1.0, stats.started / len(looked_at)) if looked_at else 0.0
    waits = startable.tasks + round(scale * (len(looked_at) - len(alive)))
    left = scale * sum(task.left for task in alive)
    kept = scale * sum(task.slots(target_wait) for task in alive)
    return Demand(
        backlog=stats.queued,
        running=stats.started,
        slots=slots,
        run_seconds=run,
        work_seconds=stats.queued * run,
        running_seconds=left,
        wait_seconds=_wait(stats, slots, stats.queued * run, left),
        target_wait=target_wait,
        cooldown=cooldown,
        slots_needed=max(
            math.ceil(kept - 1e-9) + _slots_to_start(waits, run, target_wait) + startable.slots,
            _used_lately(stats, slots) if not waits and not startable.slots else 0,
            1 if is_due or stats.started else 0,
        ),
        missing=stats.missing,
    )


def _used_lately(stats: QueueStats, slots: int) -> int:
    """In the mean, no more than there are: of a queue that has just begun, the rate is that of its first tasks."""
    used = math.ceil(stats.metrics.recent_rate * stats.metrics.recent_run_seconds)
    return min(used, slots) if slots else used


def _starts_of_a_slot(run: float, target_wait: float) -> float:
    """In time: one at once, and the next after each run."""
    return math.floor(target_wait / run) + 1 if run > 0 else math.inf


def _slots_to_start(tasks: int, run: float, target_wait: float) -> int:
    """So many that the last of them starts in time."""
    return max(1, math.ceil(tasks / _starts_of_a_slot(run, target_wait))) if tasks else 0


def _wait(stats: QueueStats, slots: int, work: float, left: float) -> float | None:
    """What runs holds the slots until then, unless some are free."""
    if not stats.queued:
        return 0.0
    return (work + (left if stats.started >= slots else 0.0)) / slots if slots else None


def _run_seconds(measured: Metrics, looked_at: Sequence[_Running]) -> float:
    """Lately, else of everything that was ever measured, else by what runs."""
    services = measured.finished + measured.failed + measured.retried
    known = measured.recent_run_seconds or (measured.busy_seconds / services if services else 0.0)
    return known or (fmean(task.age + task.left for task in looked_at) if looked_at else 0.0)
