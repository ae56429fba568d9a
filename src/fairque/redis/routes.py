"""To which partition a call of a script goes."""

from __future__ import annotations

from fairque.redis.arguments import Arguments

__all__ = ["by_user"]


def by_user(arguments: Arguments) -> str:
    """Whose tasks it is about. What is about those of many is divided before it comes to a script."""
    user: str | None = getattr(arguments, "user", None)
    if user is None:
        raise NotImplementedError(f"{arguments.script} is about no single user, and nobody has divided it")
    return user
