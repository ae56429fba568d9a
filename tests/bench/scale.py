"""How should a worker choose between partitions? One million users, 100 partitions, 1,000 workers, in virtual time.

    python tests/bench/scale.py [--busy N ...] [--users N] [--partitions N] [--workers N] [--slots N] [--seconds N]

Pure Python and no Redis; it takes a few minutes. It produced the table in docs/scale.md. Each partition is a
`FairChoice`, the model that the scripts of a queue are tested against. Busy users never run out of tasks. Quiet ones
put in single tasks, at random.
"""

import argparse
import bisect
import heapq
import itertools
import math
import random
import statistics
import sys
import time
import zlib
from array import array
from collections import deque

from fairque.fairness.choice import FairChoice
from fairque.fairness.report import percentile

TASK_SECONDS = 1.0  # mean; exponential
QUIET_LOAD = 0.3  # part of all slots that quiet users ask for
WARM_UP = 10.0
REFRESH = 1.0  # how often a worker looks at all partitions, where its policy wants that
ATTEMPTS = 5  # partitions that a worker tries for a free slot, before it rests
RETRY = 0.05
NOTHING = math.inf


class Fleet:
    """The partitions and the workers in virtual time."""

    def __init__(self, args: argparse.Namespace, busy: int, policy: "type[Uniform]") -> None:
        self.draw = random.Random(f"{busy} {args.seed}")
        self.now = 0.0
        self.end = args.seconds
        self.workers = args.workers
        self.slots = args.workers * args.slots
        self.quiet_users = args.users - busy
        self.choices = [FairChoice() for _ in range(args.partitions)]
        self.tags = [NOTHING] * args.partitions  # the lowest of each
        self.clock = 0.0  # the tag of the latest service, wherever it was
        self.quiet: dict[str, deque[float]] = {}  # of users with few tasks: when they were put in
        self.busy = [f"busy-{number}" for number in range(busy)]
        self.served = dict.fromkeys(self.busy, 0)
        self.waits = array("d")
        self.claims = self.tasks = self.refused = 0
        self.policy = policy(self)

    def run(self) -> "Fleet":
        for user in self.busy:
            self.join(user)
        frees = [(self.draw.random() * TASK_SECONDS, slot % self.workers) for slot in range(self.slots)]
        heapq.heapify(frees)
        rate = QUIET_LOAD * self.slots / TASK_SECONDS
        arrival = self.draw.expovariate(rate)
        while (now := min(arrival, frees[0][0])) < self.end:
            self.now = now
            if arrival <= frees[0][0]:
                self.put_in(f"quiet-{self.draw.randrange(self.quiet_users)}")
                arrival += self.draw.expovariate(rate)
            else:
                worker = frees[0][1]
                busy_for = self.draw.expovariate(1 / TASK_SECONDS) if self.claim(worker) else RETRY
                heapq.heapreplace(frees, (now + busy_for, worker))
        return self

    def partition_of(self, user: str) -> int:
        return zlib.crc32(user.encode()) % len(self.choices)

    def put_in(self, user: str) -> None:
        self.quiet.setdefault(user, deque()).append(self.now)
        self.join(user)

    def join(self, user: str) -> None:
        """A partition that stood empty must not come back with the time it missed: it goes on at the queue's clock."""
        at = self.partition_of(user)
        choice = self.choices[at]
        if not choice.ready:
            choice.clock = max(choice.clock, self.clock)
        choice.join(user)
        self.note(at)

    def claim(self, worker: int) -> bool:
        """One task, from the partition that the policy chooses. An empty one is another attempt, of a few."""
        for _ in range(ATTEMPTS):
            at = self.policy.choose(worker)
            self.claims += 1
            user = self.choices[at].lowest()
            if user is not None:
                self.serve(at, user)
                self.policy.learn(worker, at)
                return True
            self.policy.learn(worker, at)
        self.refused += 1
        return False

    def serve(self, at: int, user: str) -> None:
        choice = self.choices[at]
        self.tasks += 1
        self.clock = choice.tag(user)
        choice.serve(user, 1.0)
        if user in self.quiet:
            self.serve_quiet(choice, user)
        elif self.now >= WARM_UP:
            self.served[user] += 1
        self.note(at)

    def serve_quiet(self, choice: FairChoice, user: str) -> None:
        put_in = self.quiet[user].popleft()
        if put_in >= WARM_UP:
            self.waits.append(self.now - put_in)
        if not self.quiet[user]:
            del self.quiet[user]
            choice.leave(user)
            if choice.kept[user] <= choice.clock:
                del choice.kept[user]  # as Redis forgets it: the clock has passed it

    def note(self, at: int) -> None:
        user = self.choices[at].lowest()
        self.tags[at] = NOTHING if user is None else self.choices[at].tag(user)


