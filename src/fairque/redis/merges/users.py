"""Users of several partitions together. One that is moved at that moment may be in two, and comes once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain, zip_longest
from typing import Any

from fairque.redis import arguments
from fairque.redis.asking import Answers

__all__ = ["merged_active", "merged_holders", "merged_names", "merged_running"]

_FIELDS = 6
"""Of a task that runs."""


def merged_active(asked: arguments.Active, answers: Answers) -> list[bytes]:
    return list(dict.fromkeys(_in_turn(answers.replies)))[: asked.most]


def merged_holders(asked: arguments.Holders, answers: Answers) -> list[Any]:
    """The first of each, then the second ones: how many each holds is not told."""
    names = list(dict.fromkeys(_in_turn(reply[1:] for reply in answers.replies)))
    is_part = any(reply[0] for reply in answers.replies)
    return [int(is_part or len(names) > asked.most), *names[: asked.most]]


def merged_names(asked: arguments.UserNames, answers: Answers) -> list[Any]:
    """In the order in which a sorted set has them from its end."""
    rows = [row for reply in answers.replies for row in zip(reply[1::2], reply[2::2], strict=True)]
    rows.sort(key=lambda row: (float(row[1]), row[0]), reverse=True)
    rows = list({row[0]: row for row in reversed(rows)}.values())[::-1]
    return [sum(reply[0] for reply in answers.replies), *chain.from_iterable(rows[: asked.most])]


def merged_running(asked: arguments.Running, answers: Answers) -> list[Any]:
    rows = _in_turn([reply[at : at + _FIELDS] for at in range(2, len(reply), _FIELDS)] for reply in answers.replies)
    tasks = list({(row[0], row[1]): row for row in rows}.values())
    is_part = any(reply[1] for reply in answers.replies) or len(tasks) > asked.most or bool(answers.missing)
    now = max(reply[0] for reply in answers.replies)
    return [now, int(is_part), *chain.from_iterable(tasks[: asked.most])]


def _in_turn(lists: Iterable[Sequence[Any]]) -> Iterable[Any]:
    """The first of each, the second of each, and so on: no partition's many hide those of others."""
    return (each for row in zip_longest(*lists) for each in row if each is not None)
