"""What tells whether a queue is well."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import msgspec

from fairque.doctor.damaged import damaged_users
from fairque.models import QueueHealth, QueueStats, UserInfo, WorkerInfo
from fairque.policy import Policy, legible, policy_in
from fairque.redis.keys import decode_user
from fairque.redis.missing import noting_missing
from fairque.redis.store import NO_EVICTION, HealthFacts, Store

__all__ = ["USERS", "damaged_in", "governed_users", "health_in", "look_at_health"]

USERS = 100  # whose next task is looked at
POLICIES = 1000


async def look_at_health(store: Store) -> QueueHealth:
    with noting_missing() as missing:
        stats, found, governed = await asyncio.gather(store.stats(), store.health(USERS), governed_users(store))
        damaged = await damaged_in(store, found)
        active = await store.active_users(USERS)
    return health_in(msgspec.structs.replace(stats, missing=missing.numbers), found, governed, active, damaged)


async def governed_users(store: Store) -> dict[str, Policy]:
    """Users with a policy of their own, at most so many as are looked at."""
    rows = await store.governed("policy-users", "", POLICIES)
    return {decode_user(name): found for name, packed in rows if (found := legible(packed, policy_in)) is not None}


async def damaged_in(store: Store, found: HealthFacts) -> tuple[str, ...]:
    """Those that claims leave alone, and of those that became ready last whose keys contradict each other."""
    return tuple(dict.fromkeys((*map(decode_user, found.left_alone), *await damaged_users(store, found.recent))))


def health_in(
    stats: QueueStats,
    found: HealthFacts,
    governed: Mapping[str, Policy],
    active: Sequence[UserInfo],
    damaged: tuple[str, ...],
) -> QueueHealth:
    """From what the scripts found; `active` are users with something to do."""
    memory = found.memory
    return QueueHealth(
        stats=stats,
        longest_wait=max((user.wait_seconds or 0.0 for user in active), default=0.0),
        dead_letters=found.letters,
        blocking=found.blocking,
        late=_late(found.due_ms, stats.at),
        schedule_late=_late(found.fires_ms, stats.at),
        memory_policy=memory.get("maxmemory_policy", NO_EVICTION),
        memory_used=int(memory.get("used_memory", 0)),
        memory_limit=int(memory.get("maxmemory", 0)),
        min_running_users=_beyond_slots(_reservations(governed, active), stats.slots),
        unserved_users=_unserved(active, stats.workers),
        damaged_users=damaged,
    )


def _reservations(governed: Mapping[str, Policy], active: Sequence[UserInfo]) -> dict[str, int]:
    """Of those that have one by a policy of their own, or by the defaults and are active."""
    least = {user_id: policy.min_running or 0 for user_id, policy in governed.items()}
    least |= {user.user_id: user.policy.min_running or 0 for user in active}
    return {user_id: count for user_id, count in sorted(least.items()) if count}


def _beyond_slots(reservations: dict[str, int], slots: int) -> tuple[str, ...]:
    return tuple(reservations) if 0 < slots <= sum(reservations.values()) else ()


def _unserved(active: Sequence[UserInfo], workers: Sequence[WorkerInfo]) -> tuple[str, ...]:
    """Without any worker, that is what is wrong."""
    if not workers or any(worker.serves is None for worker in workers):
        return ()
    served = {user_id for worker in workers for user_id in worker.serves or ()}
    return tuple(user.user_id for user in active if user.tag is not None and user.user_id not in served)


def _late(since_ms: int | None, now: float) -> float:
    return max(0.0, now - since_ms / 1000) if since_ms is not None else 0.0
