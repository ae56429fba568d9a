"""Schedules of several partitions together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fairque.redis import arguments

__all__ = ["merged_page", "merged_schedules"]


def merged_schedules(replies: Sequence[Sequence[Any]]) -> list[Any]:
    """Of named ones, each of which is in one partition, or where its user is moved at that moment in two."""
    rows = {row[0]: row for reply in replies for row in reply[2:]}
    return [max(reply[0] for reply in replies), b"", *rows.values()]


def merged_page(asked: arguments.Schedules, replies: Sequence[Sequence[Any]]) -> list[Any]:
    """By user and id. What lies behind the end of one partition's page, others must not have passed."""
    ends = [reply[1] for reply in replies if reply[1]]
    rows = sorted({_member(row): row for reply in replies for row in reply[2:]}.items())
    if ends:
        rows = [each for each in rows if each[0] <= min(ends)]
    then = min(ends, default=b"")
    if len(rows) > asked.most:
        rows = rows[: asked.most]
        then = rows[-1][0]
    return [max(reply[0] for reply in replies), then, *(row for _, row in rows)]


def _member(row: Sequence[Any]) -> bytes:
    name, _, flat = row
    user: bytes = flat[flat.index(b"user") + 1]
    return b"%b:%b" % (user, name)
