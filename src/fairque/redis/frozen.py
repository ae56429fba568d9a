"""What is said of a user that stands still: lua/lib/frozen.lua."""

from __future__ import annotations

from fairque.errors import UserFrozen
from fairque.redis.keys import decode_user

__all__ = ["FROZEN", "frozen_in"]

FROZEN = "FROZEN"


def frozen_in(text: str) -> UserFrozen:
    """The error that an answer of a script is."""
    user_id = decode_user(text.removeprefix(f"{FROZEN} ").split(" ", 1)[0].encode())
    return UserFrozen(
        f"user {user_id!r} stands still, as it is moved or exported, or its import is not complete", user_id
    )
