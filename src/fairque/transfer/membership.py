"""`write_policy`: changes a policy; a user who is to be in a group is carried to where that lives before.

In a queue with partitions a group is served by one choice, so all who are in it live in one partition: where its root
lives, the first name of its path, by the hash of that or where the group was moved to.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

from fairque.errors import QueueUnavailable
from fairque.policy import stored_in
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
            await _join(store, bulk, exc)
        else:
            return
    raise QueueUnavailable(f"user {decode_user(whose.encode())!r} is moved elsewhere each time by others: call again")


async def _join(store: Store, bulk: Store, apart: MembersApart) -> None:
    """It leaves the group in which it is before, as who is in one does not leave that alone."""
    [before] = await store.policies([apart.user])
    if "group" in stored_in(before):
        await store.set_policy(apart.user, {}, ["group"])
    with contextlib.suppress(InGroup):  # another put it into one meanwhile
        await move(bulk, decode_user(apart.user.encode()), apart.partition)
