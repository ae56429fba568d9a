"""`Overview`: a queue at one glance, at a cost that does not grow with it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import msgspec

from fairque.models import QueueHealth, QueueStats, UserInfo
from fairque.queue.demand import COOLDOWN, Demand, load_in
from fairque.queue.health import USERS, governed_users, health_in
from fairque.queue.health_checks import HealthCheck, Severity, checks_of, worst
from fairque.queue.shares import Shares, look_at_shares
from fairque.queue.user_status import UserStatus, user_statuses
from fairque.redis.keys import decode_user
from fairque.redis.missing import noting_missing
from fairque.redis.store import Store

__all__ = ["Holder", "Overview", "look_over"]

TARGET_WAIT = 10.0
MOST_LANES = 1000
MOST_RUNNING = 100
"""Tasks that run, which stand for the others when the demand is worked out."""
MOST_HOLDERS = 20


class Holder(msgspec.Struct, frozen=True):
    """What a user holds of the slots, and what it is entitled to, both from 0 to 1. `entitled` is None where it is not
    known: it had nothing to do lately.
    """

    user: UserInfo
    status: UserStatus
    held: float
    entitled: float | None


class Overview(msgspec.Struct, frozen=True, kw_only=True):
    """What was there at one moment.

    `users` are those with something to do, those that hold most, and then those that were active last; `shares` and
    `statuses` (by user id) are of these. `demand` is for a wait of 10 seconds. `checks` tell what is wrong, in words,
    by the thresholds that `fairque health` has where none are given. `is_sample`: tasks of more users run than were
    looked at for those that hold most.
    """

    queue: str
    stats: QueueStats
    users: tuple[UserInfo, ...]
    shares: Shares
    statuses: Mapping[str, UserStatus]
    demand: Demand
    health: QueueHealth
    checks: tuple[HealthCheck, ...]
    is_sample: bool = False

    @property
    def problems(self) -> tuple[HealthCheck, ...]:
        """Those checks that are not fine, the worst first."""
        found = [check for check in self.checks if check.status is not Severity.OK]
        return tuple(sorted(found, key=lambda check: check.status is not Severity.CRITICAL))

    @property
    def severity(self) -> Severity:
        """That of the worst problem."""
        return worst(self.checks)

    def holders(self, most: int = MOST_HOLDERS) -> tuple[Holder, ...]:
        """Those who hold the most slots, the largest first, and behind them those who are starved, at most so many."""
        by_held = sorted(self.users, key=lambda user: (-user.started, user.user_id))
        holding = [user for user in by_held if user.started][:most]
        starved = [user for user in by_held if "starved" in self.statuses[user.user_id].flags and user not in holding]
        return tuple(self._holder(user) for user in (*holding, *starved[:most]))

    def _holder(self, user: UserInfo) -> Holder:
        status = self.statuses[user.user_id]
        slots = max(self.stats.slots, self.stats.started)
        held = user.started / slots if slots else 0.0
        return Holder(user, status, held, status.share.entitled if status.share is not None else None)


async def look_over(store: Store, queue: str, most: int) -> Overview:
    """In two steps, in each of which all is asked at once: what of the queue, and of whom; then what of these.

    Of damaged users it tells those that claims leave alone: to look for others takes longer than all the rest.
    """
    with noting_missing() as missing:
        (stats, facts, running, governed), (recent, (busy, is_part), active) = await asyncio.gather(
            asyncio.gather(store.stats(), store.health(USERS), store.demand(MOST_RUNNING), governed_users(store)),
            asyncio.gather(store.user_names(most), store.holders(MOST_HOLDERS, MOST_LANES), store.active_names(most)),
        )
        seen = await store.seen_named_users(list(dict.fromkeys((*active, *busy, *recent.names))))
    stats = msgspec.structs.replace(stats, missing=missing.numbers)
    users, shares = seen.users, await look_at_shares(store, seen.users, stats, seen.of_all)
    statuses = user_statuses(users, shares, stats.at, stats.slots)
    health = health_in(stats, facts, governed, users, tuple(map(decode_user, facts.left_alone)))
    return Overview(
        queue=queue,
        stats=stats,
        users=tuple(users),
        shares=shares,
        statuses=statuses,
        demand=load_in(stats, running).demand(TARGET_WAIT, COOLDOWN),
        health=health,
        checks=tuple(checks_of(health, list(statuses.values()))),
        is_sample=is_part,
    )
