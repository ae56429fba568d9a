"""`UserStatus`: what holds a user back, and whether it gets what it is entitled to."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any

import msgspec

from fairque.counted import counted
from fairque.models import UserInfo
from fairque.queue.explanation import Reason, Waiting, span
from fairque.queue.shares import Share, Shares, is_starved

__all__ = ["UserStatus", "user_statuses"]

_FLAGS = {Reason.PAUSED: "paused", Reason.BREAKER: "breaker", Reason.RATE: "rate", Reason.USER_LIMIT: "limit"}


class UserStatus(msgspec.Struct, frozen=True):
    """What a user meets now.

    `share` is None where it had nothing to do lately. `flags` are single words: paused, breaker (nothing is started),
    probing (a breaker lets one task try), rate, limit (as much runs as may), noisy and starved, see `Share`; a user is
    starved when it has waited for a minute as well. `holds` says what of its policy holds it back, and until when.
    """

    share: Share | None
    flags: tuple[str, ...]
    holds: tuple[Waiting, ...] = ()

    @classmethod
    def of(cls, user: UserInfo, share: Share | None, now: float, slots: int = 0) -> UserStatus:
        """`slots` are those of all workers that are heard of, of which a `max_share` is a part; 0: not known."""
        holds = tuple(_holds(user, now, slots))
        held_by = (_flag(hold) for hold in holds)
        return cls(share, (*held_by, *_verdict(user, share)), holds)

    def beside(self, user: UserInfo) -> dict[str, Any]:
        """The user with its status, as one for JSON."""
        return msgspec.structs.asdict(user) | msgspec.structs.asdict(self)


def user_statuses(users: Iterable[UserInfo], shares: Shares, now: float, slots: int = 0) -> Mapping[str, UserStatus]:
    """By user id."""
    known = {share.user_id: share for share in shares.users}
    return {user.user_id: UserStatus.of(user, known.get(user.user_id), now, slots) for user in users}


def _flag(hold: Waiting) -> str:
    return "probing" if hold.reason is Reason.BREAKER and hold.until is None else _FLAGS[hold.reason]


def _holds(user: UserInfo, now: float, slots: int) -> Iterator[Waiting]:
    paused = user.policy.paused
    is_paused = paused is True or (isinstance(paused, datetime) and paused.timestamp() > now)
    is_open = user.breaker_open_until is not None and user.breaker_open_until > now
    if isinstance(paused, datetime) and is_paused:
        yield Waiting(Reason.PAUSED, f"paused for another {span(paused.timestamp() - now)}", paused.timestamp())
    elif is_paused:
        yield Waiting(Reason.PAUSED, "paused until it is resumed")
    if user.policy.breaker is not None and user.breaker_open_until:
        yield _by_breaker(user.breaker_open_until, now)
    if not is_paused and not is_open and user.parked_until is not None and user.parked_until > now:
        left = span(user.parked_until - now)
        yield Waiting(Reason.RATE, f"may start its next task in {left} ({user.policy.rate})", user.parked_until)
    most = _most_running(user, slots)
    if user.queued and user.started >= most:
        run = counted(user.started, "task runs", "tasks run")
        yield Waiting(Reason.USER_LIMIT, f"{run}, at most {most:g} may")


def _by_breaker(open_until: float, now: float) -> Waiting:
    if open_until > now:
        text = f"too many of its tasks failed: nothing is started for {span(open_until - now)}"
        return Waiting(Reason.BREAKER, text, open_until)
    return Waiting(Reason.BREAKER, "too many of its tasks failed: one at a time shows whether they still do")


def _most_running(user: UserInfo, slots: int) -> float:
    """As the scripts count it."""
    policy = user.policy
    most: float = math.inf if policy.max_running is None else policy.max_running
    if policy.max_share is None or not slots:
        return most
    return min(most, max(1, math.floor(policy.max_share * slots + 1e-9)))


def _verdict(user: UserInfo, share: Share | None) -> Iterator[str]:
    if share is not None and share.verdict == "noisy":
        yield "noisy"
    if share is not None and is_starved(user, share):
        yield "starved"
