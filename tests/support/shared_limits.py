"""What limits over all users promise, for a queue in which tasks start, end and wait; nothing of how it is done."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import NamedTuple

from fairque.policy import Rate
from fairque.redis.delivery import Delivery

__all__ = ["Job", "LimitRule", "SharedLimits"]


class LimitRule(NamedTuple):
    """What holds for a key."""

    most: int | None = None
    rate: Rate | None = None
    is_paused: bool = False


@dataclass(eq=False)
class Job:
    """One task.

    Attributes:
        keys: Of its limits, as they are named in Redis.
        number: In the order in which tasks were put in.
        may_be_passed: It was handed out and came back, or waited when fewer were to run from then on.
        running: Its delivery, and in which partition that was made.
        uncounted: Keys by which nothing was bounded when it started, or since.
        is_forfeited: Its places were given up while it runs.
    """

    user_id: str
    task_id: str
    keys: tuple[str, ...]
    number: int
    running: tuple[int, Delivery] | None = None
    may_be_passed: bool = False
    has_ended: bool = False
    uncounted: set[str] = field(default_factory=set)
    is_forfeited: bool = False

    @property
    def waits(self) -> bool:
        return not (self.running or self.has_ended)


class SharedLimits:
    """Raises AssertionError where a promise is broken."""

    def __init__(self) -> None:
        self.jobs: dict[tuple[str, str], Job] = {}
        self.said: dict[str, LimitRule] = {}
        self._opens_us: dict[str, float] = {}  # the rates of keys, by GCRA
        self._numbers = count()

    # What there is

    def put_in(self, user_id: str, task_id: str, keys: Iterable[str]) -> None:
        self.jobs[user_id, task_id] = Job(user_id, task_id, tuple(keys), next(self._numbers))

    def waiting(self) -> list[Job]:
        return [job for job in self.jobs.values() if job.waits]

    def running(self) -> list[Job]:
        return [job for job in self.jobs.values() if job.running]

    # What holds

    def rule_of(self, key: str) -> LimitRule | None:
        return next((self.said[record] for record in records_of(key) if record in self.said), None)

    def change(self, record: str, rule: LimitRule) -> None:
        """What runs under a key while nothing bounds it counts no more: it ran before there was a limit."""
        before = {key: self.rule_of(key) for key in self._keys()}
        self.said[record] = rule
        if rule == LimitRule():
            del self.said[record]
        for key, old in before.items():
            new = self.rule_of(key)
            if (new.rate if new else None) != (old.rate if old else None):
                self._opens_us.pop(key, None)
            of_key = [job for job in self.jobs.values() if key in job.keys]
            if is_unbounded(new):
                for job in of_key:
                    job.uncounted.add(key)
            elif new != old:
                for job in of_key:
                    job.may_be_passed = True

    def _keys(self) -> set[str]:
        return {key for job in self.jobs.values() for key in job.keys} | self._opens_us.keys()

    # What happens

    def start(self, user_id: str, delivery: Delivery, partition: int, now_us: float) -> None:
        job = self.jobs[user_id, delivery.id]
        assert job.waits, f"{job} was handed out, and does not wait"
        self._check_order(job)
        job.running, job.may_be_passed, job.uncounted, job.is_forfeited = (partition, delivery), True, set(), False
        for key in job.keys:
            self._check_key(job, key, now_us)

    def _check_order(self, job: Job) -> None:
        """Tasks of a user that are alike start as they came. Who ran and came back, or has lost a place to a lower
        limit, may find that with one behind it, which keeps it.
        """
        alike = [
            of for of in self.waiting() if (of.user_id, of.keys) == (job.user_id, job.keys) and not of.may_be_passed
        ]
        before = [of for of in alike if of.number < job.number]
        assert not before, f"{job} starts before {before}"

    def _check_key(self, job: Job, key: str, now_us: float) -> None:
        rule = self.rule_of(key)
        if rule is None or is_unbounded(rule):
            job.uncounted.add(key)
        if rule is None:
            return
        assert not rule.is_paused, f"{job} starts while {key} is paused"
        if rule.most is not None:
            counted = [of for of in self.running() if key in of.keys and not (key in of.uncounted or of.is_forfeited)]
            assert len(counted) <= rule.most, f"{len(counted)} run of {key}, at most {rule.most} may: {counted}"
        if rule.rate is not None:
            self._check_rate(key, rule.rate, now_us)

    def _check_rate(self, key: str, rate: Rate, now_us: float) -> None:
        free_us = self._opens_us.get(key, 0.0)
        opens_us = free_us - (rate.burst - 1) * rate.interval_us
        assert now_us >= opens_us, f"{key} starts {opens_us - now_us} us sooner than {rate} allows"
        self._opens_us[key] = max(now_us, free_us) + rate.interval_us


def records_of(key: str) -> Iterator[str]:
    """Of what may be set for it, the first that says something holds."""
    user, sign, rest = key.partition("=")
    if not sign or ":" in user:
        yield key
        return
    template, _, text = rest.partition(":")
    yield f"{user}:{text}"
    yield f"{user}={template}"
    if user:
        yield f"={template}"


def is_unbounded(rule: LimitRule | None) -> bool:
    """Any number may run. While a name is only paused none starts, and what runs is known as it was."""
    return rule is None or (rule.most is None and not (rule.is_paused and rule.rate is None))
