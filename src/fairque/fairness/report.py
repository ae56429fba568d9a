"""What a simulated run was like for each user, in numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import fmean, median

import msgspec

from fairque.fairness.simulate import Simulation

__all__ = ["DEFAULT_BOUND", "Report", "UserReport", "bounded_slowdown", "percentile", "report_on"]

DEFAULT_BOUND = 10.0


class UserReport(msgspec.Struct, frozen=True, kw_only=True):
    """Waits are seconds from when a task was put in to its start.

    Attributes:
        slowdown: The mean of its tasks, see `bounded_slowdown`.
        share: Its part of all that was served, by cost, while tasks of several users waited.
        entitled: The part that its weight entitled it to, in those services for which it waited.
    """

    user: str
    tasks: int
    wait_mean: float
    wait_p50: float
    wait_p95: float
    wait_p99: float
    slowdown: float
    share: float
    entitled: float


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """A run as a whole.

    Attributes:
        seconds: From the first arrival to the last end.
        utilization: The part of all slots that was busy in that time.
        wait_median, wait_worst: Of the users' mean waits, in seconds.
        slowdown_median, slowdown_worst: Of the users' mean slowdowns.
        index: Jain's index, see `Contention.index`.
        users: Those with the most tasks first.
    """

    policy: str
    tasks: int
    seconds: float
    utilization: float
    wait_median: float
    wait_worst: float
    slowdown_median: float
    slowdown_worst: float
    index: float
    users: list[UserReport]


def report_on(policy: str, simulation: Simulation, slots: int, bound: float = DEFAULT_BOUND) -> Report:
    """`bound` is that of `bounded_slowdown`."""
    users = sorted(_users(simulation, bound), key=lambda user: (-user.tasks, user.user))
    seconds = max(
        (start + job.seconds for start, job in zip(simulation.starts, simulation.jobs, strict=True)), default=0.0
    )
    busy = sum(job.seconds for job in simulation.jobs)
    waits, slowdowns = [user.wait_mean for user in users], [user.slowdown for user in users]
    return Report(
        policy=policy,
        tasks=len(simulation.jobs),
        seconds=seconds,
        utilization=busy / (slots * seconds) if seconds else 0.0,
        wait_median=median(waits) if users else 0.0,
        wait_worst=max(waits, default=0.0),
        slowdown_median=median(slowdowns) if users else 1.0,
        slowdown_worst=max(slowdowns, default=1.0),
        index=simulation.contention.index(),
        users=users,
    )


def _users(simulation: Simulation, bound: float) -> Iterator[UserReport]:
    waits: dict[str, list[float]] = {}
    slowdowns: dict[str, list[float]] = {}
    for start, job in zip(simulation.starts, simulation.jobs, strict=True):
        wait = start - job.time
        waits.setdefault(job.user_id, []).append(wait)
        slowdowns.setdefault(job.user_id, []).append(bounded_slowdown(wait, job.seconds, bound))
    for user_id, of_user in waits.items():
        ordered = sorted(of_user)
        yield UserReport(
            user=user_id,
            tasks=len(ordered),
            wait_mean=fmean(ordered),
            wait_p50=percentile(ordered, 0.50),
            wait_p95=percentile(ordered, 0.95),
            wait_p99=percentile(ordered, 0.99),
            slowdown=fmean(slowdowns[user_id]),
            share=simulation.contention.share(user_id),
            entitled=simulation.contention.entitlement(user_id),
        )


def bounded_slowdown(wait: float, run: float, bound: float) -> float:
    """How many times as long as without a wait it took: (wait + run) / run, at least 1, all in seconds.

    What runs for less than `bound` counts as running for so long, or tasks of no length would decide everything
    (Feitelson and others, "Theory and Practice in Parallel Job Scheduling", JSSPP 1997).
    """
    return max(1.0, (wait + run) / max(run, bound))


def percentile(ordered: Sequence[float], part: float) -> float:
    """The smallest value that `part` of the values do not exceed (nearest rank)."""
    return ordered[max(0, math.ceil(part * len(ordered)) - 1)]
