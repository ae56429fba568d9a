"""Dead letters of several partitions together."""

from __future__ import annotations

from typing import Any

from fairque.redis import arguments
from fairque.redis.asking import Answers

__all__ = ["merged_kinds", "merged_letters"]


def merged_letters(asked: arguments.Dead, answers: Answers) -> list[list[bytes]]:
    """The oldest first, in the order of the sorted set that one queue has of them.

    Those of a user that is moved at that moment may be in two partitions, and come once.
    """
    rows = list({(row[0], row[1]): row for reply in answers.replies for row in reply}.values())
    rows.sort(key=lambda row: (int(row[2]), b"%b:%b" % (row[0], row[1])))
    return rows[: asked.most]


def merged_kinds(_: arguments.DeadKinds, answers: Answers) -> list[Any]:
    kinds: dict[bytes, list[Any]] = {}
    for reply in answers.replies:
        for at in range(2, len(reply), 4):
            kind, count, oldest, latest = reply[at : at + 4]
            known = kinds.setdefault(kind, [0, oldest, latest])
            known[0] += count
            known[1], known[2] = min(known[1], oldest, key=int), max(known[2], latest, key=int)
    now, letters = max(reply[0] for reply in answers.replies), sum(reply[1] for reply in answers.replies)
    return [now, letters, *(part for kind, row in kinds.items() for part in (kind, *row))]
