"""`move_group`: a group carried to another partition, and then all who are in it, one after the other.

    forward  where it goes: it lives there
    policy   there: weights of the group, and of the groups in it
    forward  where it lived, and where its name leads to: from now on it lives there
    policy   there: what was said where it lived until then
    move     each of its users, who were together and are again
    policy   where it lived: nothing is left of it

Until the last of them has come there are two of it, each with its weight: together they take at most twice its share,
and who is not in it keeps more than half of what it had. Whoever is at it may die: called again, it goes on with those
who are not there yet.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import Any, Literal

from fairque.policy import legible, stored_in
from fairque.redis.keys import decode_user
from fairque.redis.partitions import partition_of
from fairque.redis.places import HERE, MovedUser, root_of
from fairque.redis.store import Store
from fairque.transfer.moving import InGroup, check_partition, move

__all__ = ["governed_in", "move_group"]

PAGE = 1000


async def move_group(store: Store, group: str, partition: int) -> int:
    """Returns how many users were carried. `group` is the root of one, as Redis has it. Raises what `move` raises."""
    await check_partition(store, partition)
    root, target = root_of(group), store.parts[partition]
    if await store.home_of(root) is not target:
        await _take_there(store, root, partition)
    carried = 0
    for part in store.parts:
        if part is not target:
            async for user in _members_in(part, root):
                with contextlib.suppress(InGroup):  # in another one by now
                    moved = await move(store, decode_user(user.encode()), partition)
                    carried += moved.records > 0
            await _forget(part, root)
    return carried


async def _take_there(store: Store, root: str, partition: int) -> None:
    home, target = await store.home_of(root), store.parts[partition]
    epoch = max(await target.now_ms(), 1 + max([await part.epoch_of(root) for part in store.parts]))
    await target.forward(MovedUser(root, HERE, epoch))
    left = {name: fields async for name, fields in _groups_in(target, root)}  # by a move that was broken off
    taken = await _take_weights(home, target, root, left)
    moved = MovedUser(root, partition, epoch)
    await home.forward(moved)
    if (first := store.parts[partition_of(root, len(store.parts))]) not in (home, target):
        await first.forward(moved)
    store.places.learn(moved)
    await _take_weights(home, target, root, taken)


async def _take_weights(home: Store, target: Store, root: str, before: Mapping[str, Any]) -> dict[str, Any]:
    """What was not so before: from its last word on nobody changes it where it lived."""
    found = {name: fields async for name, fields in _groups_in(home, root)}
    for name in before.keys() - found.keys():
        await target.set_policy(name, {}, ["*"])
    for name, fields in found.items():
        if before.get(name) != fields:
            await target.set_policy(name, fields)
    return found


async def _members_in(part: Store, root: str) -> AsyncIterator[str]:
    """Users of a group, by their names in Redis, who live in a partition."""
    async for name, fields in governed_in(part, "policy-users"):
        if "group" in fields and root_of(fields["group"]) == root:
            yield name


async def _groups_in(part: Store, root: str) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    async for name, fields in governed_in(part, "policy-groups"):
        if root_of(name) == root:
            yield name, fields


async def governed_in(
    part: Store, index: Literal["policy-users", "policy-groups"]
) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    """Names as Redis has them, and their policies as they are written there. Those that are damaged are passed over."""
    after = ""
    while rows := await part.governed(index, after, PAGE):
        for name, packed in rows:
            if (fields := legible(packed, stored_in)) is not None:
                yield name.decode(), fields
        after = rows[-1][0].decode()


async def _forget(part: Store, root: str) -> None:
    for name in [name async for name, _ in _groups_in(part, root)]:
        await part.forget_group_behind(name)
