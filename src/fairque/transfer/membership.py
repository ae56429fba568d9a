"""`write_policy`: changes a policy; a user who is to be in a group is carried to where that lives, and is in it there.

In a queue with partitions a group is served by one choice, so all who are in it live in one partition: where its root
lives, the first name of its path, by the hash of that or where the group was moved to.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

from fairque.errors import QueueUnavailable
from fairque.policy import PolicyChange
from fairque.redis.keys import decode_user
from fairque.redis.places import MembersApart
from fairque.redis.store import Store
from fairque.transfer.moving import InGroup, move

__all__ = ["write_policy"]

MOST_TRIES = 8
"""Others may move the user, or the group, at the same time."""


async def write_policy(
    store: Store, bulk: Store, whose: str, changes: Mapping[str, Any], forget: Sequence[str] = ()
) -> None:
    """See `Store.set_policy`. Raises what `move` raises.

    Args:
        store: For the policy.
        bulk: For what is carried.
    """
    for _ in range(MOST_TRIES):
        try:
            await store.set_policy(whose, changes, forget)
        except MembersApart as exc:
            if await _join(bulk, exc, PolicyChange(changes, forget)):
                return
        else:
            return
    raise QueueUnavailable(f"user {decode_user(whose.encode())!r} is moved elsewhere each time by others: call again")


async def _join(store: Store, apart: MembersApart, change: PolicyChange) -> bool:
    """Whether it was carried there, and its policy with it: until then it is in the group in which it was."""
    with contextlib.suppress(InGroup):  # which has moved on meanwhile
        moved = await move(store, decode_user(apart.user.encode()), apart.partition, change)
        return moved.records > 0  # else it lived there by then
    return False
