"""`Viewer`: who looks, and what it may see and do."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable

from starlette.requests import Request
from starlette.responses import Response

from fairque import EVERYBODY, Everybody, InvalidInput
from fairque.checks import check_list
from fairque.everybody import check_user

__all__ = ["Authorize", "Viewer"]


class Viewer:
    """Who looks at the dashboard. Everything that is not said is denied.

    Args:
        name: Of whom, for the audit log and for the limit of open pages: a login, not a secret.
        users: Whose data it sees: `EVERYBODY`, for an operator, or the ids of users. Who sees some users only sees
            their pages and nothing else: no page of the queue, no counts of others, and no names of workers.
        acts: Whether it may act: cancel, requeue, discard; an operator may pause users and run checks as well.
        payloads: Whether it sees what tasks carry: results, chunks, headers, progress texts, messages and tracebacks
            of errors.

    Raises:
        InvalidInput: A value breaks a rule.
    """

    def __init__(
        self, name: str, *, users: Everybody | Iterable[str], acts: bool = False, payloads: bool = False
    ) -> None:
        if not isinstance(name, str) or not name:
            raise InvalidInput(f"the name of a viewer must be a text that is not empty, not {name!r}")
        self.name = name
        self.users = None if users is EVERYBODY else tuple(check_user("user_id", each) for each in _listed(users))
        self.acts = bool(acts)
        self.payloads = bool(payloads)

    @property
    def is_operator(self) -> bool:
        """Whether it sees the whole queue."""
        return self.users is None

    def sees(self, user_id: str) -> bool:
        """Whether it sees the data of this user."""
        return self.users is None or user_id in self.users

    @property
    def rights(self) -> tuple[object, ...]:
        """All that makes a difference."""
        whose = None if self.users is None else frozenset(self.users)
        return (self.name, whose, self.acts, self.payloads)

    def __repr__(self) -> str:
        whose = "EVERYBODY" if self.users is None else list(self.users)
        return f"Viewer({self.name!r}, users={whose}, acts={self.acts}, payloads={self.payloads})"


Authorize = Callable[[Request], Viewer | Response | Awaitable[Viewer | Response | None] | None]
"""Says who asks: a `Viewer`; None, who is refused; or an answer of its own, such as the way to a login. It is asked for
each request, and each minute again for pages that stay open."""


def _listed(users: Everybody | Iterable[str]) -> Iterable[str]:
    if isinstance(users, Everybody):
        return ()
    return check_list("users", users)
