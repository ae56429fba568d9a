"""Where the partitions of a queue lie among the slots of a cluster, and in which of them a user lives."""

from __future__ import annotations

import hashlib
import re
from binascii import crc_hqx
from functools import lru_cache

__all__ = ["MOST_PARTITIONS", "partition_of", "queue_in_tag", "tag_of_copy", "tags_of"]

MOST_PARTITIONS = 1024
"""A sixteenth of the slots of a cluster: with more, two could not lie apart."""
SLOTS = 16384
_MOST_TRIES = 1000
_TOLERATED = 20
"""A slot is near enough to its place when it is no further away than this part of what lies between two."""
_TAG = re.compile(r"(.+)/\d+~\d+")


@lru_cache(maxsize=256)
def tags_of(queue: str, count: int) -> tuple[str, ...]:
    """The hash tags of all partitions of a queue: ``queue/3~17`` is the third with the name that was tried as the 17th.

    The slot of partition `i` is near ``(i + ½) · 16384 / count``, so that nodes that share the slots evenly share the
    partitions evenly. Plain names fall at random: of 16, one of three nodes had 8.
    """
    return tuple(_tag(queue, at, (2 * at + 1) * SLOTS / (2 * count), SLOTS / count / _TOLERATED) for at in range(count))


def _tag(queue: str, at: int, place: float, tolerated: float) -> str:
    begin = f"{queue}/{at}~"
    begun = crc_hqx(begin.encode(), 0)
    nearest, best = float(SLOTS), 0
    for tried in range(_MOST_TRIES):
        away = abs(crc_hqx(b"%d" % tried, begun) % SLOTS - place)
        if away <= tolerated:
            return f"{begin}{tried}"
        if away < nearest:
            nearest, best = away, tried
    return f"{begin}{best}"


@lru_cache(maxsize=256)
def tag_of_copy(queue: str) -> str:
    """Where a queue with partitions says once more how many it has: ``queue/0~1017``, which none of them is called.

    It depends on the name of the queue alone, so that whoever knows nothing of it finds it; and its slot lies half of
    all slots away from that of the queue, so that both are gone only where two nodes are.
    """
    begin = f"{queue}/0~"
    begun, place = crc_hqx(begin.encode(), 0), (crc_hqx(queue.encode(), 0) + SLOTS // 2) % SLOTS
    tried = range(_MOST_TRIES, 2 * _MOST_TRIES)
    return f"{begin}{min(tried, key=lambda each: _distance(crc_hqx(b'%d' % each, begun) % SLOTS, place))}"


def _distance(slot: int, place: int) -> int:
    away = abs(slot - place)
    return min(away, SLOTS - away)


def queue_in_tag(tag: str) -> str:
    """The queue of a partition. The tag of a queue is the queue itself: no name may end as tags of partitions do."""
    found = _TAG.fullmatch(tag)
    return found[1] if found else tag


@lru_cache(maxsize=65536)
def partition_of(user: str, count: int) -> int:
    """In which of so many partitions a user lives, by its name in Redis. It is the same for ever, in every process."""
    digest = hashlib.blake2b(user.encode(), digest_size=8).digest()
    return int.from_bytes(digest) % count
