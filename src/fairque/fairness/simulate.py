"""A trace served in virtual time: what a policy does to users, without Redis and without waiting.

The fair policy is not written a second time here. It is `ModelQueue`, the model that the scripts are held against.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, get_args

from fairque.checks import check_count, check_number
from fairque.errors import InvalidInput
from fairque.fairness.contention import Contention
from fairque.fairness.model_queue import ModelDelivery, ModelQueue, ModelTask
from fairque.fairness.trace_files import TraceJob
from fairque.policy import LEAST_WEIGHT, MOST_WEIGHT

__all__ = [
    "MAX_SLOTS",
    "POLICIES",
    "PolicyName",
    "SchedulingPolicy",
    "Simulation",
    "check_policy",
    "new_policy",
    "simulate",
]

PolicyName = Literal["fair", "fifo", "round-robin"]
POLICIES: tuple[PolicyName, ...] = get_args(PolicyName)
MAX_SLOTS = 1_000_000
_ONE_OWNER = "everyone"
_NEVER_MS = 10**15  # no lease ends: virtual workers do not die


class SchedulingPolicy(Protocol):
    """Who is served next. Jobs are known by their number; times are microseconds and never go back."""

    def add(self, now_us: int, number: int, job: TraceJob) -> None:
        """The job was put in."""

    def take(self, now_us: int, want: int) -> list[int]:
        """The next jobs, at most `want`, in the order of their service."""

    def finish(self, now_us: int, number: int) -> None:
        """The job, taken before, has ended."""


class FairPolicy:
    """The queue itself, as its scripts serve it.

    Args:
        weights: Of users; 1 for all others.
        owner: Whose share a job is charged to. With one owner for all, this is first come, first served.
    """

    def __init__(
        self, weights: Mapping[str, float], owner: Callable[[TraceJob], str] = lambda job: job.user_id
    ) -> None:
        self._owner = owner
        self._queue = ModelQueue()
        self._deliveries: dict[int, ModelDelivery] = {}
        for user_id, weight in weights.items():
            self._queue.choice.set_weight(user_id, weight)

    def add(self, now_us: int, number: int, job: TraceJob) -> None:
        self._queue.enqueue(now_us, [ModelTask(self._owner(job), str(number), cost=job.cost)])

    def take(self, now_us: int, want: int) -> list[int]:
        taken = []
        for delivery in self._queue.claim(now_us, "worker", want, lease_ms=_NEVER_MS, steal=False):
            number = int(delivery.task.task_id)
            self._deliveries[number] = delivery
            taken.append(number)
        return taken

    def finish(self, now_us: int, number: int) -> None:
        delivery = self._deliveries.pop(number)
        self._queue.settle(now_us, delivery, "finished")
        del self._queue.ended[delivery.task.key]  # or a long trace would fill the memory


class RoundRobin:
    """One task of each user that has any, in turn, whatever tasks cost. Weights mean nothing to it."""

    def __init__(self) -> None:
        self._turns: deque[str] = deque()
        self._backlogs: dict[str, deque[int]] = {}

    def add(self, now_us: int, number: int, job: TraceJob) -> None:  # noqa: ARG002
        if job.user_id not in self._backlogs:
            self._backlogs[job.user_id] = deque()
            self._turns.append(job.user_id)
        self._backlogs[job.user_id].append(number)

    def take(self, now_us: int, want: int) -> list[int]:  # noqa: ARG002
        taken: list[int] = []
        while len(taken) < want and self._turns:
            user_id = self._turns.popleft()
            backlog = self._backlogs[user_id]
            taken.append(backlog.popleft())
            if backlog:
                self._turns.append(user_id)
            else:
                del self._backlogs[user_id]
        return taken

    def finish(self, now_us: int, number: int) -> None:
        pass


def check_policy(name: str) -> PolicyName:
    """Raises `InvalidInput` for a name that is not in `POLICIES`."""
    for known in POLICIES:
        if name == known:
            return known
    raise InvalidInput(f"a policy is one of {', '.join(POLICIES)}, not {name!r}")


def new_policy(name: PolicyName, weights: Mapping[str, float]) -> SchedulingPolicy:
    """A policy that has served nobody yet."""
    if name == "fair":
        return FairPolicy(weights)
    if name == "fifo":
        return FairPolicy({}, owner=lambda _: _ONE_OWNER)
    return RoundRobin()


@dataclass(frozen=True)
class Simulation:
    """What became of a trace. `starts` are in the order of the jobs, `order` has their numbers as they were served."""

    jobs: Sequence[TraceJob]
    starts: Sequence[float]
    order: Sequence[int]
    contention: Contention


def simulate(
    jobs: Sequence[TraceJob], policy: SchedulingPolicy, slots: int, weights: Mapping[str, float] | None = None
) -> Simulation:
    """Serve the jobs with so many slots, each of which runs one job at a time.

    Of what happens at one moment, ends come first, then all arrivals, then services.

    Args:
        jobs: In the order of their time, see `in_order`.
        policy: A new one.
        slots: 1 to 1,000,000.
        weights: What users are entitled to in relation to each other; 1 for those that are not named.
    """
    check_count("slots", slots, 1, MAX_SLOTS)
    for user_id, weight in (weights or {}).items():
        check_number(f"the weight of {user_id!r}", weight, LEAST_WEIGHT, MOST_WEIGHT)
    machine = _Machine(jobs, policy, slots, Contention(weights or {}))
    machine.run()
    return Simulation(jobs, machine.starts, machine.order, machine.contention)


@dataclass(slots=True)
class _Machine:
    jobs: Sequence[TraceJob]
    policy: SchedulingPolicy
    free: int
    contention: Contention
    starts: list[float] = field(default_factory=list)
    order: list[int] = field(default_factory=list)
    ends: list[tuple[float, int]] = field(default_factory=list)  # a heap
    arrived: int = 0

    def run(self) -> None:
        self.starts = [math.nan] * len(self.jobs)
        while self.arrived < len(self.jobs) or self.ends:
            now = self._next_moment()
            self._end(now)
            self._arrive(now)
            if self.free and len(self.order) < self.arrived:
                self._start(now)

    def _next_moment(self) -> float:
        arrival = self.jobs[self.arrived].time if self.arrived < len(self.jobs) else math.inf
        return min(arrival, self.ends[0][0]) if self.ends else arrival

    def _end(self, now: float) -> None:
        while self.ends and self.ends[0][0] <= now:
            self.policy.finish(_us(now), heapq.heappop(self.ends)[1])
            self.free += 1

    def _arrive(self, now: float) -> None:
        while self.arrived < len(self.jobs) and self.jobs[self.arrived].time <= now:
            job = self.jobs[self.arrived]
            self.policy.add(_us(now), self.arrived, job)
            self.contention.wait(job.user_id)
            self.arrived += 1

    def _start(self, now: float) -> None:
        for number in self.policy.take(_us(now), self.free):
            job = self.jobs[number]
            self.starts[number] = now
            self.order.append(number)
            self.contention.serve(job.user_id, job.cost)
            heapq.heappush(self.ends, (now + job.seconds, number))
            self.free -= 1


def _us(seconds: float) -> int:
    return int(seconds * 1_000_000)
