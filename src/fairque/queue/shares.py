"""`Shares`: who got how much of a queue lately, and whether that is fair."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import msgspec

from fairque.fairness.contention import jains_index
from fairque.metrics import Metrics
from fairque.models import QueueStats, UserInfo
from fairque.policy import packed_group, policy_in
from fairque.redis.store import Store

__all__ = ["Share", "Shares", "is_starved", "look_at_shares"]

NOISY, STARVED = 1.5, 0.5  # times what one is entitled to
FADED = 0.001
MOST_BEHIND = 60.0
"""Seconds for which one waits who is called starved: one that has just come was not served yet."""

Path = tuple[str, ...]
"""A group, from its outermost one inwards; of nobody's, empty."""


class Share(msgspec.Struct, frozen=True, kw_only=True):
    """What a user got of the queue lately, and what it is entitled to, both from 0 to 1.

    Tasks that run count as services as well. Who stands in a group is entitled to its part of what the group is.

    `verdict`: ``"noisy"`` got half as much again while others waited that got less than theirs. ``"starved"`` waits,
    could have had one of the services that came to an end lately, and got less than half of its part.
    """

    user_id: str
    share: float
    entitled: float
    verdict: Literal["", "noisy", "starved"]


class Shares(msgspec.Struct, frozen=True, kw_only=True):
    """How evenly the queue served its users lately, over a minute or so.

    `jain` is the index of Jain, Chiu and Hawe (1984) over what those who want some got of what they are entitled to: 1
    when all got the same, 1/n when one got everything. Where one of them could have had more, those count as well who
    got more than their part and want no more. `missing` are partitions that did not answer: nothing is said of their
    users.
    """

    jain: float
    users: tuple[Share, ...]
    missing: tuple[int, ...] = ()


def is_starved(user: UserInfo, share: Share) -> bool:
    """Whether that lasts: for a monitor."""
    return share.verdict == "starved" and (user.wait_seconds or 0.0) > MOST_BEHIND


async def look_at_shares(
    store: Store, users: Sequence[UserInfo], stats: QueueStats, of_all: Metrics | None = None
) -> Shares:
    """Of those who are ready to be served, run something, or were served lately; of the others nothing is said.

    `stats` tell what all got together, and how many are ready: those who were not looked at have a part as well.
    `of_all` is what all got at the very moment at which the users were read.
    """
    active = [user for user in users if _is_active(user)]
    groups = sorted({path[:depth] for user in active for path in [_path(user)] for depth in range(1, len(path) + 1)})
    packed = await store.policies(["@" + packed_group("/".join(path)) for path in groups]) if groups else []
    weights = {path: policy_in(found).weight or 1.0 for path, found in zip(groups, packed, strict=True)}
    return _shares(active, weights, of_all or stats.metrics, stats)


def _is_active(user: UserInfo) -> bool:
    return user.tag is not None or user.started > 0 or user.metrics.recent_cost > FADED


def _path(user: UserInfo) -> Path:
    return tuple(user.policy.group.split("/")) if user.policy.group else ()


def _shares(
    active: Sequence[UserInfo], group_weights: Mapping[Path, float], of_all: Metrics, stats: QueueStats
) -> Shares:
    entitled = _entitlements(active, group_weights, stats.users_ready)
    parts = [_Part(user, entitled[user.user_id]) for user in active]
    total = max(of_all.recent_cost + stats.started * _mean_cost(of_all), sum(part.got for part in parts))
    running = max(stats.started, sum(part.user.started for part in parts))
    ended = max(of_all.recent_cost, sum(part.user.metrics.recent_cost for part in parts))
    for part in parts:
        part.compare(total, running, ended)
    short = sum(part.is_short for part in parts)
    return Shares(
        jain=jains_index([part.got / part.entitled for part in parts if part.wants_some or (short and part.is_ahead)]),
        users=tuple(part.rated(others_are_short=short > part.is_short) for part in parts),
    )


def _entitlements(active: Sequence[UserInfo], group_weights: Mapping[Path, float], ready: int) -> dict[str, float]:
    """Of each user, from 0 to 1: in each line its own part of what the group whose line it is has.

    `ready` are the members of the first line; those of them that were not looked at are like the others.
    """
    lines: defaultdict[Path, dict[Path, float]] = defaultdict(dict)
    totals: defaultdict[Path, float] = defaultdict(float)
    for user in active:
        totals[_path(user)] += user.weight
        for group in _groups_of(user):
            lines[group[:-1]].setdefault(group, group_weights[group])
    for line, groups in lines.items():
        totals[line] += sum(groups.values())
    members = len({_first_of(user) for user in active})
    looked_at = len({_first_of(user) for user in active if user.tag is not None})
    totals[()] *= 1 + max(0, ready - looked_at) / members if members else 1
    found = {}
    for user in active:
        part = user.weight / totals[_path(user)]
        for group in _groups_of(user):
            part *= group_weights[group] / totals[group[:-1]]
        found[user.user_id] = part
    return found


def _first_of(user: UserInfo) -> tuple[str, bool]:
    """What stands for it in the first line, and whether that is a group."""
    path = _path(user)
    return (path[0], True) if path else (user.user_id, False)


def _groups_of(user: UserInfo) -> Iterator[Path]:
    path = _path(user)
    for depth in range(1, len(path) + 1):
        yield path[:depth]


class _Part:
    """One user beside the others."""

    def __init__(self, user: UserInfo, entitled: float) -> None:
        self.user = user
        self.entitled = entitled
        self.mean = _mean_cost(user.metrics)
        self.got = user.metrics.recent_cost + user.started * self.mean
        self.share = self.running = self.could_have = 0.0

    def compare(self, total: float, running: int, ended: float) -> None:
        """With what all got, how many tasks of all run, and what came to an end, so that somebody else could start."""
        wanted = self.got + self.user.queued * self.mean
        self.share = self.got / total if total else 0.0
        self.running = self.user.started / running if running else 0.0
        self.could_have = min(self.entitled * ended, wanted)

    @property
    def wants_some(self) -> bool:
        """It waits, and no policy holds it back."""
        return self.user.tag is not None

    @property
    def is_ahead(self) -> bool:
        """It got more than its part."""
        return self.share > self.entitled

    @property
    def is_short(self) -> bool:
        """It waits, and could have had more; of who holds its part of the slots, no more can be asked for."""
        is_able = self.wants_some and self.could_have >= self.mean
        return is_able and max(self.share, self.running) < self.entitled and self.got < self.could_have

    def rated(self, *, others_are_short: bool) -> Share:
        verdict: Literal["", "noisy", "starved"] = ""
        if self.is_short and max(self.share, self.running) < STARVED * self.entitled:
            verdict = "starved" if self.got < STARVED * self.could_have else ""
        elif others_are_short and self.share > NOISY * self.entitled:
            verdict = "noisy"
        return Share(user_id=self.user.user_id, share=self.share, entitled=self.entitled, verdict=verdict)


def _mean_cost(measured: Metrics) -> float:
    """Of one service: lately, else at all."""
    if measured.recent_services > FADED:
        return measured.recent_cost / measured.recent_services
    services = measured.finished + measured.failed + measured.retried
    return measured.cost / services if services and measured.cost else 1.0
