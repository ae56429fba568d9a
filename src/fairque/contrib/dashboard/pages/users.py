"""Users: those that were active last, page by page, or found by the beginning of their ids."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

from fairque import UserOrder, UserPage, UserStatus
from fairque.contrib.dashboard.page import Page
from fairque.contrib.dashboard.reader import Key
from fairque.contrib.dashboard.viewer import Viewer
from fairque.contrib.dashboard.words import flags_in

__all__ = ["Users", "UsersPage"]

PAGE = 50


class Users(NamedTuple):
    """A page of users, at one moment. `find` and `after` are what was asked for."""

    page: UserPage
    find: str
    after: str
    now: float
    slots: int


class UsersPage(Page[Users]):
    """Whom there is."""

    name, path, title = "users", "users", "Users"
    in_navigation = True
    arguments: ClassVar = ("find", "order", "after")
    parts = ("known", "users")
    orders: ClassVar[Mapping[str, str]] = {
        UserOrder.ACTIVITY: "last active",
        UserOrder.WAITING: "most waiting",
        UserOrder.WAIT: "longest wait",
        UserOrder.RUNNING: "most running",
        UserOrder.DEAD: "most dead letters",
    }

    def is_live(self, about: Key) -> bool:
        """The first page by activity, one look for all: other orders cost the server five times as much, and there are
        as many other pages as somebody asks for."""
        find, order, after = about
        return not find and not after and order in ("", UserOrder.ACTIVITY)

    async def read(self, *about: str) -> Users:
        find, order, after = about
        by = UserOrder.ACTIVITY if find else order or UserOrder.ACTIVITY
        page = await self.queue.find_users(prefix=find, order=by, limit=PAGE, after=after or None)
        stats = await self.queue.stats()
        return Users(page, find, after, stats.at, stats.slots)

    def shown(self, seen: Users, _: Viewer) -> Mapping[str, Any]:
        users = seen.page.users
        return {
            "orders": self.orders,
            "flags": {user.user_id: flags_in(UserStatus.of(user, None, seen.now, seen.slots)) for user in users},
        }
