"""What decides when a task of one partition is served, beside what waits in the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fairque.redis.asking import Answers
from fairque.redis.merges.measures import merged_metrics

__all__ = ["merged_explanation"]

_OF_ALL = (b"started", b"taken")


def merged_explanation(home: Sequence[Any], others: Answers) -> list[Any]:
    """What explain.lua tells of the user where it lives, with what was measured of the whole queue, and `elsewhere`: of
    each other partition the offset of its tags, and the line of those who are ready there.
    """
    found = _by_name(home)
    told = [_by_name(reply) for reply in others.replies]
    found[b"queue_metrics"] = merged_metrics([each[b"queue_metrics"] for each in (found, *told)])
    for name in _OF_ALL:
        found[name] = sum(int(each[name] or 0) for each in (found, *told))
    found[b"elsewhere"] = [[each[b"offset"], each[b"lines"][-1]] for each in told]
    return [part for item in found.items() for part in item]


def _by_name(reply: Sequence[Any]) -> dict[bytes, Any]:
    return dict(zip(reply[::2], reply[1::2], strict=True))
