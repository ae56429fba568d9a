"""Whom a worker serves."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fairque.checks import check_id
from fairque.errors import InvalidInput
from fairque.models import EVERYONE, UserGroup
from fairque.redis.keys import encode_user

__all__ = ["assignment", "shown"]

MAX_USERS = 1000


def assignment(assigned: Iterable[str], targets: Iterable[str]) -> list[UserGroup]:
    """The groups of users that are served, first to last; an empty one is everyone. Raises `InvalidInput`."""
    groups: list[UserGroup] = []
    for name, users in (("assigned_users", assigned), ("steal_targets", targets)):
        if isinstance(users, str):
            raise InvalidInput(f"{name} must be a list of user ids, not the str {users!r}")
        named = [check_id(f"an entry of {name}", user) for user in users]
        if len(named) > MAX_USERS:
            raise InvalidInput(f"{name} has {len(named)} entries, the limit is {MAX_USERS}; use '*' for everyone")
        if EVERYONE in named:
            groups.append(())
            break  # everyone includes whoever could follow
        if named:
            groups.append(named)
    if not groups:
        raise InvalidInput("a worker needs assigned_users or steal_targets")
    return groups


def shown(groups: Sequence[UserGroup]) -> str:
    """As a worker tells it to others: encoded users, or ``*``."""
    return " ".join(encode_user(user) for group in groups for user in group) if all(groups) else EVERYONE
