"""`find_apart`: users of a queue with partitions who live in another one than the group in which they are."""

from __future__ import annotations

from fairque.doctor.finding import Finding, FindingKind
from fairque.errors import FairqueError, QueueUnavailable
from fairque.redis.keys import decode_user
from fairque.redis.places import root_of
from fairque.redis.requester import pack
from fairque.redis.store import Store
from fairque.transfer.group_moves import governed_in
from fairque.transfer.moving import move

__all__ = ["find_apart"]


async def find_apart(store: Store, *, repair: bool) -> list[Finding]:
    """In a repair they are carried to their groups. Partitions that do not answer say nothing."""
    found: list[Finding] = []
    homes: dict[str, Store] = {}
    for number, part in enumerate(store.parts):
        try:
            async for user, fields in governed_in(part, "policy-users"):
                if (group := fields.get("group")) is None:
                    continue
                if (root := root_of(group)) not in homes:
                    homes[root] = await store.home_of(root)
                if homes[root] is not part and not await _is_on_its_way(part, user):
                    found.append(await _told(store, user, number, store.parts.index(homes[root]), repair=repair))
        except QueueUnavailable:
            continue
    return found


async def _is_on_its_way(part: Store, user: str) -> bool:
    stands_still = await part._insist(pack((b"EXISTS", f"{part.keys.prefix}frozen:{user}")))
    return bool(stands_still) or await part.epoch_of(user) > 0


async def _told(store: Store, user: str, number: int, home: int, *, repair: bool) -> Finding:
    user_id, how = decode_user(user.encode()), ""
    if repair:
        try:
            await move(store, user_id, home)
        except FairqueError as exc:
            how = str(exc)
    return Finding(
        kind=FindingKind.APART,
        key=f"policy:{user}",
        user_id=user_id,
        detail=f"its group lives in partition {home}",
        mended=repair and not how,
        how=how or ("carried there" if repair else ""),
        partition=number,
    )
