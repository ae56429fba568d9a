"""`TaskLimit`: a limit that a task has, and how it stands at it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from fairque.limit import key_in
from fairque.policy import next_start_us
from fairque.queue.explanation import Reason, Waiting

__all__ = ["TaskLimit", "limit_in"]


class TaskLimit(msgspec.Struct, frozen=True, kw_only=True):
    """`name` is that of the key in Redis. Of others there are but numbers: whoever asks may not know who they are.

    Attributes:
        most: How many may run at once, None: any number.
        interval_us: Between two starts, None where there is no rate.
        running: How many run, and `running_own` how many of these are of the task's user (None: very many run).
        let_in: How many have a place in hand, and have not started.
        users: How many wait for it by turns.
        ahead: Tasks that wait for it before this one.
        has_place: Whether the task has one in hand.
        is_paused: Whether nothing of it is started.
    """

    name: str
    most: int | None
    interval_us: float | None
    burst: float
    tat_us: float
    running: int
    running_own: int | None
    let_in: int
    users: int
    ahead: int
    has_place: bool
    is_paused: bool = False

    @property
    def key(self) -> str:
        return key_in(self.name)

    @property
    def is_full(self) -> bool:
        return self.most is not None and self.running + self.let_in >= self.most

    def opens_ms(self, now_ms: int) -> float | None:
        """When its rate lets the next one start, None where that is now."""
        if self.interval_us is None:
            return None
        at_ms = next_start_us(self.tat_us, self.interval_us, self.burst) / 1000
        return at_ms if at_ms > now_ms else None

    def holds_back(self, now_ms: int) -> bool:
        """Whether a task that waits in its lane will have to wait for it."""
        return self.is_paused or (
            not self.has_place and (self.is_full or self.users > 0 or self.opens_ms(now_ms) is not None)
        )

    def waiting(self, now_ms: int) -> Waiting:
        if self.is_paused:
            return Waiting(Reason.PAUSED, f"tasks {self.key!r} are paused, of all users")
        opens_ms = self.opens_ms(now_ms)
        by_turns = f"users that wait for it take turns, {self.users} of them" if self.users else "nobody waits for it"
        if opens_ms is not None:
            return Waiting(Reason.LIMIT, f"as many {self.key!r} were started as may; {by_turns}", opens_ms / 1000)
        if not self.is_full:
            return Waiting(Reason.LIMIT, f"others were at {self.key!r} before it; {by_turns}")
        taken = f"{self.running + self.let_in} of {self.most}{self._whose()}"
        return Waiting(Reason.LIMIT, f"as many {self.key!r} run as may, {taken}; {by_turns}")

    def _whose(self) -> str:
        if self.running_own is None or not self.running:
            return ""
        return f" ({self.running_own} of its user, {self.running - self.running_own} of others)"

    def seconds(self, now_ms: int, run_seconds: float | None, more_ahead: int) -> float | None:
        """Until the task may start, where tasks of the key run for so long; None where that is not known.

        Args:
            more_ahead: Tasks of its user that come to the limit before it.
        """
        if self.is_paused:
            return None
        if self.has_place:
            return 0.0
        ahead, found = self.ahead + more_ahead, 0.0
        if self.interval_us is not None:
            first_us = next_start_us(max(self.tat_us, now_ms * 1000), self.interval_us, self.burst)
            found = (first_us + (ahead + self.let_in) * self.interval_us) / 1e6 - now_ms / 1000
        if self.most is None:
            return max(0.0, found)
        ends = ahead + 1 - (self.most - self.running - self.let_in)
        if ends > 0 and (run_seconds is None or not self.most):
            return None
        return max(0.0, found, ends * (run_seconds or 0.0) / max(1, self.most))


def limit_in(row: Sequence[Any]) -> TaskLimit:
    """As the script tells it; '' is none."""
    name, most, interval_us, burst, tat, running, own, let_in, users, ahead_own, ahead_others, has_place, paused = row
    return TaskLimit(
        name=name.decode(),
        most=int(most) if most != b"" else None,
        interval_us=float(interval_us) if interval_us != b"" else None,
        burst=float(burst or 1),
        tat_us=float(tat),
        running=running,
        running_own=own if own != b"" else None,
        let_in=let_in,
        users=users,
        ahead=ahead_own + ahead_others,
        has_place=bool(has_place),
        is_paused=bool(paused),
    )
