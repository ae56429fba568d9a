"""`ReadyLine`: those who are ready to be served, and how many services come before one of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

__all__ = ["ReadyLine", "line_in"]


class Member(NamedTuple):
    """One of those who are ready: a user, or a group."""

    name: str
    tag: float
    weight: float
    backlog: int


class ReadyLine(NamedTuple):
    """Those who are ready: the first of them were looked at, of the others there is but the number.

    `before` are those in front of the one that is asked about.
    """

    members: Sequence[Member]
    size: int
    before: int

    @property
    def unseen(self) -> int:
        return max(0, self.size - len(self.members))

    @property
    def weight(self) -> float:
        """Of all together; those who were not looked at are like the others."""
        seen = sum(member.weight for member in self.members)
        return seen * self.size / len(self.members) if self.members else 0.0

    def weight_of(self, name: str, default: float) -> float:
        return next((member.weight for member in self.members if member.name == name), default)

    def tag_of(self, name: str, default: float | None = None) -> float:
        """Where it is not ready, or was not looked at, the lowest there is."""
        lowest = min((member.tag for member in self.members), default=0.0) if default is None else default
        return next((member.tag for member in self.members if member.name == name), lowest)

    def served_before(self, tag: float, own: str, cost: float, *, is_first: bool) -> int:
        """Services of the others until `own` has the lowest tag. `is_first`: it waits for no service of its own.

        Tags of those who are ready lie about one service apart at most: of those who were not looked at, the ones
        in front are served once before it, and before a later service of its own all are, as often as the others.
        """
        others = [member for member in self.members if member.name != own]
        seen = sum(_services(member, tag, own, cost) for member in others)
        if is_first:
            return seen + max(0, self.before - len(others))
        unseen = max(0, self.size - 1 - len(others))
        return seen + round(unseen * max(1.0, seen / max(1, len(others))))


def line_in(rows: Sequence[Any], line: Sequence[int]) -> ReadyLine:
    return ReadyLine([_member(*row) for row in rows], *line)


def _member(name: bytes, tag: bytes, weight: bytes, backlog: int) -> Member:
    return Member(name.decode(), float(tag), float(weight), backlog)


def _services(member: Member, tag: float, own: str, cost: float) -> int:
    """Of a member, until `own` comes before it, which has this tag then. Of equal tags, names decide."""
    if (member.tag, member.name) > (tag, own):
        return 0
    steps = (tag - member.tag) * member.weight / cost
    return min(member.backlog, math.floor(steps) + 1 if member.name < own else math.ceil(steps))
