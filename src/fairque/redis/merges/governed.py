"""Policies and limits of several partitions together."""

from __future__ import annotations

from typing import Any

from fairque.redis import arguments
from fairque.redis.asking import Answers

__all__ = ["merged_governed"]

_RUNNING, _PAUSED = 4, 5
"""Where a limit has how many run, and whether it is paused."""


def merged_governed(asked: arguments.Governed, answers: Answers) -> list[list[Any]]:
    """In the order of their names. A limit that is told to all partitions comes once, with what runs in all of them."""
    found: dict[bytes, Any] = {}
    for reply in answers.replies:
        for name, told in reply:
            if name not in found or asked.index != "limit-keys":
                found[name] = told
                continue
            known = found[name]
            known[_RUNNING] += told[_RUNNING]
            known[_PAUSED] = max(known[_PAUSED], told[_PAUSED])
    return [[name, found[name]] for name in sorted(found)[: asked.most]]
