"""What a user has, by the form of its keys: what goes along as records, and in which order."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

__all__ = ["KINDS", "LANES", "MOVED_KINDS", "RANKS", "Kind", "Part"]


class Part(StrEnum):
    """What stands behind the user in the name of a key."""

    NONE = ""
    TASK = "id"
    BATCH = "b"
    HASH = "a"
    DAY = "day"
    SPACE = "ns"
    SCHEDULE = "s"
    LIMIT = "limit"


class Kind(NamedTuple):
    """Keys of one form: ``name:<u>`` or ``name:<u>:<part>``. redis_type: what they are in Redis."""

    name: str
    redis_type: str
    part: Part = Part.NONE


_OF_TASKS = (
    Kind("errors", "list", Part.TASK),
    Kind("task", "hash", Part.TASK),
    Kind("body", "string", Part.TASK),
    Kind("result", "string", Part.TASK),
    Kind("ends", "string", Part.TASK),
    Kind("children", "set", Part.TASK),
    Kind("needs", "set", Part.TASK),
    Kind("uses", "set", Part.TASK),
    Kind("feeds", "set", Part.TASK),
    Kind("informed", "set", Part.TASK),
    Kind("chunks", "stream", Part.TASK),
    Kind("collected", "list", Part.TASK),
)
_OF_THE_USER = (
    Kind("unique", "string", Part.HASH),
    Kind("batch", "hash", Part.BATCH),
    Kind("batch-tasks", "set", Part.BATCH),
    Kind("batches", "zset"),
    Kind("announcements", "list"),
    Kind("collecting", "hash"),
    Kind("xcom", "hash", Part.SPACE),
    Kind("schedule", "hash", Part.SCHEDULE),
    Kind("schedules", "zset"),
    Kind("user", "hash"),
    Kind("metrics", "string"),
    Kind("usage", "hash", Part.DAY),
)
_PLACES = (
    Kind("dead", "zset"),
    Kind("lapsing", "zset"),
    Kind("expiring", "zset"),
    Kind("deferred", "set"),
    Kind("scheduled", "zset"),
    Kind("critical", "zset"),
    Kind("normal", "zset"),
)
"""Behind the tasks that are in them: what follows from a place needs its task."""
_RULES = (Kind("policy", "string"), Kind("limit", "hash", Part.LIMIT))
"""At last, by the calls that set them."""

KINDS = {kind.name: kind for kind in (*_OF_TASKS, *_OF_THE_USER, *_PLACES, *_RULES)}
"""In the order of a stream."""
RANKS = {name: rank for rank, name in enumerate(KINDS)}

LANES = ("critical", "normal")
_COUNTED = (Kind("bytes", "hash"), Kind("bytes-expiring", "zset"), Kind("xcom-bytes", "hash"))
_STARTS = (Kind("limit-rate", "string", Part.LIMIT),)
_DELIVERIES = tuple(Kind(f"{lane}-stream", "deliveries") for lane in LANES)
MOVED_KINDS = KINDS | {kind.name: kind for kind in (*_COUNTED, *_STARTS, *_DELIVERIES)}
"""Of a move to another partition, in their order: with what runs, which is last, as its workers renew it until then."""
