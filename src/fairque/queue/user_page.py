"""`UserPage`: users in an order, or whose ids begin alike, page by page."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from enum import StrEnum

import msgspec

from fairque.checks import check_count, is_text
from fairque.errors import InvalidInput
from fairque.models import UserInfo
from fairque.redis.keys import encode_user
from fairque.redis.missing import noting_missing
from fairque.redis.partitions import MOST_PARTITIONS
from fairque.redis.store import Store
from fairque.redis.store_sights import NamedPage

__all__ = ["UserOrder", "UserPage", "find_users"]

MOST_LISTED = 1000
SAMPLE = 150
"""Of each kind of users that are compared."""
LETTERS = 1000
LANES = 2000
MOST_LOOKED_AT = 100_000
MOST_AT_ONCE = 10_000
LEAST_AT_ONCE = 10
RARE = 0.01
MOST_CHARACTERS = 512


class UserOrder(StrEnum):
    """How users are sorted. Only the first one goes by all of them, the others by a sample."""

    ACTIVITY = "activity"  # the most recently active first
    WAITING = "waiting"  # the most tasks that wait for their turn
    WAIT = "wait"  # the longest wait of the next task
    RUNNING = "running"
    DEAD = "dead"  # the most dead letters


_KEYS: dict[UserOrder, Callable[[UserInfo], float]] = {
    UserOrder.WAITING: lambda user: user.queued,
    UserOrder.WAIT: lambda user: user.wait_seconds or 0.0,
    UserOrder.RUNNING: lambda user: user.started,
    UserOrder.DEAD: lambda user: user.dead_letters,
}


class UserPage(msgspec.Struct, frozen=True, kw_only=True):
    """Some users of a queue.

    `known` is how many users the queue knows, `looked_at` how many of them were looked at for this page. `is_sample`:
    there may be others that belong on it. `after` is for the next page, None at the end; when ids are searched, there
    may be a next page although this one is short, or empty. `missing` are partitions that did not answer: their users
    are not on it, and not in `known`.
    """

    users: tuple[UserInfo, ...]
    known: int
    looked_at: int
    is_sample: bool = False
    after: str | None = None
    missing: tuple[int, ...] = ()


async def find_users(store: Store, prefix: str, order: UserOrder | str, limit: int, after: str | None) -> UserPage:
    """See `TaskQueue.find_users`."""
    check_count("limit", limit, 1, MOST_LISTED)
    by = _order(order)
    if prefix and by is not UserOrder.ACTIVITY:
        raise InvalidInput(f"a search for ids comes by id: leave order {str(by)!r} out")
    with noting_missing() as missing:
        page = await _page(store, prefix, by, limit, after)
    return msgspec.structs.replace(page, missing=missing.numbers)


async def _page(store: Store, prefix: str, by: UserOrder, limit: int, after: str | None) -> UserPage:
    if prefix:
        return await _beginning(store, _encoded(prefix), limit, _cursor(after))
    if by is UserOrder.ACTIVITY:
        return await _by_activity(store, limit, _place(after))
    if after is not None:
        raise InvalidInput(f"users by {str(by)!r} are a sample, which has no next page")
    return await _of_sample(store, by, limit)


def _order(order: UserOrder | str) -> UserOrder:
    try:
        return UserOrder(order)
    except ValueError:
        raise InvalidInput(f"order must be {', '.join(UserOrder)}, not {order!r}") from None


def _encoded(prefix: str) -> str:
    if not is_text(prefix) or len(prefix) > MOST_CHARACTERS:
        raise InvalidInput(f"prefix must be a str of at most {MOST_CHARACTERS} characters in UTF-8, not {prefix!r}")
    return encode_user(prefix)


def _cursor(after: str | None) -> int:
    if after is None:
        return 0
    is_number = isinstance(after, str) and after.isascii() and after.isdigit() and len(after) <= 23
    if not is_number or int(after) >= 2**64 * MOST_PARTITIONS:
        raise InvalidInput(f"after must be that of the page before, not {after!r}")
    return int(after)


def _place(after: str | None) -> tuple[int, str] | None:
    if after is None:
        return None
    ms, _, name = after.partition(":") if isinstance(after, str) else ("", "", "")
    if not (ms.isascii() and ms.isdigit() and len(ms) <= 15 and name and name.isascii()):
        raise InvalidInput(f"after must be that of the page before, not {after!r}")
    return int(ms), name


async def _by_activity(store: Store, limit: int, after: tuple[int, str] | None) -> UserPage:
    page: NamedPage = await store.user_names(limit, after)
    then = f"{page.after[0]}:{page.after[1]}" if page.after is not None else None
    users = await store.named_users(page.names)
    return UserPage(users=tuple(users), known=page.known, looked_at=len(page.names), after=then)


async def _of_sample(store: Store, by: UserOrder, limit: int) -> UserPage:
    page, active, (busy, _), failing = await asyncio.gather(
        store.user_names(SAMPLE),
        store.active_names(SAMPLE),
        store.holders(SAMPLE, LANES),
        store.failing_users(LETTERS if by is UserOrder.DEAD else 1),
    )
    names = list(dict.fromkeys((*page.names, *active, *busy, *failing)))
    found = sorted(await store.named_users(names), key=lambda user: (-_KEYS[by](user), user.user_id))
    return UserPage(
        users=tuple(found[:limit]), known=page.known, looked_at=len(names), is_sample=page.known > len(names)
    )


async def _beginning(store: Store, prefix: str, limit: int, cursor: int) -> UserPage:
    """The user of just this id is on the first page, however far the search has come."""
    page, (names, then, looked_at) = await asyncio.gather(
        store.user_names(1), _Search(store, prefix, limit).run(cursor)
    )
    own = () if cursor else (prefix,)
    users = await store.named_users(sorted({*own, *names}))
    return UserPage(
        users=tuple(user for user in users if _is_known(user)),
        known=page.known,
        looked_at=min(looked_at, page.known),
        is_sample=then != 0,
        after=str(then) if then else None,
    )


def _is_known(user: UserInfo) -> bool:
    """One that was silent for a week may have something yet."""
    counts = user.queued, user.started, user.scheduled, user.deferred, user.dead_letters, user.finished, user.failed
    return user.seen_at is not None or any(counts)


class _Search:
    """Goes through the users, a bounded number at a time, until it has enough.

    Steps grow while what is looked for is rare. One that found too many is made again, smaller: else those beyond the
    limit would be left out.
    """

    def __init__(self, store: Store, prefix: str, limit: int) -> None:
        self._store = store
        self._prefix = prefix
        self._limit = limit

    async def run(self, cursor: int) -> tuple[list[str], int, int]:
        """Those that were found, where the next page begins, 0 at the end, and about how many were looked at."""
        found: dict[str, None] = {}
        looked_at, step = 0, max(LEAST_AT_ONCE, self._limit)
        while looked_at < MOST_LOOKED_AT:
            then, names = await self._store.users_beginning(self._prefix, cursor, step)
            if len(found) + len(names) > self._limit and step > LEAST_AT_ONCE:
                if found:
                    break
                step = LEAST_AT_ONCE
                continue
            looked_at += step
            cursor = then
            found.update(dict.fromkeys(names))
            if not cursor or len(found) >= self._limit:
                break
            step = min(MOST_AT_ONCE, 8 * step) if len(names) < RARE * step else step
        return list(found), cursor, looked_at
