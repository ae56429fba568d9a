"""Users of Redis with the rules of a role, and what a server has denied them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from fairque.redis.keys import Keys
from fairque.redis.role import rules_of

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["denials", "user_with", "words_of"]

PASSWORD = "secret"


def words_of(queue: str, *roles: str) -> tuple[str, ...]:
    """What these roles are permitted."""
    return rules_of(roles, Keys(queue)).words


@contextmanager
def user_with(execute: Callable[..., Any], url: str, name: str, words: Sequence[str]) -> Iterator[str]:
    """The URL of the server for a user that may no more than this. It is gone in the end."""
    execute("ACL", "SETUSER", name, "reset", "on", f">{PASSWORD}", *words)
    try:
        yield re.sub(r"^(\w+)://", rf"\1://{name}:{PASSWORD}@", url)
    finally:
        execute("ACL", "DELUSER", name)


def denials(execute: Callable[..., Any], name: str) -> list[str]:
    """What the server has kept of what it denied to this user, such as ``command eval``."""
    entries = [dict(zip(each[::2], each[1::2], strict=True)) for each in execute("ACL", "LOG")]
    return sorted(
        f"{entry[b'reason'].decode()} {entry[b'object'].decode()}"
        for entry in entries
        if entry[b"username"].decode() == name
    )
