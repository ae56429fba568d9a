"""What tells whether a queue is well."""

from __future__ import annotations

from collections.abc import Sequence

from fairque.doctor.damaged import damaged_users
from fairque.errors import StoreError
from fairque.models import QueueHealth, UserInfo, WorkerInfo
from fairque.policy import policy_in
from fairque.redis.keys import decode_user
from fairque.redis.store import NO_EVICTION, Store

__all__ = ["look_at_health"]

USERS = 100  # whose next task is looked at
POLICIES = 1000


async def look_at_health(store: Store) -> QueueHealth:
    stats = await store.stats()
    letters, blocking, due_ms, fires_ms, recent, left_alone, memory = await store.health(USERS)
    damaged = tuple(dict.fromkeys((*map(decode_user, left_alone), *await damaged_users(store, recent))))
    active = await _active(store, is_damaged=bool(damaged))
    return QueueHealth(
        stats=stats,
        longest_wait=max((user.wait_seconds or 0.0 for user in active), default=0.0),
        dead_letters=letters,
        blocking=blocking,
        late=_late(due_ms, stats.at),
        schedule_late=_late(fires_ms, stats.at),
        memory_policy=memory.get("maxmemory_policy", NO_EVICTION),
        memory_used=int(memory.get("used_memory", 0)),
        memory_limit=int(memory.get("maxmemory", 0)),
        min_running_users=_beyond_slots(await _reservations(store, active), stats.workers),
        unserved_users=_unserved(active, stats.workers),
        damaged_users=damaged,
    )


async def _active(store: Store, *, is_damaged: bool) -> list[UserInfo]:
    """Nobody, where a damaged key does not let one look: that is told by then."""
    try:
        return await store.active_users(USERS)
    except StoreError:
        if not is_damaged:
            raise
        return []


async def _reservations(store: Store, active: Sequence[UserInfo]) -> dict[str, int]:
    """Of those that have one by a policy of their own, or by the defaults and are active."""
    own = {decode_user(name): policy_in(packed) for name, packed in await store.governed("policy-users", "", POLICIES)}
    least = {user_id: policy.min_running or 0 for user_id, policy in own.items()}
    least |= {user.user_id: user.policy.min_running or 0 for user in active}
    return {user_id: count for user_id, count in sorted(least.items()) if count}


def _beyond_slots(reservations: dict[str, int], workers: Sequence[WorkerInfo]) -> tuple[str, ...]:
    slots = sum(worker.concurrency for worker in workers)
    return tuple(reservations) if 0 < slots <= sum(reservations.values()) else ()


def _unserved(active: Sequence[UserInfo], workers: Sequence[WorkerInfo]) -> tuple[str, ...]:
    """Without any worker, that is what is wrong."""
    if not workers or any(worker.serves is None for worker in workers):
        return ()
    served = {user_id for worker in workers for user_id in worker.serves or ()}
    return tuple(user.user_id for user in active if user.tag is not None and user.user_id not in served)


def _late(since_ms: int | None, now: float) -> float:
    return max(0.0, now - since_ms / 1000) if since_ms is not None else 0.0
