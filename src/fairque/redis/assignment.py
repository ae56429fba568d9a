"""`Assignment`: a list of users that workers serve, by the name under which the scripts know it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

from fairque.everybody import EVERYONE
from fairque.models import UserGroup
from fairque.redis.keys import encode_user

__all__ = ["Assignment", "assignments_of"]


class Assignment(NamedTuple):
    """`users` are encoded; none of them where everybody is served, whose name is ``*``."""

    name: str
    users: tuple[str, ...] = ()


def assignments_of(groups: Sequence[UserGroup]) -> tuple[Assignment, ...]:
    """What is served, first to last, of groups of which an empty one is everyone. Of each user the first counts."""
    return _assignments_of(tuple(map(tuple, groups)))


@lru_cache(maxsize=256)
def _assignments_of(groups: tuple[tuple[str, ...], ...]) -> tuple[Assignment, ...]:
    return tuple(_named(groups))


def _named(groups: tuple[tuple[str, ...], ...]) -> Iterator[Assignment]:
    known: set[str] = set()
    for group in groups:
        users = sorted({encode_user(user) for user in group} - known)
        known.update(users)
        if not group:
            yield Assignment(EVERYONE)
        elif users:
            yield Assignment(hashlib.sha256(" ".join(users).encode()).hexdigest()[:16], tuple(users))
