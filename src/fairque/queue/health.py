"""What tells whether a queue is well."""

from __future__ import annotations

from fairque.models import QueueHealth
from fairque.redis.store import NO_EVICTION, Store

__all__ = ["look_at_health"]

USERS = 100  # whose next task is looked at


async def look_at_health(store: Store) -> QueueHealth:
    stats = await store.stats()
    letters, due_ms, fires_ms, memory = await store.health()
    active = await store.active_users(USERS)
    return QueueHealth(
        stats=stats,
        longest_wait=max((user.wait_seconds or 0.0 for user in active), default=0.0),
        dead_letters=letters,
        late=_late(due_ms, stats.at),
        schedule_late=_late(fires_ms, stats.at),
        memory_policy=memory.get("maxmemory_policy", NO_EVICTION),
        memory_used=int(memory.get("used_memory", 0)),
        memory_limit=int(memory.get("maxmemory", 0)),
    )


def _late(since_ms: int | None, now: float) -> float:
    return max(0.0, now - since_ms / 1000) if since_ms is not None else 0.0
