"""Policies and limits of several partitions together."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fairque.redis import arguments
from fairque.redis.asking import Answers

__all__ = ["merged_governed"]

_RUNNING, _PAUSED = 4, 5
"""Where a limit has how many run, and whether it is paused."""
_WHERE = 2
"""What a partition says of whom another one may have as well."""


def merged_governed(asked: arguments.Governed, answers: Answers) -> list[list[Any]]:
    """In the order of their names."""
    rows = [row for reply in answers.replies for row in reply]
    found = _limits(rows) if asked.index == "limit-keys" else _policies(rows)
    return [found[name] for name in sorted(found)[: asked.most]]


def _policies(rows: Iterable[list[Any]]) -> dict[bytes, list[Any]]:
    """Of whom two partitions have, that of where it lives, or is about to."""
    found: dict[bytes, list[Any]] = {}
    for row in rows:
        if (known := found.get(row[0])) is None or row[_WHERE:] < known[_WHERE:]:
            found[row[0]] = row
    return found


def _limits(rows: Iterable[list[Any]]) -> dict[bytes, list[Any]]:
    """One that is told to all partitions comes once, with what runs in all of them."""
    found: dict[bytes, list[Any]] = {}
    for name, told in rows:
        _, known = found.setdefault(name, [name, told])
        if known is not told:
            known[_RUNNING] += told[_RUNNING]
            known[_PAUSED] = max(known[_PAUSED], told[_PAUSED])
    return found
