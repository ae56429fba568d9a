"""The arguments of the scripts of this folder; see `fairque.redis.arguments`."""

from __future__ import annotations

from fairque.redis.arguments import Arguments

__all__ = ["Advance", "Waiting"]


class Advance(Arguments, frozen=True):
    """most: users, and tasks, that are moved at most."""

    ms: int
    nonce: str
    most: int


class Waiting(Arguments, frozen=True):
    """place: critical, normal, held, scheduled or deferred."""

    user: str
    place: str
    offset: int
    most: int
