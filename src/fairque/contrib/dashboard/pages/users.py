"""Users: those that were active last, page by page, or found by their ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

from fairque import InvalidInput, UserInfo
from fairque.contrib.dashboard.page import Page
from fairque.contrib.dashboard.pages.overview import flags_of
from fairque.contrib.dashboard.viewer import Viewer

__all__ = ["Users", "UsersPage"]

PAGE = 50
SAMPLE = 1000


class Users(NamedTuple):
    """A page of users. `sampled` is among how many an order other than by activity was made; 0: all of them."""

    users: Sequence[UserInfo]
    flags: Mapping[str, Sequence[str]]
    before: int | None
    after: int | None
    known: int
    sampled: int
    found: bool | None


class UsersPage(Page[Users]):
    """Whom there is."""

    name, path, title = "users", "users", "Users"
    in_navigation = True
    arguments: ClassVar[Sequence[str]] = ("find", "order", "from")
    orders: ClassVar[Mapping[str, str]] = {
        "": "last active",
        "waiting": "most waiting",
        "wait": "longest wait",
        "running": "most running",
        "dead": "most dead letters",
    }

    async def read(self, *about: str) -> Users:
        find, order, start = about
        stats = await self.queue.stats()
        if find:
            user = await self.queue.user(find)
            users, before, after, sampled = [user], None, None, 0
        elif order:
            users = _ordered(await self.queue.users(limit=SAMPLE), order)[:PAGE]
            before = after = None
            sampled = min(SAMPLE, stats.users_known)
        else:
            offset = _offset(start)
            users = await self.queue.users(offset=offset, limit=PAGE + 1)
            before = max(0, offset - PAGE) if offset else None
            after = offset + PAGE if len(users) > PAGE else None
            users, sampled = users[:PAGE], 0
        return Users(
            users=users,
            flags={user.user_id: flags_of(user, None, stats.at) for user in users},
            before=before,
            after=after,
            known=stats.users_known,
            sampled=sampled,
            found=_is_known(users[0]) if find else None,
        )

    def shown(self, _seen: Users, _viewer: Viewer) -> Mapping[str, Any]:
        return {"orders": self.orders}


def _ordered(users: Sequence[UserInfo], order: str) -> list[UserInfo]:
    keys: dict[str, Any] = {
        "waiting": lambda user: -user.queued,
        "wait": lambda user: -(user.wait_seconds or 0.0),
        "running": lambda user: -user.started,
        "dead": lambda user: -user.dead_letters,
    }
    if order not in keys:
        raise InvalidInput(f"users are ordered by {', '.join(keys)}, not {order!r}")
    return sorted(users, key=keys[order])


def _offset(text: str) -> int:
    if not text:
        return 0
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise InvalidInput(f"a page begins at a number, not {text!r}")
    return int(text)


def _is_known(user: UserInfo) -> bool:
    return user.seen_at is not None or any(
        (user.queued, user.started, user.scheduled, user.deferred, user.dead_letters, user.finished, user.failed)
    )
