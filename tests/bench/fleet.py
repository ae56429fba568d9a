"""A fleet of workers and the partitions of a queue, in virtual time: what `scale.py` plays and a test holds.

Partitions and the choice between them are the models that scripts and workers are held against. What is seen is
a round trip old: a look is read half of one after it was asked, a claim is done half of one after it was made.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
import statistics
import zlib
from array import array
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from fairque.fairness.partition import Partition
from fairque.fairness.partition_choice import PartitionChoice


@dataclass
class Plan:
    """What is played. Times in seconds."""

    users: int = 1_000_000
    busy: int = 1000
    weights: tuple[float, ...] = (1.0,)
    partitions: int = 100
    workers: int = 1000
    slots: int = 10
    seconds: float = 40.0
    services: float = math.inf  # it ends with them, if that is earlier
    warm_up: float = 10.0
    task: float = 1.0  # mean, exponential
    quiet: float = 0.3  # part of all slots that users with single tasks ask for
    visitors: float = 0.1  # part of all slots that users ask for who come with ten tasks at once
    round_trip: float = 0.002
    patience: float = 0.05  # until a worker takes it that a partition does not answer
    away: tuple[float, float] = (math.inf, math.inf)  # when every third partition fails, and is back
    crowded: float = 0.0  # part of the busy users that lies in a tenth of the partitions
    seed: int = 1
    policy: Callable[[int, random.Random], PartitionChoice] = PartitionChoice


@dataclass
class Tally:
    claims: int = 0
    empty: int = 0  # claims that served nobody
    looks: int = 0
    failed: int = 0
    tasks: int = 0
    idle: float = 0.0  # seconds of slots that stood free while there was work
    waits: array = field(default_factory=lambda: array("d"))
    beside: array = field(default_factory=lambda: array("d"))


class Worker:
    def __init__(self, choice: PartitionChoice, slots: int) -> None:
        self.choice = choice
        self.free = slots
        self.is_claiming = False


class Fleet:
    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.random = random.Random(plan.seed)
        self.now = 0.0
        self.partitions = [Partition() for _ in range(plan.partitions)]
        self.events: list[tuple[float, int, Callable[..., None], tuple]] = []
        self.order = itertools.count()
        self.backlog: dict[str, deque[float]] = {}
        self.waiting = 0
        self.busy = [f"busy-{number}" for number in range(plan.busy)]
        self.weight = {user: plan.weights[n % len(plan.weights)] for n, user in enumerate(self.busy)}
        self.home = {user: self._home(user) for user in self.busy}
        self.served = dict.fromkeys(self.busy, 0)
        self.entitled = dict.fromkeys(self.busy, 0.0)
        self.had = dict.fromkeys(self.busy, 0)
        self.total = 0
        self.tally = Tally()
        self.workers = [
            Worker(plan.policy(plan.partitions, random.Random(f"{plan.seed} {n}")), plan.slots)
            for n in range(plan.workers)
        ]
        self.idle: dict[int, None] = {}
        self.beside_heavy = {self.home[u] for u in self.busy if self.weight[u] < 0.1}
        self.after: list[tuple[float, dict[str, int]]] = []

    def _home(self, user: str) -> int:
        count = self.plan.partitions
        if self.plan.crowded and self.random.random() < self.plan.crowded:
            return self.random.randrange(max(1, count // 10))
        return zlib.crc32(user.encode()) % count

    def home_of(self, user: str) -> int:
        return self.home[user] if user in self.home else zlib.crc32(user.encode()) % self.plan.partitions

    def at(self, time: float, act: Callable[..., None], *args: object) -> None:
        heapq.heappush(self.events, (time, next(self.order), act, args))

    def is_away(self, partition: int) -> bool:
        return partition % 3 == 0 and self.plan.away[0] <= self.now < self.plan.away[1]

    def run(self) -> Fleet:
        plan = self.plan
        for user in self.busy:
            choice = self.partitions[self.home[user]].choice
            choice.set_weight(user, self.weight[user])
            choice.join(user)
        for number in range(plan.workers):
            self.at(self.random.random() * plan.task, self.begin, number)
        rate = plan.workers * plan.slots / plan.task
        if plan.quiet:
            self.quiet_rate, self.quiet_id = plan.quiet * rate, itertools.count()
            self.at(0.0, self.put_in_single)
        if plan.visitors:
            self.visit_rate = plan.visitors * rate / 10
            self.at(0.0, self.visit)
        for moment in (plan.warm_up, *plan.away):
            if moment < plan.seconds:
                self.at(moment, self.note_window)
        while self.events[0][0] < plan.seconds and self.tally.tasks < plan.services:
            self.now, _, act, args = heapq.heappop(self.events)
            act(*args)
        self.now = min(plan.seconds, self.events[0][0])
        self.note_window()
        return self

    # Users

    def put_in_single(self) -> None:
        self.put_in(f"quiet-{self.random.randrange(self.plan.users)}", 1)
        self.at(self.now + self.random.expovariate(self.quiet_rate), self.put_in_single)

    def visit(self) -> None:
        self.put_in(f"visitor-{self.random.randrange(self.plan.users)}", 10)
        self.at(self.now + self.random.expovariate(self.visit_rate), self.visit)

    def put_in(self, user: str, tasks: int) -> None:
        partition = self.home_of(user)
        if self.is_away(partition):
            return
        self.backlog.setdefault(user, deque()).extend([self.now] * tasks)
        self.partitions[partition].choice.join(user)
        if self.idle:
            number = self.random.choice(list(self.idle))
            self.at(self.now + self.plan.round_trip / 2, self.wake, number, partition)

    def wake(self, number: int, partition: int) -> None:
        self.workers[number].choice.told(partition)
        self.begin(number)

    # Workers

    def begin(self, number: int) -> None:
        worker = self.workers[number]
        if worker.is_claiming or not worker.free:
            return
        self.idle.pop(number, None)
        worker.is_claiming = True
        looks = worker.choice.to_look(self.now)
        self.tally.looks += len(looks)
        if looks:
            self.at(self.now + self.plan.round_trip / 2, self.look, number, looks)
        else:
            self.choose(number, [])

    def look(self, number: int, looks: list[int]) -> None:
        sights = [(at, None if self.is_away(at) else self.sight(at)) for at in looks]
        self.at(self.now + self.plan.round_trip / 2, self.choose, number, sights)

    def sight(self, at: int):
        return self.partitions[at].sight()._replace(workers=self.plan.workers)

    def choose(self, number: int, sights: list) -> None:
        worker = self.workers[number]
        for at, sight in sights:
            if sight is None:
                worker.choice.failed(at, self.now)
            else:
                worker.choice.saw(at, sight, self.now)
        chosen = worker.choice.choose(self.now, worker.free)
        if chosen is None:
            worker.is_claiming = False
            self.idle[number] = None
            self.at(self.now + 0.05, self.begin, number)
            return
        self.tally.claims += 1
        self.at(self.now + self.plan.round_trip / 2, self.claim, number, chosen)

    def claim(self, number: int, chosen) -> None:
        worker, partition = self.workers[number], self.partitions[chosen.partition]
        if self.is_away(chosen.partition):
            self.tally.failed += 1
            self.at(self.now + self.plan.patience, self.claim_failed, number, chosen.partition)
            return
        partition.begin(chosen)
        got = 0
        while got < worker.free and (user := partition.next_user(chosen.until)) is not None:
            self.serve(partition, user)
            got += 1
        partition.end()
        self.tally.empty += not got
        worker.free -= got
        self.at(
            self.now + self.plan.round_trip / 2,
            self.claimed,
            number,
            chosen.partition,
            self.sight(chosen.partition),
            got,
        )

    def claim_failed(self, number: int, partition: int) -> None:
        worker = self.workers[number]
        worker.choice.failed(partition, self.now)
        worker.is_claiming = False
        self.begin(number)

    def claimed(self, number: int, partition: int, sight, got: int) -> None:
        worker = self.workers[number]
        worker.choice.saw(partition, sight, self.now)
        for _ in range(got):
            self.at(self.now + self.random.expovariate(1 / self.plan.task), self.end_task, number)
        worker.is_claiming = False
        self.begin(number)

    def end_task(self, number: int) -> None:
        self.workers[number].free += 1
        self.begin(number)

    def serve(self, partition: Partition, user: str) -> None:
        self.tally.tasks += 1
        partition.serve(user, 1.0)
        if user in self.served:
            self.had[user] += 1
            self.total += 1
            return
        backlog = self.backlog[user]
        put_in = backlog.popleft()
        if user[0] == "q" and put_in >= self.plan.warm_up:
            self.tally.waits.append(self.now - put_in)
            if self.home_of(user) in self.beside_heavy:
                self.tally.beside.append(self.now - put_in)
        if not backlog:
            del self.backlog[user]
            choice = partition.choice
            choice.leave(user)
            if choice.kept[user] <= min(choice.line.low(), partition.time):
                del choice.kept[user]  # as Redis forgets it

    # Figures

    def note_window(self) -> None:
        """What was had since the last one, and what each would have had of it by its weight."""
        began = self.after[-1][0] if self.after else 0.0
        self.after.append((self.now, dict(self.had)))
        if self.now > self.plan.warm_up:
            away = began >= self.plan.away[0] and began < self.plan.away[1]
            able = [user for user in self.busy if not (away and self.home[user] % 3 == 0)]
            weights = sum(self.weight[user] for user in able)
            total = sum(self.had[user] for user in self.busy)
            for user in able:
                self.entitled[user] += total * self.weight[user] / weights
            for user in self.busy:
                self.served[user] += self.had[user]
        self.had = dict.fromkeys(self.busy, 0)

    def shares(self) -> list[float]:
        return [self.served[user] / self.entitled[user] for user in self.busy]

    def share_error(self) -> float:
        return statistics.pstdev(self.shares())