# How a worker with a free slot chooses a partition


class Uniform:
    """Any partition."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.count = len(fleet.choices)

    def choose(self, _worker: int) -> int:
        return self.fleet.draw.randrange(self.count)

    def learn(self, worker: int, at: int) -> None:
        """What the reply of a claim says of its partition."""


class InProportion(Uniform):
    """In proportion to the users that are ready, as they were when last looked at."""

    def __init__(self, fleet: Fleet) -> None:
        super().__init__(fleet)
        self.due = 0.0
        self.sums: list[float] = []

    def choose(self, _worker: int) -> int:
        if self.fleet.now >= self.due:
            self.due = self.fleet.now + REFRESH
            self.sums = list(itertools.accumulate(len(choice.ready) for choice in self.fleet.choices))
        return bisect.bisect_right(self.sums, self.fleet.draw.random() * self.sums[-1])


class LowestKnown(Uniform):
    """The lowest tag of all, as this worker remembers them: from its own claims, and from a look at all each second."""

    def __init__(self, fleet: Fleet) -> None:
        super().__init__(fleet)
        self.known = [array("d", fleet.tags) for _ in range(fleet.workers)]
        self.due = [fleet.draw.random() * REFRESH for _ in range(fleet.workers)]

    def choose(self, worker: int) -> int:
        if self.fleet.now >= self.due[worker]:
            self.due[worker] = self.fleet.now + REFRESH
            self.known[worker] = array("d", self.fleet.tags)
        known = self.known[worker]
        return min(range(self.count), key=known.__getitem__)

    def learn(self, worker: int, at: int) -> None:
        self.known[worker][at] = self.fleet.tags[at]


class TwoChoices(Uniform):
    """Of two drawn at random, the one with the lower tag. Costs two reads of one key each."""

    def choose(self, worker: int) -> int:
        one, other = super().choose(worker), super().choose(worker)
        return one if self.fleet.tags[one] <= self.fleet.tags[other] else other


class LowestOfAll(Uniform):
    """The lowest tag of all at every moment: what a queue without partitions does. The measure of the others."""

    def choose(self, _worker: int) -> int:
        return min(range(self.count), key=self.fleet.tags.__getitem__)


POLICIES = {
    "any partition": Uniform,
    "in proportion to ready users": InProportion,
    "lowest tag remembered": LowestKnown,
    "lower tag of two": TwoChoices,
    "lowest tag of all": LowestOfAll,
}


# What is shown


def main() -> None:
    args = _arguments()
    print("| busy users | policy | share error | least | most | wait p50 | wait p99 | claims per task | idle slots |")
    print("|---|---|---|---|---|---|---|---|---|")
    for busy in args.busy:
        for name, policy in POLICIES.items():
            began = time.perf_counter()
            fleet = Fleet(args, busy, policy).run()
            print(f"| {busy:,} | {name} | {_figures(fleet)} |", flush=True)
            print(f"{time.perf_counter() - began:.1f} s", file=sys.stderr)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=1_000_000, help="in all; those that are not busy are quiet")
    parser.add_argument(
        "--busy", type=int, nargs="+", default=[300, 1000, 10_000], help="users that never run out of tasks"
    )
    parser.add_argument("--partitions", type=int, default=100)
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--slots", type=int, default=10, help="of each worker")
    parser.add_argument("--seconds", type=float, default=40.0, help="of virtual time; the first ten are not counted")
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


def _figures(fleet: Fleet) -> str:
    counts = list(fleet.served.values())
    mean = statistics.fmean(counts)
    waits = sorted(fleet.waits)
    p50, p99 = (percentile(waits, part) for part in (0.5, 0.99))
    idle = fleet.refused * RETRY / (fleet.slots * fleet.end)
    spread = f"{statistics.pstdev(counts) / mean:.1%} | {min(counts) / mean:.2f} | {max(counts) / mean:.2f}"
    return f"{spread} | {p50 * 1000:,.0f} ms | {p99 * 1000:,.0f} ms | {fleet.claims / fleet.tasks:.2f} | {idle:.2%}"


if __name__ == "__main__":
    main()
