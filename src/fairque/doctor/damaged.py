"""`damaged_users`: a glance at some users, without walking through the queue."""

from __future__ import annotations

from collections.abc import Sequence

from fairque.doctor.steps import batched
from fairque.redis.dividing import divided, of_those_there
from fairque.redis.keys import decode_user
from fairque.redis.store import Store

__all__ = ["damaged_users"]

STEP = 25


async def damaged_users(store: Store, users: Sequence[bytes]) -> tuple[str, ...]:
    """Those, by their names in Redis, whose lanes, streams and places in line contradict each other."""
    if await store.is_divided(store=False):
        homes = divided(users, lambda user: store.part_of(user.decode()))
        found_in = await of_those_there(homes, lambda home: damaged_users(home, homes[home][1]))
        return tuple(user for users_there in found_in for user in users_there)
    found = []
    for some in batched(users, STEP):
        answers = await store.check([("user", user.decode(), "") for user in some])
        found += [decode_user(user) for user, wrong in zip(some, answers, strict=True) if wrong]
    return tuple(found)
