"""`find_astray`: users of a queue with partitions whom nobody finds, as no partition says where they live."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import msgspec

from fairque.doctor.finding import Finding, FindingKind
from fairque.errors import InvalidInput, QueueUnavailable
from fairque.redis.keys import decode_user
from fairque.redis.partitions import partition_of
from fairque.redis.places import MovedUser
from fairque.redis.requester import pack
from fairque.redis.store import Store

__all__ = ["find_astray"]

STEP = 500


async def find_astray(parts: Sequence[Store], *, repair: bool) -> list[Finding]:
    """Of users who live elsewhere than their names lead. In a repair it is said again where they are.

    Partitions that do not answer say nothing: who lives there, or is looked for there, is passed over.
    """
    found: list[Finding] = []
    for part in parts:
        try:
            async for users in _strangers(part, parts):
                found += await _astray(part, parts, users, repair=repair)
        except QueueUnavailable:
            continue
    return found


async def _strangers(part: Store, parts: Sequence[Store]) -> AsyncIterator[list[str]]:
    """Who lives there, and not by its name; but for those who are on their way."""
    number, cursor = parts.index(part), 0
    while True:
        cursor, names = await part.users_beginning("", cursor, STEP)
        users = [name for name in names if partition_of(name, len(parts)) != number]
        still = [await part._insist(pack((b"EXISTS", f"{part.keys.prefix}frozen:{user}"))) for user in users]
        yield [user for user, stands_still in zip(users, still, strict=True) if not stands_still]
        if cursor == 0:
            return


async def _astray(part: Store, parts: Sequence[Store], users: list[str], *, repair: bool) -> list[Finding]:
    found = []
    for user in users:
        try:
            if not await _leads_to(part, parts, user):
                found.append(await _told(part, parts, user, repair=repair))
        except QueueUnavailable:
            continue
    return found


async def _leads_to(part: Store, parts: Sequence[Store], user: str) -> bool:
    """Whether whoever goes where the name leads is sent on to that partition in the end."""
    at = partition_of(user, len(parts))
    for _ in parts:
        told: bytes | None = await parts[at]._insist(pack((b"HGET", parts[at].keys.prefix + "moved", user)))
        if told is None:
            return False
        at = int(told.split()[0])
        if parts[at] is part:
            return True
    return False


async def _told(part: Store, parts: Sequence[Store], user: str, *, repair: bool) -> Finding:
    home, number = partition_of(user, len(parts)), parts.index(part)
    finding = Finding(
        kind=FindingKind.ASTRAY,
        key="moved",
        user_id=decode_user(user.encode()),
        detail=f"lives in partition {number}, and partition {home} does not say so",
        partition=home,
    )
    if not repair:
        return finding
    epoch = max([await each.epoch_of(user) for each in parts])
    try:
        await parts[home].forward(MovedUser(user, number, max(await part.now_ms(), epoch + 1)))
    except InvalidInput:
        return msgspec.structs.replace(finding, how="it has something in both: purge it in one of them")
    return msgspec.structs.replace(finding, mended=True, how="said there")
