"""`ReadyLine`: those who are ready to be served, and what of them is served before somebody else."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

__all__ = ["ReadyLine", "ReadyMember", "Services", "line_elsewhere", "line_in"]

_LEAST_COST = 1e-3


class Services(NamedTuple):
    """So many, and what they take together: their cost, and how many seconds they run."""

    number: float = 0.0
    cost: float = 0.0
    seconds: float = 0.0

    def plus(self, other: Services) -> Services:
        return Services(self.number + other.number, self.cost + other.cost, self.seconds + other.seconds)

    def times(self, factor: float) -> Services:
        return Services(self.number * factor, self.cost * factor, self.seconds * factor)


class ReadyMember(NamedTuple):
    """A user or a group. `service` is one of it, of a group in the mean of those in it."""

    name: str
    tag: float
    weight: float
    backlog: int
    service: Services

    def until(self, tag: float, own: str) -> Services:
        """Those until `own` comes before it, which has this tag then. Of equal tags, names decide."""
        if (self.tag, self.name) > (tag, own):
            return Services()
        if not self.service.cost:
            return self.service.times(self.backlog)
        steps = (tag - self.tag) * self.weight / self.service.cost
        return self.service.times(min(self.backlog, math.floor(steps) + 1 if self.name < own else math.ceil(steps)))


class ReadyLine(NamedTuple):
    """The first members of a line were looked at, of the others there is but the number.

    `own` is the one that is asked about, a user or a group that it is in; `before` are those in front of it. In a line
    of another partition (`is_elsewhere`) it is not itself.
    """

    own: str
    members: Sequence[ReadyMember]
    size: int
    before: int
    is_elsewhere: bool = False

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

    def served_before(self, tag: float, *, is_first: bool) -> Services:
        """Services of the others until `own` has the lowest tag. `is_first`: it waits for no service of its own.

        Tags of those who are ready lie about one service apart at most: of those who were not looked at, the ones
        in front are served once before it, and before a later service of its own all are, as often as the others.
        """
        others = [member for member in self.members if member.name != self.own]
        seen = _sum(member.until(tag, self.own) for member in others)
        once = _sum(member.service for member in others).times(1 / max(1, len(others)))
        if is_first:
            is_beyond = not others or (others[-1].tag, others[-1].name) < (tag, self.own)
            return seen.plus(once.times(max(0, self.before - len(others)) if is_beyond else 0))
        unseen = max(0, self.size - (not self.is_elsewhere) - len(others))
        each = seen.times(1 / max(1, len(others)))
        return seen.plus((each if each.number > 1 else once).times(unseen))


def line_elsewhere(usual: Services, own: str, ahead: float, line: Sequence[Any]) -> ReadyLine:
    """That of another partition, whose tags are that far ahead; all of it may be in front of `own`."""
    _, rows, size, _ = line
    members = [member._replace(tag=member.tag + ahead) for member in (_member(row, usual) for row in rows)]
    return ReadyLine(own, members, size, size, is_elsewhere=True)


def line_in(usual: Services, own: bytes, rows: Sequence[Any], size: int, before: int) -> ReadyLine:
    """From what the script found; `usual` is a service of somebody of whom nothing is known."""
    return ReadyLine(own.decode(), [_member(row, usual) for row in rows], size, before)


def _member(row: Sequence[Any], usual: Services) -> ReadyMember:
    name, tag, weight, *rest = row
    backlog, service = _of_group(usual, *rest) if name.startswith(b"@") else _of_user(usual, *rest)
    return ReadyMember(name.decode(), float(tag), float(weight), backlog, service)


def _of_user(usual: Services, backlog: int, cost: bytes, seconds: bytes) -> tuple[int, Services]:
    return backlog, Services(1, float(cost or usual.cost), float(seconds or usual.seconds))


def _of_group(usual: Services, rows: Sequence[Any], size: int) -> tuple[int, Services]:
    """Its members are served as often as their weights and costs let them; those not looked at are like the others."""
    members = [_member(row, usual) for row in rows]
    if not members:
        return size, usual
    backlog = math.ceil(sum(member.backlog for member in members) * size / len(members))
    often = _sum(member.service.times(member.weight / max(member.service.cost, _LEAST_COST)) for member in members)
    return backlog, often.times(1 / often.number)


def _sum(services: Iterable[Services]) -> Services:
    total = Services()
    for each in services:
        total = total.plus(each)
    return total
