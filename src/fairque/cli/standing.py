"""How users stand: what holds them back, and whether they get what they are entitled to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any

import msgspec

from fairque import Share, Shares, UserInfo
from fairque.cli.times import NOTHING

__all__ = ["FLAGS", "MOST_BEHIND", "Standing", "standings"]

FLAGS = "paused, breaker (open), probing (after one), rate, limit (of what may run), noisy, starved"
MOST_BEHIND = 60.0
"""Seconds for which one waits who is called starved: one that has just come was not served yet."""


class Standing(msgspec.Struct, frozen=True):
    """`flags`: see `FLAGS`."""

    share: Share | None
    flags: tuple[str, ...]

    @classmethod
    def of(cls, user: UserInfo, share: Share | None, now: float) -> Standing:
        return cls(share, (*_held_by(user, now), *_verdict(user, share)))

    @property
    def text(self) -> str:
        return ", ".join(self.flags) or NOTHING

    def beside(self, user: UserInfo) -> dict[str, Any]:
        """The user with its standing, as one for JSON."""
        return msgspec.structs.asdict(user) | msgspec.structs.asdict(self)


def standings(users: Iterable[UserInfo], shares: Shares, now: float) -> Mapping[str, Standing]:
    """By user id."""
    known = {share.user_id: share for share in shares.users}
    return {user.user_id: Standing.of(user, known.get(user.user_id), now) for user in users}


def _held_by(user: UserInfo, now: float) -> Iterator[str]:
    paused, most = user.policy.paused, user.policy.max_running
    is_paused = paused is True or (isinstance(paused, datetime) and paused.timestamp() > now)
    is_open = user.breaker_open_until is not None and user.breaker_open_until > now
    if is_paused:
        yield "paused"
    if user.policy.breaker is not None and user.breaker_open_until:
        yield "breaker" if is_open else "probing"
    if not is_paused and not is_open and user.parked_until is not None and user.parked_until > now:
        yield "rate"
    if most is not None and user.queued and user.started >= most:
        yield "limit"


def _verdict(user: UserInfo, share: Share | None) -> Iterator[str]:
    if share is not None and share.verdict == "noisy":
        yield "noisy"
    if share is not None and share.verdict == "starved" and (user.wait_seconds or 0.0) > MOST_BEHIND:
        yield "starved"
