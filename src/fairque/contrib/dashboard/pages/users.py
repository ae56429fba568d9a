"""Users: those that were active last, page by page, or found by the beginning of their ids."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

from fairque import UserOrder, UserPage, UserStatus
from fairque.contrib.dashboard.page import Page
from fairque.contrib.dashboard.viewer import Viewer
from fairque.contrib.dashboard.words import flags_in

__all__ = ["Users", "UsersPage"]

PAGE = 50


class Users(NamedTuple):
    """A page of users, at one moment."""

    page: UserPage
    now: float
    slots: int


class UsersPage(Page[Users]):
    """Whom there is."""

    name, path, title = "users", "users", "Users"
    in_navigation = True
    arguments: ClassVar = ("find", "order", "after")
    orders: ClassVar[Mapping[str, str]] = {
        UserOrder.ACTIVITY: "last active",
        UserOrder.WAITING: "most waiting",
        UserOrder.WAIT: "longest wait",
        UserOrder.RUNNING: "most running",
        UserOrder.DEAD: "most dead letters",
    }

    async def read(self, *about: str) -> Users:
        find, order, after = about
        by = UserOrder.ACTIVITY if find else order or UserOrder.ACTIVITY
        page = await self.queue.find_users(prefix=find, order=by, limit=PAGE, after=after or None)
        stats = await self.queue.stats()
        return Users(page, stats.at, stats.slots)

    def shown(self, seen: Users, _: Viewer) -> Mapping[str, Any]:
        users = seen.page.users
        return {
            "orders": self.orders,
            "flags": {user.user_id: flags_in(UserStatus.of(user, None, seen.now, seen.slots)) for user in users},
        }
